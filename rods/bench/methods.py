"""The benchmark's methods: a sampler with its options under a name, or a detector read off the baseline's own images.

Options come from the experiment or the command line, then from the table below, and else from what was calibrated for
the network (its preset) or set for the task. A detector changes no image: its sampler only records, so that its run is
the baseline's, bit for bit. Every sampler and every detector of rods/config.py is a method by its own name. With
`accept`, as generate.py has it, a sampler draws again what does not pass.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from typing import Any, Protocol

from dnnlib.errors import UserError, install, of_option
from rods.base_samplers import Sampler
from rods.config import DETECTORS, FITTED, SAMPLERS, typed
from rods.guidance import Guidance
from rods.presets import Preset
from rods.runs.accept import Accept
from rods.runs.guidance import GUIDANCE_OPTIONS, guidance_option
from rods.runs.select import ACCEPT_OPTIONS, Selection, accept_option
from rods.types import Denoiser

BASELINE = "euler"
FINE_STEPS = 200  # of euler-200
HIGH = 40.0  # a noise level of every run, at which detectors that restart nothing may read all steps below
CHURN = 20.0  # S_churn of the churn rows


@dataclass(frozen=True)
class Template:
    """A method before it meets a task."""

    sampler: str
    options: Mapping[str, Any] = field(default_factory=dict)
    is_score: bool = False  # the images stay the baseline's; what counts is how the score ranks them


@dataclass(frozen=True)
class Method:
    """A method on a task: a row of its tables, and a run folder."""

    name: str
    sampler: Sampler
    is_score: bool = False
    guidance: Guidance | None = None
    accept: Accept | None = None  # draws again what does not pass: its images may be of other seeds

    @property
    def folder(self) -> str:
        """The name of its run folder."""
        return re.sub(r"[^A-Za-z0-9.=+-]+", "_", self.name)


def _recorded(detector: str) -> Template:
    """A detector of restart's, which sends nothing back."""
    return Template("restart", {"threshold": inf, "sigma_r": HIGH, "score_at": 0, "detector": detector}, is_score=True)


METHODS: dict[str, Template] = {
    BASELINE: Template("euler"),
    "heun": Template("edm"),
    "euler-200": Template("euler", {"num_steps": FINE_STEPS}),
    **{name: _recorded(name) for name in (*DETECTORS, *FITTED)},
    "h-index": Template("rods-cas", {"eps": inf}, is_score=True),
    "score": Template("restart", {"threshold": inf, "sigma_r": HIGH}, is_score=True),  # by the calibrated detector
    "churn": Template("edm", {"S_churn": CHURN}),
    "churn-euler": Template("ablation", {"solver": "euler", "S_churn": CHURN}),
    "tag": Template("tag", {"eta": 1.1}),
    "rods-cas": Template("rods-cas", {"detect": True}),  # the paper's form, whatever a preset has
    "rods-cas-all": Template("rods-cas", {"eps": 0.0, "detect": False}),
    "rods-cas-5": Template("rods-cas", {"eps": 0.0, "detect": False, "ascent_steps": 5}),
    "rods-cas-10": Template("rods-cas", {"eps": 0.0, "detect": False, "ascent_steps": 10}),
    "rods-sas": Template("rods-sas", {"detect": True}),
    "rods-sas-all": Template("rods-sas", {"eps": 0.0, "detect": False}),
    "rods-cas+churn": Template("rods-cas", {"detect": True, "S_churn": CHURN}),
    "rods-cas+heun": Template("rods-cas", {"detect": True, "solver": "heun"}),
    "rods-sas+heun": Template("rods-sas", {"detect": True, "solver": "heun"}),
}
METHODS |= {name: Template(name) for name in SAMPLERS if name not in METHODS}
"""In the order of the report."""


class Sampled(Protocol):
    """What `resolve` needs of a task, or of whatever else is sampled with one number of steps."""

    @property
    def name(self) -> str: ...
    @property
    def num_steps(self) -> int: ...
    @property
    def settings(self) -> Mapping[str, Any] | None: ...  # by sampler, where no preset has them


