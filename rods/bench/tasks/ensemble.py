"""A learned labeller: small networks that vote, and the thresholds that turn their votes into a label.

How an image is read:

1. Tone: background and object are mapped to 0 and 1 (`rods.bench.tasks.tone_control`), so that an affine change of
   tone changes nothing.
2. Votes: every network gives probabilities of the classes. The last class is for images that show nothing of the kind
   ("no hand", "no digit"): the networks were trained on negatives too (`rods.bench.tasks.corruptions`). So a real
   digit between 4 and 9 keeps half of its probability, and a blend of the two loses it.
3. Confidence: the probability of the likeliest class that real data may have, of every member or of their mean. It is
   compared with each threshold. An image whose confidences all reach all thresholds is valid, one where none reaches
   any is hallucinated, and every other one is uncertain.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from dnnlib.errors import UserError, shown
from dnnlib.util import atomic_write
from rods.bench.tasks.tone_control import MIN_CONTRAST, as_unit, normalise
from rods.eval.labels import combine_readings

F32 = NDArray[np.float32]

STORED = torch.bfloat16
LUMA = (0.299, 0.587, 0.114)  # ITU-R 601
HEADER = "labeller"  # the key of the file's metadata


@dataclass(frozen=True)
class EnsembleSpec:
    """What an ensemble reads and how it decides."""

    resolution: int
    classes: tuple[str, ...]  # the last one: nothing of the kind
    valid: tuple[int, ...]  # the classes that real data may have
    layers: tuple[tuple[int, int, int, int], ...]  # channels in and out, kernel, stride of each convolution
    pooled: bool  # the head sees mean and maximum of each channel; otherwise all pixels
    clip: tuple[float, float]  # of the image once background is 0 and object 1
    mirrored: bool  # each member's vote is the mean over the image and its mirror image
    unanimous: bool  # every member must reach the thresholds; otherwise their mean
    num_thresholds: int
    batch: int  # images that the networks read at a time
    members: int = 3


class Member(nn.Module):
    """Images [B, 1, H, H] in normalised tone -> logits of the classes [B, K]."""

    def __init__(self, spec: EnsembleSpec) -> None:
        super().__init__()
        self.pooled = spec.pooled
        self.layers = nn.Sequential(
            *(
                nn.Sequential(
                    nn.Conv2d(a, b, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(b), nn.SiLU(inplace=True)
                )
                for a, b, kernel, stride in spec.layers
            )
        )
        width, num_classes = spec.layers[-1][1], len(spec.classes)
        side = spec.resolution // math.prod(stride for *_, stride in spec.layers)
        self.head = (
            nn.Sequential(nn.Linear(2 * width, 64), nn.SiLU(), nn.Linear(64, num_classes))
            if spec.pooled
            else nn.Linear(width * side**2, num_classes)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.layers(x)  # [B, C, h, h]
        x = torch.cat([x.mean(dim=(2, 3)), x.amax(dim=(2, 3))], dim=1) if self.pooled else x.flatten(1)
        logits: Tensor = self.head(x)
        return logits


@dataclass(frozen=True, eq=False)
class Ensemble:
    """The members with their thresholds, least first; `facts` (JSON) say how they were made and what was measured."""

    spec: EnsembleSpec
    members: tuple[Member, ...]
    thresholds: tuple[float, ...]
    facts: Mapping[str, Any] = field(default_factory=dict)

    def probabilities(self, images: NDArray[Any]) -> F32:
        """Probabilities of the classes by each member [N, M, K]. A flat image is of the last class.

        Arguments and errors as `prepare`.
        """
        x, shows = prepare(self.spec, images)
        parts = [torch.empty(0, len(self.members), len(self.spec.classes))]
        with torch.no_grad():
            for batch in torch.split(x, self.spec.batch) if len(x) else ():
                parts.append(torch.stack([self._vote(member, batch) for member in self.members], dim=1))
        result: F32 = torch.cat(parts).numpy()
        result[~shows] = np.eye(len(self.spec.classes), dtype=np.float32)[-1]
        return result

    def _vote(self, member: Member, batch: Tensor) -> Tensor:
        if not self.spec.mirrored:
            return torch.softmax(member(batch), dim=1)
        both = torch.softmax(member(torch.cat([batch, batch.flip(3)])), dim=1)
        return both.reshape(2, len(batch), -1).mean(dim=0)

    def label(self, images: NDArray[Any]) -> NDArray[np.int8]:
        """Labels [N] (codes of `rods.eval.labels.Label`). Arguments and errors as `prepare`."""
        return self.labels_of(self.probabilities(images))

    def labels_of(self, p: F32) -> NDArray[np.int8]:
        """Labels [N] from the members' probabilities [N, M, K]."""
        votes = p if self.spec.unanimous else p.mean(axis=1, keepdims=True)
        reached = self.confidence(votes)[:, :, None] >= np.array(self.thresholds)  # [N, M or 1, T]
        return combine_readings(reached.reshape(len(p), reached.shape[1] * reached.shape[2]))

    def confidence(self, p: F32) -> F32:
        """The largest probability [...] of a class that real data may have, of probabilities [..., K]."""
        return np.asarray(p[..., list(self.spec.valid)].max(axis=-1))


