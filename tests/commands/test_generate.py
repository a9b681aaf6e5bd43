"""generate.py from the outside: EDM's options and images, RODS's records, presets, and what it refuses."""

from __future__ import annotations

import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

import click
import numpy as np
import PIL.Image
import pytest
import torch
from commands import (
    LABELLED,
    PLAIN,
    RESTART,
    RODS,
    SMALL,
    files,
    generate,
    generated,
    options_json,
    records,
    refused,
    tiny,
)

import generate as command
import rods.runs.run as run_module
from rods import Euler, edm_sampler
from rods.config import SAMPLERS, build, options, values_of
from rods.gate import DensityRatio, fingerprint
from rods.presets import Preset
from rods.restart import Restart
from rods.runs.presets import write_preset
from training.checkpoint import load_denoiser

# -- the option set ---------------------------------------------------------------------------------------------------

EDM_DEFAULTS = {
    "--network": None, "--outdir": "out", "--seeds": list(range(64)), "--subdirs": False, "--class": None,
    "--batch": 64, "--steps": 18, "--sigma_min": 0.002, "--sigma_max": 80, "--time-rho": 7, "--S_churn": 0,
    "--S_min": 0, "--S_max": math.inf, "--S_noise": 1,
}  # fmt: skip
EDM_ABLATION = {"--solver": "heun", "--disc": "edm", "--schedule": "linear", "--scaling": "none"}
OURS = {
    "--sampler", "--preset", "--device", "--dtype", "--rng", "--seeding", "--grid", "--sha256", "--threads", "--filter",
    "-n", "--dry-run", "--restart-share", "--guide-sha256",
    "--filter-threshold", "--rejected", "--accept", "--max-tries", "--trajectory", "--probe-batch",
    "--checkpoint-blocks", "--channels-last", "--compile", "--guidance", "--guide", "--guidance-interval", "--vae",
}  # fmt: skip
ARGUMENTS = {"--steps": "num_steps", "--time-rho": "time_rho", "--disc": "discretization"}


def defaults() -> dict[str, Any]:
    """What the command gets for each option where only the needed one is given."""
    context = command.main.make_context("generate.py", ["--outdir=out"])
    return {name: context.params[option.name or ""] for option in command.main.params for name in option.opts}


def test_the_options_are_those_of_edm_and_ours() -> None:
    """And those of the samplers: tests/laws/test_laws_of_values.py."""
    names = {name for option in command.main.params for name in option.opts}
    of_samplers = {option.flag for sampler in SAMPLERS for option in options(sampler).values() if option.help}
    assert names == {*EDM_DEFAULTS, *EDM_ABLATION, *OURS, *of_samplers}


@pytest.mark.parametrize(("sampler", "expected"), [("edm", EDM_DEFAULTS), ("ablation", EDM_ABLATION)])
def test_the_defaults_are_those_of_edm(sampler: str, expected: dict[str, Any]) -> None:
    params = defaults()
    config = values_of(build(sampler, {}))
    for name, value in expected.items():
        argument = ARGUMENTS.get(name, name.removeprefix("--"))
        # The command leaves a sampler's option at None, so that "not given" is known; the sampler has the default.
        if argument in config:
            assert params[name] is None
            assert config[argument] == value, name
        else:
            found = params[name]
            assert (str(found) if isinstance(found, Path) else found) == value, name


def test_our_defaults() -> None:
    expected = {"--device": "auto", "--dtype": "float32", "--rng": "device", "--seeding": "per-image", "--grid": False}
    assert {name: value for name, value in defaults().items() if name in expected} == expected
    for sampler in ("euler", "rods-cas", "rods-sas", "overshoot", "sigma-offset"):
        known = options(sampler)
        assert known["num_steps"].default == 40
        assert sampler == "euler" or known["window"].default == (0.1, 0.5)


def test_every_option_has_help() -> None:
    assert all(isinstance(option, click.Option) and option.help for option in command.main.params)


# -- images -----------------------------------------------------------------------------------------------------------


def picture(path: Path) -> np.ndarray:
    with PIL.Image.open(path) as image:
        return np.asarray(image)