def resolve(
    method: str,
    task: Sampled,
    preset: Preset | None = None,
    denoiser: Denoiser | None = None,
    *,
    given: Mapping[str, Any] | None = None,
    name: str | None = None,
) -> Method:
    """A method of the table on a task, with the options `given` over its own, under another `name` if there is one.

    Values may be those of JSON: texts of windows and detectors. Among the options may be those of guidance, as
    generate.py has them, guidance, guide and guidance_interval, and those of drawing again, accept and max_tries; a
    method that draws again is named after that where no name is given. Given the `denoiser`, it is checked to suit the
    method. Raises UserError: an unknown method or option, a value that is out of range, or a sampler without
    calibration.
    """
    if method not in METHODS:
        raise UserError(f"--samplers: unknown method {method!r}; use {', '.join(METHODS)}")
    template, known = METHODS[method], preset or Preset("none", None, "", {})
    usual = {} if template.sampler in known.samplers else (task.settings or {}).get(template.sampler, {})
    options = dict(given or {})
    guidance = _guidance({key: options.pop(key, None) for key in GUIDANCE_OPTIONS}, preset, name or method)
    with of_option(f"--samplers: {name or method}"):
        accept = _accept({key: options.pop(key, None) for key in ACCEPT_OPTIONS}, preset, template)
        if accept is not None and name == BASELINE:
            raise UserError("accept: every row is compared with this one; give what is drawn again another name")
    replaced = {**usual, "num_steps": task.num_steps, **template.options, **options}
    try:
        values = {key: typed(template.sampler, key, value, fitted=known.fitted) for key, value in replaced.items()}
        sampler = known.sampler(template.sampler, values)
        if denoiser is not None:
            sampler.check(denoiser)
    except ValueError as e:
        raise UserError(
            f"--samplers: {name or method} on {task.name}: {e} (scripts/calibrate.py --task={task.name} finds the "
            "options of a network)"
        ) from None
    if accept is not None:
        name = name or f"{method}-accept" + (f"@{accept.level:g}" if accept.level else "")
        if denoiser is not None:
            with of_option(f"--samplers: {name} on {task.name}"):
                Selection(accept).check(sampler, (), denoiser)
    return Method(name or method, sampler, template.is_score, guidance, accept)


def _guidance(opts: dict[str, Any], preset: Preset | None, name: str) -> Guidance | None:
    """The guidance of a run, or the preset's. Raises UserError."""
    try:
        strength = None if opts["guidance"] is None else float(opts["guidance"])
    except (TypeError, ValueError):
        raise UserError(f"--samplers: {name}: guidance: {opts['guidance']!r}: must be a number") from None
    if not all(isinstance(opts[key], str | None) for key in GUIDANCE_OPTIONS[1:]):
        raise UserError(f"--samplers: {name}: guide and guidance_interval must be texts, such as 'none' and '.2,5'")
    return guidance_option({**opts, "guidance": strength}, preset)


def _accept(opts: dict[str, Any], preset: Preset | None, template: Template) -> Accept | None:
    """The limit of a run, by the code of generate.py. Raises UserError."""
    limit, tries = (opts[name] for name in ACCEPT_OPTIONS)
    if not isinstance(limit, str | None):
        raise UserError(f"accept: {limit!r}: must be a text, such as 'lid<12' or 'lid<12@.5'")
    if tries is not None and (isinstance(tries, bool) or not re.fullmatch(r"\d{1,9}", str(tries))):
        raise UserError(f"max_tries: {tries!r}: must be a whole number, such as 4")
    if limit is not None and template.is_score:
        raise UserError("accept: this method scores Euler's images and draws none; give it to a sampler, such as euler")
    return accept_option({"accept": limit, "max_tries": None if tries is None else int(tries)}, preset)


# -- command line and experiments -------------------------------------------------------------------------------------


def split_methods(text: str) -> list[tuple[str, dict[str, Any]]]:
    """`euler,heun` -> two methods; with options one method: `restart sigma_r=2.24 detector=lid:sigma=1.2,draws=4`."""
    name, *rest = re.sub(r",\s+", ",", text).split()
    if not rest:
        return [(part, {}) for part in name.split(",")]
    return [(name, dict(_option(part, name) for part in rest))]


