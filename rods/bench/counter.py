"""A learned counter for rendered hands: four, five or six fingers, or no hand (`spec/benchmark.md`, task 3b).

Three small networks vote. They see pictures of 64x64 whose tone is normalised away, and were trained on rendered hands
and on spoilt ones (`rods.bench.spoil`) by scripts/train_counter.py, which also measured the two thresholds and the
confusion matrix that the file carries.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
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
from rods.bench.tone import MIN_CONTRAST, as_unit, normalise
from rods.eval.labels import combine_readings
from training.model_zoo import MODELS

COUNTER = MODELS / "hands-64r-counter.safetensors"
CLASSES = ("4 fingers", "5 fingers", "6 fingers", "no hand")
FIVE, NO_HAND = 1, 3
RESOLUTION = 64
MEMBERS = 3
BATCH = 128


class CountingNet(nn.Module):
    """Normalised pictures [B, 1, 64, 64] -> logits of CLASSES [B, 4]. About .14 M parameters, 16 M multiplications."""

    def __init__(self) -> None:
        super().__init__()
        widths = ((1, 24, 5, 2), (24, 48, 3, 2), (48, 64, 3, 1), (64, 96, 3, 2), (96, 48, 3, 1))
        self.layers = nn.Sequential(
            *(
                nn.Sequential(
                    nn.Conv2d(a, b, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(b), nn.SiLU(inplace=True)
                )
                for a, b, kernel, stride in widths
            )
        )
        self.head = nn.Sequential(nn.Linear(96, 64), nn.SiLU(), nn.Linear(64, len(CLASSES)))

    def forward(self, x: Tensor) -> Tensor:
        x = self.layers(x)  # [B, 48, 8, 8]
        pooled = torch.cat([x.mean(dim=(2, 3)), x.amax(dim=(2, 3))], dim=1)
        logits: Tensor = self.head(pooled)
        return logits


@dataclass(frozen=True)
class Thresholds:
    """A member reads "five fingers" above a probability; it is asked at both."""

    low: float
    high: float


@dataclass(frozen=True)
class Counter:
    """The networks with their thresholds; `facts` is what was measured when they were trained."""

    members: tuple[CountingNet, ...]
    thresholds: Thresholds
    facts: dict[str, Any]


def prepare(images: NDArray[Any]) -> tuple[Tensor, NDArray[np.bool_]]:
    """Pictures as the networks see them, [N, 1, 64, 64] with tone normalised, and which show anything at all [N].

    images: grey [N, H, H] or [N, 1, H, H], or colours [N, 3, H, H]; uint8, or floats in -1..1; a multiple of 64 px.
    Raises ValueError for other shapes, types and values.
    """
    if images.ndim == 4 and images.shape[1] == 3:
        images = np.einsum("nchw,c->nhw", images.astype(np.float32), [0.299, 0.587, 0.114])
        images = images / 127.5 - 1 if images.max(initial=0) > 1.5 else images
    unit = as_unit(images)
    N, H, _ = unit.shape
    if H % RESOLUTION:
        raise ValueError(f"the counter reads pictures of {RESOLUTION}x{RESOLUTION} or a multiple, not {H}x{H}")
    k = H // RESOLUTION
    unit = unit.reshape(N, RESOLUTION, k, RESOLUTION, k).mean(axis=(2, 4))
    if not N:
        return torch.empty(0, 1, RESOLUTION, RESOLUTION), np.empty(0, dtype=np.bool_)
    normal, contrast = normalise(unit)
    return torch.from_numpy(np.clip(normal, -1, 2)[:, None]), contrast >= MIN_CONTRAST


def probabilities(images: NDArray[Any], counter: Counter | None = None) -> NDArray[np.float32]:
    """Probabilities of CLASSES by each member, [N, MEMBERS, 4], each the mean over a picture and its mirror image.

    Types and errors of `prepare`; without `counter`, the embedded one. A flat picture is no hand.
    """
    counter = load_counter() if counter is None else counter
    x, shows = prepare(images)
    parts = []
    with torch.no_grad():
        for batch in torch.split(x, BATCH):
            both = torch.cat([batch, batch.flip(3)])
            votes = [
                member(both).softmax(dim=1).reshape(2, len(batch), len(CLASSES)).mean(dim=0)
                for member in counter.members
            ]
            parts.append(torch.stack(votes, dim=1))
    result = torch.cat(parts).numpy() if parts else np.empty((0, len(counter.members), len(CLASSES)), np.float32)
    result[~shows] = np.eye(len(CLASSES), dtype=np.float32)[NO_HAND]
    return np.asarray(result, dtype=np.float32)


def label_rendered(images: NDArray[Any], counter: Counter | None = None) -> NDArray[np.int8]:
    """Labels [N] (codes of `rods.eval.labels.Label`); surely well: every member reads five fingers at both thresholds.

    About 5 ms a picture. Types and errors of `prepare`.
    """
    counter = load_counter() if counter is None else counter
    return labels_of(probabilities(images, counter), counter.thresholds)


def labels_of(p: NDArray[np.float32], thresholds: Thresholds) -> NDArray[np.int8]:
    """Labels [N] from the members' probabilities [N, M, 4]."""
    five = p[:, :, FIVE, None] > np.array([thresholds.low, thresholds.high])  # [N, M, 2]
    return combine_readings(five.reshape(len(p), -1))


def count_rendered(images: NDArray[Any], counter: Counter | None = None) -> NDArray[np.int64]:
    """The likeliest of CLASSES [N] by the members' mean probability."""
    return np.asarray(probabilities(images, counter).mean(axis=1).argmax(axis=1))


def save_counter(path: str | os.PathLike[str], counter: Counter) -> None:
    """Writes the networks in bfloat16, with thresholds and facts in the header."""
    tensors = {
        f"{m}.{name}": (value.to(torch.bfloat16) if value.is_floating_point() else value).contiguous()
        for m, member in enumerate(counter.members)
        for name, value in member.state_dict().items()
    }
    header = {"thresholds": asdict(counter.thresholds), "facts": counter.facts}
    with atomic_write(path) as temporary:
        temporary.write_bytes(save(tensors, metadata={"header": json.dumps(header, sort_keys=True)}))


@cache
def load_counter(path: str | os.PathLike[str] = COUNTER) -> Counter:
    """The counter in a file. Raises UserError for a missing or damaged one."""
    try:
        with safe_open(os.fspath(path), framework="pt") as f:
            header = json.loads((f.metadata() or {})["header"])
            tensors = {name: f.get_tensor(name) for name in f.keys()}  # noqa: SIM118 (it is no dictionary)
        members = []
        for m in range(MEMBERS):
            member = CountingNet()
            mine = {name.partition(".")[2]: value for name, value in tensors.items() if name.startswith(f"{m}.")}
            member.load_state_dict(mine)  # copies into float32
            members.append(member.eval().requires_grad_(False))
        thresholds = Thresholds(float(header["thresholds"]["low"]), float(header["thresholds"]["high"]))
        return Counter(tuple(members), thresholds, dict(header["facts"]))
    except FileNotFoundError:
        raise UserError(f"{path} is missing: fetch it from the repository, or run scripts/train_counter.py") from None
    except (SafetensorError, RuntimeError, KeyError, TypeError, ValueError) as e:
        raise UserError(f"{path} is not a counter of this version: {shown(str(e))}; fetch it again") from None
