"""Sampler options on the command line: their names, their checks, and a config made of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from dnnlib.errors import UserError
from rods.correctors import check_window
from rods.pipeline import MAX_STEPS, SAMPLERS, SamplerConfig, parse_window, sampler_options
from rods.presets import Preset

F = TypeVar("F", bound=Callable[..., Any])

# How sampler arguments are spelt on the command line, where it is not --name.
SPELLING = {
    "sampler": "--sampler",
    "num_steps": "--steps",
    "discretization": "--disc",
    "time_rho": "--time-rho",
    "sas_sign": "--sas-sign",
    "sigma_r": "--sigma-r",
    "lid_sigma": "--lid-sigma",
    "tvf_sigma": "--tvf-sigma",
    "probe_radius": "--probe-radius",
}
SPELLING |= {"ascent_steps": "--ascent-steps", "network_sha256": "--network sha256", "rows_per_seed": "--seeding rows"}
ABLATION_OPTIONS = ("solver", "discretization", "schedule", "scaling")


class WindowText(click.ParamType):  # type: ignore[type-arg]
    """`.1,.5` (fractions of the steps) or `sigma:1,5` (noise levels)."""

    name = "lo,hi|sigma:lo,hi"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            window = parse_window(value)
            check_window(window)
            return window
        except ValueError as e:
            self.fail(str(e).removeprefix("window: "), param, ctx)


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


SAMPLER_OPTIONS = (
    click.option(
        "--steps",
        "num_steps",
        type=click.IntRange(1, MAX_STEPS),
        default=None,
        help="Sampling steps [default: 18; euler, all others but ablation: 40].",
    ),
    click.option(
        "--sigma_min",
        "--sigma-min",
        type=float,
        default=None,
        help="Lowest noise level [default: .002; ablation: by --disc].",
    ),
    click.option(
        "--sigma_max",
        "--sigma-max",
        type=float,
        default=None,
        help="Highest noise level [default: 80; ablation: by --disc].",
    ),
    click.option("--time-rho", type=float, default=None, help="Exponent of the noise grid, EDM's --rho [default: 7]."),
    click.option(
        "--rho",
        type=float,
        default=None,
        help="RODS: radius of the neighbourhood, in units of the state; restart: of CAS in the restarted part "
        "[default there: 0, none]. Not EDM's exponent.",
    ),
    click.option(
        "--eps",
        type=float,
        default=None,
        help="RODS: correct where the curvature index H >= eps; 0 corrects all, inf only records H.",
    ),
    click.option(
        "--window",
        type=WindowText(),
        default=None,
        help="RODS and controls: where to act, as fractions of the steps or in noise levels [default: .1,.5; tag and "
        "restart, there of the restarted steps: 0,1; iq: none].",
    ),
    click.option(
        "--ascent-steps", type=click.IntRange(1, 1000), default=None, help="rods-cas: inner ascent steps [default: 1]."
    ),
    click.option(
        "--sas-sign",
        type=click.Choice(["uphill", "downhill"]),
        default=None,
        help="rods-sas: which way to look [default: uphill].",
    ),
    click.option(
        "--detect",
        type=bool,
        default=None,
        help="RODS: measure H; false needs --eps=0 and saves a third of the passes [default: true].",
    ),
    click.option(
        "--kappa",
        type=float,
        default=None,
        help="sigma-offset: relative offset of the noise level told to the network.",
    ),
    click.option(
        "--threshold",
        type=float,
        default=None,
        help="restart: images that score higher go back; iq: denoised images that score higher are moved. 0: all, "
        "inf: none, the scores are recorded.",
    ),
    click.option("--sigma-r", type=float, default=None, help="restart: the noise level to go back to."),
    click.option(
        "--rounds",
        type=click.IntRange(1, 1000),
        default=None,
        help="restart: how often an image may go back [default: 3].",
    ),
    click.option(
        "--margin",
        type=float,
        default=None,
        help="restart: the part of its score by which a new image must be better to be kept [default: 0].",
    ),
    click.option(
        "--detector", type=click.Choice(["lid", "tvf"]), default=None, help="restart: the score [default: lid]."
    ),
    click.option(
        "--lid-sigma", type=float, default=None, help="restart, iq: the noise level at which lid looks [default: 1.2]."
    ),
    click.option(
        "--draws", type=click.IntRange(1, 1000), default=None, help="restart, iq: noise draws of lid [default: 4]."
    ),
    click.option(
        "--tvf-sigma",
        type=float,
        default=None,
        help="restart: the noise level from which on tvf looks [default: 2].",
    ),
    click.option(
        "--strength",
        type=float,
        default=None,
        help="iq: how far to move, as a part of the way to the denoised image; laplacian: its weight, in units of t^2.",
    ),
    click.option(
        "--probes",
        type=click.IntRange(1, 1000),
        default=None,
        help="laplacian: random probes per step [default: 1].",
    ),
    click.option(
        "--probe-radius",
        type=float,
        default=None,
        help="laplacian: length of its finite differences, in units of the noise level [default: .1].",
    ),
    click.option("--eta", type=float, default=None, help="tag: scale of the direction's part along the sphere."),
    click.option(
        "--solver",
        type=click.Choice(["euler", "heun"]),
        default=None,
        help="ablation [default: heun] and base solver of rods-*, restart [default: euler].",
    ),
    click.option(
        "--disc",
        "discretization",
        type=click.Choice(["vp", "ve", "iddpm", "edm"]),
        default=None,
        help="ablation: noise grid [default: edm].",
    ),
    click.option(
        "--schedule",
        type=click.Choice(["vp", "ve", "linear"]),
        default=None,
        help="ablation: noise schedule sigma(t) [default: linear].",
    ),
    click.option(
        "--scaling",
        type=click.Choice(["vp", "none"]),
        default=None,
        help="ablation: signal scaling s(t) [default: none].",
    ),
    click.option(
        "--S_churn", "S_churn", type=float, default=None, help="edm, ablation: stochasticity strength [default: 0]."
    ),
    click.option(
        "--S_min", "S_min", type=float, default=None, help="edm, ablation: lowest noise level with churn [default: 0]."
    ),
    click.option(
        "--S_max",
        "S_max",
        type=float,
        default=None,
        help="edm, ablation: highest noise level with churn [default: inf].",
    ),
    click.option("--S_noise", "S_noise", type=float, default=None, help="edm, ablation: noise inflation [default: 1]."),
)


def add_sampler_options(command: F) -> F:
    """Decorator: every sampler option, None where it is not given."""
    for option in reversed(SAMPLER_OPTIONS):
        command = option(command)
    return command


def given_options(opts: dict[str, Any]) -> dict[str, Any]:
    """The sampler options that were given, by the samplers' argument names."""
    names = {name for sampler in SAMPLERS for name in sampler_options(sampler)}
    return {name: opts[name] for name in sorted(names) if opts.get(name) is not None}
