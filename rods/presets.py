"""Settings that belong to a network: those that the paper published, and the form of a calibrated preset.

A preset is JSON: {"name", "network", "source", "samplers": {sampler: {option: value}}}; windows are written as on the
command line (`.1,.5`, `sigma:1,5`). `source` says where the numbers come from. Where every sample is corrected (eps 0),
an optional "detect_eps": {sampler: threshold} says from which H on a sample is held at risk. Optional, too: "learned",
the weights of a combination of scores that is then called `learned`, "readout", a text with the weights of a regression
on the network's activations, then called `readout` (score_text.py has both), and "retention", a list of tables that say
which threshold of a score keeps which share of a sampler's images (retention.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rods.image_scores import Score
from rods.pipeline import SAMPLERS, SamplerConfig
from rods.readout import shortened
from rods.retention import Retention, retention_of_json
from rods.score_text import FITTED, format_score, learned_of_json, parse_score


@dataclass(frozen=True)
class Preset:
    """Options per sampler for one network. `network` is the file name, without suffix, by which it is recognised."""

    name: str
    network: str | None
    source: str
    samplers: Mapping[str, Mapping[str, Any]]
    detect_eps: Mapping[str, float] = field(default_factory=dict)  # for reports; no image depends on it
    fitted: Mapping[str, Score] = field(default_factory=dict)  # by the names `learned` and `readout`
    retention: tuple[Retention, ...] = ()

    def risk_threshold(self, config: SamplerConfig) -> float | None:
        """The H from which a sample is held at risk, if these are the preset's own settings (H depends on them)."""
        own = config.sampler in self.detect_eps and config == self.config(config.sampler, {})
        return self.detect_eps[config.sampler] if own else None

    def config(self, sampler: str, replaced: Mapping[str, Any]) -> SamplerConfig:
        """The sampler's config: this preset's options for it, if any, with `replaced` over them."""
        options = {"sampler": sampler, **self.samplers.get(sampler, {}), **replaced}
        if any(name in str(options.get("detector")) for name in FITTED):  # a config holds the weights: they decide
            try:
                options["detector"] = format_score(parse_score(options["detector"], named=self.fitted))
            except ValueError as e:
                raise ValueError(f"detector: {e}") from None
        return SamplerConfig.parse(options)

    def threshold(self, score: Score, config: SamplerConfig, keep: float) -> float:
        """The threshold of a score that keeps this share of a sampler's images.

        Raises ValueError: no table of this score and sampler, or a share that it does not reach.
        """
        for table in self.retention:
            if (table.score, table.config) == (score, config):
                return table.threshold_at(keep)
        has = [f"{shortened(format_score(t.score))} on {t.config.sampler} with {t.config.options['num_steps']} steps"
               for t in self.retention]  # fmt: skip
        raise ValueError(
            f"keep: preset {self.name} has no thresholds of {shortened(format_score(score))} for these settings of "
            f"{config.sampler}; it has {', '.join(has) or 'none'}"
        )


def parse_preset(data: Any, *, where: str) -> Preset:
    """A preset from JSON. Raises ValueError: not a preset, an unknown key, sampler, option or value."""
    expected = {"name", "network", "source", "samplers"}
    optional = {"detect_eps", "learned", "readout", "retention"}
    if not isinstance(data, dict) or set(data) - optional != expected or not isinstance(data["samplers"], dict):
        raise ValueError(f"{where} is no preset; it needs exactly the keys {', '.join(sorted(expected))}")
    for key, kinds in {"name": str, "source": str, "network": str | None}.items():
        if not isinstance(data[key], kinds):
            raise ValueError(f"{where}: {key} is no text; name what the numbers are for and where they come from")
    levels = data.get("detect_eps", {})
    if not isinstance(levels, dict) or not all(type(v) in (int, float) and v >= 0 for v in levels.values()):
        raise ValueError(f"{where}: detect_eps needs a threshold >= 0 for each sampler, such as {{'rods-cas': 0.01}}")
    try:
        fitted = fitted_of_json(data)
        tables = data.get("retention", [])
        if not isinstance(tables, list):
            raise ValueError("retention is no list of tables")
        retention = tuple(retention_of_json(table, named=fitted) for table in tables)
    except ValueError as e:
        raise ValueError(f"{where}: {e}") from None
    names = {key: data[key] for key in expected}
    preset = Preset(**names, detect_eps=levels, fitted=fitted, retention=retention)
    for sampler, options in preset.samplers.items():
        if sampler not in SAMPLERS:
            raise ValueError(f"{where}: {sampler!r} is no sampler; use {', '.join(SAMPLERS)}")
        if not isinstance(options, dict):
            raise ValueError(f"{where}: {sampler} needs its options as name and value, such as {{'rho': 1}}")
        try:
            preset.config(sampler, {})
        except ValueError as e:
            raise ValueError(f"{where}, {sampler}: {e}") from None
    return preset


