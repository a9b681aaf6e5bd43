"""Pictures, contact sheets and preset files of the commands."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from rods.pipeline import SamplerConfig
from rods.runs.sampling import write_grid
from rods.runs.summaries import risk_summary
from vectors import ROOT

from dnnlib.errors import UserError
from rods.presets import PAPER_PRESETS, parse_preset
from rods.runs.images import RED, contact_sheet, save_png, to_pil, to_uint8
from rods.runs.options import respell, sampler_choice
from rods.runs.presets import find_preset, read_preset

GOOD: dict[str, Any] = {
    "name": "mine", "network": "my-net", "source": "seeds 0-99", "samplers": {"rods-cas": {"eps": 0.1, "rho": 2}},
}  # fmt: skip


# -- pictures ---------------------------------------------------------------------------------------------------------


def test_pixels_are_truncated_and_clipped() -> None:
    x = np.array([-9, -1, -1 / 127.5, 0, 0.9 / 127.5, 1 / 127.5, 126.9 / 127.5, 1, 9])
    assert to_uint8(x).tolist() == [0, 0, 127, 128, 128, 129, 254, 255, 255]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_has_no_colour(value: float) -> None:
    with pytest.raises(ValueError, match="image: some pixels are not finite"):
        to_uint8(np.array([0, value]))


@pytest.mark.parametrize("channels", [1, 3])
def test_a_png_holds_the_pixels(channels: int, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (channels, 4, 5), dtype=np.uint8)
    save_png(to_pil(pixels), tmp_path / "x.png")
    with PIL.Image.open(tmp_path / "x.png") as image:
        assert (image.mode, image.size) == ("L" if channels == 1 else "RGB", (5, 4))
        assert np.array_equal(np.asarray(image), pixels[0] if channels == 1 else pixels.transpose(1, 2, 0))
    assert [path.name for path in tmp_path.iterdir()] == ["x.png"]


@pytest.mark.parametrize(("count", "columns", "size"), [(1, None, (1, 1)), (5, None, (3, 2)), (5, 5, (5, 1))])
def test_a_contact_sheet_has_a_tile_for_each_image(count: int, columns: int | None, size: tuple[int, int]) -> None:
    images = [np.full((3, 32, 32), 10 * i, np.uint8) for i in range(count)]
    sheet = contact_sheet(images, [f"{i}" for i in range(count)], columns=columns)
    wide, high = size
    assert sheet.size == (4 + wide * 100, 4 + high * 114)
    for i in range(count):
        left, top = 4 + i % wide * 100, 4 + i // wide * 114
        assert np.array_equal(np.asarray(sheet)[top : top + 96, left : left + 96], np.full((96, 96, 3), 10 * i))


def test_marked_tiles_are_framed_and_others_are_not() -> None:
    images = [np.zeros((1, 96, 96), np.uint8)] * 2
    sheet = np.asarray(contact_sheet(images, ["", ""], marked=[True, False], columns=2))
    assert tuple(sheet[3, 50]) == tuple(sheet[50, 3]) == tuple(sheet[50, 100]) == tuple(sheet[100, 50]) == RED
    assert tuple(sheet[3, 150]) == tuple(sheet[50, 200]) == (255, 255, 255)


def test_a_sheet_has_blank_places_frames_a_heading_and_lines_of_text() -> None:
    image, green = np.full((1, 8, 8), 9, np.uint8), (0, 255, 0)
    sheet = contact_sheet(
        [image, None, image],
        ["a\nb", "", ""],
        frames=[green, green, None],
        columns=2,
        min_tile=8,
        heading="x",
        margin=6,
    )
    assert sheet.size == (6 + 8 + 4 + 8 + 6, 14 + 6 + 2 * (8 + 28) + 4 + 6)
    pixels = np.asarray(sheet)
    assert tuple(pixels[19, 6]) == tuple(pixels[21, 5]) == green
    assert (pixels[20:28, 6:14] == 9).all()
    assert (pixels[20:28, 18:26] == 255).all()
    assert (pixels[60:68, 6:14] == 9).all()


def test_a_sheet_without_captions_or_margin_is_its_tiles() -> None:
    image = np.full((1, 8, 8), 9, np.uint8)
    assert (np.asarray(contact_sheet([image] * 4, columns=2, min_tile=1, gap=0, margin=0)) == 9).all()


def test_large_images_are_not_made_smaller() -> None:
    assert contact_sheet([np.zeros((3, 128, 128), np.uint8)], [""]).size == (136, 150)


def test_the_grid_leaves_out_what_was_not_written(tmp_path: Path) -> None:
    class Folder:
        outdir = tmp_path

    for name in ("a.png", "b.png"):
        save_png(to_pil(np.zeros((1, 8, 8), np.uint8)), tmp_path / name)
    line = {"seed": 1, "sha256": "x", "H": [], "flagged": []}
    lines = [{**line, "name": "a.png", "H": [None, 2.0]}, {**line, "name": "b.png"}, {**line, "sha256": None}]
    folder: Any = Folder()
    write_grid(folder, lines, tmp_path / "grid.png", threshold=1.0)
    with PIL.Image.open(tmp_path / "grid.png") as grid:
        assert grid.size == (4 + 2 * 100, 4 + 114)
        pixels = np.asarray(grid)
    assert tuple(pixels[3, 50]) == RED, "an H beyond all numbers is at risk"
    assert tuple(pixels[3, 150]) != RED, "no H was measured there"


def test_the_summary_of_the_risk() -> None:
    lines = [{"H": [0.0, float(i)], "flagged": [1] if i >= 8 else []} for i in range(11)]
    assert risk_summary(lines, 8.0, 8.0) == "3 of 11 at risk (H >= 8 at some step); H is in samples.jsonl"
    assert risk_summary(lines, 0.0, 9.0).startswith("Every image corrected. 2 of 11 at risk (H >= 9")
    for eps, head in ((0.0, "Every image corrected. "), (math.inf, "Nothing corrected. ")):
        assert risk_summary(lines, eps, math.inf).startswith(f"{head}The largest H of an image")
    assert "50% 5, 90% 9, 95% 9" in risk_summary(lines, math.inf, math.inf)
    assert "50% inf" in risk_summary([{"H": [1.0, None], "flagged": []}], math.inf, math.inf)  # H beyond all numbers


def test_a_preset_that_corrects_all_still_says_who_is_at_risk_for_its_own_settings_alone() -> None:
    preset = PAPER_PRESETS["hands-128-ve"]
    assert preset.risk_threshold(preset.config("rods-cas", {})) == 0.014
    assert preset.risk_threshold(preset.config("rods-cas", {"rho": 3})) is None, "H depends on rho"
    assert PAPER_PRESETS["edm-ffhq-64x64-uncond-ve"].risk_threshold(preset.config("rods-cas", {})) is None


# -- presets ----------------------------------------------------------------------------------------------------------


def test_the_published_settings() -> None:
    expected = {
        "edm-afhqv2-64x64-uncond-ve": (0.1, 1, (0, 1), "edm-afhqv2-64x64-uncond-ve"),
        "edm-ffhq-64x64-uncond-ve": (0.09, 8, (0, 1), "edm-ffhq-64x64-uncond-ve"),
        "hands-128-ve": (0, 30, (0.1, 0.5), None),
    }
    assert set(PAPER_PRESETS) == set(expected)
    for name, (eps, rho, window, network) in expected.items():
        preset = PAPER_PRESETS[name]
        assert preset.network == network
        for sampler in ("rods-cas", "rods-sas"):
            options = preset.config(sampler, {}).options
            assert (options["eps"], options["rho"], options["window"]) == (eps, rho, window)
            assert (options["num_steps"], options["solver"], options["detect"]) == (40, "euler", True)
        assert preset.config("rods-sas", {}).options["sas_sign"] == "uphill"
        assert preset.config("rods-cas", {"eps": 5.0}).options["eps"] == 5
        assert preset.config("edm", {}) == SamplerConfig("edm", {})


def test_a_preset_is_found_by_network_name_or_file(tmp_path: Path) -> None:
    (tmp_path / "my-net.preset.json").write_text(json.dumps(GOOD))
    mine = parse_preset(GOOD, where="here")
    assert find_preset(None, network="my-net", folder=tmp_path) == mine
    assert find_preset("my-net", network="other", folder=tmp_path) == mine
    assert find_preset(str(tmp_path / "my-net.preset.json"), network="other", folder=Path("none")) == mine
    assert find_preset("none", network="my-net", folder=tmp_path) is None
    assert find_preset(None, network="other", folder=tmp_path) is None
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
    with pytest.raises(UserError, match=r"bad\.json is not JSON; docs/calibration\.md shows a preset"):
        read_preset(tmp_path / "bad.json")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"extra": 1}, "F is no preset; it needs exactly the keys name, network, samplers, source"),
        ({"samplers": [1]}, "F is no preset"),
        ({"detect_eps": {"rods-cas": -1}}, "F: detect_eps needs a threshold >= 0"),
        ({"detect_eps": 0.1}, "F: detect_eps needs a threshold >= 0"),
        ({"name": 3}, "F: name is no text"),
        ({"network": ["x"]}, "F: network is no text"),
        ({"source": None}, "F: source is no text"),
        ({"samplers": {"ddim": {}}}, "F: 'ddim' is no sampler; use edm"),
        ({"samplers": {"rods-cas": 5}}, "F: rods-cas needs its options as name and value"),
        ({"samplers": {"rods-cas": {"eps": 1}}}, "F, rods-cas: rho: rods-cas needs a value"),
        ({"samplers": {"rods-cas": {"eps": 1, "rho": 1, "radius": 2}}}, "F, rods-cas: radius: rods-cas has no such"),
        ({"samplers": {"rods-cas": {"eps": "1", "rho": 1}}}, "F, rods-cas: eps: '1' will not do; give a number"),
        ({"samplers": {"rods-cas": {"eps": 1, "rho": 1, "window": "0-1"}}}, "F, rods-cas: window: '0-1' is no window"),
    ],
)
def test_a_preset_that_is_none(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=f"^{says}"):
        parse_preset({**GOOD, **changes}, where="F")
    with pytest.raises(ValueError, match="F is no preset"):
        parse_preset([GOOD], where="F")


def test_the_presets_beside_the_embedded_networks_are_whole() -> None:
    for path in sorted((ROOT / "models").glob("*.preset.json")):
        preset = read_preset(path)
        assert path.name == f"{preset.network}.preset.json"
        assert preset.samplers
        assert (ROOT / "models" / f"{preset.network}.safetensors").is_file()


# -- options ----------------------------------------------------------------------------------------------------------


def test_messages_spell_options_as_the_command_line_does() -> None:
    assert respell("num_steps: 0 is too few") == "--steps: 0 is too few"
    assert respell("S_min, S_max: 2, 1 is no range") == "--S_min, --S_max: 2, 1 is no range"
    assert respell("this is: a sentence, not an option") == "this is: a sentence, not an option"
    assert respell("nothing to respell") == "nothing to respell"


def test_the_choice_of_a_sampler() -> None:
    said: list[str] = []
    assert sampler_choice("rods-cas", {"solver": "heun"}, say=said.append) == "rods-cas"
    assert sampler_choice(None, {"num_steps": 3}, say=said.append) == "edm"
    assert said == []
    for option, spelt in {"solver": "--solver", "discretization": "--disc", "schedule": "--schedule"}.items():
        assert sampler_choice(None, {option: "x"}, say=said.append) == "ablation"
        assert said.pop() == f"{spelt} given without --sampler: using --sampler=ablation"
