"""Settings that belong to a network: those that the paper published, and the form of a calibrated preset.

A preset is JSON: {"name", "network", "source", "samplers": {sampler: {option: value}}}; windows and detectors are
written as on the command line (`.1,.5`, `sigma:1,5`, `lid:sigma=1.2`). `source` says where the numbers come from.
Optional: "detect_eps": {sampler: threshold}, the H from which a sample counts as at risk where every sample is
corrected (eps 0); "quantiles": {scores: 101 percentiles of them}, of the network's samples from seeds that no report
uses, for limits such as lid<50% and --restart-share: the scores of finished images by a detector's text, or "restart",
what the preset's restart reads before any restart; "readout" and "density-ratio": the name of a safetensors file beside
the preset, whose weights the detector of that name then has; "guidance": {"strength", "guide"} and, where wanted,
"interval" and "sha256", with which all its samplers are meant: `guide` is the address of a network, the name of its
file beside the preset, or none, dropout or noisier.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch

from rods.base_samplers import Sampler
from rods.config import FITTED, SAMPLERS, build, changed, from_json, name_of
from rods.detectors import Detector
from rods.guidance import Guidance, interval_from_text
from rods.samplers import Rods, RodsSas

KEYS, OPTIONAL = ("name", "network", "source", "samplers"), ("detect_eps", "guidance", "quantiles", *FITTED)
RESTART_SCORES = "restart"


@dataclass(frozen=True)
class Preset:
    """Samplers with their options for one network. `network` is the file name, without suffix, that it is made for."""

    name: str
    network: str | None
    source: str
    samplers: Mapping[str, Sampler]
    detect_eps: Mapping[str, float] = field(default_factory=dict)  # for reports; no image depends on it
    fitted: Mapping[str, Detector] = field(default_factory=dict)  # the detectors whose weights it has, by name
    quantiles: Mapping[str, tuple[float, ...]] = field(default_factory=dict)  # 0, 1, ... 100 % of scores, by their name
    guidance: Guidance | None = None

    def risk_threshold(self, sampler: Sampler) -> float | None:
        """The H from which a sample counts as at risk, if these are the preset's own settings (H depends on them)."""
        name = name_of(sampler)
        own = self.samplers.get(name)
        is_own = own is not None and (own == sampler or changed(own, measuring(own)) == sampler)
        return self.detect_eps.get(name) if is_own else None

    def applies_to(self, sampler: str, *, by_score: bool = False) -> bool:
        """Whether it says anything of a run by this sampler; `by_score`: one that asks for a detector's weights."""
        return sampler in self.samplers or by_score or self.guidance is not None

    def sampler(self, name: str, given: Mapping[str, Any]) -> Sampler:
        """The sampler of a name: this preset's options for it, if any, with `given` over them.

        Raises as `build`, and for another detector without a threshold: the preset's is of its own detector's scores.
        """
        if (own := self.samplers.get(name)) is None:
            return build(name, given)
        limit = "eps" if hasattr(own, "eps") else "threshold"
        if "detector" in given and limit not in given and given["detector"] != getattr(own, "detector", None):
            raise ValueError(f"{limit}: preset {self.name} has one for another detector; give one (inf: only record)")
        return changed(own, {**(measuring(own) if _asks_for_detection(own, given) else {}), **given})

    def quantile(self, scores: str, share: float) -> float:
        """The score that a share of the calibration's samples do not exceed. ValueError: no scores of that name."""
        if scores not in self.quantiles:
            has = ", ".join(self.quantiles) or "none"
            raise ValueError(
                f"preset {self.name} has no quantiles of {scores}, but of: {has}; give a number"
                + (", or a preset of scripts/fit_gate.py --real=none" if scores.startswith("lid") else "")
            )
        values = torch.tensor(self.quantiles[scores], dtype=torch.float64)
        return float(torch.quantile(values, share))


def measuring(own: Sampler) -> dict[str, Any]:
    """What has a preset's RODS measure H at every step, as the paper does; nothing where it is another sampler.

    A preset that corrects every image may leave detection out, and look for the direction at every k-th step only.
    Neither stands where detection, a threshold or a detector is asked for: older flags lose most repairs behind one.
    """
    return {"detect": True, "probe_every": 1} if isinstance(own, Rods) and not own.detect else {}


def unmeasured(found: Sampler, given: Mapping[str, Any]) -> Sampler:
    """RODS that corrects every image (eps 0) without detection, unless `given` asks for it; any other as it is.

    The same images, to the rounding of a batch that is split: what H would say, nothing acts on, and it is not
    recorded. Cost of a step in the window: CAS 2F + B for 2F + 2B, SAS 2F for 3F + 2B.
    """
    if not isinstance(found, Rods) or found.eps or found.detector is not None or _asks_for_detection(found, given):
        return found
    idle = {"gradient": "backward", "probe_every": 1} if isinstance(found, RodsSas) else {}  # of what is measured
    return changed(found, {"detect": False, **idle})