def fitted_of_json(data: Mapping[str, Any]) -> dict[str, Score]:
    """The scores of a preset whose weights it holds, by name. Raises ValueError for one that is none."""
    fitted: dict[str, Score] = {"learned": learned_of_json(data["learned"])} if "learned" in data else {}
    if "readout" in data:
        text = data["readout"]
        readout = parse_score(text) if isinstance(text, str) and text.startswith("readout(") else None
        if readout is None:
            raise ValueError("readout is no text readout(...); scripts/fit_readout.py writes it")
        fitted["readout"] = readout
    return fitted


def with_readout(data: Mapping[str, Any], text: str) -> tuple[dict[str, Any], list[str]]:
    """A preset's JSON with this readout, and in words what of the one before it went with it."""
    if data.get("readout") in (None, text):
        return {**data, "readout": text}, []

    def is_old(score: Any) -> bool:
        return "readout" in str(score)

    tables, samplers = data.get("retention", []), data["samplers"]
    stale = [name for name, options in samplers.items() if is_old(options.get("detector"))]
    kept = [table for table in tables if not is_old(table["score"])]
    dropped = [f"the settings of {name}" for name in stale]
    dropped += [f"{len(tables) - len(kept)} table(s) of retention"] if len(kept) < len(tables) else []
    left = {name: options for name, options in samplers.items() if name not in stale}
    rest = {key: value for key, value in data.items() if key != "retention"} | ({"retention": kept} if kept else {})
    return {**rest, "samplers": left or {"euler": {}}, "readout": text}, dropped


def _published(
    name: str,
    network: str | None,
    source: str,
    *,
    eps: float,
    rho: float,
    window: str,
    detect_eps: float | None = None,
) -> Preset:
    base = {"num_steps": 40, "sigma_min": 0.002, "sigma_max": 80, "time_rho": 7, "solver": "euler", "window": window}
    settings = {**base, "eps": eps, "rho": rho}
    samplers = {"rods-cas": {**settings, "ascent_steps": 1}, "rods-sas": settings}
    return Preset(name, network, source, samplers, {} if detect_eps is None else dict.fromkeys(samplers, detect_eps))


# The paper gives no window for AFHQv2 and FFHQ; ours is then the whole trajectory. On 11k-hands it corrects every
# sample (eps 0) in steps 10-50 %, and detects at eps .014 (spec method.md, section 1).
PAPER_PRESETS: dict[str, Preset] = {
    p.name: p
    for p in (
        _published(
            "edm-afhqv2-64x64-uncond-ve",
            "edm-afhqv2-64x64-uncond-ve",
            "RODS paper, AFHQv2",
            eps=0.1,
            rho=1,
            window="0,1",
        ),
        _published(
            "edm-ffhq-64x64-uncond-ve", "edm-ffhq-64x64-uncond-ve", "RODS paper, FFHQ", eps=0.09, rho=8, window="0,1"
        ),
        _published(
            "hands-128-ve",
            None,
            "RODS paper, 11k-hands: corrects every sample",
            eps=0,
            rho=30,
            window=".1,.5",
            detect_eps=0.014,
        ),
    )
}
