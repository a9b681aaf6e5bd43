"""Our samplers and detectors for a host's model: what k_diffusion.py and modular_diffusers.py are made of.

A host calls its model as model(x, sigma [B], **extra_args) -> the denoised images. Its state is x = image + sigma n;
of a flow (rectified flow, flow matching; ComfyUI's CONST) it is z = (1 - t) image + t n, and what it calls sigma is t.
With `flow` all is done at x = z / (1 - t) and sigma = t / (1 - t), where noise may be added and scores mean the same,
and the host sees z and t. A first step from t = 1, where sigma is infinite, is the flow's own and is not corrected.

The host's model may hold something for every image of the batch. It is therefore always called with the whole batch:
where a gate evaluates some images, the others' places are filled up, and what the model says of them is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from math import inf
from typing import Any

import torch
from torch import Tensor

from rods.base_samplers import Sampler
from rods.denoiser import Keyed, Noise, bind
from rods.detectors import Detector
from rods.restart import draws_of
from rods.types import RodsResult, Step, form, state_dtype

Model = Callable[..., Tensor]
Callback = Callable[[dict[str, Any]], Any]


@dataclass(frozen=True, eq=False)
class HostModel(Keyed):
    """A host's model as a denoiser of some rows of a batch of `batch`; keys are places in it, each once."""

    model: Model
    batch: int
    dtype: torch.dtype  # of the host's state
    extra_args: Mapping[str, Any]
    flow: bool = False

    def keyed(self, x: Tensor, sigma: Tensor, class_labels: Tensor | None = None, *, keys: Tensor) -> Tensor:
        source = torch.arange(self.batch) % len(keys)  # which of the rows stands at each place of the batch
        source[keys] = torch.arange(len(keys))
        whole = x if torch.equal(source, keys) else x[source.to(x.device)]
        state, level = (whole / (1 + sigma), sigma / (1 + sigma)) if self.flow else (whole, sigma)
        denoised = self.called(state, level)
        return denoised if whole is x else denoised[keys.to(x.device)]

    def called(self, state: Tensor, level: Tensor) -> Tensor:
        """What the model makes of the host's whole state at a level []. Raises ValueError: no tensor of its shape."""
        denoised = self.model(state.to(self.dtype), level.to(self.dtype).expand(self.batch), **self.extra_args)
        if not isinstance(denoised, Tensor):
            raise ValueError(f"model: it returned a {type(denoised).__name__}; let it return the denoised images alone")
        if denoised.shape != state.shape:
            raise ValueError(f"model: it returned {list(denoised.shape)} for an input of {list(state.shape)}")
        return denoised


def run_by(
    sampler: Sampler,
    model: Model,
    x: Tensor,
    sigmas: Tensor,
    extra_args: Mapping[str, Any] | None = None,
    callback: Callback | None = None,
    *,
    flow: bool = False,
    randn_like: Noise | None = None,
) -> RodsResult:
    """Images, in float32 or float64, and records of a sampler along the host's noise levels; its own grid is not used.

    A record's F are calls of the host's model, whatever it evaluates in each. Arguments and errors: see `sample_by`.
    """
    _check_state(x)
    _check_levels(sigmas, flow=flow)
    with torch.inference_mode(False), torch.no_grad():
        state, told = (t.detach().to(state_dtype(x.device), copy=True) for t in (x, sigmas.to(x.device)))
        levels = told / (1 - told) if flow else told  # [N + 1], inf where t = 1
        shown = _Shown(callback, told, levels, x.dtype, flow)
        host = HostModel(model, len(x), x.dtype, extra_args or {}, flow)
        denoise, recorder = bind(host, len(x), randn_like=randn_like), sampler.recorder()
        if levels[0].isinf():
            denoised = host.called(state, told[0]).to(state.dtype) if len(x) else state
            denoise.forward.add_(1)
            shown.tell(0, state, told[0], denoised)
            state, levels = (1 - told[1]) * denoised + told[1] * state, levels[1:]
        state = state * (1 + levels[0]) if flow else state
        for step in sampler.along(denoise, state, levels):
            recorder.add(step)
            shown.add(step, recorder.images)
        return recorder.result(denoise)