def edm_by_hand(network: Path, seeds: list[int], class_index: int | None, **options: Any) -> np.ndarray:
    """EDM's recipe, written down plainly: a generator per seed, latents, a class, noise; truncated to uint8."""
    net: Any = load_denoiser(network)
    generators = [torch.Generator().manual_seed(seed % (1 << 32)) for seed in seeds]
    shape = [net.img_channels, net.img_resolution, net.img_resolution]
    latents = torch.stack([torch.randn(shape, generator=g) for g in generators])
    labels = None
    if net.label_dim:
        drawn = torch.stack([torch.randint(net.label_dim, [], generator=g) for g in generators])
        labels = torch.eye(net.label_dim)[drawn]
        if class_index is not None:
            labels = torch.zeros_like(labels)
            labels[:, class_index] = 1

    def randn_like(x: torch.Tensor) -> torch.Tensor:
        return torch.stack([torch.randn(x.shape[1:], generator=g, dtype=x.dtype) for g in generators])

    x = edm_sampler(net, latents, labels, randn_like=randn_like, **options)
    return (x * 127.5 + 128).clip(0, 255).to(torch.uint8).permute(0, 2, 3, 1).squeeze(-1).numpy()


@pytest.mark.parametrize(("network", "class_index"), [(PLAIN, None), (LABELLED, None), (LABELLED, 2)])
def test_images_are_those_of_edm(network: Path, class_index: int | None, tmp_path: Path) -> None:
    """With churn, so that the class must be drawn even where it is given, or the noise would shift."""
    seeds = [3, 0, 4294967303]
    chosen = [] if class_index is None else [f"--class={class_index}"]
    generated(tmp_path, "--seeds=3,0,4294967303", "--S_churn=5", "--S_noise=1.01", *chosen, network=network, steps=3)
    expected = edm_by_hand(network, seeds, class_index, num_steps=3, S_churn=5, S_noise=1.01)
    for seed, image in zip(seeds, expected, strict=True):
        assert np.array_equal(picture(tmp_path / f"{seed:06d}.png"), image)
    classes = {line["class"] for line in records(tmp_path)}
    assert classes == {class_index} if class_index is not None or network == PLAIN else classes <= {0, 1, 2, 3}


def test_records(tmp_path: Path) -> None:
    output = generated(tmp_path, "--seeds=0-2", *RODS, "--solver=heun", "--grid", steps=3)
    lines = records(tmp_path)
    assert [line["seed"] for line in lines] == [0, 1, 2]
    for line in lines:
        assert line["name"] == f"{line['seed']:06d}.png"
        assert line["sha256"] == files(tmp_path)[line["name"]]
        assert line["class"] is None
        assert line["probed"] == [0, 1, 2]
        assert len(line["H"]) == len(line["H_scaled"]) == len(line["sigma"]) == 3
        assert line["flagged"] == [i for i, h in zip(line["probed"], line["H"], strict=True) if h >= 0.1]
        assert (line["forward"], line["backward"]) == (2 * 3 + 2, 2 * 3)
    at_risk = sum(bool(line["flagged"]) for line in lines)
    assert f"{at_risk} of 3 at risk (H >= 0.1 at some step)" in output
    assert "8.0 F + 6.0 B network evaluations an image" in output
    with PIL.Image.open(tmp_path / "grid.png") as grid:
        assert grid.width > 2 * 96


def test_a_chunk_decides_the_bytes_and_other_chunks_agree_to_rounding(tmp_path: Path) -> None:
    generated(tmp_path / "two", "--seeds=0-3", "--batch=2", "--sampler=euler")
    generated(tmp_path / "more", "--seeds=2,3,9", "--batch=2", "--sampler=euler")
    generated(tmp_path / "one", "--seeds=2", "--batch=1", "--sampler=euler")
    assert files(tmp_path / "two")["000002.png"] == files(tmp_path / "more")["000002.png"]
    alone, together = (picture(tmp_path / name / "000002.png").astype(int) for name in ("one", "two"))
    assert np.abs(alone - together).max() <= 1


def test_subdirs(tmp_path: Path) -> None:
    generated(tmp_path, "--seeds=999,1000", "--subdirs")
    assert {"000000/000999.png", "001000/001000.png"} <= set(files(tmp_path))


