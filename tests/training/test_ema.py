"""Averages by power function: their profile, their step, and those that are put together afterwards."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file

from scripts.posthoc_ema import main as posthoc_ema
from training.checkpoint import load_snapshot, save_snapshot
from training.ema import HalfLife, PowerFunction, Profile, overlap, reconstruction
from training.networks import EDM2Precond

TINY = {"img_resolution": 4, "img_channels": 1, "model_channels": 4, "channel_mult": [1], "num_blocks": 1,
        "attn_resolutions": [], "logvar_channels": 4}  # fmt: skip


def moments(gamma: float, n: int = 100_000) -> tuple[float, float]:
    """Mean and standard deviation of (gamma + 1) s^gamma on [0, 1], by numbers."""
    s = (np.arange(n) + 0.5) / n
    p = (gamma + 1) * s**gamma / n
    mean = float((p * s).sum())
    return mean, math.sqrt(float((p * (s - mean) ** 2).sum()))


@pytest.mark.parametrize("std", [0.01, 0.05, 0.1, 0.2, 0.28])
def test_the_profile_has_the_width_that_was_asked_for(std: float) -> None:
    average = PowerFunction(std)
    assert moments(average.gamma)[1] == pytest.approx(std, rel=1e-3)
    assert average.gamma > 0


def test_widths_of_the_paper() -> None:
    assert PowerFunction(0.05).gamma == pytest.approx(16.97, abs=0.01)
    assert PowerFunction(0.10).gamma == pytest.approx(6.94, abs=0.01)


@pytest.mark.parametrize("std", [0, -1, 0.3, float("nan")])
def test_a_width_that_is_none_is_refused(std: float) -> None:
    with pytest.raises(ValueError, match="std"):
        PowerFunction(std)


def test_steps_are_the_profile_exactly() -> None:
    """The weight of each step is the integral of the profile over its images: the product telescopes."""
    average, batch, steps = PowerFunction(0.1), 64, 200
    w = np.zeros(steps)
    for k in range(steps):
        beta = average.beta((k + 1) * batch, batch)
        w[:k] *= beta
        w[k] = 1 - beta
    edges = (np.arange(steps + 1) / steps) ** (average.gamma + 1)
    np.testing.assert_allclose(w, np.diff(edges), rtol=1e-9, atol=1e-15)
    assert average.beta(batch, batch) == 0  # the first step is all there is
    assert average.beta(10, 64) == 0


def test_half_lives_halve() -> None:
    assert HalfLife(1000, 1.0).beta(10**6, 1000) == 0.5


def test_overlaps_are_integrals() -> None:
    a, b = Profile(0.05, 3000), Profile(0.2, 5000)
    s = (np.arange(400_000) + 0.5) / 400_000 * 5000

    def p(profile: Profile) -> np.ndarray:
        inside = s <= profile.images
        return inside * (profile.gamma + 1) * (s / profile.images) ** profile.gamma / profile.images

    for one, two in ((a, b), (b, a), (a, a), (b, b)):
        assert overlap(one, two) == pytest.approx(float((p(one) * p(two)).sum() * 5000 / len(s)), rel=1e-3)


def test_a_stored_average_is_reconstructed_as_itself() -> None:
    stored = [Profile(std, images) for images in (1000, 2000, 3000) for std in (0.05, 0.1)]
    x, error = reconstruction(stored, Profile(0.1, 2000))
    assert x == pytest.approx([0, 0, 0, 1, 0, 0], abs=1e-6)
    assert error < 1e-5
    with pytest.raises(ValueError, match="no average is stored up to 500"):
        reconstruction(stored, Profile(0.1, 500))


def test_another_width_is_reconstructed_closely() -> None:
    """On weights that wander: the average of width .075 from those of .05 and .1, against the one that was kept."""
    rng, steps, batch = np.random.default_rng(0), 4096, 100
    theta = np.cumsum(rng.normal(size=(steps, 8)), axis=0)  # [steps, 8]
    averages = {std: np.zeros(8) for std in (0.05, 0.075, 0.1)}
    stored, values = [], []
    for k in range(steps):
        images = (k + 1) * batch
        for std in averages:
            beta = PowerFunction(std).beta(images, batch)
            averages[std] = beta * averages[std] + (1 - beta) * theta[k]
        if (k + 1) % (steps // 16) == 0:
            stored += [Profile(0.05, images), Profile(0.1, images)]
            values += [averages[0.05], averages[0.1]]
    x, error = reconstruction(stored, Profile(0.075, steps * batch))
    assert error < 0.02
    wanted = averages[0.075]
    near = np.abs(averages[0.05] - wanted).mean()
    assert np.abs(x @ np.stack(values) - wanted).mean() < 0.05 * near
    assert x.sum() == pytest.approx(1, abs=0.01)


def stored(folder: Path, kimg: int, std: float, value: float) -> None:
    net = EDM2Precond(**TINY)
    for p in net.parameters():
        torch.nn.init.constant_(p, value)
    torch.nn.init.constant_(net.logvar_fourier.freqs, 2.0)
    extra = {"training": {"seed": 0}, "ema_std": std}
    save_snapshot(
        folder / f"network-snapshot-{kimg:06d}-std{std:g}.safetensors", net, init_kwargs=TINY, kimg=kimg, extra=extra
    )


def run(*args: object) -> tuple[int, str]:
    result = CliRunner().invoke(posthoc_ema, [str(a) for a in args])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


def test_the_command_writes_a_network_of_another_width(tmp_path: Path) -> None:
    for kimg in (1, 2, 3):
        for std, value in ((0.05, kimg), (0.1, 10 * kimg)):
            stored(tmp_path, kimg, std, value)
    dest = tmp_path / "made" / "wide.safetensors"
    code, output = run(tmp_path, "--std=.07", f"--dest={dest}")
    assert code == 0, output
    assert "from 6 snapshots" in output
    x, error = reconstruction([Profile(std, k * 1000) for k in (1, 2, 3) for std in (0.05, 0.1)], Profile(0.07, 3000))
    value = float(x @ np.array([1, 10, 2, 20, 3, 30]))
    made = load_snapshot(dest)
    assert all(torch.allclose(p, torch.full_like(p, value), rtol=1e-5) for p in made.net.parameters())
    assert load_file(dest)["logvar_fourier.freqs"].unique().tolist() == [2.0]
    assert (made.header.kimg, made.header.extra["ema_std"]) == (3, 0.07)
    assert made.header.extra["posthoc"] == {"snapshots": 6, "error": error}
    code, output = run(tmp_path, "--std=.1", "--kimg=2", f"--dest={tmp_path / 'again.safetensors'}")
    assert code == 0, output
    p = next(load_snapshot(tmp_path / "again.safetensors").net.parameters())
    assert torch.allclose(p, torch.full_like(p, 20.0), rtol=1e-4)


def test_the_commands_mistakes_are_one_line_each(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    dest = tmp_path / "a.safetensors"
    for args, part in (
        (["--std=.1", f"--dest={dest}", tmp_path / "empty"], "train with --ema-std"),
        (["--std=.5", f"--dest={dest}", tmp_path / "empty"], "--std"),
        (["--std=.1", f"--dest={tmp_path / 'a.pkl'}", tmp_path / "empty"], "ends with .safetensors"),
        (["--std=.1", f"--dest={dest}", tmp_path / "none"], "none"),
    ):
        code, output = run(*args)
        assert (code, output.count("\n")) == (2, 1), output
        assert part in output
    stored(tmp_path, 2, 0.05, 1.0)
    for args, part in (
        (["--kimg=1"], "no average is stored up to 1000 images"),
        (["--kimg=9"], "the last snapshot"),
    ):
        code, output = run(tmp_path, "--std=.1", f"--dest={dest}", *args)
        assert (code, output.count("\n")) == (2, 1), output
        assert part in output
    dest.write_bytes(b"precious")
    assert run(tmp_path, "--std=.1", f"--dest={dest}")[0] == 2
    assert dest.read_bytes() == b"precious"
