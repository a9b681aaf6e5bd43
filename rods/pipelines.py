"""Pipelines of diffusers as denoisers: their network, scheduler's table, embeddings and autoencoder, in our own loop.

    D = from_diffusers(DiTPipeline.from_pretrained(...), guidance=4)
    done = restart_sampler(D, latents, labels, ...)
    images = decoded(D, done.images)

A host's callback cannot take a step back, and a scheduler sees no network: so a pipeline's own loop is of no use here.
diffusers is not imported: what is read of a pipeline are its attributes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from rods.denoiser import BoundDenoiser
from rods.gate import fingerprint
from rods.guidance import Guided, OfMain, guided
from rods.latents import Vae
from rods.schedules import SigmaWindow
from rods.types import AnyDenoiser
from rods.wrappers import FunctionDenoiser, from_edm_diffusers, from_flow, from_vp_steps

Table = Tensor | Mapping[str, Tensor]
NO_ROW = "class_labels: this pipeline has several classes or prompts; choose one for each image by its one-hot row"


@dataclass(frozen=True, eq=False)
class Conditioned:
    """A network as model(x, t, labels) -> prediction [B, C, H, W], with whatever else it is told about each image.

    `tables` are the network's other arguments, a row for each class or prompt, the null one last. `row` is the one
    of an image without a label; None: such an image is refused.
    """

    network: nn.Module
    tables: Mapping[str, Table]
    row: int | None = None
    learned_variance: bool = False  # the network returns it behind the prediction, and it is cut off

    def __call__(self, x: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        if labels is None and self.row is None and self.tables:
            raise ValueError(NO_ROW)
        row = torch.full((len(x),), self.row or 0, device=x.device) if labels is None else labels.argmax(1)
        told = {name: _rows(table, row) for name, table in self.tables.items()}
        answer: Tensor = self.network(x, timestep=t, return_dict=False, **told)[0]
        return answer[:, : x.shape[1]] if self.learned_variance else answer


@dataclass(frozen=True)
class Clipped(OfMain):
    """D of another denoiser, clipped to [-limit, limit]: what a scheduler with `clip_sample` makes of a prediction."""

    main: AnyDenoiser = field(repr=False)
    limit: float = 1.0

    def evaluate(self, denoise: BoundDenoiser, x: Tensor, sigma: Tensor) -> Tensor:
        return denoise.of(self.main)(x, sigma).clamp(-self.limit, self.limit)


def from_diffusers(
    pipeline: Any,
    *,
    prompts: str | Sequence[str] = (),
    negative_prompt: str | None = None,
    guidance: float = 1,
    interval: SigmaWindow | tuple[float, float] | None = None,
    null_class: int | None = None,
    latent_resolution: int | None = None,
) -> FunctionDenoiser | Guided | Clipped:
    """The denoiser that a pipeline of diffusers samples from, guided, with its autoencoder as the `codec`.

    Classes are labels as everywhere, one-hot rows [B, label_dim]. So are prompts, of which several can be given: row k
    is prompts[k]. A single prompt is that of every image, without labels. D is what the pipeline's scheduler computes
    as its `pred_original_sample`, at any noise level between the first and the last of its table.

    Args:
        pipeline: with a UNet2DModel, DiTTransformer2DModel, UNet2DConditionModel (Stable Diffusion, SDXL) or
            SD3Transformer2DModel, in eval mode; and a scheduler of discrete steps, of flow matching or of EDM.
        prompts: what `pipeline.encode_prompt` is given, for networks that read text.
        negative_prompt: what guidance leads away from; None: what the pipeline takes then.
        guidance: w of D = D_null + w (D - D_null), which pipelines call guidance_scale; 1: none.
        interval: the noise levels at which it is guided; None: all of them.
        null_class: the class that a UNet2DModel was trained with for images without one, where there is such a class.
        latent_resolution: side of the latents; None: that of the network's configuration.
    Returns:
        A denoiser with `label_dim`, `sigma_min`, `sigma_max`. Cost of D: 1 F, guided 2 F.
    Raises:
        ValueError: a network, scheduler or option of another kind, named in one line.
    """
    network = _network(pipeline)
    kind = next((KINDS[c.__name__] for c in type(network).__mro__ if c.__name__ in KINDS), None)
    if kind is None:
        raise ValueError(f"pipeline: its {type(network).__name__} is not known; known are {', '.join(KINDS)}")
    config = network.config
    size = latent_resolution or config.sample_size
    if not isinstance(size, int):
        raise ValueError(f"latent_resolution: the network's sample_size is {size}; give the side of its square latents")
    learned = _has_learned_variance(pipeline, network)
    codec = _codec(pipeline, size)
    asked = _Asked([prompts] if isinstance(prompts, str) else list(prompts), negative_prompt, null_class,
                   size if codec is None else codec.img_resolution)  # fmt: skip
    tables, num, has_null = kind(pipeline, network, asked)

    def denoiser(row: int | None, label_dim: int) -> FunctionDenoiser:
        model = Conditioned(network, tables, row, learned)
        D = _by_scheduler(pipeline.scheduler, model, label_dim, size, config.in_channels, network.dtype)
        return replace(D, network=network, codec=codec)

    only = 0 if num == 1 else num if has_null else None
    D: FunctionDenoiser | Guided = denoiser(only, num if num > 1 else 0)
    if guidance != 1:
        if not has_null:
            raise ValueError(
                f"guidance: {guidance:g}, and this pipeline has neither prompts nor a null class to lead away from; "
                "give null_class, or guide its denoiser by another one (rods.guided)"
            )
        D = guided(D, denoiser(num, 0), guidance, interval)
    scheduler = pipeline.scheduler.config
    return Clipped(D, float(scheduler.get("clip_sample_range", 1.0))) if scheduler.get("clip_sample") else D


# -- networks ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Asked:
    """What the tables are made for."""

    prompts: list[str]
    negative_prompt: str | None
    null_class: int | None
    image_resolution: int


_Tables = tuple[Mapping[str, Table], int, bool]  # tables, classes or prompts, whether a null row stands behind them


def _unet(pipeline: Any, network: Any, asked: _Asked) -> _Tables:
    _no_prompts(asked, network)
    config = network.config
    if config.class_embed_type is not None:
        raise ValueError(
            f"pipeline: class_embed_type {config.class_embed_type!r} of its network is not known; only classes"
        )
    num, null = config.num_class_embeds, asked.null_class
    if num is None:
        if null is not None:
            raise ValueError(f"null_class: {null}, and the network has no classes; leave it out")
        return {}, 0, False
    if null is not None and not 0 <= null < num:
        raise ValueError(f"null_class: {null} is out of range; this network has classes 0 to {num - 1}")
    classes = [k for k in range(num) if k != null]
    return {"class_labels": torch.tensor([*classes, *([] if null is None else [null])])}, len(classes), null is not None


def _dit(pipeline: Any, network: Any, asked: _Asked) -> _Tables:
    _no_prompts(asked, network)
    num = network.config.num_embeds_ada_norm
    if asked.null_class not in (None, num):
        raise ValueError(f"null_class: {asked.null_class}; that of this network is {num}: leave it out")
    return {"class_labels": torch.arange(num + 1)}, num, True


def _text_unet(pipeline: Any, network: Any, asked: _Asked) -> _Tables:
    config = network.config
    for name in ("class_embed_type", "num_class_embeds", "time_cond_proj_dim", "encoder_hid_dim_type"):
        if config.get(name) is not None:
            raise ValueError(f"pipeline: its network has {name} = {config[name]!r}, which is not known here")
    if config.get("addition_embed_type") not in (None, "text_time"):
        raise ValueError(f"pipeline: addition_embed_type {config.addition_embed_type!r} of its network is not known")
    states, pooled = _embeddings(pipeline, network, asked)
    if config.get("addition_embed_type") is None:
        return {"encoder_hidden_states": states}, len(states) - 1, True
    H = asked.image_resolution
    time_ids = states.new_tensor([[H, H, 0, 0, H, H]]).expand(len(states), -1)  # original size, crop, target size
    added = {"text_embeds": _wanted(pooled, network), "time_ids": time_ids}
    return {"encoder_hidden_states": states, "added_cond_kwargs": added}, len(states) - 1, True


def _sd3(pipeline: Any, network: Any, asked: _Asked) -> _Tables:
    states, pooled = _embeddings(pipeline, network, asked)
    tables = {"encoder_hidden_states": states, "pooled_projections": _wanted(pooled, network)}
    return tables, len(states) - 1, True


KINDS: dict[str, Callable[[Any, Any, _Asked], _Tables]] = {
    "UNet2DModel": _unet,
    "DiTTransformer2DModel": _dit,
    "UNet2DConditionModel": _text_unet,
    "SD3Transformer2DModel": _sd3,
}
"""What each network of diffusers is told beside x and t, by its class."""


def _embeddings(pipeline: Any, network: Any, asked: _Asked) -> tuple[Tensor, Tensor | None]:
    """Embeddings [n + 1, tokens, dim] of the prompts, the negative one last, and pooled ones [n + 1, dim]."""
    if not asked.prompts:
        raise ValueError("prompts: this pipeline's network reads text; give one prompt or several")
    if asked.null_class is not None:
        raise ValueError(f"null_class: {asked.null_class}, and this network reads prompts; give a negative_prompt")
    n, negative = len(asked.prompts), asked.negative_prompt
    others = {name: None for name in ("prompt_2", "prompt_3") if name in signature(pipeline.encode_prompt).parameters}
    with torch.no_grad():
        found = pipeline.encode_prompt(
            prompt=asked.prompts, **others, device=network.device, num_images_per_prompt=1,
            do_classifier_free_guidance=True, negative_prompt=None if negative is None else [negative] * n,
        )  # fmt: skip
    rows = [torch.cat([own, null[:1]]).to(network.dtype) for own, null in zip(found[::2], found[1::2], strict=True)]
    return rows[0], rows[1] if len(rows) > 1 else None


def _wanted(pooled: Tensor | None, network: Any) -> Tensor:
    if pooled is None:
        raise ValueError(
            f"pipeline: its encode_prompt makes no pooled embeddings, which {type(network).__name__} needs"
        )
    return pooled


def _no_prompts(asked: _Asked, network: Any) -> None:
    if asked.prompts or asked.negative_prompt is not None:
        raise ValueError(f"prompts: a {type(network).__name__} reads no text; leave them out")


def _rows(table: Table, row: Tensor) -> Tensor | dict[str, Tensor]:
    """Rows of a table, or of each of several, where the network is: a table is small."""
    if isinstance(table, Tensor):
        return table.to(row.device)[row]
    return {name: part.to(row.device)[row] for name, part in table.items()}


# -- parts of a pipeline ----------------------------------------------------------------------------------------------

READ = ("unet", "transformer", "scheduler", "vae")  # other parts of a pipeline, such as a controlnet, are not followed
PASSED_OVER = ("tokenizer", "text_encoder", "safety_checker", "feature_extractor", "image_encoder")


def _network(pipeline: Any) -> Any:
    """The network of a pipeline. Raises ValueError: parts that take part otherwise, or training mode."""
    parts = getattr(pipeline, "components", {})
    if odd := [k for k, v in parts.items() if v is not None and k not in READ and not k.startswith(PASSED_OVER)]:
        raise ValueError(
            f"pipeline: {type(pipeline).__name__} has a {odd[0]}, whose part in sampling is not known here"
        )
    network = getattr(pipeline, "unet", None) or getattr(pipeline, "transformer", None)
    if not isinstance(network, nn.Module):
        raise ValueError(f"pipeline: {type(pipeline).__name__} has no network as its unet or transformer")
    for name, part in (("network", network), ("vae", getattr(pipeline, "vae", None))):
        if part is not None and part.training:
            raise ValueError(
                f"pipeline: its {name} is in training mode, where images depend on chance; call its eval()"
            )
    return network


def _has_learned_variance(pipeline: Any, network: Any) -> bool:
    """Whether a variance stands behind the prediction, so that the pipeline, too, cuts it off."""
    says_so = "variance_type" in pipeline.scheduler.config and "learned" in str(pipeline.scheduler.config.variance_type)
    is_dit = any(c.__name__ == "DiTTransformer2DModel" for c in type(network).__mro__)
    return bool(network.config.out_channels == 2 * network.config.in_channels and (says_so or is_dit))


def _by_scheduler(
    scheduler: Any, model: Conditioned, label_dim: int, size: int, channels: int, dtype: torch.dtype
) -> FunctionDenoiser:
    """The model as D(x; sigma), by what its scheduler takes its output for. Raises ValueError: an unknown one."""
    name, config = type(scheduler).__name__, scheduler.config
    for option in ("thresholding", "invert_sigmas", "use_flow_sigmas"):
        if config.get(option):
            raise ValueError(f"pipeline: its {name} has {option}, which is not known here; use another scheduler")
    prediction = config.get("prediction_type", "epsilon")
    shape = {"img_channels": channels, "img_resolution": size, "label_dim": label_dim}
    if name.startswith("FlowMatch"):
        return from_flow(model, time_scale=config.num_train_timesteps, dtype=dtype, **shape)
    if name.startswith("EDM"):
        return from_edm_diffusers(model, prediction=prediction, sigma_data=config.sigma_data, dtype=dtype, **shape)
    if getattr(scheduler, "alphas_cumprod", None) is None or config.get("timestep_type", "discrete") != "discrete":
        raise ValueError(
            f"pipeline: its {name} is not known here; use one of discrete steps (DDIMScheduler), of flow matching "
            "(FlowMatchEulerDiscreteScheduler) or of EDM (EDMEulerScheduler)"
        )
    return from_vp_steps(model, scheduler.alphas_cumprod, prediction=prediction, dtype=dtype, **shape)


def _codec(pipeline: Any, size: int) -> Vae | None:
    """The pipeline's autoencoder, as it decodes at its end; None: it draws images."""
    vae = getattr(pipeline, "vae", None)
    if vae is None:
        return None
    config = vae.config
    factor = config.get("scaling_factor")
    if not factor:
        raise ValueError(f"pipeline: its {type(vae).__name__} has no scaling_factor: it is not an AutoencoderKL")
    if vae.dtype == torch.float16 and config.get("force_upcast"):
        raise ValueError("pipeline: its vae overflows in float16 (force_upcast); call pipeline.vae.to(torch.float32)")
    C = config.latent_channels
    mean, std = config.get("latents_mean"), config.get("latents_std")
    shift = config.get("shift_factor") or 0.0
    if mean is None or std is None:
        mean, std = [shift] * C, [1.0] * C
    scale = tuple(float(factor) / s for s in std)
    bias = tuple(-m * s for m, s in zip(mean, scale, strict=True))
    side = size * 2 ** (len(config.block_out_channels) - 1)
    return Vae(vae, scale, bias, config.out_channels, side, identity=fingerprint(vae, ("decoder",)))
