"""The samplers on the reference networks: clipping, rounding and labels as in the original; RODS in float32."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from vectors import CONFIGS, relative_error, tensors, vector_file

from rods import edm_sampler, euler_sampler, rods_sampler
from training.checkpoint import load_denoiser


def reference(name: str) -> tuple[Any, dict[str, torch.Tensor], torch.Tensor | None]:
    z = tensors(f"networks/{name}.npz")
    net = load_denoiser(str(vector_file(f"pickles/{name}.pkl")))
    return net, z, z["labels"][: len(z["latents"])] if "labels" in z else None


@pytest.mark.parametrize("name", CONFIGS)
def test_six_heun_steps_are_the_reference(name: str) -> None:
    net, z, labels = reference(name)
    x = edm_sampler(net, z["latents"], labels, num_steps=6)
    assert relative_error(x, z["edm_sampler_6"]) <= 1e-4


@pytest.mark.parametrize("name", ["edm-ddpmpp-uncond", "edm-ncsnpp-cond"])
def test_rods_in_float32_leaves_unflagged_images_alone(name: str) -> None:
    """Bit for bit, although the network runs with a graph in one and without it in the other."""
    net, z, labels = reference(name)
    options: dict[str, Any] = {"num_steps": 6, "window": (0.3, 0.6), "rho": 1.0}
    plain = euler_sampler(net, z["latents"], labels, num_steps=6)
    detected = rods_sampler(net, z["latents"], labels, eps=math.inf, **options)
    assert torch.equal(detected.images, plain)
    assert torch.equal(rods_sampler(net, z["latents"], labels, eps=0, **{**options, "rho": 0.0}).images, plain)

    worst = max(max(record.H) for record in detected.records)
    half = rods_sampler(net, z["latents"], labels, eps=worst, **options)
    flagged = [bool(record.flagged) for record in half.records]
    assert sorted(flagged) == [False, True]
    assert [not torch.equal(a, b) for a, b in zip(half.images, plain, strict=True)] == flagged
    assert all(p.grad is None for p in net.parameters())
