"""Every task keeps the contract of `rods.bench.task.Task`; the lines of an audit; tone as a labeller's opponent."""

from __future__ import annotations

import numpy as np
import PIL.Image
import pytest
from exact import GOLDEN

from dnnlib.errors import UserError
from rods.bench import digits, hands_task, rendered_task
from rods.bench.hands import draw_hands
from rods.bench.real_data import picked
from rods.bench.task import audit_line
from rods.bench.tasks import TASKS
from rods.bench.tone import as_unit
from rods.bench.tone_audit import CHANGES, tone_lines
from rods.eval.labels import Label, combine_readings
from training.model_zoo import MODELS

N = 40
WELL_NOISE = {"grid25": 0.1, "grid25-exact": 0.1}


@pytest.fixture(autouse=True)
def golden_pictures(monkeypatch):
    """Digits and rendered hands without their data sets: few, each several times, moved by a pixel."""
    with np.load(GOLDEN / "digits.npz") as arrays:
        images, labels = (np.concatenate([arrays[name]] * 20) for name in ("images", "labels"))
    monkeypatch.setattr(digits, "audit_digits", lambda: (images, labels))
    sheet = np.asarray(PIL.Image.open(GOLDEN / "rendered" / "hands-8.png")).reshape(3, 64, 6, 64)[1].swapaxes(0, 1)
    hands = np.concatenate([np.roll(x, -i, axis=1) for i in range(8) for x in (sheet, sheet[:, :, ::-1])])
    monkeypatch.setattr(rendered_task, "held_out_hands", lambda: hands)


@pytest.mark.parametrize("name", TASKS)
def test_task_labels_its_own_data(name):
    task = TASKS[name]()
    assert task.name == name
    real = task.real(N, 0)
    assert real.dtype == np.float64
    assert real.shape[0] == N
    assert (np.abs(real).max() <= 1) or not task.is_picture
    np.testing.assert_array_equal(real, task.real(N, 0))
    assert (real != task.real(N, 1)).any()
    labels = task.label(real)
    assert labels.dtype == np.int8
    assert (labels == Label.WELL).mean() >= 0.9
    assert (labels == Label.BAD).mean() < 0.05
    assert task.faults is not None
    faults = list(task.faults(real))
    assert len(faults) == N
    assert all(fault == "" for fault, code in zip(faults, labels, strict=True) if code == Label.WELL)


@pytest.mark.parametrize("name", TASKS)
def test_kinds_are_numbered_and_all_occur(name):
    task = TASKS[name]()
    if task.kinds is None:
        assert task.num_kinds == 0
        return
    real = task.real(30 * task.num_kinds, 0)
    kinds = task.kinds(real)
    assert set(kinds.tolist()) - {-1} == set(range(task.num_kinds))
    well = task.label(real) == Label.WELL
    assert (kinds[well] >= 0).all()


@pytest.mark.parametrize("name", TASKS)
def test_noise_is_not_surely_well(name):
    """But for WELL_NOISE: some hits a mode of the grid."""
    task = TASKS[name]()
    real = task.real(1, 0)
    labels = task.label(noise := np.random.default_rng(0).uniform(-1, 1, (N, *real.shape[1:])))
    assert (labels == Label.WELL).mean() <= WELL_NOISE.get(name, 0)
    assert (labels == Label.BAD).mean() > 0.3
    assert task.faults is not None
    assert all(np.array(task.faults(noise), dtype=object)[labels == Label.BAD])


@pytest.mark.parametrize("name", TASKS)
def test_seed_blocks_do_not_meet(name):
    task = TASKS[name]()
    assert not set(task.calibration_seeds) & set(task.report_seeds)
    assert len(task.report_seeds) >= (512 if task.is_picture else 20_000)


@pytest.mark.parametrize("name", TASKS)
def test_networks_load_or_say_how_they_are_made(name):
    for network, load in TASKS[name]().networks.items():
        if network != "grid25-exact" and not (MODELS / f"{network}.safetensors").is_file():
            with pytest.raises(UserError, match=rf"{network}\.safetensors is missing: .*train it with `python "):
                load()
            continue
        loaded = load()
        assert loaded.name == network
        assert len(loaded.sha256) == 64
        sample = TASKS[name]().real(1, 0)
        assert [loaded.denoiser.img_channels, loaded.denoiser.img_resolution] == list(sample.shape[1:3])


def test_hands_faults_name_the_count():
    for fingers in (4, 5, 6):
        hands = draw_hands(10, seed=5, num_fingers=fingers)[:, None] / 127.5 - 1
        assert set(hands_task.faults(hands)) == {"" if fingers == 5 else f"{fingers} fingers"}
    assert list(hands_task.faults(np.zeros((1, 1, 32, 32)))) == ["no hand"]
    with pytest.raises(ValueError, match="seed=-1"):
        hands_task.real_hands(1, -1)


def test_blocks_of_held_out_pictures_share_nothing():
    images = np.arange(30, dtype=np.uint8)[:, None, None] * np.ones((1, 2, 2), np.uint8)
    blocks = [picked(images, 10, seed) for seed in range(4)]
    seen = [set(np.rint((block[:, 0, 0, 0] + 1) * 127.5).astype(int)) for block in blocks]
    assert seen[0] | seen[1] | seen[2] == set(range(30))
    assert seen[3] == seen[0]
    halves = [picked(images, 4096, seed) for seed in (1, 2)]
    assert [len(half) for half in halves] == [15, 15]
    assert len(np.unique(np.concatenate(halves))) == 30
    assert picked(images[:1], 5, 0).shape == (0, 1, 2, 2)


def test_rendered_faults_name_the_count():
    sheet = np.asarray(PIL.Image.open(GOLDEN / "rendered" / "hands-8.png")).reshape(3, 64, 6, 64).transpose(0, 2, 1, 3)
    for fingers, hands in zip((4, 5, 6), sheet, strict=True):
        found = list(rendered_task.faults(hands[:, None] / 127.5 - 1))
        assert found.count("" if fingers == 5 else f"{fingers} fingers") >= 5
    assert list(rendered_task.faults(np.zeros((1, 1, 64, 64)))) == ["no hand"]


def test_missing_hands_are_named_with_what_renders_them(tmp_path, monkeypatch):
    monkeypatch.undo()
    monkeypatch.setenv("RODS_DATA", str(tmp_path))
    with pytest.raises(UserError, match=r"hands-64r-heldout.zip is missing: `python scripts/render_hands.py .*--seed="):
        rendered_task.real_hands(3, 1)


def test_audit_lines_know_their_bars():
    labels = np.array([Label.BAD] * 3 + [Label.WELL] * 6 + [Label.AMBIGUOUS], dtype=np.int8)
    most, least = (audit_line("x", labels, Label.BAD, **bar) for bar in ({"most": 0.2}, {"least": 0.2}))
    assert (most.share.k, most.share.n, most.label) == (3, 10, "surely bad")
    assert (most.passes, least.passes) == (False, True)
    ambiguous = audit_line("x", labels, Label.AMBIGUOUS)
    assert (ambiguous.label, ambiguous.bar, ambiguous.passes) == ("ambiguous", None, True)


def test_tone_lines_catch_a_labeller_that_tone_fools():
    def by_brightness(images):
        return combine_readings((as_unit(images).mean(axis=(1, 2)) > 0.3)[:, None])

    hands = draw_hands(60, seed=3)
    fooled = tone_lines(hands, by_brightness)
    assert len(fooled) == len(CHANGES) + 1
    assert sum(not line.passes for line in fooled) >= 3
    assert all(line.share.n == 60 for line in fooled)
