"""Labels pictures of digits: does an ensemble of small classifiers recognise one, as surely as it does real digits?

How a picture is read (`spec/benchmark.md`, task 4 and "Labels that cannot be fooled"):

1. Tone: background and strokes are mapped to 0 and 1 (`rods.bench.tone`), so an affine change of tone changes nothing.
2. Confidence: the probability of the likeliest digit, averaged over NUM_NETS networks that were trained from different
   random numbers. They have an eleventh answer, "no digit", and have seen blends, pieces, bent, turned and blurred
   digits under it: so a real digit between 4 and 9 keeps half of its probability, and a blend of the two loses it.
3. The confidence is compared with three thresholds: those that 99.75, 99.5 and 98 % of held-out real digits reach. A
   picture below all three is surely bad, one above all surely well, and every other one is ambiguous.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
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

F64 = NDArray[np.float64]

PATH = MODELS / "mnist-labeller.safetensors"
MADE_BY = "python scripts/train_digit_labeller.py"
CLASSES, RESOLUTION = 10, 32
NUM_NETS = 3
REACHED_BY = (0.9975, 0.995, 0.98)  # shares of real digits: the three thresholds, the middle one as in the spec
BRIGHTEST = 1.2  # what lies above, in units of the strokes' level, is cut off
CHUNK = 512
STORED = torch.bfloat16


class DigitNet(nn.Module):
    """Logits [N, 11] (ten digits, then "no digit") of pictures [N, 32, 32] with background 0 and strokes 1."""

    def __init__(self) -> None:
        super().__init__()
        widths = ((1, 16, 5, 2), (16, 32, 3, 2), (32, 64, 3, 1), (64, 96, 3, 2))
        self.layers = nn.Sequential(
            *(
                nn.Sequential(
                    nn.Conv2d(a, b, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(b), nn.SiLU(inplace=True)
                )
                for a, b, kernel, stride in widths
            )
        )
        self.out = nn.Linear(96 * 4 * 4, CLASSES + 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.layers(x[:, None])  # [N, 96, 4, 4]
        return self.out(h.flatten(1))  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Calibration:
    """The confidences that REACHED_BY of the digits reach, and on how many digits they were measured."""

    thresholds: tuple[float, ...]
    num: int


@dataclass(frozen=True, eq=False)
class DigitLabeller:
    """An ensemble with its thresholds."""

    nets: Sequence[DigitNet]
    calibration: Calibration

    def probabilities(self, images: NDArray[Any]) -> F64:
        """Mean probabilities of the ten digits [N, 10] in pictures [N, 32, 32] or [N, 1, 32, 32].

        What a row lacks to 1 is "no digit": all of it where nothing is seen.

        images: uint8, or floats as a sampler returns them (in -1..1), bright on dark. Raises ValueError for other
        shapes or types, and values that are not finite.
        """
        if not len(images):
            return np.empty((0, CLASSES))
        digits, seen = prepared(images)
        x = torch.from_numpy(digits)
        with torch.no_grad():
            chunks = [
                torch.stack([net(x[i : i + CHUNK]).softmax(dim=1) for net in self.nets]).mean(dim=0)
                for i in range(0, len(x), CHUNK)
            ]
        p = torch.cat(chunks)[:, :CLASSES].double().numpy()
        return np.asarray(p * seen[:, None])

    def label(self, images: NDArray[Any]) -> NDArray[np.int8]:
        """Labels int8 [N] (codes of `rods.eval.labels.Label`). Arguments and errors as `probabilities`."""
        return combine_readings(
            self.probabilities(images).max(axis=1)[:, None] >= np.array(self.calibration.thresholds)
        )

    def classes(self, images: NDArray[Any]) -> NDArray[np.int64]:
        """The digit [N] in each picture, -1 where none is recognised at the middle threshold."""
        p = self.probabilities(images)
        return np.where(p.max(axis=1) >= self.calibration.thresholds[1], p.argmax(axis=1), -1)

    def faults(self, images: NDArray[Any]) -> Sequence[str]:
        """ "" for a digit, else "no digit" and the class that it is most like."""
        p = self.probabilities(images)
        found = p.max(axis=1) >= self.calibration.thresholds[1]
        return ["" if ok else f"no digit (most like {k})" for ok, k in zip(found, p.argmax(axis=1), strict=True)]


def prepared(images: NDArray[Any]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """(pictures [N, 32, 32] with background 0 and strokes 1, whether there is any contrast [N])."""
    unit = as_unit(images)
    if unit.shape[1] != RESOLUTION:
        raise ValueError(f"images have shape {list(images.shape)}, digits are {RESOLUTION}x{RESOLUTION}")
    digits, contrast = normalise(unit)
    return np.clip(digits, 0, BRIGHTEST), contrast >= MIN_CONTRAST


def calibrated(nets: Sequence[DigitNet], digits: NDArray[Any]) -> DigitLabeller:
    """The labeller whose thresholds REACHED_BY of these real digits [N, 32, 32] reach; the nets never saw them."""
    unset = DigitLabeller(nets, Calibration((0.0,), 0))
    confidence = unset.probabilities(digits).max(axis=1)
    thresholds = tuple(float(np.quantile(confidence, 1 - share, method="lower")) for share in REACHED_BY)
    return DigitLabeller(nets, Calibration(thresholds, len(digits)))


def save_labeller(path: Path, labeller: DigitLabeller, *, facts: Mapping[str, Any]) -> None:
    """Writes a labeller as safetensors (bfloat16), atomically; `facts` (JSON) say how it was made."""
    tensors = {
        f"{i}.{k}": (v.to(STORED) if v.is_floating_point() else v).contiguous()
        for i, net in enumerate(labeller.nets)
        for k, v in net.state_dict().items()
    }
    header = json.dumps({"calibration": asdict(labeller.calibration), "facts": dict(facts)}, sort_keys=True)
    with atomic_write(path) as temporary:
        temporary.write_bytes(save(tensors, metadata={"digit_labeller": header}))


@cache
def load_labeller(path: Path = PATH) -> DigitLabeller:
    """The labeller in a file that `save_labeller` wrote; nothing in the file is run.

    Raises UserError: no such file, or one that holds something else.
    """
    if not path.is_file():
        raise UserError(f"{path} is missing: fetch it from the project's repository, or make it with `{MADE_BY}`")
    try:
        with safe_open(path, framework="pt") as f:
            tensors = {name: f.get_tensor(name) for name in f.keys()}  # noqa: SIM118  (not a mapping)
            calibration = _calibration(json.loads((f.metadata() or {})["digit_labeller"]))
        nets = []
        for i in range(NUM_NETS):
            net = DigitNet()
            net.load_state_dict({k: tensors.pop(f"{i}.{k}") for k in net.state_dict()})  # copies into float32
            nets.append(net.eval().requires_grad_(False))
        if tensors:
            raise KeyError(next(iter(tensors)))
    except (SafetensorError, LookupError, TypeError, ValueError, RuntimeError, RecursionError) as e:
        raise UserError(f"{path} holds no digit labeller ({shown(str(e))}); make it again with `{MADE_BY}`") from None
    return DigitLabeller(nets, calibration)


def _calibration(header: Mapping[str, Any]) -> Calibration:
    thresholds, num = header["calibration"]["thresholds"], header["calibration"]["num"]
    if [type(t) for t in thresholds] != [float] * len(REACHED_BY) or not all(0 <= t <= 1 for t in thresholds):
        raise ValueError("its thresholds are no probabilities")
    return Calibration(tuple(thresholds), int(num))
