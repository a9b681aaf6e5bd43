"""Wrapped models as denoisers: exact on a mixture, and RODS acts through them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from exact import latents, mixture
from torch import Tensor

from rods import euler_sampler, rods_sampler
from rods.wrappers import FunctionDenoiser, Prediction, from_k_diffusion, from_vp_steps, time_of

BETAS = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)  # DDPM
ALPHAS = (1 - BETAS).cumprod(0)
SIGMAS = (1 / ALPHAS - 1).sqrt()
SHAPE = {"img_channels": 2, "img_resolution": 3}


def exact_vp(prediction: Prediction):  # type: ignore[no-untyped-def]
    """A VP model of the mixture that answers every real t exactly."""
    seen: list[float] = []

    def model(x_vp: Tensor, t: Tensor) -> Tensor:
        low = t[0].floor().long().clamp(0, 998)
        s = (SIGMAS[low].log() + (t[0] - low) * (SIGMAS[low + 1] / SIGMAS[low]).log()).exp()
        seen.append(float(t[0]))
        x = x_vp * (1 + s**2).sqrt()
        x0 = mixture()(x, s)
        eps = (x - x0) / s
        v = (eps - s * x0) / (1 + s**2).sqrt()  # alpha eps - sigma_vp x0
        return {"epsilon": eps, "sample": x0, "v_prediction": v}[prediction]

    return model, seen


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("sigma", [0.02, 0.7, 3.0, 150.0])
def test_a_vp_model_of_a_mixture_is_its_denoiser(prediction: Prediction, sigma: float) -> None:
    model, _ = exact_vp(prediction)
    D = from_vp_steps(model, ALPHAS, prediction=prediction, dtype=torch.float64, **SHAPE)
    x, s = sigma * latents(), torch.tensor(sigma, dtype=torch.float64)
    torch.testing.assert_close(D(x, s), mixture()(x, s), rtol=1e-6, atol=1e-8)


def test_steps_are_hit_exactly_and_the_range_is_the_table() -> None:
    for t in (0, 1, 500, 999):
        assert float(time_of(SIGMAS[t], SIGMAS.log())) == pytest.approx(t, abs=1e-6)
    D = from_vp_steps(exact_vp("epsilon")[0], ALPHAS, **SHAPE)
    assert D.sigma_min == pytest.approx(0.01, rel=1e-2)
    assert D.sigma_max == pytest.approx(157.4, rel=1e-2)


def test_the_correction_acts_through_the_wrapper() -> None:
    """RODS on the wrapped VP model is RODS on the mixture, and it moves the image."""
    D = from_vp_steps(exact_vp("epsilon")[0], ALPHAS, dtype=torch.float64, **SHAPE)
    grid = {"num_steps": 12, "sigma_min": 0.02, "sigma_max": 80.0}
    done = rods_sampler(D, latents(), eps=0.0, rho=0.5, window=(0, 1), **grid)
    known = rods_sampler(mixture(), latents(), eps=0.0, rho=0.5, window=(0, 1), **grid)
    plain = rods_sampler(D, latents(), eps=float("inf"), rho=0.5, window=(0, 1), **grid)
    torch.testing.assert_close(done.images, known.images, rtol=1e-5, atol=1e-6)
    assert (done.images - plain.images).abs().max() > 1e-3
    assert done.records[0].backward > 0


@pytest.mark.parametrize(
    ("change", "named"), [({"prediction": "eps"}, "prediction"), ({"alphas_cumprod": ALPHAS.flip(0)}, "alphas_cumprod")]
)
def test_what_is_no_model_is_refused(change: dict[str, object], named: str) -> None:
    options: dict[str, object] = {"model": exact_vp("epsilon")[0], "alphas_cumprod": ALPHAS, **SHAPE, **change}
    with pytest.raises(ValueError, match=named):
        from_vp_steps(**options)  # type: ignore[arg-type]


def test_a_k_diffusion_model_gets_a_noise_level_per_sample() -> None:
    def model(x: Tensor, sigma: Tensor) -> Tensor:
        assert sigma.shape == (len(x),)
        return mixture()(x, sigma[0].double())

    D = from_k_diffusion(model, sigma_min=0.01, sigma_max=80.0, **SHAPE)
    x, s = 2 * latents(), torch.tensor(2.0, dtype=torch.float64)
    torch.testing.assert_close(D(x, s), mixture()(x, s), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("x", "sigma", "said"),
    [
        (torch.zeros(2, 1, 4, 4), 2.0, r"sigma: a float: must be a tensor \[\]"),
        (torch.zeros(2, 1, 4, 4), torch.ones(2), r"sigma: torch\.float32 \[2\]: must be a tensor \[\]"),
        (torch.zeros(2, 1, 4, 4).int(), torch.tensor(2.0), r"x: torch\.int32 \[2, 1, 4, 4\]: must be a floating-point"),
        ([[0.0]], torch.tensor(2.0), "x: a list: must be a floating-point tensor"),
    ],
    ids=["number", "levels", "integers", "list"],
)
def test_what_is_no_image_or_no_level_is_refused(x: Any, sigma: Any, said: str) -> None:
    with pytest.raises(ValueError, match=f"^{said}"):
        FunctionDenoiser(lambda x, sigma: x, 1, 4)(x, sigma)


def test_a_plain_function_with_labels() -> None:
    D = FunctionDenoiser(lambda x, sigma, labels: x + labels.sum(), 1, 2, label_dim=3)
    assert float(D(torch.zeros(1, 1, 2, 2), torch.tensor(1.0), torch.ones(1, 3)).mean()) == 3


def test_a_diffusers_unet_is_corrected() -> None:
    diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")
    torch.manual_seed(0)
    down, up = ("DownBlock2D",) * 2, ("UpBlock2D",) * 2
    unet = diffusers.UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, block_out_channels=(8, 8), layers_per_block=1,
        norm_num_groups=4, down_block_types=down, up_block_types=up,
    )  # fmt: skip
    table = diffusers.DDPMScheduler().alphas_cumprod
    D = from_vp_steps(unet.requires_grad_(False), table, img_channels=1, img_resolution=8)
    x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    plain, moved = (rods_sampler(D, x, eps=eps, rho=4.0, window=(0, 1), num_steps=6) for eps in (float("inf"), 0.0))
    assert moved.images.isfinite().all()
    assert (plain.images - moved.images).abs().max() > 1e-4


@pytest.mark.parametrize(("low", "high"), [(float("nan"), 80.0), (0.01, float("nan")), (1.0, 0.5), (-1.0, 80.0)])
def test_noise_levels_that_are_none_are_refused(low: float, high: float) -> None:
    with pytest.raises(ValueError, match="must be 0 <= sigma_min < sigma_max"):
        from_k_diffusion(lambda x, sigma: x, sigma_min=low, sigma_max=high, **SHAPE)


@pytest.mark.parametrize("wrap", [
    lambda f: FunctionDenoiser(f, **SHAPE),
    lambda f: from_k_diffusion(f, sigma_min=0.01, sigma_max=80, **SHAPE),
    lambda f: from_vp_steps(f, ALPHAS, **SHAPE),
    lambda f: from_vp_steps(lambda x, t: (f(x, t),), ALPHAS, **SHAPE),
])  # fmt: skip
def test_a_model_without_gradients_is_refused_where_one_is_needed(wrap: Callable[..., FunctionDenoiser]) -> None:
    """As diffusers' pipelines and k-diffusion's hosts hand it over: the rest of D would be differentiated alone."""
    cut = wrap(torch.no_grad()(lambda x, sigma: torch.tanh(x)))
    options = {"eps": 0.0, "rho": 0.5, "window": (0, 1), "num_steps": 8, "sigma_min": 0.02, "sigma_max": 80.0}
    with pytest.raises(ValueError, match=r"^denoiser: the model gives no gradient .* gradient=\"difference\""):
        rods_sampler(cut, latents(), **options)
    whole = wrap(lambda x, sigma: torch.tanh(x))
    differences = {**options, "gradient": "difference"}
    torch.testing.assert_close(
        rods_sampler(cut, latents(), **differences).images, rods_sampler(whole, latents(), **differences).images
    )
    euler_sampler(cut, latents(), num_steps=8)  # needs none


def test_what_a_model_may_answer() -> None:
    x, t = latents(), torch.tensor(1.0)
    plain = from_vp_steps(lambda x, t: torch.tanh(x), ALPHAS, **SHAPE)(x, t)
    torch.testing.assert_close(from_vp_steps(lambda x, t: (torch.tanh(x),), ALPHAS, **SHAPE)(x, t), plain)
    with pytest.raises(ValueError, match=r"the last 2 may be a learned variance"):
        from_vp_steps(lambda x, t: torch.cat([x, x], 1), ALPHAS, **SHAPE)(x, t)
    with pytest.raises(ValueError, match=r"^model: it returned a tuple of 2; wrap it"):
        from_vp_steps(lambda x, t: (torch.tanh(x), x), ALPHAS, **SHAPE)(x, t)
    with pytest.raises(ValueError, match=r"^model: it returned a dict"):
        from_vp_steps(lambda x, t: {"out": x}, ALPHAS, **SHAPE)(x, t)
