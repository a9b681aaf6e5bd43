"""A diffusers UNet (here untrained: only the wiring is shown) corrected by RODS-CAS; needs pip install diffusers.

python examples/diffusers_unet.py
"""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that it runs without installing the project

from rods import rods_sampler
from rods.wrappers import from_vp_steps


def main() -> None:
    try:
        from diffusers import DDPMScheduler, UNet2DModel
    except ImportError:
        sys.exit("Error: this example needs diffusers, which is not installed: pip install diffusers")
    torch.manual_seed(0)
    unet = UNet2DModel(  # yours: UNet2DModel.from_pretrained(...)
        sample_size=16,
        in_channels=1,
        out_channels=1,
        block_out_channels=(16, 16),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
    ).requires_grad_(False)
    D = from_vp_steps(unet, DDPMScheduler().alphas_cumprod, img_channels=1, img_resolution=16)
    latents = torch.randn(2, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    plain = rods_sampler(D, latents, eps=float("inf"), rho=4.0, num_steps=10)
    fixed = rods_sampler(D, latents, eps=0.0, rho=4.0, num_steps=10)
    print(f"the correction moved the images by up to {(plain.images - fixed.images).abs().max():.3g}")


if __name__ == "__main__":
    main()
