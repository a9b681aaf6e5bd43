"""Guidance in generate.py, presets and fid.py: images, records, the run's identity, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from click.testing import CliRunner
from commands import LABELLED, PLAIN, RODS, SMALL, files, generate, generated, options_json, records, tiny

import fid
from dnnlib.errors import UserError
from rods import guided
from rods.base_samplers import Edm, Euler
from rods.guidance import Guidance
from rods.presets import Preset, parse_preset
from rods.runs import estimate as estimates
from rods.runs.chunk import Chunk, sample_chunk
from rods.runs.images import to_uint8
from rods.runs.presets import read_preset, write_preset
from rods.runs.run import Job
from rods.runs.sources import network_source
from rods.schedules import SigmaWindow
from training.checkpoint import load_denoiser, load_snapshot, save_snapshot

CONDITIONAL = {"network": LABELLED, "steps": 4}


@pytest.fixture(scope="module")
def weak(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another network for the images of SMALL."""
    return tiny(tmp_path_factory.mktemp("weak") / "weak.safetensors", first_weight=0.1)


def pixels(outdir: Path, seed: int) -> Any:
    with PIL.Image.open(outdir / f"{seed:06d}.png") as image:
        return np.asarray(image)


# -- generate.py ------------------------------------------------------------------------------------------------------


def test_a_dry_run_counts_the_evaluations_of_both_networks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimates, "PATIENCE", 0.0)
    dry = generated(
        tmp_path / "out", "-n", "--seeds=0", "--guidance=2", "--guide=none", "--sampler=euler", **CONDITIONAL
    )
    assert "(8 F at least" in dry
    net = load_denoiser(LABELLED)
    jobs = [Job(denoiser=d, sampler=Euler(num_steps=4), chunks=[Chunk(0, (0,))], device=torch.device("cpu"))
            for d in (net, guided(net, None, 2))]  # fmt: skip
    one, two = (estimates.kept_by_an_image(job) for job in jobs)
    assert one < two < 2.1 * one, "weights are there anyway, and are no image's"


def test_the_images_are_those_of_the_guided_denoiser(tmp_path: Path) -> None:
    out = tmp_path / "out"
    said = generated(out, "--seeds=0-2", "--guidance=2", "--guide=none", "--sampler=edm", **CONDITIONAL)
    assert "--guidance=2.0 --guide=none" in said
    net = load_denoiser(LABELLED)
    done = sample_chunk(guided(net, None, 2), Chunk(0, (0, 1, 2)), Edm(num_steps=4), device=torch.device("cpu"))
    expected = to_uint8(done.images.numpy())
    for seed in range(3):
        assert np.array_equal(pixels(out, seed), expected[seed, 0])
    assert [line["forward"] for line in records(out)] == [14] * 3
    identity = options_json(out)["identity"]
    assert (identity["guidance"], identity["guide"]) == (2, "none")
    assert "guide_sha256" not in identity
    plain = tmp_path / "plain"
    generated(plain, "--seeds=0-2", "--sampler=edm", **CONDITIONAL)
    assert any(not np.array_equal(pixels(plain, seed), expected[seed, 0]) for seed in range(3))


def test_strength_1_is_a_run_without_guidance(tmp_path: Path) -> None:
    generated(tmp_path / "a", "--seeds=0-1", "--guidance=1", "--guide=none", **CONDITIONAL)
    generated(tmp_path / "b", "--seeds=0-1", **CONDITIONAL)
    assert files(tmp_path / "a") == files(tmp_path / "b")