def test_per_batch_seeding_draws_a_whole_batch(tmp_path: Path) -> None:
    generated(tmp_path, "--seeds=5", "--batch=3", "--seeding=per-batch", "--sampler=euler", network=PLAIN)
    latents = torch.randn([3, 3, 16, 16], generator=torch.Generator().manual_seed(5))
    net = load_denoiser(PLAIN)
    images = Euler(num_steps=2).sample(net, latents).images
    for row, image in enumerate((images * 127.5 + 128).clip(0, 255).to(torch.uint8).permute(0, 2, 3, 1)):
        assert np.array_equal(picture(tmp_path / f"000005_{row:03d}.png"), image.numpy())
    assert [(line["seed"], line["row"]) for line in records(tmp_path)] == [(5, 0), (5, 1), (5, 2)]


def test_bf16_is_printed_and_recorded(tmp_path: Path) -> None:
    output = generated(tmp_path / "bf16", "--seeds=0", "--dtype=bf16", "--sampler=euler", steps=6)
    assert "--dtype=bf16" in output
    assert options_json(tmp_path / "bf16")["identity"]["dtype"] == "bf16"
    generated(tmp_path / "float32", "--seeds=0", "--sampler=euler", steps=6)
    halved, full = (picture(tmp_path / name / "000000.png").astype(int) for name in ("bf16", "float32"))
    assert 0 < np.abs(halved - full).max() < 64


def test_random_numbers_of_the_cpu_are_those_of_a_cpu_device(tmp_path: Path) -> None:
    generated(tmp_path / "cpu", "--seeds=0", "--rng=cpu")
    generated(tmp_path / "device", "--seeds=0")
    assert files(tmp_path / "cpu")["000000.png"] == files(tmp_path / "device")["000000.png"]


# -- what is not finite -----------------------------------------------------------------------------------------------


def test_an_image_that_is_not_finite_is_no_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = run_module.sample_chunk

    def with_a_hole(*args: Any, **options: Any) -> Any:
        done = real(*args, **options)
        done.images[1, 0, 3, 3] = math.nan
        return done

    monkeypatch.setattr(run_module, "sample_chunk", with_a_hole)
    code, output = generate(tmp_path, "--seeds=4-6", "--grid")
    assert code == 1
    assert "Error: 1 of 3 images not finite and not written (seeds 5)" in output
    assert set(files(tmp_path)) == {"000004.png", "000006.png", "grid.png", "options.json", "samples.jsonl"}
    assert [line["sha256"] is None for line in records(tmp_path)] == [False, True, False]

    monkeypatch.undo()
    before = files(tmp_path)
    generated(tmp_path, "--seeds=4-6", "--grid")
    after = files(tmp_path)
    assert set(after) - set(before) == {"000005.png"}
    assert all(after[name] == before[name] for name in ("000004.png", "000006.png"))
    assert all(line["sha256"] == after[line["name"]] for line in records(tmp_path))


def test_a_network_that_returns_nan(tmp_path: Path) -> None:
    network = tiny(tmp_path / "nan.safetensors", first_weight=math.nan)
    code, output = generate(tmp_path / "out", "--seeds=0-1", *RODS, "--grid", network=network)
    assert code == 1
    assert "2 of 2 images not finite" in output
    assert set(files(tmp_path / "out")) == {"options.json", "samples.jsonl"}
    assert "NaN" not in (tmp_path / "out" / "samples.jsonl").read_text()


# -- presets and the choice of a sampler ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "eps", "rho"), [("edm-afhqv2-64x64-uncond-ve", 0.1, 1), ("edm-ffhq-64x64-uncond-ve", 0.09, 8)]
)
@pytest.mark.parametrize("sampler", ["rods-cas", "rods-sas"])
def test_published_settings_are_found_by_the_networks_name(
    name: str, eps: float, rho: float, sampler: str, tmp_path: Path
) -> None:
    network = tiny(tmp_path / f"{name}.safetensors")
    output = generated(tmp_path / "out", "--seeds=0", f"--sampler={sampler}", network=network, steps=None)
    identity = options_json(tmp_path / "out")["identity"]
    assert [identity[k] for k in ("eps", "rho", "window", "num_steps")] == [eps, rho, "0,1", 40]
    assert options_json(tmp_path / "out")["preset"].startswith(name)
    assert f"Preset {name}" in output
    assert {f"--eps={eps}", f"--rho={rho}", "--window=0,1", "--steps=40"} <= set(output.split())


