"""A gate without labels for samples that are no pictures: points in the plane, features of the network's last layer.

scripts/fit_gate.py reads images. What it does is a few lines of the library: activations of real points and of the
network's own, a Gaussian of each, and the noise level at which the scores have the heaviest tail.

python examples/gate_of_points.py models/grid25-0-gate.preset.json
"""

import sys
from pathlib import Path

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # so that it runs without installing the project

from rods import Euler, Restart
from rods.bench.gate_fit import RIDGE, features, halves, quantile, tail_heaviness
from rods.bench.tasks.grid25.task import real_points
from rods.gate import DensityRatio, density_ratio, fingerprint
from rods.presets import Preset
from rods.runs.chunk import Chunk, sample_chunk
from rods.runs.presets import write_preset
from training.checkpoint import load_denoiser

NUM, FIRST_SEED = 4096, 3_000_000  # real points, and as many samples from this seed on
BLOCKS = ("model.layers.2",)  # the last hidden layer
LEVELS = (0.0063, 0.0275, 0.06, 0.13)  # noise levels to read at; the modes have a standard deviation of 0.018
ALPHA = 0.01  # the share of real points above the threshold


def main(dest: Path) -> None:
    net = load_denoiser(ROOT / "models" / "grid25-0.safetensors").requires_grad_(False)
    seeds = tuple(range(FIRST_SEED, FIRST_SEED + NUM))
    own = sample_chunk(net, Chunk(0, seeds), Euler(), device=torch.device("cpu")).images  # [N, 2, 1, 1]
    real = torch.from_numpy(real_points(NUM, seed=1))
    generator = torch.Generator().manual_seed(0)

    def read(points: Tensor, sigma: float) -> Tensor:
        noise = torch.randn(1, *points.shape, dtype=points.dtype, generator=generator)
        return features(net, points, sigma, BLOCKS, noise)  # [N, 128]

    fitted, held = halves(NUM)
    found: list[tuple[float, DensityRatio, float]] = []  # tail, gate, threshold
    for sigma in LEVELS:
        p_real, p_own = read(real, sigma), read(own, sigma)
        gate = density_ratio(p_real[fitted], p_own[fitted], blocks=BLOCKS, sigma=sigma, draws=1,
                             network=fingerprint(net, BLOCKS), ridge=RIDGE)  # fmt: skip
        scores = gate.of(p_own[held])
        found.append((tail_heaviness(scores), gate, quantile(gate.of(p_real[held]), ALPHA)))
        share = float((scores > found[-1][2]).double().mean())
        print(f"read at {sigma:g}: tail {found[-1][0]:.2f}, {share:.1%} of the samples above the threshold")

    _, gate, threshold = max(found, key=lambda choice: choice[0])
    restart = Restart(threshold=threshold, sigma_r=0.47, rounds=2, detector=gate)
    source = f"density-ratio: examples/gate_of_points.py, {NUM} real points and {NUM} samples from seed {FIRST_SEED}"
    preset = Preset(dest.name.removesuffix(".preset.json"), "grid25-0", source, {"restart": restart},
                    fitted={"density-ratio": gate})  # fmt: skip
    write_preset(dest, preset)
    print(f"Wrote {dest}; python scripts/bench.py --task=grid25 --preset={dest} --samplers=restart")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path("grid25-0-gate.preset.json"))