def sample_by(
    sampler: Sampler,
    model: Model,
    x: Tensor,
    sigmas: Tensor,
    extra_args: Mapping[str, Any] | None = None,
    callback: Callback | None = None,
    disable: bool | None = None,
    *,
    flow: bool = False,
) -> Tensor:
    """The images of `run_by` in the host's type, called as hosts call samplers.

    Args:
        model: (x, sigma [B], **extra_args) -> denoised.
        x: [B, ...], the host's state at sigmas[0], noise and all.
        sigmas: [N + 1], decreasing to 0.
        callback: gets k-diffusion's dict (x, i, sigma, sigma_hat, denoised) after every step.
        disable: no progress bar is drawn, so that it changes nothing.
        flow: whether the host's state is a flow's.
    Raises:
        ValueError: a state or levels that are none, or a model that gives no gradient where one is needed.
    """
    return run_by(sampler, model, x, sigmas, extra_args, callback, flow=flow).images.to(x.dtype)


def score_by(
    detector: Detector,
    model: Model,
    x: Tensor,
    extra_args: Mapping[str, Any] | None = None,
    *,
    flow: bool = False,
) -> Tensor:
    """The scores [B] of finished images `x` [B, ...]; the noise is of torch.randn_like.

    `model` and `flow` as in `sample_by`. Cost: the detector's. Raises ValueError: one that needs more than the image.
    """
    if detector.needs != "image":
        raise ValueError(
            f"detector: {type(detector).__name__} needs a {detector.needs}; use one of images, such as Lid"
        )
    _check_state(x)
    with torch.inference_mode(False), torch.no_grad():
        denoise = bind(HostModel(model, len(x), x.dtype, extra_args or {}, flow), len(x))
        image = x.detach().to(state_dtype(x.device), copy=True)
        return detector.score(denoise, image, noise=draws_of(denoise, image, detector.num_draws))


def _check_state(x: object) -> None:
    if not isinstance(x, Tensor) or x.ndim < 2 or not x.is_floating_point():
        raise ValueError(f"x: {form(x)}: must be the state, a floating-point tensor [B, ...]")


def _check_levels(sigmas: object, *, flow: bool) -> None:
    wanted = "give a tensor of finite, decreasing noise levels [N + 1] that end with 0"
    if not isinstance(sigmas, Tensor) or sigmas.ndim != 1 or len(sigmas) < 2 or sigmas.is_complex():
        raise ValueError(f"sigmas: {form(sigmas)}; {wanted}")
    levels = sigmas.tolist()
    for i, (level, following) in enumerate(pairwise(levels)):
        if not inf > level > following:
            raise ValueError(f"sigmas: {level:g} at {i}, and then {following:g}; {wanted}")
    if levels[-1] != 0:
        raise ValueError(f"sigmas: the last is {levels[-1]:g}; {wanted}")
    if flow and len(sigmas) == 2 and sigmas[0] == 1:
        raise ValueError("sigmas: one step from pure noise to the image leaves nothing to sample; give more levels")
    if flow and sigmas[0] > 1:
        raise ValueError(f"sigmas: they begin at {float(sigmas[0]):g}, and a flow's t is at most 1; is it a flow?")


@dataclass
class _Shown:
    """Tells a host of every step, always of the whole batch."""

    callback: Callback | None
    told: Tensor  # [N + 1], the host's levels
    levels: Tensor  # [N + 1], the same as our sigma
    dtype: torch.dtype
    flow: bool

    def add(self, step: Step, images: Tensor) -> None:
        if self.callback is None:
            return
        i = int((self.levels > step.sigma).sum())  # the place of the step among the host's
        x, denoised = (
            value if step.rows is None else images.index_copy(0, step.rows, value) for value in (step.x, step.denoised)
        )
        scale = 1 + step.sigma if self.flow else torch.ones_like(step.sigma)
        self.tell(i, x / scale, step.sigma / scale, denoised)

    def tell(self, i: int, x: Tensor, level: Tensor, denoised: Tensor) -> None:
        if self.callback is not None:
            found = {"x": x, "sigma": self.told[i], "sigma_hat": level, "denoised": denoised}
            self.callback({"i": i} | {name: value.to(self.dtype) for name, value in found.items()})
