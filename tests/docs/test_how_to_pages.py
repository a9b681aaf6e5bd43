"""README.md and docs/how-to: their Python runs, and what start.md and compare.md type works on two seeds."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from commands import LABELLED, generated, records
from pages import Page
from vectors import GOLDEN, ROOT

from scripts import bench

WITH_CODE = ("sample", "restart", "guidance", "foreign-models", "comfyui", "latents")


@pytest.mark.parametrize("name", WITH_CODE)
def test_the_blocks_run(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    found: dict[str, Any] = {}
    for block in Page(f"how-to/{name}").blocks:
        exec(block.replace("randn(4,", "randn(1,"), found)


@pytest.mark.filterwarnings("ignore")  # what diffusers and transformers warn of is not ours
def test_the_block_of_modular_diffusers_runs(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("diffusers.modular_pipelines", reason="diffusers with modular pipelines is not installed")
    pytest.importorskip("transformers", reason="transformers is not installed, which these pipelines import")
    (block,) = Page("how-to/modular-diffusers").blocks
    found: dict[str, Any] = {}
    exec(block, found)
    assert len(found["state"].get("images")) == 2
    assert [record.forward for record in found["state"].get("rods_records")] == [6 + 4] * 2
    assert "['denoise.denoise']" in capsys.readouterr().out


def test_the_first_block_of_the_readme_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    lines = (ROOT / "README.md").read_text().splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("    from "))
    block = [line.removeprefix("    ") for line in lines[start : lines.index("", start)]]
    assert len(block) == 6
    found: dict[str, Any] = {}
    exec("\n".join(block).replace("randn(8,", "randn(1,"), found)
    assert found["result"].images.shape == (1, 1, 32, 32)


def shown(page: str) -> list[tuple[str, list[str]]]:
    """The commands of a page that make, label and compare two runs."""
    found = re.findall(r"^    (?:\.venv/bin/)?python (generate|scripts/bench)\.py (.*)$", Page(page).text, re.MULTILINE)
    return [(name, shlex.split(line)) for name, line in found]


def test_two_runs_are_labelled_and_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    commands = shown("start")
    assert [name for name, _ in commands] == ["generate"] * 2 + ["scripts/bench"] * 3
    assert shown("how-to/compare")[:-1] == [(name, [o for o in options if o != "--grid"]) for name, options in commands]
    for name, options in commands:
        few = [option.replace("--seeds=0-63", "--seeds=0-1") for option in options]
        if name == "generate":
            generated(Path(), *few, network=None, steps=None)
        else:
            result = CliRunner().invoke(bench.main, few)
            assert result.exit_code == 0, result.output
    assert "| restart |" in result.output


def test_a_new_threshold_follows_recorded_scores(tmp_path: Path) -> None:
    """The commands of restart.md for a network without labels, and of sample.md, on a small network."""
    pages = [command for name in ("restart", "sample") for command in Page(f"how-to/{name}").commands]
    tried = [options for options in pages if any("my-network" in option for option in options)]
    tried = [options for options in tried if "--preset=my.preset.json" not in options]  # tests/bench/test_gate_fit.py
    assert len(tried) == 2
    for i, options in enumerate(tried):
        few = [option for option in options if not option.startswith(("--network", "--seeds", "--outdir"))]
        generated(tmp_path / str(i), "--seeds=0-3", *few, steps=10)


def test_the_commands_of_guidance_run(tmp_path: Path) -> None:
    """On a small network with classes, which stands for its own earlier snapshot, too."""
    commands = Page("how-to/guidance").commands
    commands = [options for options in commands if "--sampler=restart" not in options]  # tests/bench/test_gate_fit.py
    assert len(commands) == 3
    for i, options in enumerate(commands):
        few = [option for option in options if not option.startswith(("--network", "--seeds", "--outdir"))]
        few = [f"--guide={LABELLED}" if option == "--guide=my-earlier-snapshot.pkl" else option for option in few]
        generated(tmp_path / str(i), "--seeds=0", "--sampler=euler", *few, network=LABELLED, steps=6)
    spent = [records(tmp_path / str(i))[0]["forward"] for i in range(3)]
    assert spent[0] == spent[2] == 12
    assert 6 < spent[1] < 12


def test_the_blocks_of_diffusers_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With tiny pipelines of random weights in the place of the published ones, which the blocks would load."""
    diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")
    pytest.importorskip("transformers", reason="transformers is not installed")
    import tiny_pipelines as tiny

    monkeypatch.setattr(diffusers.DiTPipeline, "from_pretrained", lambda name: tiny.dit_pipeline(clip_sample=False))
    monkeypatch.setattr(diffusers.StableDiffusion3Pipeline, "from_pretrained", lambda name: tiny.sd3_pipeline(tmp_path))
    blocks, found = Page("how-to/diffusers").blocks, {}
    assert len(blocks) == 3
    shapes = []
    for block in blocks:
        exec(block, found)
        shapes.append(tuple(found["images"].shape))
    assert shapes == [(3, 3, 32, 32), (2, 3, 16, 16), (16, 3, 32, 32)]
    assert len(found["done"].records[0].restart.scores) >= 1


def test_the_command_of_latents_runs(tmp_path: Path) -> None:
    """On a small network of EDM2 and a small autoencoder."""
    pytest.importorskip("diffusers", reason="diffusers is not installed")
    import tiny_pipelines as tiny

    tiny.vae().save_pretrained(tmp_path / "vae")
    (options,) = Page("how-to/latents").commands
    few = [option for option in options if not option.startswith(("--network", "--seeds", "--outdir", "--vae"))]
    network = GOLDEN / "edm2" / "pickles" / "edm2-latent-cond.pkl"
    generated(tmp_path / "out", "--seeds=0-1", f"--vae={tmp_path / 'vae'}", *few, network=network, steps=2)
    assert (tmp_path / "out" / "grid.png").is_file()
