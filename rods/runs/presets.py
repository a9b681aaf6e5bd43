"""Preset files: JSON beside the embedded networks, or where the user puts them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from dnnlib.errors import UserError
from dnnlib.util import atomic_write
from rods import legacy
from rods.base_samplers import Sampler
from rods.config import FITTED, name_of, options, to_json
from rods.detectors import Detector
from rods.gate import ActivationDetector
from rods.guidance import interval_to_text
from rods.presets import PAPER_PRESETS, Preset, parse_preset
from rods.runs.gates import gate_suffix, read_gate, write_gate
from rods.types import AnyDenoiser

SUFFIX = ".preset.json"
_RANGE = ("sigma_min", "sigma_max", "time_rho")  # of the noise grid


def find_preset(name: str | None, *, network: str, folder: Path, source: str = "") -> Preset | None:
    """The preset `name` (published, in `folder`, or a file); without a name, the one made for `network`, if any.

    That is a published one, NAME.preset.json beside the network's file `source`, or the one in `folder`. `none` asks
    for no preset. Raises UserError: no preset of that name, or a file that is not one.
    """
    if name == "none":
        return None
    if name is None:
        known = {p.network: p for p in PAPER_PRESETS.values() if p.network}
        beside_it = Path(source).with_name(f"{network}{SUFFIX}") if Path(source).is_file() else folder
        found = [path for path in (beside_it, folder / f"{network}{SUFFIX}") if path.is_file()]
        return known.get(network) or (read_preset(found[0]) if found else None)
    if name in PAPER_PRESETS:
        return PAPER_PRESETS[name]
    for path in (folder / f"{name}{SUFFIX}", Path(name)):
        if path.is_file():
            return read_preset(path)
    if Path(name).is_dir():
        raise UserError(f"--preset={name} is a folder; give a preset's file, such as one in it that ends in {SUFFIX}")
    known_names = [*PAPER_PRESETS, *sorted(p.name.removesuffix(SUFFIX) for p in folder.glob(f"*{SUFFIX}"))]
    raise UserError(f"--preset={name} is unknown; use a JSON file or one of {', '.join(known_names)}")


def preset_notes(
    preset: Preset | None,
    *,
    asked: str | None,
    sampler: str,
    network: str,
    net: AnyDenoiser | None = None,
    by_score: bool = False,
    by_default: bool = False,
) -> list[str]:
    """What to say of a preset that is to be used with `network`.

    Args:
        asked: what --preset says.
        net: the network itself, by which a gate of the preset tells a renamed copy.
        by_score: whether only a detector's weights or thresholds are wanted, not settings of the sampler.
        by_default: whether the sampler was not chosen.
    Raises:
        UserError: a preset that was asked for and has no settings of the sampler.
    """
    if preset is None:
        return []
    if preset.applies_to(sampler, by_score=by_score):
        return other_network(preset, network, net)
    if asked:
        has = ", ".join(preset.samplers) or "none"
        raise UserError(
            f"--preset={asked} has no settings for --sampler={sampler}; it has some for: {has}"
            + (f". {sampler} is the default: choose another by --sampler" if by_default else "")
        )
    if by_default and preset.samplers:
        has = " or ".join(f"--sampler={name}" for name in preset.samplers)
        return [f"Note: preset {preset.name} is not used: without --sampler this is {sampler}; it is for {has}"]
    return []


def other_network(preset: Preset | None, network: str, net: AnyDenoiser | None = None) -> list[str]:
    """The line to say where a preset is made for another network than this one, or under another name of it."""
    if preset is None or preset.network in (None, network):
        return []
    said = f"Note: preset {preset.name} was made for network {preset.network} and is used with {network}"
    return [
        said + (": a copy, by the layers that its gate reads" if _is_copy(preset, net) else ", which may need another")
    ]


def _is_copy(preset: Preset, net: AnyDenoiser | None) -> bool:
    """Whether all gates of a preset, of which it has one or more, are of this network's layers."""
    if net is None or not preset.fitted:
        return False
    try:
        for gate in preset.fitted.values():
            gate.check(net, [])
    except ValueError:
        return False
    return True


def beside_preset(path: Path, suffix: str) -> Path:
    """NAME + suffix in the folder of the preset NAME.preset.json, or NAME.json."""
    return path.with_name(path.name.removesuffix(SUFFIX).removesuffix(".json") + suffix)


def read_preset(path: Path, *, option: str = "--preset") -> Preset:
    """Raises UserError, in the name of that option: not JSON, not a preset, or the file of a gate is missing."""
    where = f"{option}={path}"
    try:
        data = json.loads(path.read_text())
    except (ValueError, RecursionError):
        raise UserError(f"{where} is not JSON; docs/how-to/calibrate.md shows a preset") from None
    fitted: dict[str, Detector] = {}
    try:
        if isinstance(data, dict):
            try:
                data, fitted = legacy.preset(data)
            except ValueError as e:
                raise ValueError(f"{where}: {e}") from None
            for kind in FITTED:
                if kind in data and kind not in fitted:
                    fitted[kind] = read_gate(beside(path, data[kind]), kind, option=where)
        found = parse_preset(data, where=where, fitted=fitted)
        if (guidance := found.guidance) is None or guidance.is_self or "://" in guidance.guide:
            return found
        guide = beside(path, guidance.guide, what="guide")
        return replace(found, guidance=replace(guidance, guide=str(guide)))
    except UserError:
        raise
    except ValueError as e:
        raise UserError(str(e)) from None


def write_preset(path: Path, preset: Preset) -> None:
    """Writes a preset, and its gates, if it has any, beside it; `read_preset` reads back an equal one."""
    samplers = {name: preset_options(sampler) for name, sampler in preset.samplers.items()}
    data: dict[str, Any] = {"name": preset.name, "network": preset.network, "source": preset.source}
    data["samplers"] = samplers
    if preset.detect_eps:
        data["detect_eps"] = dict(preset.detect_eps)
    if preset.quantiles:
        data["quantiles"] = {name: list(values) for name, values in preset.quantiles.items()}
    if guidance := preset.guidance:
        own = guidance.is_self or "://" in guidance.guide
        said = {
            "strength": guidance.strength,
            "guide": guidance.guide if own else Path(guidance.guide).name,
            "interval": guidance.interval and interval_to_text(guidance.interval),
            "sha256": guidance.sha256,
        }
        data["guidance"] = {name: value for name, value in said.items() if value is not None}
    for kind, gate in preset.fitted.items():
        if isinstance(gate, ActivationDetector):
            file = beside_preset(path, gate_suffix(kind))
            write_gate(file, gate)
            data[kind] = file.name
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(data, indent=2) + "\n")


def preset_options(sampler: Sampler) -> dict[str, Any]:
    """The options that act; the noise grid's range only where it is not the default."""
    known = options(name_of(sampler))
    return {
        name: value
        for name, value in to_json(sampler).items()
        if name in known and not (name in _RANGE and value == known[name].default)
    }


def beside(preset: Path, name: object, *, what: str = "gate") -> Path:
    """The file `name` in the folder of a preset. Raises ValueError for what is not a plain file name."""
    if not isinstance(name, str) or not name or Path(name).name != name:
        raise ValueError(f"{preset}: a {what} must be the name of a file beside it")
    return preset.with_name(name)