def prepare(spec: EnsembleSpec, images: NDArray[Any]) -> tuple[Tensor, NDArray[np.bool_]]:
    """Images as the members see them, [N, 1, H, H] with tone normalised, and which show anything at all [N].

    images: grey [N, H, H] or [N, 1, H, H], or colours [N, 3, H, H]; uint8, or floats in -1..1; a multiple of the
    spec's resolution. Raises ValueError for other shapes, types and values.
    """
    if images.ndim == 4 and images.shape[1] == 3:
        images = np.einsum("nchw,c->nhw", images.astype(np.float32), LUMA)
        images = images / 127.5 - 1 if images.max(initial=0) > 1.5 else images
    unit = as_unit(images)
    N, H, _ = unit.shape
    R = spec.resolution
    if H % R or not H:
        raise ValueError(f"images have shape {list(images.shape)}, the labeller reads {R}x{R} or a multiple of it")
    if not N:
        return torch.empty(0, 1, R, R), np.empty(0, dtype=np.bool_)
    unit = unit.reshape(N, R, H // R, R, H // R).mean(axis=(2, 4))
    normal, contrast = normalise(unit)
    return torch.from_numpy(np.clip(normal, *spec.clip)[:, None]), contrast >= MIN_CONTRAST


def save_ensemble(path: str | os.PathLike[str], ensemble: Ensemble) -> None:
    """Writes the members as safetensors (bfloat16), with thresholds and facts in the header; atomically."""
    tensors = {
        f"{m}.{name}": (value.to(STORED) if value.is_floating_point() else value).contiguous()
        for m, member in enumerate(ensemble.members)
        for name, value in member.state_dict().items()
    }
    header = {"thresholds": list(ensemble.thresholds), "facts": dict(ensemble.facts)}
    with atomic_write(path) as temporary:
        temporary.write_bytes(save(tensors, metadata={HEADER: json.dumps(header, sort_keys=True)}))


@cache
def load_ensemble(path: str | os.PathLike[str], spec: EnsembleSpec, *, made_by: str) -> Ensemble:
    """The ensemble in a file; nothing in the file is run.

    Raises UserError for a missing file, with `made_by`, the command that makes it, and for one that holds another
    thing.
    """
    try:
        with safe_open(os.fspath(path), framework="pt") as f:
            tensors = {name: f.get_tensor(name) for name in f.keys()}  # noqa: SIM118  (it is no dictionary)
            header, tensors = _current_form(f.metadata() or {}, tensors)
        thresholds = header["thresholds"]
        if [type(t) for t in thresholds] != [float] * spec.num_thresholds or not all(0 < t <= 1 for t in thresholds):
            raise ValueError(f"expected {spec.num_thresholds} thresholds between 0 and 1")
        members = []
        for m in range(spec.members):
            member = Member(spec)
            member.load_state_dict({k: tensors.pop(f"{m}.{k}") for k in member.state_dict()})  # copies into float32
            members.append(member.eval().requires_grad_(False))
        if tensors:
            raise KeyError(next(iter(tensors)))
        return Ensemble(spec, tuple(members), tuple(thresholds), dict(header["facts"]))
    except FileNotFoundError:
        raise UserError(
            f"{path} is missing: fetch it from the project's repository, or make it with `{made_by}`"
        ) from None
    except (SafetensorError, LookupError, TypeError, ValueError, RuntimeError, RecursionError) as e:
        raise UserError(f"{path} is not a labeller of this task ({shown(str(e))}); make it with `{made_by}`") from None


def _current_form(
    metadata: Mapping[str, str], tensors: dict[str, Tensor]
) -> tuple[Mapping[str, Any], dict[str, Tensor]]:
    """Header and tensors of a file; the embedded files of hands-64r and mnist are older than `save_ensemble`."""
    if "header" in metadata:
        header = json.loads(metadata["header"])
        return {**header, "thresholds": [header["thresholds"]["low"], header["thresholds"]["high"]]}, tensors
    if "digit_labeller" in metadata:
        header = json.loads(metadata["digit_labeller"])
        renamed = {name.replace(".out.", ".head."): value for name, value in tensors.items()}
        return {**header, "thresholds": header["calibration"]["thresholds"]}, renamed
    found: Mapping[str, Any] = json.loads(metadata[HEADER])
    return found, tensors