def test_options_replace_a_presets(tmp_path: Path) -> None:
    network = tiny(tmp_path / "edm-ffhq-64x64-uncond-ve.safetensors")
    generated(tmp_path / "out", "--seeds=0", "--sampler=rods-cas", "--rho=3", network=network)
    identity = options_json(tmp_path / "out")["identity"]
    assert [identity[k] for k in ("eps", "rho", "num_steps")] == [0.09, 3, 2]


def test_a_preset_by_name_or_file(tmp_path: Path) -> None:
    generated(tmp_path / "hands", "--seeds=0", "--sampler=rods-cas", "--preset=hands-128-ve")
    identity = options_json(tmp_path / "hands")["identity"]
    assert [identity[k] for k in ("eps", "rho", "window")] == [0, 30, "0.1,0.5"]

    preset = {"name": "mine", "network": None, "source": "my seeds", "samplers": {"rods-sas": {
        "eps": 0.2, "rho": 2, "window": "sigma:1,5", "sas_sign": "downhill"}}}  # fmt: skip
    (tmp_path / "mine.json").write_text(json.dumps(preset))
    output = generated(tmp_path / "file", "--seeds=0", "--sampler=rods-sas", f"--preset={tmp_path / 'mine.json'}")
    assert "Preset mine (my seeds)" in output
    assert "--eps=0.2 --rho=2 --window=sigma:1,5" in output
    assert "--sas-sign=downhill" in output


def test_without_a_preset_eps_and_rho_are_needed(tmp_path: Path) -> None:
    network = tiny(tmp_path / "edm-ffhq-64x64-uncond-ve.safetensors")
    for given in (("--preset=none",), ("--preset=none", "--rho=1")):
        output = refused(tmp_path / "out", "--seeds=0", "--sampler=rods-cas", *given, network=network)
        assert output.startswith("Error: --eps needed" if "--rho=1" in given else "Error: --eps and --rho needed")
        assert "docs/how-to/calibrate.md" in output


def test_the_embedded_network_and_its_preset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models = tmp_path / "models"
    models.mkdir()
    shutil.copy(SMALL, models / "small.safetensors")
    options = {"rods-cas": {"eps": 0.3, "rho": 1.5}}
    preset = {"name": "small", "network": "small", "source": "a test", "samplers": options}
    (models / "small.preset.json").write_text(json.dumps(preset))
    monkeypatch.setattr(command, "MODELS", models)
    monkeypatch.setattr(command, "EMBEDDED", models / "small.safetensors")
    output = generated(tmp_path / "out", "--seeds=0", "--sampler=rods-cas", network=None)
    assert "Network small: " in output
    assert "--eps=0.3 --rho=1.5" in output


def test_an_option_of_the_ablation_selects_it_and_says_so(tmp_path: Path) -> None:
    output = generated(tmp_path / "a", "--seeds=0", "--disc=vp", "--schedule=vp")
    assert output.startswith("--disc, --schedule given without --sampler: using --sampler=ablation\n")
    identity = options_json(tmp_path / "a")["identity"]
    names = ("sampler", "solver", "discretization", "schedule", "scaling")
    assert [identity[k] for k in names] == ["ablation", "heun", "vp", "vp", "none"]
    generated(tmp_path / "edm", "--seeds=0")
    generated(tmp_path / "b", "--seeds=0", "--solver=heun")
    ablation, edm = (picture(tmp_path / name / "000000.png").astype(int) for name in ("b", "edm"))
    assert np.abs(ablation - edm).max() <= 1
    generated(tmp_path / "rods", "--seeds=0", *RODS, "--solver=heun")
    assert options_json(tmp_path / "rods")["identity"]["solver"] == "heun"


# -- what is refused --------------------------------------------------------------------------------------------------

