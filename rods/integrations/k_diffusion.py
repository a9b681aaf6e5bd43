"""Samplers with k-diffusion's signature, for k-diffusion itself and the hosts that call its samplers (ComfyUI, A1111).

    sample(model, x, sigmas, extra_args=None, callback=None, disable=None, *, options...)

`model(x, sigma [B], **extra_args)` returns the denoised images, `x` [B, ...] is the state at sigmas[0], noise and all,
and `sigmas` [N + 1] are decreasing noise levels, the last one 0; of a flow model (`flow`) they are its t, see host.py.
A host, which gives no options, gets `functools.partial(sample_rods_cas, eps=..., rho=...)`. Nothing is imported of it.

A host calls samplers without gradients: CAS turns them on for its own evaluations. A model that gives none (its
weights are inference tensors, or it detaches) takes gradient="difference".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from torch import Tensor

from rods.detectors import Detector, Lid
from rods.integrations.host import Callback, Model, sample_by
from rods.restart import Restart
from rods.samplers import RodsCas, RodsSas
from rods.schedules import Window
from rods.state import Gradient
from rods.trajectory import Corrector, Solver


def sample_rods_cas(
    model: Model,
    x: Tensor,
    sigmas: Tensor,
    extra_args: Mapping[str, Any] | None = None,
    callback: Callback | None = None,
    disable: bool | None = None,
    *,
    eps: float,
    rho: float,
    window: Window = (0.1, 0.5),
    solver: Solver = "euler",
    ascent_steps: int = 1,
    detect: bool = True,
    gradient: Gradient = "backward",
    flow: bool = False,
) -> Tensor:
    """RODS with Curvature-Aware Sampling; the options are `samplers.RodsCas`'s, and so is the cost.

    `callback` gets k-diffusion's dict (x, i, sigma, sigma_hat, denoised) after every step. No progress bar is drawn, so
    that `disable` changes nothing. Raises ValueError: an option out of range, or a model that gives no gradient.
    """
    sampler = RodsCas(
        eps=eps, rho=rho, window=window, solver=solver, ascent_steps=ascent_steps, detect=detect, gradient=gradient,
    )  # fmt: skip
    return sample_by(sampler, model, x, sigmas, extra_args, callback, disable, flow=flow)


def sample_rods_sas(
    model: Model,
    x: Tensor,
    sigmas: Tensor,
    extra_args: Mapping[str, Any] | None = None,
    callback: Callback | None = None,
    disable: bool | None = None,
    *,
    eps: float,
    rho: float,
    window: Window = (0.1, 0.5),
    solver: Solver = "euler",
    sas_sign: Literal["uphill", "downhill"] = "uphill",
    detect: bool = True,
    gradient: Gradient = "backward",
    flow: bool = False,
) -> Tensor:
    """RODS with Sharpness-Aware Sampling, by `samplers.RodsSas`; otherwise as `sample_rods_cas`.

    Without detection (eps=0, detect=False) it needs no gradient.
    """
    sampler = RodsSas(
        eps=eps, rho=rho, window=window, solver=solver, sas_sign=sas_sign, detect=detect, gradient=gradient,
    )  # fmt: skip
    return sample_by(sampler, model, x, sigmas, extra_args, callback, disable, flow=flow)


def sample_restart_gated(
    model: Model,
    x: Tensor,
    sigmas: Tensor,
    extra_args: Mapping[str, Any] | None = None,
    callback: Callback | None = None,
    disable: bool | None = None,
    *,
    threshold: float,
    sigma_r: float,
    detector: Detector | None = None,
    rounds: int = 3,
    margin: float = 0,
    score_at: float = 0,
    inside: Corrector | None = None,
    solver: Solver = "euler",
    flow: bool = False,
) -> Tensor:
    """Gated restart: images that score above `threshold` go back to `sigma_r`, by `restart.Restart`.

    `detector` is `Lid()` without one. Noise is drawn by torch.randn_like, as k-diffusion's samplers do, so that it is
    the host's seed that decides. In the steps of a restart the callback sees the whole batch, with i going back to
    where they begin. Otherwise as `sample_rods_cas`.
    """
    sampler = Restart(
        threshold=threshold, sigma_r=sigma_r, detector=detector or Lid(), rounds=rounds, margin=margin,
        score_at=score_at, inside=inside, solver=solver,
    )  # fmt: skip
    return sample_by(sampler, model, x, sigmas, extra_args, callback, disable, flow=flow)