def test_another_network_guides_and_its_checksum_is_recorded(tmp_path: Path, weak: Path) -> None:
    said = generated(tmp_path, "--seeds=0-1", "--guidance=2", f"--guide={weak}", "--guidance-interval=0,1", steps=6)
    assert "\nGuide weak: EDMPrecond on SongUNet" in said
    found = options_json(tmp_path)
    assert found["identity"]["guide_sha256"] == load_snapshot(weak).sha256
    assert found["identity"]["guidance_interval"] == "0,1"
    assert found["guide"].startswith("weak: ")
    inside = sum(t <= 1 for t in Edm(num_steps=6).levels(load_denoiser(SMALL)))
    assert 0 < inside < 6
    assert [line["forward"] for line in records(tmp_path)] == [11 + 2 * inside] * 2, "Heun asks twice at these levels"
    code, output = generate(tmp_path, "--seeds=0-1", "--guidance=3", f"--guide={weak}", steps=6)
    assert code == 2
    assert "holds images made with --guidance=2.0, not 3.0" in output
    code, output = generate(tmp_path, "--seeds=0-1", "--guidance=2", "--guide=noisier", steps=6)
    assert code == 2
    assert "holds images made with --guide" in output


def test_rods_acts_on_the_guided_denoiser(tmp_path: Path, weak: Path) -> None:
    generated(tmp_path / "a", *RODS, "--seeds=0", "--guidance=2", f"--guide={weak}", steps=4)
    generated(tmp_path / "b", *RODS, "--seeds=0", steps=4)
    (a,), (b,) = records(tmp_path / "a"), records(tmp_path / "b")
    assert (a["forward"], a["backward"]) == (2 * b["forward"], 2 * b["backward"])
    assert a["H"] != b["H"]


@pytest.mark.parametrize("guide", ["dropout:rate=.3", "noisier:ratio=1.3"])
def test_guides_without_a_second_network(guide: str, tmp_path: Path) -> None:
    options = ("--seeds=0-3", "--guidance=2", f"--guide={guide}", "--sampler=euler")
    generated(tmp_path / "a", *options, steps=4)
    generated(tmp_path / "b", *options, "--batch=2", steps=4)
    generated(tmp_path / "c", "--seeds=0-3", "--sampler=euler", steps=4)
    assert [line["forward"] for line in records(tmp_path / "a")] == [8] * 4
    for seed in range(4):
        a, b, c = (pixels(tmp_path / name, seed).astype(int) for name in "abc")
        assert np.abs(a - b).max() <= 1
        assert not np.array_equal(a, c)


