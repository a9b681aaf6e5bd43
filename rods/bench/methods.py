"""The benchmark's methods by name: a sampler with options, or a score read off the baseline's own images.

A method is written as on the command line: a name of the table, and options after it, `restart sigma_r=2.24`. Options
come from the table, from the command line, and else from what was calibrated for the network (its preset) or set for
the task. A score changes no image: its sampler is asked to record only, so that its run is the baseline's, bit for bit.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import inf
from typing import Any, Protocol

from dnnlib.errors import UserError
from rods.pipeline import SamplerConfig
from rods.presets import Preset
from rods.types import Denoiser

BASELINE = "euler"
FINE_STEPS = 200  # of euler-200
HIGH = 40.0  # a noise level of every run, at which scores that restart nothing may look at all steps below
CHURN = 20.0  # S_churn of the churn rows, as in the first experiments (method.md, section 3)


@dataclass(frozen=True)
class Method:
    """A row of the benchmark before it meets a task."""

    sampler: str
    options: Mapping[str, Any] = field(default_factory=dict)
    is_score: bool = False  # the images stay the baseline's; what counts is how the score ranks them


@dataclass(frozen=True)
class Setting:
    """A method on a task: every option has its value."""

    name: str  # as given: `restart sigma_r=2.24`
    config: SamplerConfig
    is_score: bool

    @property
    def file_name(self) -> str:
        """The name of its result file."""
        return re.sub(r"[^A-Za-z0-9.=+-]+", "_", self.name) + ".jsonl"


def _recorded(detector: str | None = None) -> Method:
    """A score of restart's, which sends nothing round; without a detector the calibrated one."""
    gate = {} if detector is None else {"detector": detector}
    return Method("restart", {"threshold": inf, "sigma_r": HIGH, **gate}, is_score=True)


METHODS: dict[str, Method] = {
    BASELINE: Method("euler"),
    "heun": Method("edm"),
    "euler-200": Method("euler", {"num_steps": FINE_STEPS}),
    "tvf": _recorded("tvf"),
    "lid": _recorded("lid"),
    "h-index": Method("rods-cas", {"eps": inf}, is_score=True),
    "lambda-max": _recorded("lambda-max"),
    "lmi": _recorded("lmi"),
    "score": _recorded(),  # whose `detector` is the calibrated one, or given
    "overshoot": Method("overshoot"),
    "sigma-offset": Method("sigma-offset"),
    "churn": Method("edm", {"S_churn": CHURN}),
    "churn-euler": Method("ablation", {"solver": "euler", "S_churn": CHURN}),
    "random": Method("random"),
    "restart": Method("restart"),
    "iq": Method("iq"),
    "tag": Method("tag", {"eta": 1.1}),
    "laplacian": Method("laplacian"),
    "rods-cas": Method("rods-cas"),
    "rods-cas-all": Method("rods-cas", {"eps": 0.0, "detect": False}),
    "rods-cas-5": Method("rods-cas", {"eps": 0.0, "detect": False, "ascent_steps": 5}),
    "rods-cas-10": Method("rods-cas", {"eps": 0.0, "detect": False, "ascent_steps": 10}),
    "rods-sas": Method("rods-sas"),
    "rods-sas-all": Method("rods-sas", {"eps": 0.0, "detect": False}),
    "rods-cas+churn": Method("rods-cas", {"S_churn": CHURN}),
    "rods-cas+heun": Method("rods-cas", {"solver": "heun"}),
    "rods-sas+heun": Method("rods-sas", {"solver": "heun"}),
}
"""In the order of the report."""


def split_methods(text: str) -> list[str]:
    """`euler,rods-cas window=.1,.5 rho=4,heun` -> its methods; a comma in a value is the value's."""
    return [part.strip() for part in re.split(r",(?=\s*[A-Za-z][^\s,=]*(?:[\s,]|$))", text)]


class Sampled(Protocol):
    """What `resolve` needs of a task, or of whatever else is sampled with one number of steps."""

    @property
    def name(self) -> str: ...
    @property
    def num_steps(self) -> int: ...
    @property
    def settings(self) -> Mapping[str, Any] | None: ...  # by sampler, where no preset has them


def resolve(text: str, task: Sampled, preset: Preset | None, denoiser: Denoiser | None = None) -> Setting:
    """The setting of a method on a task. Given the `denoiser`, values are tried out on one pixel, at no network pass.

    Raises UserError: an unknown method or option, a value of the wrong form or out of range, or a sampler that nobody
    calibrated.
    """
    name, *given = text.split()
    if name not in METHODS:
        raise UserError(f"--samplers: {name!r} is no method; use {', '.join(METHODS)}")
    method = METHODS[name]
    calibrated = preset.samplers.get(method.sampler, {}) if preset else {}
    usual = (task.settings or {}).get(method.sampler, {})
    replaced = {
        **{k: v for k, v in usual.items() if k not in calibrated},
        "num_steps": task.num_steps,  # methods are compared at one length unless they say otherwise
        **method.options,
        **dict(_option(part, name) for part in given),
    }
    known = preset or Preset("none", None, "", {})
    try:
        config = known.config(method.sampler, replaced)
        if denoiser is not None:
            config.rehearse(denoiser)
    except ValueError as e:
        raise UserError(
            f"--samplers: {text!r} on {task.name}: {e} (options are given as '{name} option=value'; "
            f"scripts/calibrate.py --task={task.name} finds those of a network)"
        ) from None
    return Setting(text, config, method.is_score)


def _option(text: str, method: str) -> tuple[str, Any]:
    """`rho=4` -> ("rho", 4); a value that is no JSON is text."""
    key, found, value = text.partition("=")
    if not found or not key.isidentifier():
        raise UserError(f"--samplers: {text!r} after {method} is no option; write option=value, such as rho=4")
    number = re.sub(r"^(-?)\.", r"\g<1>0.", value)
    try:
        return key, json.loads(number)
    except ValueError:
        return key, value
