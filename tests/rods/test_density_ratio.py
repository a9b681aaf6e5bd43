"""DensityRatio: the closed form of two Gaussians, one class, and that only the network it was fitted to takes it."""

from __future__ import annotations

import pytest
import torch
from vectors import ROOT

from rods.config import detector_from_text, to_text
from rods.gate import DensityRatio, density_ratio, fingerprint, pooled
from rods.runs.gates import read_gate, write_gate
from training.checkpoint import load_denoiser

ABOUT = {"blocks": ("a", "b"), "sigma": 0.3, "draws": 1, "network": "0123456789ab"}


def rows(n: int, K: int, seed: int, scale: float = 1.0, shift: float = 0.0) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    mix = torch.randn(K, K, generator=g, dtype=torch.float64) / K**0.5
    return shift + scale * torch.randn(n, K, generator=g, dtype=torch.float64) @ (mix + torch.eye(K))


def log_density(p: torch.Tensor, of: torch.Tensor, like: torch.Tensor, ridge: float) -> torch.Tensor:
    """By torch's own multivariate normal, on features standardised as `like`'s."""
    mean, scale = like.mean(dim=0), like.std(dim=0, correction=0)
    z, z_of = (p - mean) / scale, (of - mean) / scale
    cov = z_of.T.cov(correction=0) + ridge * torch.eye(z.shape[1], dtype=z.dtype)
    normal = torch.distributions.MultivariateNormal(z_of.mean(dim=0), covariance_matrix=cov)
    return normal.log_prob(z)


def test_it_is_the_log_ratio_of_two_gaussians() -> None:
    real, own, p = rows(400, 6, 0), rows(300, 6, 1, scale=1.3, shift=0.5), rows(20, 6, 2)
    gate = density_ratio(real, own, ridge=1e-3, **ABOUT)
    expected = log_density(p, own, real, 1e-3) - log_density(p, real, real, 1e-3)
    assert torch.allclose(gate.of(p), expected, atol=1e-9)


def test_of_real_images_alone_it_is_their_density_up_to_a_constant() -> None:
    real, p = rows(400, 6, 0), rows(20, 6, 2)
    differences = density_ratio(real, None, **ABOUT).of(p) + log_density(p, real, real, 1e-3)
    assert torch.allclose(differences, differences[:1].expand(20), atol=1e-9)


def test_a_shift_of_style_can_be_taken_out() -> None:
    real, p = rows(500, 4, 0), rows(20, 4, 2)
    gate = density_ratio(real, real + 3, same_mean=True, **ABOUT)
    assert gate.of(p).abs().max() < 1e-6, "equal shapes, different means: no image scores above another"


def test_too_few_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="give 8 or more"):
        density_ratio(rows(7, 2, 0), None, **ABOUT)


def test_tokens_and_vectors_are_pooled_as_maps_are() -> None:
    maps = torch.randn(2, 5, 4, 3)
    assert torch.equal(pooled(maps.flatten(2).transpose(1, 2)), pooled(maps))
    assert torch.equal(pooled(maps[:, :, 0, 0]), maps[:, :, 0, 0].double())


def test_its_file_is_read_back_and_its_network_is_checked(tmp_path) -> None:  # type: ignore[no-untyped-def]
    net = load_denoiser(ROOT / "models" / "hands-32.safetensors")
    blocks = tuple(net.decoder_blocks())[-1:]
    about = {**ABOUT, "blocks": blocks, "network": fingerprint(net, blocks)}
    gate = density_ratio(rows(100, 32, 0), rows(100, 32, 1), **about)
    write_gate(tmp_path / "g.safetensors", gate)
    again = read_gate(tmp_path / "g.safetensors", "density-ratio", option="--preset")
    assert again == gate
    gate.check(net, [])
    other = load_denoiser(ROOT / "models" / "hands-32-1.safetensors")
    with pytest.raises(ValueError, match="of another network"):
        gate.check(other, [])
    fitted = {"density-ratio": gate}
    assert detector_from_text(to_text(gate), fitted=fitted) is gate
    assert isinstance(gate, DensityRatio)
