"""generate.py and fid.py with a network of latents: PNGs are what its autoencoder makes of those that are kept."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from commands import files, generated, options_json, records, refusal, refused, said
from numpy.typing import NDArray
from torch import Tensor
from vectors import GOLDEN

import fid
from rods import edm_sampler
from rods.latents import Vae
from rods.runs.chunk import Chunk, drawn_start
from rods.runs.decode import open_network
from rods.runs.images import read_png
from rods.runs.trajectories import tiles_of
from scripts import convert, fit_gate, fit_readout
from training.checkpoint import load_snapshot, read_header

diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")

import tiny_pipelines as tiny  # noqa: E402  (it imports diffusers)

LATENT = GOLDEN / "edm2" / "pickles" / "edm2-latent-cond.pkl"  # 8x8x4, 7 classes
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An autoencoder's folder: its decoder makes 16x16x3 images of 8x8x4 latents."""
    path = tmp_path_factory.mktemp("vae")
    tiny.vae().save_pretrained(path)
    return path


@pytest.fixture
def rows(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many latents each call of a decoder gets."""
    seen: list[int] = []
    decode = Vae.decode

    def watch(self: Vae, latents: Tensor) -> Tensor:
        seen.append(len(latents))
        return decode(self, latents)

    monkeypatch.setattr(Vae, "decode", watch)
    return seen


def pixels(seeds: tuple[int, ...], folder: Path) -> NDArray[np.uint8]:
    """EDM2's own formula for a plain run of three steps: clamp(VAE((z - bias) / scale), 0, 1) * 255, cut off."""
    net = load_snapshot(LATENT).net
    _, latents, labels, _ = drawn_start(net, Chunk(0, seeds), CPU)
    z = edm_sampler(net, latents, labels, num_steps=3)
    scale = 0.5 / np.array([4.17, 4.62, 3.71, 3.28])
    bias = -np.array([5.81, 3.25, 0.12, -2.15]) * scale
    own = (z.numpy() - bias[:, None, None]) / scale[:, None, None]
    vae = diffusers.AutoencoderKL.from_pretrained(folder, low_cpu_mem_usage=False)
    with torch.no_grad():
        y = vae.decode(torch.from_numpy(own).float()).sample
    return (y.clamp(0, 1) * 255).to(torch.uint8).numpy()


def test_the_images_are_what_edm2_makes_of_the_latents(folder: Path, tmp_path: Path) -> None:
    generated(tmp_path, f"--vae={folder}", "--seeds=0-4", network=LATENT, steps=3)
    found = np.stack([read_png(tmp_path / line["name"]) for line in records(tmp_path)])
    assert found.shape == (5, 3, 16, 16)
    apart = np.abs(found.astype(int) - pixels((0, 1, 2, 3, 4), folder))
    assert apart.max() <= 1  # a rounding in the last digit of float32, where the fraction is cut off
    assert (apart > 0).mean() < 0.01
    assert (
        options_json(tmp_path)["identity"]["decoder"] == open_network(LATENT, device=CPU, vae=folder).net.codec.identity
    )


def test_only_kept_images_are_decoded(folder: Path, tmp_path: Path, rows: list[int]) -> None:
    plain = ["--sampler=euler", f"--vae={folder}", "--seeds=0-9", "--batch=10"]
    generated(tmp_path / "a", *plain, network=LATENT, steps=4)
    assert rows == [8, 2]
    rows.clear()
    generated(tmp_path / "b", *plain, "--filter=lid", "--filter-threshold=inf", network=LATENT, steps=4)
    scores = [line["filter_score"] for line in records(tmp_path / "b")]
    middle = sorted(scores)[5]
    rows.clear()
    generated(tmp_path / "c", *plain, "--filter=lid", f"--filter-threshold={middle}", network=LATENT, steps=4)
    assert rows == [6]
    rows.clear()
    generated(tmp_path / "d", *plain, f"--accept=lid<{middle}", "--max-tries=3", network=LATENT, steps=4)
    assert rows == [8, 2]  # whatever the number of tries
    assert max(len(line["tries"]["scores"]) for line in records(tmp_path / "d")) > 1
    assert (tmp_path / "c" / "000000.png").exists() == (scores[0] <= middle)


def test_strips_and_contact_sheets_show_pixels(folder: Path, tmp_path: Path) -> None:
    options = [f"--vae={folder}", "--seeds=0-2", "--trajectory=0,2", "--grid", "--filter=lid"]
    generated(tmp_path, *options, "--filter-threshold=inf", network=LATENT, steps=3)
    strip = read_png(tmp_path / "trajectories" / "000001.png")
    states, denoised = tiles_of(strip)
    assert {tile.shape for tile in (*states, *denoised)} == {(3, 16, 16)}
    assert np.array_equal(states[-1], read_png(tmp_path / "000001.png"))
    assert np.array_equal(denoised[-1], states[-1])
    assert (tmp_path / "grid.png").is_file()
    before = files(tmp_path)
    generated(tmp_path, *options, "--filter-threshold=inf", network=LATENT, steps=3)
    assert files(tmp_path) == before


def test_a_snapshot_of_ours_keeps_the_encoder(folder: Path, tmp_path: Path) -> None:
    said(convert.main, f"--source={LATENT}", f"--dest={tmp_path / 'ours.safetensors'}")
    stored = read_header(tmp_path / "ours.safetensors").extra["encoder"]
    assert stored["vae_name"] == "stabilityai/sd-vae-ft-mse"
    for network, out in ((LATENT, "a"), (tmp_path / "ours.safetensors", "b")):
        generated(tmp_path / out, f"--vae={folder}", "--seeds=0", network=network, steps=3)
    assert (tmp_path / "a" / "000000.png").read_bytes() == (tmp_path / "b" / "000000.png").read_bytes()


def test_the_folder_of_a_pipeline_has_it_too_and_the_dry_run_measures(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "pipeline").mkdir()
    (tmp_path / "pipeline" / "vae").symlink_to(folder)
    output = generated(tmp_path / "out", f"--vae={tmp_path / 'pipeline'}", "-n", network=LATENT, steps=3)
    assert "Time: about" in output
    assert not (tmp_path / "out").exists()


def test_a_gate_is_fitted_to_encoded_images_and_used(folder: Path, tmp_path: Path) -> None:
    """From PNGs of the images' size to a restart in latents; images of the latents' size are refused."""
    real = tmp_path / "real"
    real.mkdir()
    rng = np.random.default_rng(0)
    for i in range(64):
        pixels = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
        PIL.Image.fromarray(pixels).save(real / f"{i:03d}.png")
    labels = [[f"{i:03d}.png", i % 7] for i in range(64)]
    (real / "dataset.json").write_text(json.dumps({"labels": labels}))
    preset = tmp_path / "my.preset.json"
    told = said(
        fit_gate.main, f"--network={LATENT}", f"--vae={folder}", f"--real={real}", "--steps=8", "--batch=16",
        "--samples=16", "--trial=16", "--threads=1", "--device=cpu", f"--out={tmp_path / 'out'}", f"--dest={preset}",
    )  # fmt: skip
    assert f"generate.py --network={LATENT} --vae={folder} --preset={preset} --sampler=restart" in told
    options = [f"--vae={folder}", f"--preset={preset}", "--sampler=restart", "--seeds=0-3"]
    generated(tmp_path / "run", *options, network=LATENT, steps=None)
    assert all("restart" in line for line in records(tmp_path / "run"))
    assert read_png(tmp_path / "run" / "000000.png").shape == (3, 16, 16)


def test_a_readout_is_of_pixels_alone(folder: Path, tmp_path: Path) -> None:
    generated(tmp_path, f"--vae={folder}", "--seeds=0", network=LATENT, steps=2)
    told = refusal(fit_readout.main, f"--network={LATENT}", f"--run={tmp_path}", f"--dest={tmp_path / 'p.preset.json'}")
    assert "draws latents, and a readout is fitted to pixels alone" in told


def test_metrics_see_the_pixels_that_are_saved(folder: Path, tmp_path: Path) -> None:
    generated(tmp_path, "--sampler=euler", f"--vae={folder}", "--seeds=0-4", "--batch=3", network=LATENT, steps=2)
    options = ("--metrics=inception-var", "--detector=pixels", "--batch=3", "--threads=1", "--json")
    files_of = json.loads(said(fid.main, "calc", f"--images={tmp_path}", *options).splitlines()[0])
    network = (f"--from-network={LATENT}", f"--vae={folder}", "--sampler=euler", "--steps=2", "--seeds=0-4")
    stream = json.loads(said(fid.main, "calc", *network, *options).splitlines()[0])
    assert files_of["data_sha256"] == stream["data_sha256"]
    assert files_of["metrics"] == stream["metrics"]


def test_what_is_missing_or_wrong_is_one_line(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    absent = refused(tmp_path, network=LATENT)
    assert "draws latents of stabilityai/sd-vae-ft-mse, which is not in the cache" in absent
    assert "into a folder and give --vae=FOLDER" in absent
    for vae, said_of_it in (
        (tmp_path, "it holds no config.json"),
        (tmp_path / "nothing", "there is no such folder"),
        (folder / "config.json", "it is a file"),
    ):
        told = refused(tmp_path, f"--vae={vae}", network=LATENT)
        assert f"--vae={vae}: {said_of_it}; give the folder of an autoencoder of diffusers, with its config" in told
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "config.json").write_text("{}")
    assert "no autoencoder of diffusers (config.json and" in refused(tmp_path, f"--vae={bare}", network=LATENT)
    assert "small draws pixels, for its file names no autoencoder" in refused(tmp_path, f"--vae={folder}")
    wider = tmp_path / "wider"
    diffusers.AutoencoderKL(block_out_channels=(4,), norm_num_groups=4, latent_channels=3).save_pretrained(wider)
    assert "have 3 channels and 4 scales, and edm2-latent-cond draws 4" in refused(
        tmp_path / "out", f"--vae={wider}", network=LATENT
    )
    assert not (tmp_path / "out").exists()
    monkeypatch.setitem(sys.modules, "diffusers", None)
    assert "diffusers, which is missing: pip install diffusers" in refused(tmp_path / "out", network=LATENT)
