"""Names that version 0.1 had: those with an equivalent work and warn, the others are errors that say what to use.

Not here: `gate`, now a module of that name; it is `Gate`. To go in version 0.3.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from functools import partial
from typing import Any, Literal

from torch import Tensor

import rods
from rods.config import build, detector_from_text, to_text
from rods.denoiser import Noise, bind
from rods.detectors import Detector, Lid
from rods.state import State
from rods.types import AnyDenoiser, RodsResult


def run(
    name: str,
    denoiser: AnyDenoiser,
    latents: Tensor,
    class_labels: Tensor | None = None,
    *,
    randn_like: Noise | None = None,
    **options: Any,
) -> RodsResult:
    """A sampler by its name; the options are checked by `build`."""
    return build(name, options).sample(denoiser, latents, class_labels, randn_like=randn_like)


def images(
    name: str,
    denoiser: AnyDenoiser,
    latents: Tensor,
    class_labels: Tensor | None = None,
    *,
    randn_like: Noise | None = None,
    **options: Any,
) -> Tensor:
    """`run` without the records."""
    return run(name, denoiser, latents, class_labels, randn_like=randn_like, **options).images


def sas(rho: float, sign: Literal["uphill", "downhill"] = "uphill") -> rods.Sas:
    return rods.Sas(rho, sign)


def lid(denoise: AnyDenoiser, x0: Tensor, sigma: Tensor | float, *, noise: Tensor) -> Tensor:
    return Lid(float(sigma), max(len(noise), 1)).score(bind(denoise, len(x0)), x0, noise=noise)


def lid_gradient(denoise: AnyDenoiser, x0: Tensor, sigma: Tensor | float, *, noise: Tensor) -> tuple[Tensor, Tensor]:
    return Lid(float(sigma), max(len(noise), 1)).score_and_gradient(bind(denoise, len(x0)), x0, noise=noise)


def parse_score(text: str, *, named: Mapping[str, Detector] | None = None) -> Detector:
    return detector_from_text(text, fitted=named)


_SAMPLERS = {f"{name.replace('-', '_')}_sampler": partial(images, name)
             for name in ("ablation", "overshoot", "sigma-offset", "tag", "random", "laplacian")}  # fmt: skip
RENAMED: dict[str, tuple[Any, str]] = {
    "Point": (State, "State"),
    "Score": (Detector, "Detector"),
    "HIndex": (rods.CurvatureIndex, "CurvatureIndex"),
    "h_index": (rods.CurvatureIndex, "CurvatureIndex"),
    "lambda_max": (rods.LambdaMax, "LambdaMax"),
    "cas": (rods.Cas, "Cas"),
    "sas": (sas, "Sas"),
    "overshoot": (rods.Overshoot, "Overshoot"),
    "tag": (rods.Tag, "Tag"),
    "within": (rods.Within, "Within"),
    "chain": (rods.Chain, "Chain"),
    "lid": (lid, "Lid(sigma, draws).score"),
    "lid_gradient": (lid_gradient, "Lid(sigma, draws).score_and_gradient"),
    "parse_score": (parse_score, "config.detector_from_text"),
    "format_score": (to_text, "config.to_text"),
    "iq_sampler": (partial(run, "iq"), "config.build('iq', options).sample"),
    **{name: (call, f"config.build({call.args[0]!r}, options).sample") for name, call in _SAMPLERS.items()},
}
"""Old name: what does the same, and what to write instead, after `rods.`"""
REMOVED = {
    "random_shift": "RandomShift(rho); its numbers come from bind(..., randn_like=)",
    "iq": "Iq(strength, threshold, lid_sigma, draws); its numbers come from bind(..., randn_like=)",
    "laplacian": "Laplacian(strength, probes, probe_radius); its numbers come from bind(..., randn_like=)",
    "gated_restart": "Restart(...).steps, a generator of steps",
    "ImageScore": "Detector, whose `follow` sees the steps",
    "TrajectoryVariance": "Tvf(sigma).follow, whose steps are those at noise levels up to sigma",
    "tvf": "Tvf(sigma).follow, whose steps are those at noise levels up to sigma",
    "Learned": "Readout, which scripts/fit_readout.py fits",
    "Term": "Readout, which scripts/fit_readout.py fits",
    "Screened": "Readout, which scripts/fit_readout.py fits",
}
"""Old name: what to use instead, after `rods.`; it does not take the same arguments."""


def lookup(name: str) -> Any:
    """What `rods.NAME` was. Warns of an old name; AttributeError for one without an equivalent, and for any other."""
    if name in RENAMED:
        value, successor = RENAMED[name]
        warnings.warn(f"rods.{name} is deprecated; use rods.{successor}", DeprecationWarning, stacklevel=3)
        return value
    if name in REMOVED:
        raise AttributeError(f"rods.{name} was removed; use rods.{REMOVED[name]}")
    raise AttributeError(f"module 'rods' has no attribute {name!r}")