@pytest.mark.parametrize(
    ("options", "network", "says"),
    [
        (["--guidance=2"], LABELLED, "--guidance=2 needs a guide: --guide=none"),
        (["--guide=none"], LABELLED, "--guide=none needs --guidance=W"),
        (["--guidance-interval=1,2"], LABELLED, "--guidance-interval=1,2 needs --guidance=W"),
        (["--guidance=2", "--guide=none"], SMALL, "--guide=none: without labels the network is itself"),
        (["--guidance=2", f"--guide={PLAIN}"], SMALL, "edm-ddpmpp-uncond.pkl: its img_channels is 3, the network's 1"),
        (["--guidance=2", f"--guide={LABELLED}"], SMALL, "its img_resolution is 16, the network's 8"),
        (["--guidance=2", "--guide=there-is-none.pkl"], SMALL, "--guide: there-is-none.pkl: there is no such file"),
        (["--guidance=inf", "--guide=none"], LABELLED, "--guidance: inf is not a weight"),
        (["--guidance=2", "--guide=none", "--guidance-interval=3,2"], LABELLED, "--guidance-interval: 3,2 is empty"),
        (["--guidance=2", "--guide=none", "--guidance-interval=3"], LABELLED, "--guidance-interval: '3' is not LO,HI"),
        (["--guidance=2", "--guide=none", "--guidance-interval=100,200"], LABELLED,
         "--guidance-interval=100,200 holds no step of this run, whose noise levels are 0.002 to 80"),
        (["--guidance=2", "--guide=dropout"], SMALL, None),
        (["--guidance=2", "--guide=dropout:p=1"], SMALL, "--guide=dropout:p=1: dropout has no option 'p'"),
        (["--guidance=2", "--guide=dropout", "--compile"], SMALL, "--compile: the masks of --guide=dropout do not go"),
        (["--guidance=2", "--guide=dropout", "--checkpoint-blocks"], SMALL, "--checkpoint-blocks: the masks of"),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_one_line_and_nothing_is_written(
    options: list[str], network: Path, says: str | None, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    if says is None:  # a network that was made without dropout
        header = {"img_resolution": 8, "img_channels": 1, "model_type": "SongUNet", "model_channels": 4,
                  "channel_mult": [1], "num_blocks": 1, "attn_resolutions": [], "dropout": 0.0}  # fmt: skip
        network, says = tmp_path / "dry.safetensors", "--guide=dropout: this network was made without dropout"
        save_snapshot(network, type(load_denoiser(SMALL))(**header), init_kwargs=header)
    code, output = generate(out, *options, network=network)
    assert code == 2
    assert says in output
    assert len(output.splitlines()) == 1
    assert not out.exists()


# -- presets ----------------------------------------------------------------------------------------------------------

PRESET: dict[str, Any] = {"name": "mine", "network": "small", "source": "here", "samplers": {}}


def preset(folder: Path, **guidance: Any) -> Path:
    path = folder / "p.json"
    path.write_text(json.dumps({**PRESET, "guidance": guidance}))
    return path


def test_a_preset_may_say_how_its_network_is_guided(tmp_path: Path, weak: Path) -> None:
    (tmp_path / "weak.safetensors").write_bytes(weak.read_bytes())
    digest = load_snapshot(weak).sha256
    path = preset(tmp_path, strength=1.7, guide="weak.safetensors", interval="0.1,5", sha256=digest)
    said = generated(tmp_path / "a", f"--preset={path}", "--seeds=0", "--sampler=euler", steps=6)
    assert "Preset mine" in said
    generated(tmp_path / "b", "--guidance=1.7", f"--guide={weak}", "--guidance-interval=.1,5", "--seeds=0",
              "--sampler=euler", steps=6)  # fmt: skip
    a, b = (options_json(tmp_path / name) for name in "ab")
    assert a["identity"] == b["identity"]
    assert np.array_equal(pixels(tmp_path / "a", 0), pixels(tmp_path / "b", 0))
    off = generated(tmp_path / "c", f"--preset={path}", "--guidance=1", "--seeds=0", "--sampler=euler", steps=6)
    assert "guidance" not in options_json(tmp_path / "c")["identity"]
    assert "Guide " not in off
    other = ("--guidance=3", "--guide=noisier", f"--preset={path}", "--seeds=0", "--sampler=euler")
    generated(tmp_path / "d", *other, steps=6)
    identity = options_json(tmp_path / "d")["identity"]
    assert (identity["guidance"], identity["guide"]) == (3, "noisier:ratio=1.2")
    assert identity["guidance_interval"] == "0.1,5"


def test_a_guide_of_another_checksum_is_refused(tmp_path: Path, weak: Path) -> None:
    (tmp_path / "weak.safetensors").write_bytes(weak.read_bytes())
    path = preset(tmp_path, strength=2, guide="weak.safetensors", sha256="0" * 64)
    code, output = generate(tmp_path / "a", f"--preset={path}", "--seeds=0")
    assert code == 2
    assert output.startswith("Error: --guide: ")
    assert "SHA-256" in output


def test_a_preset_with_guidance_is_read_back(tmp_path: Path) -> None:
    for guide, sha256 in (("none", None), ("https://example.org/guide.pkl", "ab" * 32), ("weak.safetensors", None)):
        made = Preset("mine", "net", "here", {}, guidance=Guidance(1.7, guide, SigmaWindow(0.2, 5), sha256))
        write_preset(tmp_path / "p.json", made)
        found = read_preset(tmp_path / "p.json").guidance
        assert found is not None
        assert (found.strength, found.interval, found.sha256) == (1.7, SigmaWindow(0.2, 5), sha256)
        assert found.guide == (str(tmp_path / guide) if guide.startswith("weak") else guide)


@pytest.mark.parametrize(
    "guidance",
    [
        2,
        {},
        {"strength": 2},
        {"strength": "2", "guide": "none"},
        {"strength": 2, "guide": 3},
        {"strength": True, "guide": "none"},
        {"strength": 2, "guide": "none", "interval": "3,2"},
        {"strength": 2, "guide": "none", "more": 1},
        {"strength": 2, "guide": "none", "sha256": "00"},
    ],
)
def test_a_presets_guidance_that_is_none(guidance: Any) -> None:
    with pytest.raises(ValueError, match=r"^here: guid"):
        parse_preset({**PRESET, "guidance": guidance}, where="here")


@pytest.mark.parametrize("guide", ["../weak.safetensors", "/etc/passwd"])
def test_a_presets_guide_lies_beside_it(guide: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="a guide must be the name of a file beside it"):
        read_preset(preset(tmp_path, strength=2, guide=guide))


# -- fid.py -----------------------------------------------------------------------------------------------------------


def test_fid_measures_the_guided_network(tmp_path: Path, weak: Path) -> None:
    options = ("--guidance=2", f"--guide={weak}", "--guidance-interval=.1,5")
    generated(tmp_path, "--sampler=euler", "--seeds=0-2", *options, steps=6)
    guidance = Guidance(2, str(weak), SigmaWindow(0.1, 5))
    source = network_source(load_snapshot(SMALL), Euler(num_steps=6), [0, 1, 2], batch=64, device=torch.device("cpu"),
                            guidance=guidance)  # fmt: skip
    assert source.what.endswith(", 3 seeds, 0 to 2")
    assert f", --guidance=2 --guide={weak} --guidance-interval=0.1,5, " in source.what
    assert all(np.array_equal(source.load(0)[seed, 0].numpy(), pixels(tmp_path, seed)) for seed in range(3))


def test_fid_finds_the_preset_that_generate_finds(tmp_path: Path) -> None:
    network = tiny(tmp_path / "mine.safetensors")
    preset: dict[str, Any] = {"name": "mine", "network": "mine", "source": "", "samplers": {}}
    preset["guidance"] = {"strength": 2, "guide": "none"}
    (tmp_path / "mine.preset.json").write_text(json.dumps(preset))
    measured = ["calc", "--num=2", "--metrics=inception-var", "--detector=pixels", f"--from-network={network}"]
    result = CliRunner().invoke(fid.main, measured)
    assert "--guide=none: without labels" in result.output
    assert "--guide=none: without labels" in generate(tmp_path / "out", network=network)[1]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ([f"--from-network={SMALL}", "--guidance=2"], "--guidance=2 needs a guide"),
        ([f"--from-network={SMALL}", "--guidance=2", "--guide=none"], "--guide=none: without labels"),
        (["--images=somewhere", "--guidance=2"], "--guidance is for --from-network; leave it out with --images"),
    ],
)
def test_fid_refuses_what_generate_refuses(options: list[str], says: str) -> None:
    result = CliRunner().invoke(fid.main, ["calc", "--num=2", "--metrics=inception-var", "--detector=pixels", *options])
    assert result.exit_code == 2
    assert says in result.output


def test_the_checksum_of_a_guide_s_file_is_checked(tmp_path: Path, weak: Path) -> None:
    options = ("--seeds=0", "--sampler=euler", "--guidance=2", f"--guide={weak}")
    digest = load_snapshot(weak).sha256
    generated(tmp_path / "right", *options, f"--guide-sha256={digest}")
    assert options_json(tmp_path / "right")["identity"]["guide_sha256"] == digest
    code, output = generate(tmp_path / "wrong", *options, f"--guide-sha256={'0' * 64}")
    assert (code, output.count("\n")) == (2, 1)
    assert "--guide" in output
    assert digest in output
    code, output = generate(tmp_path / "wrong", *options[:3], "--guide=noisier", f"--guide-sha256={digest}")
    assert (code, output.count("\n")) == (2, 1)
    assert "no checksum" in output
    assert not (tmp_path / "wrong").exists()
