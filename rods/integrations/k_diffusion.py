"""Samplers with k-diffusion's signature, for k-diffusion itself and the hosts that call its samplers (ComfyUI, A1111).

    sample(model, x, sigmas, extra_args=None, callback=None, disable=None, *, options...)

`model(x, sigma [B], **extra_args)` returns the denoised images, `x` [B, ...] is the state at sigmas[0], noise and all,
and `sigmas` [N + 1] are decreasing noise levels, the last one 0. A host, which gives no options, gets
`functools.partial(sample_rods_cas, eps=..., rho=...)`. Nothing is imported from it.

A host calls samplers without gradients: CAS turns them on for its own evaluations. A model that gives none (its
weights are inference tensors, or it detaches) takes gradient="difference".

The host's model may hold something for every image of the batch. It is therefore always called with the whole batch:
where a gate evaluates some images, the others' places are filled up, and what the model says of them is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from rods.base_samplers import Sampler
from rods.denoiser import Keyed, bind
from rods.detectors import Detector, Lid
from rods.restart import Restart
from rods.samplers import RodsCas, RodsSas
from rods.schedules import Window
from rods.state import Gradient
from rods.trajectory import Corrector, Solver
from rods.types import Step, state_dtype

Model = Callable[..., Tensor]
Callback = Callable[[dict[str, Any]], Any]


@dataclass(frozen=True, eq=False)
class HostModel(Keyed):
    """A host's model as a denoiser of some rows of a batch of `batch`; keys are places in it, each once."""

    model: Model
    batch: int
    dtype: torch.dtype  # of the host's state
    extra_args: Mapping[str, Any]

    def keyed(self, x: Tensor, sigma: Tensor, class_labels: Tensor | None = None, *, keys: Tensor) -> Tensor:
        source = torch.arange(self.batch) % len(keys)  # which of the rows stands at each place of the batch
        source[keys] = torch.arange(len(keys))
        whole = x if torch.equal(source, keys) else x[source.to(x.device)]
        denoised = self.model(whole.to(self.dtype), sigma.to(self.dtype).expand(self.batch), **self.extra_args)
        if denoised.shape != whole.shape:
            raise ValueError(f"model: it returned {list(denoised.shape)} for an input of {list(whole.shape)}")
        return denoised if whole is x else denoised[keys.to(x.device)]


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
) -> Tensor:
    """RODS with Curvature-Aware Sampling; the options are `samplers.RodsCas`'s, and so is the cost.

    `callback` gets k-diffusion's dict (x, i, sigma, sigma_hat, denoised) after every step. No progress bar is drawn, so
    that `disable` changes nothing. Raises ValueError: an option out of range, or a model that gives no gradient.
    """
    N, top = _grid(sigmas)
    sampler = RodsCas(
        num_steps=N, sigma_max=top, eps=eps, rho=rho, window=window, solver=solver, ascent_steps=ascent_steps,
        detect=detect, gradient=gradient,
    )  # fmt: skip
    return _run(sampler, model, x, sigmas, extra_args, callback)


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
) -> Tensor:
    """RODS with Sharpness-Aware Sampling, by `samplers.RodsSas`; otherwise as `sample_rods_cas`.

    Without detection (eps=0, detect=False) it needs no gradient.
    """
    N, top = _grid(sigmas)
    sampler = RodsSas(
        num_steps=N, sigma_max=top, eps=eps, rho=rho, window=window, solver=solver, sas_sign=sas_sign, detect=detect,
        gradient=gradient,
    )  # fmt: skip
    return _run(sampler, model, x, sigmas, extra_args, callback)


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
) -> Tensor:
    """Gated restart: images that score above `threshold` go back to `sigma_r`, by `restart.Restart`.

    `detector` is `Lid()` without one. Noise is drawn by torch.randn_like, as k-diffusion's samplers do, so that it is
    the host's seed that decides. In the steps of a restart the callback sees the whole batch, with i going back to
    where they begin. Otherwise as `sample_rods_cas`.
    """
    N, top = _grid(sigmas)
    sampler = Restart(
        num_steps=N, sigma_max=top, threshold=threshold, sigma_r=sigma_r, detector=detector or Lid(), rounds=rounds,
        margin=margin, score_at=score_at, inside=inside, solver=solver,
    )  # fmt: skip
    return _run(sampler, model, x, sigmas, extra_args, callback)


def _grid(sigmas: Tensor) -> tuple[int, float]:
    """The number of steps and the first of the host's noise levels. Raises ValueError: not such levels."""
    if sigmas.ndim != 1 or len(sigmas) < 2 or not (sigmas.diff() < 0).all() or sigmas[-1] != 0:
        raise ValueError("sigmas: give decreasing noise levels [N + 1] that end with 0")
    return len(sigmas) - 1, float(sigmas[0])


def _run(
    sampler: Sampler,
    model: Model,
    x: Tensor,
    sigmas: Tensor,
    extra_args: Mapping[str, Any] | None,
    callback: Callback | None,
) -> Tensor:
    """The images, in the host's type, of a sampler along the host's noise levels."""
    with torch.inference_mode(False), torch.no_grad():
        state, levels = (t.detach().to(state_dtype(x.device), copy=True) for t in (x, sigmas.to(x.device)))
        denoise = bind(HostModel(model, len(x), x.dtype, extra_args or {}), len(x))
        recorder, shown = sampler.recorder(), _Shown(callback, levels, x.dtype)
        for step in sampler.along(denoise, state, levels):
            recorder.add(step)
            shown.add(step, recorder.images)
        return recorder.images.to(x.dtype)


@dataclass
class _Shown:
    """Tells a host of every step, always of the whole batch."""

    callback: Callback | None
    levels: Tensor  # [N + 1]
    dtype: torch.dtype

    def add(self, step: Step, images: Tensor) -> None:
        if self.callback is None:
            return
        i = int((self.levels > step.sigma).sum())  # the place of the step among the host's
        x, denoised = (
            value if step.rows is None else images.index_copy(0, step.rows, value) for value in (step.x, step.denoised)
        )
        self.callback({
            "x": x.to(self.dtype),
            "i": i,
            "sigma": self.levels[i].to(self.dtype),
            "sigma_hat": step.sigma.to(self.dtype),
            "denoised": denoised.to(self.dtype),
        })  # fmt: skip