REFUSED = {
    "option of another sampler": ((SMALL, "--rho=7"), "--rho "),
    "option of another sampler, chosen by an option": ((SMALL, "--solver=euler", "--rho=7"), "--rho "),
    "no value": ((SMALL, "--sampler=overshoot"), "--rho: "),
    "no calibration": ((SMALL, "--sampler=rods-cas"), "--eps and --rho needed: "),
    "out of range": ((SMALL, *RODS, "--eps=-1"), "--eps: "),
    "not a number": ((SMALL, *RODS, "--eps=nan"), "--eps: "),
    "out of the network's range": ((SMALL, *RESTART, "--sigma-r=90"), "--sigma-r: "),
    "out of click's range": ((SMALL, "--steps=0"), "Invalid value for '--steps': "),
    "no window": ((SMALL, *RODS, "--window=.5,.1"), "Invalid value for '--window': "),
    "no detector": ((SMALL, *RESTART, "--detector=best"), "--detector: "),
    "a detector without steps": ((SMALL, *RESTART, "--detector=h-index:lo=.6,hi=.61"), "--lo, --hi: "),
    "no corrector": ((SMALL, *RESTART, "--inside=best"), "--inside: "),
    "options together": ((SMALL, *RODS, "--detect=false"), "--detect: "),
    "empty range": ((SMALL, "--sigma_min=90"), "--sigma-min, --sigma-max: "),
    "backward seeds": ((SMALL, "--seeds=3-1"), "Invalid value for '--seeds': "),
    "class on an unconditional network": ((SMALL, "--class=0"), "--class: "),
    "class too high": ((LABELLED, "--class=4"), "--class: "),
    "unknown preset": ((SMALL, *RODS, "--preset=best"), "--preset=best "),
    "preset of another sampler": ((SMALL, "--preset=hands-128-ve"), "--preset=hands-128-ve "),
    "misspelt": ((SMALL, "--seed=3"), "No such option '--seed'. (Did you mean"),
    "no cuda": ((SMALL, "--device=cuda"), "--device=cuda: "),
    "wrong checksum": ((SMALL, "--sha256=" + "0" * 64), ""),
    "missing network": ((Path("nowhere.pkl"),), "--network: nowhere.pkl: "),
    "no network": ((None,), "--network "),
}
"""A case for each kind of mistake; what samplers, detectors and presets refuse is tested with these."""


