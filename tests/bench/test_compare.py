"""rods.bench.compare, bars, tables and qualitative: numbers from known labels, distances, sheets of what changed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_tasks
from small_tasks import POINTS

from rods.bench.compare import (
    compare,
    confusion_at_threshold,
    distances,
    reference,
    score_curve,
    step_aurocs,
    total_variance,
    variance_kept,
)
from rods.bench.labelled import LabelledRun
from rods.bench.qualitative import Pair, frame_of, pair_sheet
from rods.bench.tables import detection_table, outcome_table, quality_table, share
from rods.eval.correction import proportion_interval
from rods.eval.labels import Label
from rods.runs.images import RED

CODES = {"w": Label.VALID, "b": Label.HALLUCINATED, "?": Label.UNCERTAIN}


def made(
    name: str,
    labels: str,
    x: list[float],
    *,
    F: int = 40,
    seconds: tuple[float, ...] = (),
    first: int = 0,
    is_score: bool = False,
    options: Mapping[str, Any] | None = None,
    **columns: list[Any],
) -> LabelledRun:
    """A run on seeds `first`, ... whose samples are single numbers; `columns` of its records."""
    samples = [
        {"name": f"{first + i:06d}.png", "seed": first + i, "forward": F, "backward": 0, "x": [v]}
        | {key: column[i] for key, column in columns.items()}
        for i, v in enumerate(x)
    ]
    codes = np.array([CODES[c] for c in labels], dtype=np.int8)
    timing = [{"seeds": [first], "seconds": s, "baseline_seconds": 2.0} for s in seconds]
    return LabelledRun(
        Path(name), name, is_score, options or {}, samples, codes, None, np.zeros(len(x), dtype=bool), timing, []
    )


BASE = made("euler", "bbww?", [0, 0, 9, 9, 1], seconds=(2.0, 2.0, 2.0))
OTHER = made("other", "wbbww", [9, 0, 0, 9, 9], F=56, seconds=(3.0, 30.0, 2.0))


def test_rows_count_what_changed_and_what_it_cost():
    base, other = compare(BASE, BASE), compare(BASE, OTHER)
    assert (base.outcomes.hallucinated_after.k, base.outcomes.uncertain_after.k, base.variance_kept.value) == (
        2,
        1,
        1.0,
    )
    assert (other.outcomes.repaired.k, other.outcomes.repaired.n) == (1, 2)
    assert (other.outcomes.broken.k, other.outcomes.broken.n) == (1, 2)
    assert (other.forward, other.backward, other.time_ratio) == (56, 0, 1.5)
    assert (other.relative_reduction.value, other.changed) == (0, 3 / 5)
    assert other.variance_kept.value == pytest.approx(np.var([9, 0, 0, 9, 9]) / np.var([0, 0, 9, 9, 1]))
    lines = outcome_table([base, other]).markdown().splitlines()
    assert len({len(line) for line in lines}) == 1, "columns line up"
    assert "1/2: 50.0 %" not in lines[2], "the baseline repairs nothing of itself"
    assert lines[3].count("1/2: 50.0 %") == 2
    assert "1.40x" in lines[3]
    assert "1.50x" in lines[3]


def test_rows_are_of_the_seeds_that_both_have():
    row = compare(BASE, made("late", "wbbww", [9, 0, 0, 9, 9], first=3))
    assert (row.n, row.outcomes.table[Label.VALID]) == (2, (0, 1, 0))
    with pytest.raises(ValueError, match="no seed in common"):
        compare(BASE, made("late", "wbbww", [9, 0, 0, 9, 9], first=6))


def test_total_variance_of_groups_is_that_of_their_samples():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((60, 3)) + 5
    parts = np.split(x, [10, 40])
    groups = (
        np.array([len(p) for p in parts], float),
        np.stack([p.sum(axis=0) for p in parts]),
        np.array([(p**2).sum() for p in parts]),
    )
    assert total_variance(groups) == pytest.approx(x.var(axis=0).sum())
    assert total_variance(groups, np.array([0.0, 1, 0])) == pytest.approx(parts[1].var(axis=0).sum())


def test_the_interval_of_the_variance_kept_holds_it():
    rng = np.random.default_rng(0)
    x = rng.standard_normal(300)
    base, half = made("euler", "w" * 300, x.tolist()), made("half", "w" * 300, (0.5**0.5 * x).tolist())
    found = variance_kept(base, half)
    assert found.value == pytest.approx(0.5)
    assert found.high - found.low < 1e-9, "paired: the same samples stand above and below"


def test_a_score_is_judged_on_sure_labels(tmp_path):
    labels = "b" * 20 + "w" * 60 + "?" * 20
    scores = [2.0] * 20 + [1.0] * 60 + [3.0] * 20
    run = made("lid", labels, [0.0] * 100, largest=scores, is_score=True)
    row = compare(made("euler", labels, [0.0] * 100), run)
    d = row.detection
    assert (d.auroc.value, d.average_precision.value, d.hallucinated, d.valid) == (1, 1, 20, 60)
    assert (d.auroc.low, d.at_false_alarms) == (1, 1)
    assert d.at_retention == pytest.approx(3 / 20), "of 80 images, 3 are dropped"
    assert row.filtered == pytest.approx(20 / 96), "the 4 dropped are unsure ones"
    (line,) = detection_table([row], row).rows
    assert line[0] == "lid"
    assert compare(BASE, replace(run, is_score=False)).detection is None, "a correction's scores are of other images"


def test_a_restart_is_filtered_by_what_it_kept():
    tried = [(1, [9.0, 0.5]), (0, [0.1]), (0, [0.2]), (0, [0.3]), (2, [8.0, 7.0, 6.0])]
    run = made("restart", "wwwwb", [0.0] * 5, restart=[{"scores": s, "kept": k} for k, s in tried])
    assert run.scores.tolist() == [9.0, 0.1, 0.2, 0.3, 8.0]
    assert run.own_scores.tolist() == [0.5, 0.1, 0.2, 0.3, 6.0]
    row = compare(BASE, run)
    assert row.filtered == pytest.approx(1 / 5 / 0.96), "4 % of five samples is none"
    assert np.isnan(compare(BASE, OTHER).filtered)


def test_a_threshold_flags_and_a_curve_leaves_uncertain_images_out():
    run = made("lid", "bbww?", [0.0] * 5, largest=[3.0, 1.0, 2.0, 0.5, 9.0], is_score=True)
    assert confusion_at_threshold(BASE, run) is None
    threshold, found = confusion_at_threshold(BASE, replace(run, options={"threshold": 1.5}))
    assert (threshold, found.tp, found.fp, found.fn, found.tn) == (1.5, 1, 2, 1, 1)
    curve = score_curve(BASE, run)
    assert list(zip(curve.false_alarms, curve.recall, strict=True))[1:] == [(0, 0.5), (0.5, 0.5), (0.5, 1), (1, 1)]
    assert score_curve(made("euler", "ww?", [0.0] * 3), run) is None


def test_step_aurocs_follow_the_labels():
    steps = [[0.0, float(i < 2), 1.0] for i in range(5)]
    run = made("h-index", "bbww?", [0.0] * 5, H=steps, sigma=[[3.0, 2.0, 1.0]] * 5, is_score=True)
    assert run.scores.tolist() == [1.0] * 5
    assert step_aurocs(run, BASE) == [(3.0, 0.5), (2.0, 1.0), (1.0, 0.5)]
    assert step_aurocs(OTHER, BASE) == []


def test_distances_to_real_data_have_a_floor():
    real = reference(POINTS, 2000)
    assert real.floor.mode_distance < 0.05
    assert real.floor.std_ratio == pytest.approx(1, abs=0.05)
    rng = np.random.default_rng(3)
    x = small_tasks.CENTRES.numpy()[rng.integers(2, size=2000)] + 0.5 * small_tasks.SPREAD * rng.standard_normal(
        (2000, 2)
    )
    half = distances(x, small_tasks.mode_of(x), real)
    assert half.mode_distance == pytest.approx(0.5, abs=0.05)
    assert half.std_ratio == pytest.approx(0.5, rel=0.05)
    assert half.frechet > 10 * real.floor.frechet
    assert half.kid > 10 * abs(real.floor.kid)
    nowhere = distances(x, np.full(2000, -1), real)
    assert np.isnan(nowhere.mode_distance)


def test_the_quality_table_leaves_out_what_a_task_does_not_have(tmp_path):
    runs = small_tasks.run(POINTS, tmp_path, ["euler", "heun"])
    real = reference(POINTS, 500)
    rows = [compare(runs["euler"], run, real=real) for run in runs.values()]
    table = quality_table(rows, real, features="coordinates")
    assert table.headings[1] == "FD-coordinates ↓"
    assert [row[0] for row in table.rows] == ["euler", "heun", "(real data, 500 others)"]
    pictures = small_tasks.PICTURES
    runs = small_tasks.run(pictures, tmp_path, ["euler"])
    real = reference(pictures, 64)
    table = quality_table([compare(runs["euler"], runs["euler"], real=real)], real, features="pixels8")
    assert not any("std" in heading for heading in table.headings)
    assert "mode shares, total variation ↓" in table.headings


def test_shares_are_written_with_their_interval():
    assert share(proportion_interval(1, 4), counts=True) == "1/4: 25.0 % (0.6-80.6)"
    assert share(proportion_interval(31, 10**6)) == "0.003 % (0.002-0.004)"
    assert share(proportion_interval(0, 0)) == "none"


def test_pairs_have_the_frame_of_what_became_of_them():
    tile = np.zeros([1, 4, 4], np.uint8)
    assert frame_of(Label.VALID, Label.HALLUCINATED) == RED
    assert frame_of(Label.HALLUCINATED, Label.VALID) not in (None, RED)
    assert frame_of(Label.VALID, Label.VALID) is None

    def red(frame: tuple[int, int, int] | None) -> int:
        sheet = np.asarray(pair_sheet([Pair(tile, tile, "seed 0", frame)]))
        return int((sheet == RED).all(axis=2).sum())

    assert red(RED) > red(None) == 0
