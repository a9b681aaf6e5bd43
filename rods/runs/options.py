"""Sampler options that were given on the command line: their names, their checks, and a config made of them."""

from __future__ import annotations

from typing import Any

from dnnlib.errors import UserError
from rods.pipeline import SAMPLERS, SamplerConfig, sampler_options
from rods.presets import Preset

# How sampler arguments are spelt on the command line, where it is not --name.
SPELLING = {
    "sampler": "--sampler",
    "num_steps": "--steps",
    "discretization": "--disc",
    "time_rho": "--time-rho",
    "sas_sign": "--sas-sign",
    "probe_every": "--probe-every",
    "sigma_r": "--sigma-r",
    "lid_sigma": "--lid-sigma",
    "tvf_sigma": "--tvf-sigma",
    "probe_radius": "--probe-radius",
    "score_at": "--score-at",
    "inside_solver": "--inside-solver",
    "max_tries": "--max-tries",
    "filter_threshold": "--filter-threshold",
    "probe_batch": "--probe-batch",
    "channels_last": "--channels-last",
}
SPELLING |= {"ascent_steps": "--ascent-steps", "network_sha256": "--network sha256", "rows_per_seed": "--seeding rows"}
ABLATION_OPTIONS = ("solver", "discretization", "schedule", "scaling")


def sampler_choice(name: str | None, given: dict[str, Any], *, say: Any) -> str:
    """The sampler: as named; the ablation sampler where one of its own options is given; else edm."""
    if name is not None:
        return name
    asked = [spelling(option) for option in ABLATION_OPTIONS if option in given]
    if asked:
        say(f"{', '.join(asked)} given without --sampler: using --sampler=ablation")
        return "ablation"
    return "edm"


def spelling(argument: str) -> str:
    """How a sampler's argument is spelt on the command line."""
    return SPELLING.get(argument, f"--{argument}")


def sampler_config(sampler: str, given: dict[str, Any], preset: Preset | None, network: str) -> SamplerConfig:
    """The frozen config. UserError, naming the option, for one that the sampler does not have, or that is missing."""
    known = sampler_options(sampler)
    for option in given:
        if option not in known:
            raise UserError(_misplaced(option, sampler))
    calibrated = preset.samplers.get(sampler, {}) if preset else {}
    if sampler.startswith("rods") and not {"eps", "rho"} <= {*given, *calibrated}:
        missing = " and ".join(f"--{k}" for k in ("eps", "rho") if k not in {*given, *calibrated})
        raise UserError(
            f"{missing} needed: --sampler={sampler} has no preset for network {network!r}. To calibrate, run once with "
            "--eps=inf and a radius --rho, read H in samples.jsonl, and set --eps to a high quantile of it "
            "(docs/calibration.md)"
        )
    try:
        return preset.config(sampler, given) if preset else SamplerConfig(sampler, given)
    except ValueError as e:
        raise UserError(respell(str(e))) from None


def _misplaced(option: str, sampler: str) -> str:
    owners = [name for name in SAMPLERS if option in sampler_options(name)]
    message = f"{spelling(option)} is an option of {', '.join(owners)}; --sampler={sampler} has none"
    if option == "rho":
        return message + ": it is RODS's radius. The exponent of the noise grid (EDM's --rho) is --time-rho"
    return message + f": leave it out or choose --sampler={owners[0]}"


def respell(message: str) -> str:
    """A library's `argument: what is wrong` with the argument as the command line spells it."""
    names, found, rest = message.partition(": ")
    if not found or not all(part.isidentifier() for part in names.split(", ")):
        return message
    return ", ".join(spelling(part) for part in names.split(", ")) + ": " + rest


def given_options(opts: dict[str, Any]) -> dict[str, Any]:
    """The sampler options that were given, by the samplers' argument names."""
    names = {name for sampler in SAMPLERS for name in sampler_options(sampler)}
    return {name: opts[name] for name in sorted(names) if opts.get(name) is not None}
