"""Preset files: JSON beside the embedded networks, or where the user puts them."""

from __future__ import annotations

import json
from pathlib import Path

from dnnlib.errors import UserError, user_errors
from rods.presets import PAPER_PRESETS, Preset, parse_preset

SUFFIX = ".preset.json"


def find_preset(name: str | None, *, network: str, folder: Path) -> Preset | None:
    """The preset `name` (published, in `folder`, or a file); without a name, the one made for `network`, if any.

    `none` asks for no preset. Raises UserError: no preset of that name, or a file that is none.
    """
    if name == "none":
        return None
    if name is None:
        known = {p.network: p for p in PAPER_PRESETS.values() if p.network}
        path = folder / f"{network}{SUFFIX}"
        return known.get(network) or (read_preset(path) if path.is_file() else None)
    if name in PAPER_PRESETS:
        return PAPER_PRESETS[name]
    for path in (folder / f"{name}{SUFFIX}", Path(name)):
        if path.is_file():
            return read_preset(path)
    known_names = [*PAPER_PRESETS, *sorted(p.name.removesuffix(SUFFIX) for p in folder.glob(f"*{SUFFIX}"))]
    raise UserError(f"--preset={name} is unknown; use a JSON file or one of {', '.join(known_names)}")


def beside_preset(path: Path, suffix: str) -> Path:
    """NAME + suffix in the folder of the preset NAME.preset.json, or NAME.json."""
    return path.with_name(path.name.removesuffix(SUFFIX).removesuffix(".json") + suffix)


def read_preset(path: Path, *, option: str = "--preset") -> Preset:
    """Raises UserError, in the name of that option: not JSON, or not a preset."""
    try:
        data = json.loads(path.read_text())
    except (ValueError, RecursionError):
        raise UserError(f"{option}={path} is not JSON; docs/calibration.md shows a preset") from None
    with user_errors():
        return parse_preset(data, where=f"{option}={path}")
