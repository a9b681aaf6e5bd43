"""Whether the device computes what the CPU computes: D, latents, samplers, H, a training step, in every arithmetic."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rods import curvature_index, edm_sampler, euler_sampler, restart_sampler, rods_sampler
from tools.gpu_sections.common import MODELS, Section, arithmetic, psnr, relative
from torch_utils.rng import SeedStreams
from training.checkpoint import load_denoiser
from training.loss import EDMLoss

LEVELS = (0.05, 0.5, 2.0, 20.0)
NETWORK = MODELS / "hands-32.safetensors"
LIMITS = {  # D, H, gradients: largest relative error; samplers: least dB
    "fp32": {"D": 1e-5, "H": 1e-3, "step": 1e-4, "samplers": 60.0},
    "default": {"D": 2e-3, "H": 5e-2, "step": 5e-3, "samplers": 40.0},
    "tf32": {"D": 2e-3, "H": 5e-2, "step": 5e-3, "samplers": 40.0},
    "fp16": {"D": 5e-3, "H": 1e-1, "step": 2e-2, "samplers": 35.0},
    "bf16": {"D": 2e-2, "H": 5e-1, "step": 5e-2, "samplers": 25.0},
}
WINDOW = (0.0, 1.0)


def latents(device: torch.device, count: int = 4) -> Tensor:
    return SeedStreams(range(count), device, on_cpu=True).randn((1, 32, 32))


def samplers(net: Any, x: Tensor, steps: int) -> dict[str, Tensor]:
    """Images of each sampler; no decision of theirs hangs on a threshold, so that rounding moves them a little only."""
    noise = SeedStreams(range(len(x)), x.device, on_cpu=True)
    rods: dict[str, Any] = {"num_steps": steps, "eps": 0.0, "rho": 4.0, "window": (0.1, 0.6)}
    again: dict[str, Any] = {"num_steps": steps, "threshold": 0.0, "sigma_r": 5.0, "rounds": 1, "margin": 0}
    return {
        "euler": euler_sampler(net, x, num_steps=steps),
        "heun": edm_sampler(net, x, num_steps=steps),
        "cas": rods_sampler(net, x, method="cas", **rods).images,
        "sas": rods_sampler(net, x, method="sas", **rods).images,
        "restart": restart_sampler(net, x, randn_like=noise.second().randn_like, **again).images,
    }


def denoised(net: Any, x: Tensor) -> Tensor:
    return torch.cat([net(s * x.double(), torch.tensor(s, device=x.device, dtype=torch.float64)) for s in LEVELS])


def training_step(device: torch.device) -> tuple[Tensor, Tensor]:
    """Loss and the gradient of every weight, joined."""
    net = load_denoiser(NETWORK, device=device).train().requires_grad_(True)
    g = torch.Generator().manual_seed(3)
    y, noise, n = (torch.randn(shape, generator=g).to(device) for shape in ((8, 1, 32, 32), (8, 1, 32, 32), (8,)))
    loss = EDMLoss()(net, y.clamp(-1, 1), None, n=n, noise=noise).float().mean()
    grads = torch.autograd.grad(loss, list(net.parameters()))
    return loss, torch.cat([grad.float().flatten() for grad in grads])


def agreement(section: Section) -> None:
    cpu, steps = torch.device("cpu"), 4 if section.quick else 10
    names = list(LIMITS) if section.cuda else ["fp32"]
    x_cpu, x = latents(cpu), latents(section.device)
    section.check("latents (rng cpu) differ", float((x.cpu() != x_cpu).sum()), 0)
    own = [SeedStreams([5], section.device).randn((1, 32, 32)) for _ in range(2)]
    section.check("latents (rng device) differ between two draws", float((own[0] != own[1]).sum()), 0)
    net_cpu, net = load_denoiser(NETWORK), load_denoiser(NETWORK, device=section.device)
    with torch.no_grad():
        expected = denoised(net_cpu, x_cpu)
    images = samplers(net_cpu, x_cpu, steps)
    H = curvature_index(net_cpu, 1.0 * x_cpu, 1.0, rho=4.0)
    loss, slope = training_step(cpu)
    for name in names:
        limit = LIMITS[name]
        with section.part(name), arithmetic(section.device, name):
            with torch.no_grad():
                section.check(f"{name}: D", relative(denoised(net, x), expected), limit["D"])
            section.check(f"{name}: H", relative(curvature_index(net, 1.0 * x, 1.0, rho=4.0), H), limit["H"])
            for sampler, made in samplers(net, x, steps).items():
                section.check(f"{name}: {sampler}, dB", psnr(made, images[sampler]), limit["samplers"], least=True)
            own_loss, own_slope = training_step(section.device)
            section.check(f"{name}: loss of a training step", relative(own_loss, loss), limit["step"])
            section.check(f"{name}: gradients of a training step", relative(own_slope, slope), limit["step"])
