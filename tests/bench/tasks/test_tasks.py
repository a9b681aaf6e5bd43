"""Laws that every task of the registry keeps; the lines of an audit; tone as a labeller's opponent."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from dnnlib.errors import UserError
from rods.bench.task import audit_line
from rods.bench.tasks import TASKS
from rods.bench.tasks.hands.data import draw_hands
from rods.bench.tasks.image_audit import CHANGES, tone_lines
from rods.bench.tasks.real_data import picked
from rods.bench.tasks.tone_control import as_unit
from rods.eval.correction import paired_outcomes
from rods.eval.labels import Label, combine_readings
from training.model_zoo import MODELS

N = 40
MOST_UNCERTAIN_OR_WRONG, MOST_HALLUCINATED = 0.1, 0.05  # of real samples
VALID_NOISE = {"grid25": 0.1, "grid25-exact": 0.1}  # some noise hits a mode of the grid
tasks = pytest.mark.parametrize("name", TASKS)


@pytest.fixture(autouse=True)
def _no_files(without_data_sets):
    pass


@tasks
def test_a_task_calls_its_own_data_valid(name):
    task = TASKS[name]()
    assert task.name == name
    real = task.real(N, 0)
    assert real.dtype == np.float64
    assert real.shape[0] == N
    assert (np.abs(real).max() <= 1) or not task.is_picture
    labels = task.label(real)
    assert labels.dtype == np.int8
    assert (labels != Label.VALID).mean() <= MOST_UNCERTAIN_OR_WRONG
    assert (labels == Label.HALLUCINATED).mean() < MOST_HALLUCINATED
    assert task.faults is not None
    faults = list(task.faults(real))
    assert len(faults) == N
    assert all(fault == "" for fault, code in zip(faults, labels, strict=True) if code == Label.VALID)


@tasks
def test_data_depend_on_their_seed_alone(name):
    task = TASKS[name]()
    np.testing.assert_array_equal(task.real(N, 0), task.real(N, 0))
    assert (task.real(N, 0) != task.real(N, 1)).any()
    again = task.planted(4)
    for kind, images in task.planted(4).items():
        np.testing.assert_array_equal(images, again[kind])
    if task.drawn is None:
        return
    draw, resolution = task.drawn.draw, task.drawn.resolutions[0]
    drawn = draw(range(6), 3, resolution)
    np.testing.assert_array_equal(draw([5, 2], 3, resolution), drawn[[5, 2]])
    assert (draw(range(6), 4, resolution) != drawn).any()


@tasks
def test_labels_are_independent_of_batch_composition(name):
    task = TASKS[name]()
    x = some(task, 12, 3)
    order = np.random.default_rng(0).permutation(len(x))
    for read in (task.label, task.kinds, lambda y: np.array(task.faults(y), dtype=object)):
        if read is not None:
            whole = read(x)
            np.testing.assert_array_equal(read(x[order]), whole[order])
            np.testing.assert_array_equal(read(x[7:8]), whole[7:8])
            assert len(read(x[:0])) == 0


def some(task, n: int = N, planted: int = 8) -> np.ndarray:
    """Real samples of a task and each of its planted errors."""
    found = [x / 127.5 - 1 if x.dtype == np.uint8 else x for x in task.planted(planted).values()]
    real = task.real(n, 0)
    return np.concatenate([real, *(x.reshape(-1, *real.shape[1:]) for x in found)])


NO_CHANGE = {  # of what an image shows
    "half the contrast": lambda x: 0.5 * x,
    "a grey background": lambda x: 0.25 * x + 0.5,
    "dark": lambda x: 0.6 * x - 0.35,
    "a slight blur": lambda x: ndimage.gaussian_filter(x, (0, 0, 0.5, 0.5)),
    "a blur and noise": lambda x: (
        ndimage.gaussian_filter(x, (0, 0, 0.3, 0.3)) + 0.02 * np.random.default_rng(0).standard_normal(x.shape)
    ),
}


@pytest.mark.parametrize("change", NO_CHANGE)
@tasks
def test_tone_blur_and_noise_turn_no_label_into_its_opposite(name, change):
    task = TASKS[name]()
    if not task.is_picture:
        return
    x = some(task)
    before = task.label(x)
    outcome = paired_outcomes(before, task.label(NO_CHANGE[change](x)))
    assert outcome.repaired.k == outcome.broken.k == 0
    tone, blur = {"hands-64r": (0.95, 0.9), "mnist": (0.99, 0.9), "shapes": (0.99, 0.99)}.get(name, (0.99, 0.97))
    least = blur if "blur" in change else tone  # unchanged; the others are uncertain before or after
    assert np.trace(outcome.table) >= least * outcome.n


@tasks
def test_planted_errors_are_found_as_the_audit_says(name):
    """No bar is refuted at 95 % by a small audit; the full audits are in docs/lab/2026-11-24-tasks.md."""
    task = TASKS[name]()
    lines = task.audit(num=N, num_planted=20)
    refuted = [
        line
        for line in lines
        if line.bar is not None
        and not line.what.startswith("tone")
        and (line.share.high < line.bar if line.must_reach else line.share.low > line.bar)
    ]
    assert not refuted
    assert {f"planted: {kind}" for kind in task.planted(4)} <= {line.what for line in lines}
    assert all(line.share.rate <= 0.05 for line in lines if line.what.startswith("tone"))
    assert any(line.what.startswith("tone") for line in lines) == task.is_picture


@tasks
def test_kinds_are_numbered_and_all_occur(name):
    task = TASKS[name]()
    if task.kinds is None:
        assert task.num_kinds == 0
        return
    real = task.real(30 * task.num_kinds, 0)
    kinds = task.kinds(real)
    assert set(kinds.tolist()) - {-1} == set(range(task.num_kinds))
    assert (kinds[task.label(real) == Label.VALID] >= 0).all()


@tasks
def test_noise_is_not_valid(name):
    task = TASKS[name]()
    real = task.real(1, 0)
    labels = task.label(noise := np.random.default_rng(0).uniform(-1, 1, (N, *real.shape[1:])))
    assert (labels == Label.VALID).mean() <= VALID_NOISE.get(name, 0)
    assert (labels == Label.HALLUCINATED).mean() > 0.3
    assert all(np.array(task.faults(noise), dtype=object)[labels == Label.HALLUCINATED])


@tasks
def test_seed_blocks_do_not_meet(name):
    task = TASKS[name]()
    assert not set(task.calibration_seeds) & set(task.report_seeds)
    assert len(task.report_seeds) >= (512 if task.is_picture else 20_000)


@tasks
def test_networks_load_or_say_how_they_are_made(name):
    for network, load in TASKS[name]().networks.items():
        if not network.endswith("-exact") and not (MODELS / f"{network}.safetensors").is_file():
            with pytest.raises(UserError, match=rf"{network}\.safetensors is missing: .*train it with `python "):
                load()
            continue
        loaded = load()
        assert loaded.name == network
        assert len(loaded.sha256) == 64
        sample = TASKS[name]().real(1, 0)
        assert [loaded.denoiser.img_channels, loaded.denoiser.img_resolution] == list(sample.shape[1:3])


def test_blocks_of_held_out_images_share_nothing():
    images = np.arange(30, dtype=np.uint8)[:, None, None] * np.ones((1, 2, 2), np.uint8)
    blocks = [picked(images, 10, seed) for seed in range(4)]
    seen = [set(np.rint((block[:, 0, 0, 0] + 1) * 127.5).astype(int)) for block in blocks]
    assert seen[0] | seen[1] | seen[2] == set(range(30))
    assert seen[3] == seen[0]
    halves = [picked(images, 4096, seed) for seed in (1, 2)]
    assert [len(half) for half in halves] == [15, 15]
    assert len(np.unique(np.concatenate(halves))) == 30
    assert picked(images[:1], 5, 0).shape == (0, 1, 2, 2)


def test_audit_lines_know_their_bars():
    labels = np.array([Label.HALLUCINATED] * 3 + [Label.VALID] * 6 + [Label.UNCERTAIN], dtype=np.int8)
    most, least = (audit_line("x", labels, Label.HALLUCINATED, **bar) for bar in ({"most": 0.2}, {"least": 0.2}))
    assert (most.share.k, most.share.n, most.label) == (3, 10, "hallucinated")
    assert (most.passes, least.passes) == (False, True)
    uncertain = audit_line("x", labels, Label.UNCERTAIN)
    assert (uncertain.label, uncertain.bar, uncertain.passes) == ("uncertain", None, True)


def test_tone_lines_catch_a_labeller_that_tone_fools():
    def by_brightness(images):
        return combine_readings((as_unit(images).mean(axis=(1, 2)) > 0.3)[:, None])

    hands = draw_hands(60, seed=3)
    fooled = tone_lines(hands, by_brightness)
    assert len(fooled) == len(CHANGES) + 1
    assert sum(not line.passes for line in fooled) >= 3
    assert all(line.share.n == 60 for line in fooled)
