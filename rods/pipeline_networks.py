"""The networks of diffusers' pipelines: what each is told beside x and t, and for which latents it is made.

diffusers is not imported: what is read of a pipeline are its attributes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

Table = Tensor | Mapping[str, Tensor]


@dataclass(frozen=True)
class Asked:
    """What the tables are made for."""

    prompts: list[str]
    negative_prompt: str | None
    null_class: int | None
    pixels: int  # of an image, along a side of a latent's pixel


@dataclass(frozen=True, eq=False)
class Told:
    """What a network is told of each image, and which latents it takes.

    `tables` are the network's arguments, a row for each of `num` classes or prompts, and with `has_null` the one of an
    image without behind them. `of_size` makes more of `added_cond_kwargs` from the latents.
    """

    tables: Mapping[str, Table] = field(default_factory=dict)
    num: int = 0
    has_null: bool = False
    of_size: Callable[[Tensor], Mapping[str, Tensor | None]] | None = None
    multiple: int = 1  # of which the sides of its latents must be
    only_square: bool = False

    def check(self, x: Tensor, channels: int) -> None:
        """ValueError: latents [B, C, H, W] of another form than the network takes."""
        wanted = f"must be [B, {channels}, H, W]"
        if self.multiple > 1:
            wanted += f" with sides that {self.multiple} divides"
        if self.only_square:
            wanted += ", H = W"
        height, width = x.shape[-2:] if x.ndim == 4 else (0, 0)
        fits = 0 not in (height, width) and height % self.multiple == width % self.multiple == 0
        if not fits or x.shape[1] != channels or (self.only_square and height != width):
            raise ValueError(f"latents: {list(x.shape)}: {wanted} for this pipeline's network")


@dataclass(frozen=True, eq=False)
class Conditioned:
    """A network as model(x, t, labels) -> prediction [B, C, H, W], with whatever else it is told about each image.

    `row` is that of an image without a label in the tables; None: such an image is refused.
    """

    network: nn.Module
    told: Told
    channels: int
    row: int | None = None
    learned_variance: bool = False  # the network returns it behind the prediction, and it is cut off

    def __call__(self, x: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        self.told.check(x, self.channels)
        row = self._rows(x, labels)
        told: dict[str, Any] = {name: _of_rows(table, row) for name, table in self.told.tables.items()}
        if self.told.of_size is not None:
            told["added_cond_kwargs"] = {**told.get("added_cond_kwargs", {}), **self.told.of_size(x)}
        answer: Tensor = self.network(x, timestep=t, return_dict=False, **told)[0]
        return answer[:, : x.shape[1]] if self.learned_variance else answer

    def _rows(self, x: Tensor, labels: Tensor | None) -> Tensor:
        """The row [B] of the tables that each image takes. Raises ValueError: a label that chooses none."""
        if labels is None:
            if self.row is None and self.told.tables:
                raise ValueError(
                    "class_labels: this pipeline has several classes or prompts; choose one for each image, by its "
                    "number or its one-hot row"
                )
            return torch.full((len(x),), self.row or 0, device=x.device)
        chooses = (labels == 1).sum(1).eq(1) & (labels != 0).sum(1).eq(1)
        if not chooses.all():
            raise ValueError(
                f"class_labels: the row of image {int(chooses.logical_not().nonzero()[0])} is not one-hot, and this "
                "pipeline takes one class or prompt for each image; give a 1 among zeros, or the number of the class"
            )
        return labels.int().argmax(1)


def _of_rows(table: Table, row: Tensor) -> Tensor | dict[str, Tensor]:
    """Rows of a table, or of each of several, where the network is: a table is small."""
    if isinstance(table, Tensor):
        return table.to(row.device)[row]
    return {name: part.to(row.device)[row] for name, part in table.items()}


# -- by class ---------------------------------------------------------------------------------------------------------


def _unet(pipeline: Any, network: Any, asked: Asked) -> Told:
    _no_prompts(asked, network)
    config = network.config
    if config.class_embed_type is not None:
        raise ValueError(
            f"pipeline: class_embed_type {config.class_embed_type!r} of its network is not known; only classes"
        )
    num, null, multiple = config.num_class_embeds, asked.null_class, 2 ** (len(config.block_out_channels) - 1)
    if num is None:
        if null is not None:
            raise ValueError(f"null_class: {null}, and the network has no classes; leave it out")
        return Told(multiple=multiple)
    if null is not None and not 0 <= null < num:
        raise ValueError(f"null_class: {null} is out of range; this network has classes 0 to {num - 1}")
    classes = [k for k in range(num) if k != null]
    rows = torch.tensor([*classes, *([] if null is None else [null])])
    return Told({"class_labels": rows}, len(classes), null is not None, multiple=multiple)


def _dit(pipeline: Any, network: Any, asked: Asked) -> Told:
    _no_prompts(asked, network)
    config = network.config
    num = config.num_embeds_ada_norm
    if asked.null_class not in (None, num):
        raise ValueError(f"null_class: {asked.null_class}; that of this network is {num}: leave it out")
    return Told({"class_labels": torch.arange(num + 1)}, num, True, multiple=config.patch_size, only_square=True)


def _text_unet(pipeline: Any, network: Any, asked: Asked) -> Told:
    config = network.config
    for name in ("class_embed_type", "num_class_embeds", "time_cond_proj_dim", "encoder_hid_dim_type"):
        if config.get(name) is not None:
            raise ValueError(f"pipeline: its network has {name} = {config[name]!r}, which is not known here")
    if config.get("addition_embed_type") not in (None, "text_time"):
        raise ValueError(f"pipeline: addition_embed_type {config.addition_embed_type!r} of its network is not known")
    states, *pooled = _embeddings(pipeline, network, asked)
    num = len(states) - 1
    if config.get("addition_embed_type") is None:
        return Told({"encoder_hidden_states": states}, num, True)

    def time_ids(x: Tensor) -> dict[str, Tensor | None]:
        H, W = (asked.pixels * side for side in x.shape[2:])
        return {"time_ids": x.new_tensor([[H, W, 0, 0, H, W]]).expand(len(x), -1)}  # original size, crop, target size

    added = {"text_embeds": _wanted(pooled, network)}
    return Told({"encoder_hidden_states": states, "added_cond_kwargs": added}, num, True, time_ids)


def _sd3(pipeline: Any, network: Any, asked: Asked) -> Told:
    states, *pooled = _embeddings(pipeline, network, asked)
    tables = {"encoder_hidden_states": states, "pooled_projections": _wanted(pooled, network)}
    return Told(tables, len(states) - 1, True, multiple=network.config.patch_size)


def _pixart(pipeline: Any, network: Any, asked: Asked) -> Told:
    states, mask = _embeddings(pipeline, network, asked, negative=2)

    def size(x: Tensor) -> dict[str, Tensor | None]:
        if not network.use_additional_conditions:
            return {"resolution": None, "aspect_ratio": None}
        H, W = x.shape[2:]
        both = x.new_tensor([[asked.pixels * H, asked.pixels * W, H / W]]).expand(len(x), -1)
        return {"resolution": both[:, :2], "aspect_ratio": both[:, 2:]}

    tables = {"encoder_hidden_states": states, "encoder_attention_mask": mask}
    return Told(tables, len(states) - 1, True, size, network.config.patch_size)


KINDS: dict[str, Callable[[Any, Any, Asked], Told]] = {
    "UNet2DModel": _unet,
    "DiTTransformer2DModel": _dit,
    "UNet2DConditionModel": _text_unet,
    "SD3Transformer2DModel": _sd3,
    "PixArtTransformer2DModel": _pixart,
}
"""What each network of diffusers is told beside x and t, by its class."""
WITH_VARIANCE = ("DiTTransformer2DModel", "PixArtTransformer2DModel")
"""Networks whose pipelines cut off a learned variance without asking the scheduler."""


def kind_of(network: nn.Module) -> str:
    """The name in `KINDS` that a network goes by. Raises ValueError: none."""
    found = next((c.__name__ for c in type(network).__mro__ if c.__name__ in KINDS), None)
    if found is None:
        raise ValueError(f"pipeline: its {type(network).__name__} is not known; known are {', '.join(KINDS)}")
    return found


def _embeddings(pipeline: Any, network: Any, asked: Asked, *, negative: int = 1) -> list[Tensor]:
    """What the pipeline makes of the prompts, [n + 1, tokens, dim] and whatever else, that of the negative one last.

    `negative` is how many places in encode_prompt's answer behind the prompts' tensors those of the negative one stand.
    """
    if not asked.prompts:
        raise ValueError("prompts: this pipeline's network reads text; give one prompt or several")
    if asked.null_class is not None:
        raise ValueError(f"null_class: {asked.null_class}, and this network reads prompts; give a negative_prompt")
    n, negatives = len(asked.prompts), {}
    if asked.negative_prompt is not None:
        negatives = {"negative_prompt": [asked.negative_prompt] * n}
    others = {name: None for name in ("prompt_2", "prompt_3") if name in signature(pipeline.encode_prompt).parameters}
    with torch.no_grad():
        found = pipeline.encode_prompt(
            prompt=asked.prompts, **others, device=network.device, num_images_per_prompt=1,
            do_classifier_free_guidance=True, **negatives,
        )  # fmt: skip
    pairs = [(i, i + negative) for i in range(len(found)) if i % (2 * negative) < negative]
    return [torch.cat([found[own], found[null][:1]]).to(network.dtype) for own, null in pairs]


def _wanted(pooled: list[Tensor], network: Any) -> Tensor:
    if not pooled:
        raise ValueError(
            f"pipeline: its encode_prompt makes no pooled embeddings, which {type(network).__name__} needs"
        )
    return pooled[0]


def _no_prompts(asked: Asked, network: Any) -> None:
    if asked.prompts or asked.negative_prompt is not None:
        raise ValueError(f"prompts: a {type(network).__name__} reads no text; leave them out")
