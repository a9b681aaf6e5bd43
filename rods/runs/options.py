"""Sampler options on the command line: generated from the fields of the samplers, and made into a sampler.

A library's error is "argument: what is wrong; remedy"; here the argument gets its command line's name.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import fields
from math import inf
from typing import Any, TypeVar

import click

from dnnlib.cli import with_options
from dnnlib.errors import UserError
from rods.base_samplers import Ablation, Churned, Sampler
from rods.config import CORRECTORS, DETECTORS, FITTED, SAMPLERS, detector_from_text, from_text, options, to_text
from rods.correctors import NamedCorrector
from rods.detectors import Detector
from rods.legacy import detector_text
from rods.presets import RESTART_SCORES, Preset, unmeasured
from rods.samplers import Rods
from rods.schedules import SigmaWindow, Window, check_window
from rods.schema import REQUIRED, Option, window_from_text, window_to_text
from rods.trajectory import Corrector

F = TypeVar("F", bound=Callable[..., Any])
ABLATION_OPTIONS = ("solver", "discretization", "schedule", "scaling")
_OTHER_FLAGS = {
    "sampler": "--sampler", "max_tries": "--max-tries", "filter_threshold": "--filter-threshold",
    "probe_batch": "--probe-batch", "channels_last": "--channels-last", "network_sha256": "--network sha256",
    "rows_per_seed": "--seeding rows", "detector_sha256": "--detector sha256", "filter_sha256": "--filter sha256",
    "accept_sha256": "--accept sha256", "guidance_interval": "--guidance-interval", "guide_sha256": "--guide sha256",
}  # fmt: skip
_DEFAULTS = {"detect": "false where --eps=0 and there is no detector, else true"}  # the library's: true


class WindowText(click.ParamType):  # type: ignore[type-arg]
    """`.1,.5` (fractions of the steps) or `sigma:1,5` (noise levels)."""

    name = "lo,hi|sigma:lo,hi"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        try:
            window = window_from_text(value)
            check_window(window)
            return window
        except ValueError as e:
            self.fail(str(e).removeprefix("window: "), param, ctx)


class ValueText(click.ParamType):  # type: ignore[type-arg]
    """A detector or corrector, `name:option=value,...`. It stays a text until the preset is known that may name it."""

    name = "name[:option=value,...]"

    def __init__(self, kind: type[Detector] | type[Corrector]) -> None:
        self.kind = kind

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            return detector_text(value) if self.kind is Detector else value
        except ValueError as e:
            self.fail(str(e).removeprefix("detector: "), param, ctx)


# -- generated --------------------------------------------------------------------------------------------------------


def all_options() -> dict[str, dict[str, Option]]:
    """The options that commands offer, each as the samplers that have it see it: option -> sampler -> `Option`.

    In the order of --help: the grid's, RODS's, those of the others, churn, and what only the ablation sampler has.
    """
    found: dict[str, dict[str, Option]] = {}
    for sampler in SAMPLERS:
        for name, option in options(sampler).items():
            if option.help:
                found.setdefault(name, {})[sampler] = option
    order: list[str] = [f.name for f in fields(Sampler)]
    last = [f.name for f in fields(Churned) if f.name not in order]
    last += [name for name, kinds in found.items() if [SAMPLERS[s] for s in kinds] == [Ablation]]
    for sampler in sorted(SAMPLERS, key=lambda name: not issubclass(SAMPLERS[name], Rods)):
        order += [name for name in options(sampler) if name in found and name not in (*order, *last)]
    return {name: found[name] for name in [*order, *last]}


def flag(argument: str) -> str:
    """How an argument is spelt on the command line."""
    for option in all_options().get(argument, {}).values():
        return option.flag
    return _OTHER_FLAGS.get(argument, f"--{argument}")


def add_sampler_options(command: F, *, without: Collection[str] = ()) -> F:
    """Decorator: every sampler option but those named, None where it is not given."""
    found = [(name, kinds) for name, kinds in all_options().items() if name not in without]
    return with_options(command, [_click_option(name, kinds) for name, kinds in found])


def _click_option(name: str, kinds: Mapping[str, Option]) -> Callable[[F], F]:
    one = next(iter(kinds.values()))
    spellings = [one.flag] + ([f"--{name}"] if name in ("sigma_min", "sigma_max") else [])  # EDM's own spelling, too
    return click.option(*spellings, name, type=_click_type(one), default=None, help=_help(kinds))


def _click_type(option: Option) -> Any:
    if isinstance(option.kind, tuple):
        return click.Choice(option.kind)
    if option.kind is int and option.least is not None:
        return click.IntRange(option.least, option.most)
    if option.kind == Window:
        return WindowText()
    return ValueText(option.kind) if option.kind in (Detector, Corrector) else option.kind


def _help(kinds: Mapping[str, Option]) -> str:
    """What each group of samplers says of an option, with its default."""
    said: dict[str, dict[str, list[str]]] = {}  # help -> default -> samplers
    for sampler, option in kinds.items():
        said.setdefault(option.help.removesuffix("."), {}).setdefault(_default(option), []).append(sampler)
    parts = []
    for what, defaults in said.items():
        owners = [s for samplers in defaults.values() for s in samplers]
        prefix = "" if len(owners) == len(SAMPLERS) else f"{_these(owners)}: "
        *others, (usual, _) = sorted(defaults.items(), key=lambda case: len(case[1]))
        known = [f"{_these(samplers)}: {default or 'none'}" for default, samplers in others]
        known += [f"others: {usual}" if others else usual] if usual else []
        parts.append(prefix + what + (f" [default: {'; '.join(known)}]" if known else ""))
    names = _names(next(iter(kinds.values())))
    return "; ".join(parts) + "." + (f" Names: {', '.join(names)}." if names else "")


def _names(option: Option) -> list[str]:
    """The names that an option's value may begin with; none where it is not a detector or corrector."""
    if option.kind is Detector:
        return [*DETECTORS, *FITTED]
    if option.kind is Corrector:  # inside a restart, where none may draw
        return [n for n, kind in CORRECTORS.items() if not (issubclass(kind, NamedCorrector) and kind.random)]
    return []


