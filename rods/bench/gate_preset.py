"""What a fitted gate becomes: a restart with a threshold, a forecast in words, a preset and a log of what was tried."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from dnnlib.errors import UserError
from dnnlib.util import atomic_write
from rods.base_samplers import Euler
from rods.bench.gate_run import FIRST_TRIAL, Measuring
from rods.bench.restart_trial import Forecast, Trial
from rods.detectors import Lid
from rods.gate import ActivationDetector, Readout
from rods.guidance import Guidance
from rods.presets import Preset
from rods.restart import Restart
from rods.runs.gates import gate_kind
from rods.runs.guidance import guidance_option, guidance_text

ALIKE = 0.02  # shares that a trial cannot tell apart


@dataclass(frozen=True)
class HeldOut:
    """Scores of labelled images by a gate that was not fitted to them [N], and whether each is hallucinated [N]."""

    scores: tuple[float, ...]
    bad: tuple[bool, ...]

    def at(self, threshold: float) -> str:
        """What a threshold finds of them, in words."""
        rows = list(zip(self.scores, self.bad, strict=True))
        parts = []
        for kind, what in ((True, "hallucinated"), (False, "valid")):
            own = [score > threshold for score, bad in rows if bad is kind]
            parts.append(f"{sum(own)} of {len(own)} {what}")
        return " and ".join(parts)


@dataclass(frozen=True)
class Fitted:
    """A gate before it is tried, with what its threshold may be."""

    gate: ActivationDetector
    score_at: float
    lowest: float  # the threshold that the largest share of real or valid images exceeds
    second: ActivationDetector | None  # a gate of other images, which chose nothing; None: there are none
    limit: float | None  # of the second gate's scores, above which an image is off support; None: not to be told
    source: str  # what it was fitted to
    log: Sequence[Mapping[str, Any]] = ()
    held_out: HeldOut | None = None  # None without labels


@dataclass(frozen=True)
class Fit:
    """What goes into the preset."""

    restart: Restart
    forecast: Forecast
    source: str  # where its numbers come from
    quantiles: Mapping[str, tuple[float, ...]]  # percentiles of scores of samples that no report uses
    log: Sequence[Mapping[str, Any]]  # what was tried


def best_of_trials(
    found: Sequence[tuple[Forecast, Restart, Trial]],
) -> tuple[Forecast, Restart, Trial]:
    """The highest of the noise levels that a trial cannot tell from the best: its draws depend least on what was there.

    Judged by what stays off support, or, where no second gate tells, by what stays above the threshold.
    """

    def left(forecast: Forecast) -> float:
        return forecast.above if forecast.off_support is None else forecast.off_support

    least = min(left(forecast) for forecast, _, _ in found)
    alike = [one for one in found if left(one[0]) <= least + ALIKE]
    return max(alike, key=lambda one: one[0].sigma_r)


def off_support_text(found: Forecast, num_trial: int) -> str:
    """With counts, for a trial of a hundred seeds says little of a per cent; empty without a second gate."""
    if found.off_support_before is None or found.off_support is None:
        return ""
    before, after = (round(share * num_trial) for share in (found.off_support_before, found.off_support))
    return f"; off support {before} of {num_trial} before, {after} after"


def cost_text(best: Forecast, euler_cost: int) -> str:
    """The forecast's cost as a ratio, with its interval."""
    low, middle, high = (best.nfe + side * best.nfe_within for side in (-1, 0, 1))
    return f"{middle / euler_cost:.2f}x Euler's, 95 % interval {low / euler_cost:.2f} to {high / euler_cost:.2f}"


def forecast_text(best: Forecast, num_trial: int) -> str:
    return (
        f"forecast of {num_trial} seeds from {FIRST_TRIAL}: {best.restarted:.1%} sent back, {best.nfe:.1f} F "
        f"an image (95 % interval {best.nfe - best.nfe_within:.1f} to {best.nfe + best.nfe_within:.1f})"
        + off_support_text(best, num_trial)
    )


def with_fit(old: Preset | None, name: str, network: str, fit: Fit, sampler: Euler) -> Preset:
    """The preset with this restart, and its gate, in the place of what it had of either."""
    gate = fit.restart.detector
    fitted = {gate_kind(gate): gate} if isinstance(gate, ActivationDetector) else {}
    if old is None:
        samplers = {"euler": sampler, "restart": fit.restart}
        return Preset(name, network, fit.source, samplers, fitted=fitted, quantiles=fit.quantiles)
    replaced: tuple[str, ...] = ("density-ratio: ", "restart: scripts/fit_gate.py", "labelled gate: ")
    replaced += ("readout: ",) if isinstance(gate, Readout) else ()
    others = [part for part in old.source.split(" | ") if part and not part.startswith(replaced)]
    # Settings by another gate of this kind: their thresholds were of its scores.
    kept = {n: s for n, s in old.samplers.items() if not _is_stale(getattr(s, "detector", None), gate)}
    return replace(
        old,
        source=" | ".join([*others, fit.source]),
        samplers={**kept, "restart": fit.restart},
        fitted={**old.fitted, **fitted},
        quantiles={**old.quantiles, **fit.quantiles},
    )


def _is_stale(old: object, gate: object) -> bool:
    return not isinstance(gate, Lid) and type(old) is type(gate) and old != gate


def write_log(path: Path, fit: Fit) -> None:
    """Every choice that was tried, and the trial, as JSON lines."""
    with atomic_write(path) as temporary:
        temporary.write_text("".join(json.dumps(line) + "\n" for line in [{"gate": fit.source}, *fit.log]))


def forecasts_log(found: Sequence[tuple[Forecast, Restart, Trial]]) -> list[Mapping[str, Any]]:
    return [asdict(forecast) for forecast, _, _ in found]


def checked_guidance(opts: Mapping[str, Any], old: Preset | None) -> Guidance | None:
    """The guidance of the samples, which the preset gets. UserError where it has another, or a file not beside it."""
    guidance, dest = guidance_option(opts, old), opts["dest"]
    if guidance and not guidance.is_self and "://" not in guidance.guide:
        if Path(guidance.guide).resolve().parent != dest.resolve().parent:
            raise UserError(f"--guide={guidance.guide} must lie beside --dest={dest}, which names it; copy it there")
        guidance = replace(guidance, guide=str(dest.with_name(Path(guidance.guide).name)))
    if old and (unchecked(old.guidance) != unchecked(guidance)):
        has = guidance_text(old.guidance) if old.guidance else "no guidance"
        raise UserError(f"--dest={dest} has {has}, and all of a preset has the same; name another file")
    return guidance


def unchecked(guidance: Guidance | None) -> Guidance | None:
    """Without the checksum, which is found when the guide is read."""
    return guidance and replace(guidance, sha256=None)


def network_text(m: Measuring) -> str:
    """The network in a preset's source, with what guided its samples."""
    guidance = "".join(f", {key} {value}" for key, value in m.guided.identity.items())
    return f"network {m.snapshot.sha256[:12]}{guidance}"
