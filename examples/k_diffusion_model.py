"""A model in k-diffusion's convention, model(x, sigma [B]) -> denoised, corrected by RODS-CAS.

python examples/k_diffusion_model.py
"""

import sys
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # so that it runs without installing the project

from rods import rods_sampler
from rods.wrappers import from_k_diffusion
from training.checkpoint import load_denoiser


class KDiffusionStyle(torch.nn.Module):
    """Stands for your model, such as k_diffusion.external.DiscreteEpsDDPMDenoiser: here the hands network inside."""

    def __init__(self) -> None:
        super().__init__()
        self.inner_model = load_denoiser(ROOT / "models" / "hands-32.safetensors")

    def forward(self, x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        return self.inner_model(x, sigma[0])


def main() -> None:
    model = KDiffusionStyle().requires_grad_(False)
    D = from_k_diffusion(model, img_channels=1, img_resolution=32, sigma_min=0.002, sigma_max=80.0)
    latents = torch.randn(2, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    done = rods_sampler(D, latents, eps=0.0, rho=4.0, window=(0.3, 0.7), num_steps=10)
    for i, record in enumerate(done.records):
        print(f"sample {i}: largest H {max(record.H):.3g}, corrected at steps {record.flagged}")


if __name__ == "__main__":
    main()