@pytest.mark.parametrize("case", REFUSED)
def test_bad_input_is_one_line_that_names_the_option_and_nothing_is_written(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (network, *options), says = REFUSED[case]
    if case == "no cuda":
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(command, "EMBEDDED", tmp_path / "absent.safetensors")
    assert refused(tmp_path / "out", *options, network=network, steps=None).startswith(f"Error: {says}")
    assert list(tmp_path.iterdir()) == []


def test_a_grid_of_nothing_is_said(tmp_path: Path) -> None:
    dropped = ("--filter=lid", "--filter-threshold=-1e9", "--rejected", "--grid", "--seeds=0-1", "--sampler=euler")
    output = generated(tmp_path / "out", *dropped)
    assert "No grid.png: no image was kept\n" in output
    assert "2 of 2 dropped" in output
    assert not (tmp_path / "out" / "grid.png").exists()


def test_a_dry_run_checks_and_estimates_and_writes_nothing(tmp_path: Path) -> None:
    output = generated(tmp_path / "out", "--seeds=0-99", "--batch=8", "--sampler=euler", "-n")
    time, memory = output.splitlines()[-2:]
    assert re.fullmatch(r"Time: about \dm\d\ds for 100 images on each rank \(the first took .* 2 F \+ 0 B .*", time)
    assert re.fullmatch(r"Memory: about [\d.]+ [GM]iB with 8 of 8 images at once \(measured\)", memory)
    probed = generated(tmp_path / "out", "--seeds=0-9", "--probe-batch=2", *RODS, "-n").splitlines()
    assert "iB for backward passes of 2 at once" in probed[-1]
    assert list(tmp_path.iterdir()) == []
    generated(tmp_path / "out", "--seeds=0", "--sampler=euler")
    code, output = generate(tmp_path / "out", "--seeds=1", "--sampler=euler", "-n", steps=3)
    assert (code, output.count("\n")) == (2, 1)
    assert "holds images made with --steps=2, not 3" in output


def test_a_dry_run_does_not_sample_what_takes_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rods.runs.estimate.PATIENCE", 0.0)
    output = generated(tmp_path / "out", "--seeds=0-9", "--sampler=euler", "-n", network=LABELLED)
    assert "(2 F at least, and no B; no image was sampled; an F took " in output


def test_a_preset_of_another_network_is_said(tmp_path: Path) -> None:
    preset = {"name": "p", "network": "big", "source": "word " * 200, "samplers": {"rods-cas": {"eps": 1, "rho": 1}}}
    (tmp_path / "p.json").write_text(json.dumps(preset))
    output = generated(tmp_path / "out", "--sampler=rods-cas", f"--preset={tmp_path / 'p.json'}", "--seeds=0")
    assert f"Note: preset p was made for network big and is used with {SMALL.stem}, which may need another\n" in output
    header = next(line for line in output.splitlines() if line.startswith("Preset "))
    assert (len(header) < 220, header.endswith(" ...")) == (True, True)
    assert options_json(tmp_path / "out")["preset"] == f"p ({preset['source']})"
    assert "=None" not in output


def test_a_preset_beside_the_network_is_used_by_its_sampler_alone_and_a_copy_is_known(tmp_path: Path) -> None:
    network, copy = tmp_path / "mine.safetensors", tmp_path / "copy.safetensors"
    for path in (network, copy):
        path.write_bytes(SMALL.read_bytes())
    net = load_denoiser(SMALL)
    block = tuple(net.decoder_blocks())[-1]
    gate = DensityRatio((block,), 0.3, 1, fingerprint(net, (block,)), 0.0, (0.0,) * 8, (1.0,) * 8, (1.0,) * 8)
    restart = Restart(threshold=-1e9, sigma_r=2, detector=gate, num_steps=8)
    write_preset(
        tmp_path / "mine.preset.json",
        Preset("mine", "mine", "by hand", {"restart": restart}, {}, {"density-ratio": gate}),
    )
    plain = generated(tmp_path / "plain", "--seeds=0", network=network)
    assert "Note: preset mine is not used: without --sampler this is edm; it is for --sampler=restart\n" in plain
    assert "restart" not in records(tmp_path / "plain")[0]
    restarted = generated(tmp_path / "restarted", "--seeds=0", "--sampler=restart", network=network, steps=None)
    assert "Note" not in restarted
    assert len(records(tmp_path / "restarted")[0]["restart"]["scores"]) == 4
    by_file = f"--preset={tmp_path / 'mine.preset.json'}"
    assert "edm is the default: choose another by --sampler" in refused(tmp_path / "no", by_file, network=network)
    told = generated(tmp_path / "copy", "--seeds=0", by_file, "--sampler=restart", network=copy, steps=None)
    assert "preset mine was made for network mine and is used with copy: a copy, by the layers that its gate" in told


def test_a_network_of_two_channels_makes_no_png(tmp_path: Path) -> None:
    output = refused(tmp_path / "out", network=tiny(tmp_path / "two.safetensors", channels=2))
    assert output.startswith("Error: --network makes 2 channels, and a PNG has 1 or 3; latents need their")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.cuda.OutOfMemoryError("CUDA out of memory."),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
    ],
)
def test_too_large_a_batch(error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def explode(*args: Any, **options: Any) -> Any:
        raise error

    monkeypatch.setattr(run_module, "sample_chunk", explode)
    code, output = generate(tmp_path, "--seeds=0", "--batch=7")
    assert code == 2
    assert output.endswith("Error: --batch=7 does not fit in the memory of cpu; use less\n")
    monkeypatch.setattr(run_module, "sample_chunk", lambda *args, **options: 1 / 0)
    with pytest.raises(ZeroDivisionError):  # a bug keeps its traceback
        generate(tmp_path, "--seeds=0", "--batch=7")


def test_the_folder_is_refused_before_anything_is_printed(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for outdir, says in (("file", "is a file"), ("file/out", "cannot be written: Not a directory")):
        output = refused(tmp_path / outdir, "--seeds=0")
        assert "--outdir" in output
        assert f"{tmp_path / outdir}" in output
        assert says in output
    assert generate(Path(), "--outdir=", "--seeds=0")[1].startswith("Error: --outdir is empty; ")