def _option(text: str, method: str) -> tuple[str, Any]:
    """`rho=4` -> ("rho", 4.0), by the type of the option."""
    key, found, value = text.partition("=")
    if not found or not key.isidentifier():
        raise UserError(f"--samplers: {text!r} after {method} is not an option; write option=value, such as rho=4")
    if "," in method:
        raise UserError(f"--samplers: options belong to one method; give {method.rpartition(',')[2]!r} by itself")
    return key, value


@dataclass(frozen=True)
class ExperimentTable:
    """A table of the benchmark: a network, its methods, and seeds."""

    task: str
    network: str | None
    preset: str | None
    batch: int | None
    seeds: str | None  # as on the command line; None: the task's
    methods: Sequence[tuple[str | None, str, Mapping[str, Any], str | None]]  # name, method, options, its own seeds


def read_experiments(path: Path) -> list[ExperimentTable]:
    """The tables of a TOML file: `[[table]]` with task, network, preset, batch, seeds, and `[[table.run]]` in it.

    A run is a `method`, or several as `methods`, with options; `name` is its folder's where two are of one method.
    Raises UserError: not such a file, or Python 3.10 without the extra `experiments`.
    """
    try:
        data = _toml(path.read_text())
        tables = data.pop("table", None)
        if data:
            raise ValueError(f"unknown key {next(iter(data))!r}")
        if not isinstance(tables, list) or not tables or not all(isinstance(table, dict) for table in tables):
            raise ValueError("table: must be tables, each under [[table]]")
        return [_experiment(table) for table in tables]
    except ValueError as e:
        raise UserError(f"{path} is not an experiment: {e}; experiments/hands-32.toml shows one") from None


def _toml(text: str) -> dict[str, Any]:
    """Raises ValueError: not TOML."""
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        try:
            import tomli as tomllib  # type: ignore[import-not-found]
        except ImportError:
            raise UserError(f"experiments need Python 3.11, or {install('experiments')}") from None
    found: dict[str, Any] = tomllib.loads(text)
    return found


def _experiment(table: dict[str, Any]) -> ExperimentTable:
    task = _value(table, "task", str, "a text, such as 'hands-32'")
    if task is None:
        raise ValueError("task: is missing; give the benchmark's task")
    network, preset = (_value(table, key, str, "a text, the name of one") for key in ("network", "preset"))
    batch, seeds = _value(table, "batch", int, "a whole number from 1"), _value(table, "seeds", str, SEEDS_FORM)
    if batch is not None and batch < 1:
        raise ValueError(f"batch: {batch}: must be a whole number from 1")
    runs = table.get("run")
    if not isinstance(runs, list) or not runs or not all(isinstance(run, dict) for run in runs):
        raise ValueError("run: must be a list of runs, such as run = [{ method = 'euler' }], and not empty")
    if unknown := table.keys() - {"task", "network", "preset", "batch", "seeds", "run"}:
        raise ValueError(f"unknown key {min(unknown)!r}")
    methods = [method for run in runs for method in _methods(run)]
    return ExperimentTable(task, network, preset, batch, seeds, methods)


SEEDS_FORM = "a text, such as '0-1023'"


def _methods(run: dict[str, Any]) -> list[tuple[str | None, str, dict[str, Any], str | None]]:
    names, method = run.get("methods"), _value(run, "method", str, "a text, such as 'euler'")
    if (names is None) == (method is None):
        raise ValueError("run: needs one of method = 'euler' and methods = ['euler', 'heun']")
    if names is not None and (not isinstance(names, list) or not all(isinstance(name, str) for name in names)):
        raise ValueError(f"methods: {names!r}: must be a list of texts, such as ['euler', 'heun']")
    name, seeds = _value(run, "name", str, "a text"), _value(run, "seeds", str, SEEDS_FORM)
    if name is not None and not name.strip("."):
        raise ValueError(f"name: {name!r}: names the run's folder; give a word")
    own = {key: value for key, value in run.items() if key not in ("method", "methods", "name", "seeds")}
    found = [method] if method is not None else names or []
    if name == BASELINE and found != [BASELINE]:
        raise ValueError(f"name: {BASELINE!r} is what the others are compared with; give this run another")
    return [(name, each, own, seeds) for each in found]


def _value(table: dict[str, Any], key: str, kind: type, form: str) -> Any:
    value = table.get(key)
    if value is not None and type(value) is not kind:
        raise ValueError(f"{key}: {value!r}: must be {form}")
    return value
