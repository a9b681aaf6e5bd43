"""A detector and a corrector of your own in 30 lines: frozen dataclasses behind a Gate, watched by a `for` loop.

python examples/own_detector.py
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # so that it runs without installing the project

from rods import Correction, Corrector, Gate, State, Step, StepDetector, Within, bind, trajectory
from rods.denoiser import norms
from rods.schedules import edm_grid
from training.checkpoint import load_denoiser


@dataclass(frozen=True)
class NoiseLength(StepDetector):
    """How far the length of the noise d that D removes is from that of unit noise, relative. Costs nothing."""

    reads_gradient: ClassVar[bool] = False  # `cur.g`, which would cost a backward pass, is not read

    def measure(self, cur: State, *, noise: Tensor | None = None) -> Tensor:
        return (norms(cur.d) / cur.d[0].numel() ** 0.5 - 1).abs()  # [B]


@dataclass(frozen=True)
class Straighten(Corrector):
    """The direction, averaged with that of the step before."""

    weight: float = 0.5  # of the step before

    def __call__(self, cur: State, prev: Step | None) -> Correction:
        return Correction(cur.d if prev is None else (1 - self.weight) * cur.d + self.weight * prev.d)


def main() -> None:
    net = load_denoiser(ROOT / "models" / "hands-32.safetensors").requires_grad_(False)
    denoise = bind(net, batch=4)
    sigmas = torch.cat([edm_grid(10, sigma_min=0.002, sigma_max=80.0), torch.zeros(1).double()])
    x = 80 * torch.randn(4, 1, 32, 32, generator=torch.Generator().manual_seed(0)).double()
    correct = Within((0.2, 0.8), Gate(NoiseLength(), 0.04, Straighten(weight=0.5)))
    print(correct)
    for step in trajectory(denoise, x, sigmas, correct=correct):
        if step.score is not None:
            scores = " ".join(f"{s:.3f}{'*' if f else ' '}" for s, f in zip(step.score, step.flagged, strict=True))
            print(f"step {step.i}, sigma {float(step.sigma):6.2f}: {scores}")
    print(f"{int(denoise.forward[0])} F and {int(denoise.backward[0])} B an image; * was corrected")


if __name__ == "__main__":
    main()
