"""Other people's models as denoisers D(x; sigma): functions, k-diffusion's, VP steps, flows, EDM's of diffusers.

RODS needs D and its gradient in x, nothing else. The wrappers call the model they are given and import nothing. With
`label_dim` > 0 a model gets the class labels, one-hot rows [B, label_dim], as its last argument, and nothing in their
place where there are none. Guidance is in guidance.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from math import inf
from typing import Any, Literal

import torch
from torch import Tensor, nn

from rods.denoiser import NO_GRADIENT, labels_of
from rods.latents import Codec
from rods.types import form

Prediction = Literal["epsilon", "v_prediction", "sample"]


@dataclass(frozen=True, eq=False)
class FunctionDenoiser:
    """A function D(x, sigma) with what the samplers want to know of a network.

    `function(x, sigma)` gets x [B, C, H, W] float64 and sigma [] and returns the expected clean image, differentiable
    in x. With `label_dim` > 0 it is called as function(x, sigma, class_labels [B, label_dim]). Gates read the layers
    of `network`, which the function calls once; `codec` makes images of latents. ValueError: noise levels that are not
    0 <= sigma_min < sigma_max.
    """

    function: Callable[..., Tensor]
    img_channels: int
    img_resolution: int
    label_dim: int = 0
    sigma_min: float = 0.0
    sigma_max: float = inf
    network: nn.Module | None = field(default=None, repr=False)
    codec: Codec | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.sigma_min < self.sigma_max:
            raise ValueError(
                f"sigma_min, sigma_max: {self.sigma_min}, {self.sigma_max}: must be 0 <= sigma_min < sigma_max"
            )

    def __call__(self, x: Tensor, sigma: Tensor, class_labels: Tensor | None = None) -> Tensor:
        if not isinstance(x, Tensor) or x.ndim == 0 or not x.is_floating_point():
            raise ValueError(f"x: {form(x)}: must be a floating-point tensor with one image in each row")
        if not isinstance(sigma, Tensor) or sigma.ndim:
            raise ValueError(f"sigma: {form(sigma)}: must be a tensor [], the one noise level of all images")
        labels = labels_of(self, len(x), class_labels)
        return self.function(x, sigma) if labels is None else self.function(x, sigma, labels)

    def round_sigma(self, sigma: Tensor) -> Tensor:
        """Every noise level is allowed."""
        return sigma


def from_k_diffusion(
    model: Callable[..., Tensor], *, img_channels: int, img_resolution: int, sigma_min: float, sigma_max: float
) -> FunctionDenoiser:
    """A k-diffusion model, called there as model(x, sigma [B]) -> denoised, in float32. Cost of D: 1 F."""

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        return _prediction(model(x.float(), sigma.float().expand(len(x))), x)

    return FunctionDenoiser(denoise, img_channels, img_resolution, sigma_min=sigma_min, sigma_max=sigma_max,
                            network=_module(model))  # fmt: skip


def from_vp_steps(
    model: Callable[..., Any],
    alphas_cumprod: Tensor,
    *,
    img_channels: int,
    img_resolution: int,
    prediction: Prediction = "epsilon",
    label_dim: int = 0,
    dtype: torch.dtype = torch.float32,
) -> FunctionDenoiser:
    """A variance-preserving model of M discrete steps, such as a diffusers UNet: model(x_vp, t [B]) -> prediction.

    `alphas_cumprod` [M] decreases; step t has the noise level sigma_t = sqrt(1 / alphas_cumprod_t - 1) and the input
    x_vp = x / sqrt(1 + sigma^2). Between two steps t is interpolated linearly in log sigma, so every noise level in
    [sigma_0, sigma_(M-1)] can be asked for. The result may be a tensor or have a `sample`, as in diffusers.
    Cost of D: 1 F. Raises ValueError for an unknown prediction or a table that does not decrease in (0, 1).
    """
    if prediction not in ("epsilon", "v_prediction", "sample"):
        raise ValueError(f"prediction: {prediction!r} is unknown; give epsilon, v_prediction or sample")
    table = torch.as_tensor(alphas_cumprod).double()
    if table.ndim != 1 or len(table) < 2 or not ((table > 0) & (table < 1)).all() or not (table.diff() < 0).all():
        raise ValueError("alphas_cumprod: give a decreasing table of numbers between 0 and 1, one per step")
    log_sigmas = (1 / table - 1).log() / 2  # [M], ascending

    def denoise(x: Tensor, sigma: Tensor, *labels: Tensor) -> Tensor:
        t = time_of(sigma.double(), log_sigmas.to(x.device)).to(dtype).expand(len(x))
        scale = (1 + sigma**2).sqrt()
        out = _prediction(model((x / scale).to(dtype), t, *labels), x)
        if prediction == "epsilon":
            return x - sigma * out
        return out if prediction == "sample" else (x / scale - sigma * out) / scale

    low, high = float(log_sigmas[0].exp()), float(log_sigmas[-1].exp())
    return FunctionDenoiser(denoise, img_channels, img_resolution, label_dim, low, high, _module(model))


def from_flow(
    model: Callable[..., Any],
    *,
    img_channels: int,
    img_resolution: int,
    label_dim: int = 0,
    time_scale: float = 1,
    dtype: torch.dtype = torch.float32,
) -> FunctionDenoiser:
    """A rectified flow (flow matching): model(z, time_scale t [B]) -> v = n - x0, at z = (1 - t) x0 + t n, 0 <= t <= 1.

    In the coordinates of this project sigma = t / (1 - t), x = z / (1 - t), and D = z - t v; an Euler step in sigma is
    the flow's own in t, whatever the grid. A `shift` a of the flow's grid multiplies every sigma by a. t = 1, pure
    noise, is sigma = inf: begin at 100 to 1000. diffusers' models are told 1000 t: time_scale=1000. Cost of D: 1 F.
    """

    def denoise(x: Tensor, sigma: Tensor, *labels: Tensor) -> Tensor:
        t, z = sigma / (1 + sigma), x / (1 + sigma)
        told = (time_scale * t).to(dtype).expand(len(x))
        return z - t * _prediction(model(z.to(dtype), told, *labels), x)

    return FunctionDenoiser(denoise, img_channels, img_resolution, label_dim, network=_module(model))


def from_edm_diffusers(
    model: Callable[..., Any],
    *,
    img_channels: int,
    img_resolution: int,
    prediction: Literal["epsilon", "v_prediction"] = "epsilon",
    sigma_data: float = 0.5,
    label_dim: int = 0,
    dtype: torch.dtype = torch.float32,
) -> FunctionDenoiser:
    """A model of diffusers with EDM's preconditioning, such as a UNet2DModel with EDMEulerScheduler.

    D = c_skip x + c_out F(c_in x; ln(sigma) / 4), with the scheduler's `prediction_type` (v_prediction: c_out < 0) and
    `sigma_data`. Cost of D: 1 F. Raises ValueError for an unknown prediction, or a sigma_data that is not > 0.
    """
    if prediction not in ("epsilon", "v_prediction"):
        raise ValueError(f"prediction: {prediction!r} is unknown; give epsilon or v_prediction")
    if not 0 < sigma_data < inf:
        raise ValueError(f"sigma_data: {sigma_data} is not a standard deviation; give a finite number > 0")
    sign = 1 if prediction == "epsilon" else -1

    def denoise(x: Tensor, sigma: Tensor, *labels: Tensor) -> Tensor:
        var = sigma**2 + sigma_data**2
        c_skip, c_out, c_in = sigma_data**2 / var, sign * sigma * sigma_data / var.sqrt(), 1 / var.sqrt()
        told = (sigma.log() / 4).to(dtype).expand(len(x))
        return c_skip * x + c_out * _prediction(model((c_in * x).to(dtype), told, *labels), x)

    return FunctionDenoiser(denoise, img_channels, img_resolution, label_dim, network=_module(model))


def _module(model: object) -> nn.Module | None:
    """The model itself where it has layers that a gate could read."""
    return model if isinstance(model, nn.Module) else None


def _prediction(answer: Any, x: Tensor) -> Tensor:
    """The tensor in a model's answer to `x`: itself, its `sample`, or that of a tuple of one (return_dict=False).

    Raises ValueError: several of them, another shape, or no gradient where one is asked for.
    """
    if isinstance(answer, tuple) and len(answer) != 1:
        raise ValueError(
            f"model: it returned a tuple of {len(answer)}; wrap it so that it returns the prediction alone"
        )
    found = answer[0] if isinstance(answer, tuple) else getattr(answer, "sample", answer)
    if not isinstance(found, Tensor):
        raise ValueError(f"model: it returned a {type(found).__name__}; wrap it so that it returns a tensor")
    if found.shape != x.shape:
        learned = found.ndim == x.ndim and found.shape[1] == 2 * x.shape[1]
        hint = f"; the last {x.shape[1]} may be a learned variance: return the others alone" if learned else ""
        raise ValueError(f"model: it returned {list(found.shape)} for an input of {list(x.shape)}{hint}")
    if torch.is_grad_enabled() and x.requires_grad and not found.requires_grad:
        raise ValueError(NO_GRADIENT)
    return found.to(x.dtype)


def time_of(sigma: Tensor, log_sigmas: Tensor) -> Tensor:
    """The step t [], a real number, at which the noise level is `sigma`: linear between steps in log sigma."""
    s = sigma.log().clamp(log_sigmas[0], log_sigmas[-1])
    i = torch.searchsorted(log_sigmas, s).clamp(1, len(log_sigmas) - 1)
    left, right = log_sigmas[i - 1], log_sigmas[i]
    return i - 1 + (s - left) / (right - left)
