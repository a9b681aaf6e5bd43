"""Every sampler option of the command line: its name, type and help. What it means is the samplers' matter."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, TypeVar

import click

from dnnlib.cli import with_options
from rods.correctors import check_window
from rods.pipeline import MAX_STEPS, parse_window
from rods.score_text import format_score, parse_score

F = TypeVar("F", bound=Callable[..., Any])


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


class ScoreText(click.ParamType):  # type: ignore[type-arg]
    """A score as `parse_score` reads it, with every option written out.

    A bare lid or tvf stays as it is, for restart has options of its own for these, and so do `learned` and `readout`,
    for a preset has to say what they are.
    """

    name = "score"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value in ("lid", "tvf") or re.search(r"(learned|readout)(?!\()", value):
            return value
        try:
            return format_score(parse_score(value))
        except ValueError as e:
            self.fail(str(e), param, ctx)


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
        help="RODS: radius of the neighbourhood, in units of the state; restart: of --inside in the restarted part "
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
        "--ascent-steps",
        type=click.IntRange(1, 1000),
        default=None,
        help="CAS (rods-cas, restart): inner ascent steps [default: 1].",
    ),
    click.option(
        "--sas-sign",
        type=click.Choice(["uphill", "downhill"]),
        default=None,
        help="SAS (rods-sas, restart): which way to look [default: uphill].",
    ),
    click.option(
        "--detect",
        type=bool,
        default=None,
        help="RODS: measure H; false needs --eps=0 and saves a third of the passes [default: true].",
    ),
    click.option(
        "--gradient",
        type=click.Choice(["backward", "difference"]),
        default=None,
        help="RODS: the gradient of the score norm by a backward pass, or by a finite difference for one forward pass "
        "[default: backward].",
    ),
    click.option(
        "--probe-every",
        type=click.IntRange(1, MAX_STEPS),
        default=None,
        help="RODS: measure H and the gradient at every k-th step of the window only [default: 1].",
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
        "--detector",
        type=ScoreText(),
        default=None,
        help="restart: the score, such as lid, tvf or h-index:rho=4,lo=.5,hi=2 (docs/rivals.md) [default: lid].",
    ),
    click.option(
        "--score-at",
        type=float,
        default=None,
        help="restart: score D(x_t) at this noise level, and go back from there [default: 0, the finished image].",
    ),
    click.option(
        "--inside",
        type=click.Choice(["cas", "sas", "overshoot"]),
        default=None,
        help="restart: what --rho is the radius of, in the restarted part [default: cas].",
    ),
    click.option(
        "--inside-solver",
        type=click.Choice(["euler", "heun"]),
        default=None,
        help="restart: solver of the restarted part [default: --solver].",
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
        "--S_churn",
        "S_churn",
        type=float,
        default=None,
        help="edm, ablation, rods-*: stochasticity strength [default: 0].",
    ),
    click.option(
        "--S_min",
        "S_min",
        type=float,
        default=None,
        help="edm, ablation, rods-*: lowest noise level with churn [default: 0].",
    ),
    click.option(
        "--S_max",
        "S_max",
        type=float,
        default=None,
        help="edm, ablation, rods-*: highest noise level with churn [default: inf].",
    ),
    click.option(
        "--S_noise", "S_noise", type=float, default=None, help="edm, ablation, rods-*: noise inflation [default: 1]."
    ),
)


def add_sampler_options(command: F) -> F:
    """Decorator: every sampler option, None where it is not given."""
    return with_options(command, SAMPLER_OPTIONS)