def _asks_for_detection(own: Sampler, given: Mapping[str, Any]) -> bool:
    asked = {"detector", "detect"} | ({"gradient", "probe_every"} if isinstance(own, RodsSas) else set())
    return bool(asked & given.keys()) or given.get("eps", 0) != 0


def percentiles(scores: Sequence[float]) -> tuple[float, ...]:
    """0, 1, ... 100 %: what a preset keeps of scores."""
    values = torch.tensor(scores, dtype=torch.float64)
    return tuple(torch.quantile(values, torch.linspace(0, 1, 101, dtype=torch.float64)).tolist())


def parse_preset(data: Any, *, where: str, fitted: Mapping[str, Detector] | None = None) -> Preset:
    """A preset from JSON; `fitted` are the detectors that it names files for.

    Raises ValueError: not a preset, an unknown key, sampler, option or value.
    """
    if not isinstance(data, dict) or set(data) - set(OPTIONAL) != set(KEYS) or not isinstance(data["samplers"], dict):
        raise ValueError(f"{where} is not a preset; expected exactly the keys {', '.join(sorted(KEYS))}")
    for key, kinds in {"name": str, "source": str, "network": str | None}.items():
        if not isinstance(data[key], kinds):
            raise ValueError(f"{where}: {key} must be a text: what the numbers are for, and where they come from")
    levels = data.get("detect_eps", {})
    if not isinstance(levels, dict) or not all(type(v) in (int, float) and v >= 0 for v in levels.values()):
        raise ValueError(f"{where}: detect_eps needs a threshold >= 0 for each sampler, such as {{'rods-cas': 0.01}}")
    quantiles = data.get("quantiles", {})
    if not isinstance(quantiles, dict) or not all(map(_are_percentiles, quantiles.values())):
        raise ValueError(f"{where}: quantiles needs 101 numbers in rising order for each kind of score")
    samplers = {}
    for name, options in data["samplers"].items():
        if name not in SAMPLERS:
            raise ValueError(f"{where}: unknown sampler {name!r}; use {', '.join(SAMPLERS)}")
        if not isinstance(options, dict):
            raise ValueError(f"{where}: {name} needs its options as name and value, such as {{'rho': 1}}")
        try:
            samplers[name] = from_json({"sampler": name, **options}, fitted=fitted)
        except ValueError as e:
            raise ValueError(f"{where}, {name}: {e}") from None
    guidance = _guidance(data["guidance"], where=where) if "guidance" in data else None
    kept = {name: tuple(values) for name, values in quantiles.items()}
    return Preset(data["name"], data["network"], data["source"], samplers, levels, fitted or {}, kept, guidance)


def _guidance(data: Any, *, where: str) -> Guidance:
    """The guidance in a preset's JSON. Raises ValueError."""
    known, needed = {"strength", "guide", "interval", "sha256"}, {"strength", "guide"}
    if not isinstance(data, dict) or not needed <= set(data) <= known:
        raise ValueError(f"{where}: guidance must have strength and guide, and may have interval and sha256")
    strength, guide, interval, sha256 = (data.get(key) for key in ("strength", "guide", "interval", "sha256"))
    texts = all(isinstance(text, str | None) for text in (guide, interval, sha256)) and guide is not None
    if not isinstance(strength, int | float) or isinstance(strength, bool) or not texts:
        raise ValueError(f"{where}: guidance: strength must be a number; guide, interval and sha256 must be texts")
    try:
        window = None if interval is None else interval_from_text(interval)
        return Guidance(float(strength), str(guide), window, sha256)
    except ValueError as e:
        raise ValueError(f"{where}: {e}") from None


def _are_percentiles(values: Any) -> bool:
    numbers = isinstance(values, list) and len(values) == 101 and all(type(v) in (int, float) for v in values)
    return numbers and all(a <= b for a, b in pairwise(values))


def _published(
    name: str, network: str | None, source: str, *, eps: float, rho: float, window: tuple[float, float],
    detect_eps: float | None = None,
) -> Preset:  # fmt: skip
    samplers = {k: build(k, {"eps": eps, "rho": rho, "window": window}) for k in ("rods-cas", "rods-sas")}
    return Preset(name, network, source, samplers, {} if detect_eps is None else dict.fromkeys(samplers, detect_eps))


# The paper gives no window for AFHQv2 and FFHQ; ours is then the whole trajectory. On 11k-hands it corrects every
# sample (eps 0) in steps 10-50 %, and detects at eps .014.
_AFHQ, _FFHQ = "edm-afhqv2-64x64-uncond-ve", "edm-ffhq-64x64-uncond-ve"
PAPER_PRESETS: dict[str, Preset] = {
    p.name: p
    for p in (
        _published(_AFHQ, _AFHQ, "RODS paper, AFHQv2", eps=0.1, rho=1, window=(0, 1)),
        _published(_FFHQ, _FFHQ, "RODS paper, FFHQ", eps=0.09, rho=8, window=(0, 1)),
        _published(
            "hands-128-ve", None, "RODS paper, 11k-hands: corrects every sample",
            eps=0, rho=30, window=(0.1, 0.5), detect_eps=0.014,
        ),
    )
}  # fmt: skip
