"""A detector and a corrector of your own in 30 lines: how far the direction turned since the last step, at no cost.

python examples/own_detector.py
"""

import sys
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # so that it runs without installing the project

from rods.evaluation import norms

from rods import Correction, bind, gate, trajectory, within
from rods.schedules import edm_grid
from training.checkpoint import load_denoiser


def turn(denoise, prev, cur):  # type: ignore[no-untyped-def]
    """Score [B]: ||d - d_prev|| / ||d||. Costs nothing: both directions are known anyway."""
    return torch.zeros(len(cur.x)).double() if prev is None else norms(cur.d - prev.d) / norms(cur.d)


def straighten(denoise, prev, cur):  # type: ignore[no-untyped-def]
    """The mean of the last two directions."""
    return Correction(cur.d if prev is None else (cur.d + prev.d) / 2)


def main() -> None:
    net = load_denoiser(ROOT / "models" / "hands-32.safetensors").requires_grad_(False)
    denoise = bind(net, batch=4)
    sigmas = torch.cat([edm_grid(10, sigma_min=0.002, sigma_max=80.0), torch.zeros(1).double()])
    x = 80 * torch.randn(4, 1, 32, 32, generator=torch.Generator().manual_seed(0)).double()
    correct = within((0.2, 0.8), gate(turn, 0.14, straighten))
    for step in trajectory(denoise, x, sigmas, correct=correct):
        if step.score is not None:
            scores = " ".join(f"{s:.2f}{'*' if f else ' '}" for s, f in zip(step.score, step.flagged, strict=True))
            print(f"step {step.i}, sigma {float(step.sigma):6.2f}: {scores}")
    print(f"{int(denoise.forward[0])} forward passes an image, {int(denoise.backward[0])} backward; * was corrected")


if __name__ == "__main__":
    main()
