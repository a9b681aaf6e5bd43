"""Every example runs, and RODS in 30 lines of torch is the sampler of the library."""

from __future__ import annotations

import importlib.util
import runpy
from math import inf
from pathlib import Path
from types import ModuleType

import pytest
import torch
from commands import files
from exact import latents, mixture
from vectors import ROOT

from rods import Euler, Mixture, Restart, RodsResult, rods_sampler
from rods.bench.tasks.grid25.task import label_points
from rods.eval.labels import Label
from rods.runs.chunk import Chunk, sample_chunk
from rods.runs.images import read_png
from rods.runs.presets import read_preset
from rods.types import AnyDenoiser
from training.checkpoint import load_denoiser

HANDS = ROOT / "models" / "hands-32.safetensors"


def example(name: str) -> ModuleType:
    path = ROOT / "examples" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"example_{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(name: str, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """The lines that `python examples/NAME.py` prints."""
    runpy.run_path(str(ROOT / "examples" / f"{name}.py"), run_name="__main__")
    return capsys.readouterr().out.splitlines()


# -- RODS in 30 lines -------------------------------------------------------------------------------------------------


def both(D: AnyDenoiser, x: torch.Tensor, *, eps: float, rho: float, window: tuple[float, float], N: int):  # type: ignore[no-untyped-def]
    """Images and H [n, B] of the example, and what the library returns."""
    images, H = example("rods_in_30_lines").rods_cas(D, x, eps=eps, rho=rho, window=window, N=N)
    return images, H, rods_sampler(D, x, eps=eps, rho=rho, window=window, num_steps=N)


def distances(images: torch.Tensor, H: torch.Tensor, ours: RodsResult) -> tuple[float, float]:
    """The largest difference between images, in units of the largest pixel, and between H, relative."""
    known = torch.tensor([record.H for record in ours.records], dtype=torch.float64).T  # [n, B]
    apart = (images - ours.images).abs().max() / ours.images.abs().max()
    return float(apart), float(((H - known).abs() / known.clamp(min=1e-9)).max())


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(("window", "N"), [((0.1, 0.5), 20), ((0.28, 1.0), 25), ((0.0, 1.0), 12)])
def test_the_30_lines_are_the_sampler(share: float, window: tuple[float, float], N: int) -> None:
    density: Mixture = mixture()
    _, H, _ = both(density, latents(), eps=inf, rho=0.3, window=window, N=N)
    eps = inf if share == 0 else float(H.amax(dim=0).quantile(1 - share))
    images, H, ours = both(density, latents(), eps=eps, rho=0.3, window=window, N=N)
    flagged = sum(bool(record.flagged) for record in ours.records)
    assert flagged == {0.0: 0, 0.5: 3, 1.0: 6}[share]
    image_error, H_error = distances(images, H, ours)
    assert image_error <= 1e-12
    assert H_error <= 1e-9


def test_the_30_lines_are_the_sampler_on_a_network() -> None:
    """float32 inside the network: flagged rows are gathered by the library, so that rounding may differ: 1e-5."""
    net = load_denoiser(HANDS).requires_grad_(False)
    x = torch.randn(3, 1, 32, 32, generator=torch.Generator().manual_seed(1))
    _, H, _ = both(net, x, eps=inf, rho=4.0, window=(0.3, 0.7), N=7)
    eps = float(H.amax(dim=0).median())
    images, H, ours = both(net, x, eps=eps, rho=4.0, window=(0.3, 0.7), N=7)
    assert 0 < sum(bool(record.flagged) for record in ours.records) < 3
    image_error, H_error = distances(images, H, ours)
    assert image_error <= 1e-5
    assert H_error <= 1e-3


def test_the_sampler_of_the_30_lines_has_about_30() -> None:
    source = (ROOT / "examples" / "rods_in_30_lines.py").read_text()
    body = source[source.index("def rods_cas") : source.index("def main")]
    assert sum(bool(line.strip()) for line in body.splitlines()) <= 35
    assert "rods." not in body
    assert "training" not in body


# -- the others -------------------------------------------------------------------------------------------------------


def test_rods_in_30_lines_runs(capsys: pytest.CaptureFixture[str]) -> None:
    lines = run("rods_in_30_lines", capsys)
    changes = [float(line.rpartition(" ")[2]) for line in lines]
    assert len(changes) == 3
    assert min(changes) == 0 < max(changes)


def test_own_denoiser_comes_closer_to_the_data(capsys: pytest.CaptureFixture[str]) -> None:
    plain, near, _ = (float(line.split("data ")[1].split(",")[0]) for line in run("own_denoiser", capsys))
    assert near < plain


def test_own_detector_flags_some(capsys: pytest.CaptureFixture[str]) -> None:
    first, *steps, last = run("own_detector", capsys)
    assert first.startswith("Within(window=(0.2, 0.8), correct=Gate(detector=NoiseLength(")
    assert 0 < "".join(steps).count("*") < 4 * len(steps)
    assert last.startswith("10 F and 0 B")


def test_gate_of_points_finds_them_and_is_the_one_that_is_stored(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By a program that knows every point's label, on points that the fit has not seen."""
    example("gate_of_points").main(tmp_path / "mine.preset.json")
    assert len(capsys.readouterr().out.splitlines()) == 5
    preset, stored = read_preset(tmp_path / "mine.preset.json"), read_preset(ROOT / "models/grid25-0-gate.preset.json")
    restart, known = (p.sampler("restart", {}) for p in (preset, stored))
    assert isinstance(restart, Restart)
    assert isinstance(known, Restart)
    assert restart.threshold == pytest.approx(known.threshold, rel=0.02)
    net = load_denoiser(ROOT / "models/grid25-0.safetensors").requires_grad_(False)
    done = sample_chunk(net, Chunk(0, tuple(range(1000))), restart, device=torch.device("cpu"))
    plain = sample_chunk(net, Chunk(0, tuple(range(1000))), Euler(), device=torch.device("cpu"))
    bad, still_bad = ((label_points(r.images.numpy()) == Label.HALLUCINATED).sum() for r in (plain, done))
    assert bad > 50 > 5 >= still_bad


def test_k_diffusion_model_runs(capsys: pytest.CaptureFixture[str]) -> None:
    assert all("largest H" in line for line in run("k_diffusion_model", capsys))


def test_diffusers_unet_runs(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("diffusers", reason="diffusers is not installed")
    assert "moved the images" in run("diffusers_unet", capsys)[-1]


def test_diffusers_pipelines_write_run_folders(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("diffusers", reason="diffusers is not installed")
    monkeypatch.setattr("sys.argv", ["diffusers_pipelines.py", str(tmp_path)])
    first, second = run("diffusers_pipelines", capsys)
    for name, line in (("dit", first), ("sd3", second)):
        assert line.startswith(f"{name}: 4 images in ")
        assert read_png(tmp_path / name / "000003.png").shape == (3, 16, 16)
    before = files(tmp_path)
    assert run("diffusers_pipelines", capsys) == [first, second]
    assert files(tmp_path) == before


def test_no_example_is_forgotten() -> None:
    names = {path.stem for path in (ROOT / "examples").glob("*.py")}
    tests = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    assert {name for name in names if name not in tests} == set()
