"""Preset files: where they are looked for, what is none, and weights beside them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dnnlib.errors import UserError
from rods import Readout, Restart
from rods.presets import PAPER_PRESETS, parse_preset
from rods.runs.gates import write_gate
from rods.runs.presets import beside, find_preset, read_preset

GOOD: dict[str, Any] = {
    "name": "mine", "network": "my-net", "source": "seeds 0-99", "samplers": {"rods-cas": {"eps": 0.1, "rho": 2}},
}  # fmt: skip


def test_a_preset_is_found_by_network_name_or_file(tmp_path: Path) -> None:
    (tmp_path / "my-net.preset.json").write_text(json.dumps(GOOD))
    mine = parse_preset(GOOD, where="here")
    assert find_preset(None, network="my-net", folder=tmp_path) == mine
    assert find_preset("my-net", network="other", folder=tmp_path) == mine
    assert find_preset(str(tmp_path / "my-net.preset.json"), network="other", folder=Path("none")) == mine
    assert find_preset("none", network="my-net", folder=tmp_path) is None
    assert find_preset(None, network="other", folder=tmp_path) is None
    (tmp_path / "my-net.pkl").write_bytes(b"")
    beside_it = find_preset(None, network="my-net", folder=Path("none"), source=str(tmp_path / "my-net.pkl"))
    assert beside_it == mine
    assert find_preset(None, network="my-net", folder=Path("none"), source="https://example.org/my-net.pkl") is None
    ffhq = PAPER_PRESETS["edm-ffhq-64x64-uncond-ve"]
    assert find_preset(None, network="edm-ffhq-64x64-uncond-ve", folder=tmp_path) is ffhq
    assert find_preset("edm-ffhq-64x64-uncond-ve", network="other", folder=tmp_path) is ffhq
    with pytest.raises(
        UserError, match=r"^--preset=best is unknown; use a JSON file or one of .*hands-128-ve, my-net$"
    ):
        find_preset("best", network="my-net", folder=tmp_path)


@pytest.mark.parametrize("content", ["", "{", "[" * 100_000, "\xff"])
def test_a_preset_that_is_not_json(content: str, tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(UserError, match=r"bad\.json is not JSON; docs/how-to/calibrate\.md shows a preset"):
        read_preset(tmp_path / "bad.json")


def test_weights_are_in_a_file_beside_the_preset(tmp_path: Path) -> None:
    readout = Readout(("a",), 0.5, 1, "0123456789ab", 0.25, (0.0, 1.0), (1.0, 2.0), (0.5, -0.5))
    samplers = {"restart": {"detector": "readout", "threshold": 0.5, "sigma_r": 2}}
    path, data = tmp_path / "p.json", {**GOOD, "samplers": samplers, "readout": "p.readout.safetensors"}
    path.write_text(json.dumps(data))
    with pytest.raises(UserError, match=r"^--preset=.*p\.json: .* is not a readout"):
        read_preset(path)
    write_gate(tmp_path / "p.readout.safetensors", readout)
    assert read_preset(path).samplers["restart"] == Restart(detector=readout, threshold=0.5, sigma_r=2)
    for name in ("../p.readout.safetensors", "/etc/passwd", 3, ""):
        with pytest.raises(ValueError, match="must be the name of a file beside it"):
            beside(path, name)