def _these(samplers: Collection[str]) -> str:
    """Their names, or those of the others where these are fewer."""
    rest = [name for name in SAMPLERS if name not in samplers]
    return f"all but {', '.join(rest)}" if len(rest) < len(samplers) else ", ".join(samplers)


def _default(option: Option) -> str:
    if option.name in _DEFAULTS:
        return _DEFAULTS[option.name]
    value = option.default
    if value is REQUIRED or value is None:
        return ""
    if isinstance(value, SigmaWindow | tuple):
        return window_to_text(value)
    if isinstance(value, Detector | Corrector):
        return to_text(value)
    return str(value).lower() if isinstance(value, bool) or value == inf else str(value)


# -- what was given ---------------------------------------------------------------------------------------------------


def given_options(opts: Mapping[str, Any]) -> dict[str, Any]:
    """The sampler options that were given, by the samplers' field names."""
    return {name: opts[name] for name in all_options() if opts.get(name) is not None}


def sampler_choice(name: str | None, given: Mapping[str, Any], *, say: Callable[[str], None]) -> str:
    """The sampler: as named; the ablation sampler where one of its own options is given; else edm."""
    if name is not None:
        return name
    asked = [flag(option) for option in ABLATION_OPTIONS if option in given]
    if asked:
        say(f"{', '.join(asked)} given without --sampler: using --sampler=ablation")
        return "ablation"
    return "edm"


def sampler_from_options(name: str, given: Mapping[str, Any], preset: Preset | None, network: str) -> Sampler:
    """The sampler, which measures no H where --eps=0 corrects all and neither --detect nor --detector is given.

    UserError, naming the option, for one that the sampler does not have, or that is missing or out of range.
    """
    known = options(name)
    for option in given:
        if option not in known:
            raise UserError(_misplaced(option, name))
    calibrated = preset is not None and name in preset.samplers
    missing = [o.flag for o in known.values() if o.default is REQUIRED and o.name not in given and not calibrated]
    if missing and name.startswith("rods"):
        raise UserError(
            f"{' and '.join(missing)} needed: --sampler={name} has no preset for network {network!r}. To calibrate, "
            "run once with --eps=inf and a radius --rho, read H in samples.jsonl, and set --eps to a high quantile of "
            "it (docs/how-to/calibrate.md)"
        )
    try:
        values = {key: _value(known[key], value, preset) for key, value in given.items()}
        return unmeasured((preset or Preset("none", None, "", {})).sampler(name, values), values)
    except ValueError as e:
        raise UserError(respell(str(e))) from None


def with_restart_share(
    given: Mapping[str, Any], share: float | None, sampler: str, preset: Preset | None
) -> Mapping[str, Any]:
    """The options with the threshold that a share of the preset's calibration samples exceeds. Raises UserError."""
    if share is None:
        return given
    if not getattr(SAMPLERS[sampler], "restarts", False):
        raise UserError(f"--restart-share is for --sampler=restart; --sampler={sampler} does not restart")
    if clash := [flag(name) for name in ("threshold", "detector", "score_at") if name in given]:
        raise UserError(f"--restart-share is of the preset's own scores; leave it or {' and '.join(clash)} out")
    return {
        **given,
        "threshold": preset_quantile(preset, RESTART_SCORES, 1 - share, asked=f"--restart-share={share:g}"),
    }


def preset_quantile(preset: Preset | None, scores: str, share: float, *, asked: str) -> float:
    """`Preset.quantile`; UserError, naming what was asked, where there is no preset or it has no such scores."""
    if preset is None:
        raise UserError(f"{asked} needs a preset with quantiles; scripts/fit_gate.py writes one")
    try:
        return preset.quantile(scores, share)
    except ValueError as e:
        raise UserError(f"{asked}: {e}") from None


def _value(option: Option, value: Any, preset: Preset | None) -> Any:
    """A text as the value that it names."""
    if isinstance(value, str) and option.kind in (Detector, Corrector):
        return from_text(option.kind, value, option=option.name, fitted=preset.fitted if preset else None)
    return value


def detector_option(text: str, preset: Preset | None, *, option: str) -> Detector:
    """The detector that an option names. Raises UserError."""
    try:
        return detector_from_text(text, option=option, fitted=preset.fitted if preset else None)
    except ValueError as e:
        raise UserError(str(e)) from None


def _misplaced(option: str, sampler: str) -> str:
    owners = [name for name in SAMPLERS if option in options(name)]
    message = f"{flag(option)} is an option of {', '.join(owners)}; --sampler={sampler} has none"
    if option == "rho":
        return message + ": it is RODS's radius. The exponent of the noise grid (EDM's --rho) is --time-rho"
    return message + f": leave it out or choose --sampler={owners[0]}"


def respell(message: str) -> str:
    """A library's `argument: what is wrong` with the argument as the command line spells it."""
    names, found, rest = message.partition(": ")
    if not found or not all(part.isidentifier() for part in names.split(", ")):
        return message
    return ", ".join(flag(part) for part in names.split(", ")) + ": " + rest
