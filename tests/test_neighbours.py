"""Precision, recall and coverage: sets whose balls are known, laws, and what the command prints."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from test_fid import PIXELS, as_json, error, pictures, run

from rods.eval.neighbours import coverage, inside, precision, recall

LINE = np.arange(10.0)[:, None]  # 0, 1, ..., 9: with k = 1 every ball has radius 1, with k = 2 the ends have 2


def test_balls_on_a_line() -> None:
    """Reals 0..9; generated: on one, between two, on the rim of an end's ball, just beyond it, far away."""
    x = np.array([[4.0], [4.5], [10.0], [10.01], [50.0]])
    assert inside(x, LINE, k=1).tolist() == [True, True, True, False, False]
    assert inside(x, LINE, k=2).tolist() == [True, True, True, True, False]
    assert precision(x, LINE, k=1) == 3 / 5
    # Generated balls, k = 1: .5 at 4 and 4.5, .01 at 10 and 10.01, 39.99 at 50, which reaches down to 10.01.
    assert recall(x, LINE, k=1) == 2 / 10  # the real 4, and 5 on the rim of 4.5's ball
    assert recall(np.array([[4.0], [4.6]]), LINE, k=1) == 2 / 10  # balls of .6: 4, and 5 is .4 from 4.6


def test_coverage_is_seen_from_the_reals() -> None:
    assert coverage(np.array([[4.0]]), LINE, k=1) == 3 / 10  # 3, 4 and 5 have it in their balls
    assert coverage(np.array([[4.5], [50.0]]), LINE, k=1) == 2 / 10
    assert coverage(np.array([[11.0]]), LINE, k=2) == 1 / 10  # the end's ball of radius 2
    assert coverage(LINE, LINE, k=1) == precision(LINE, LINE) == recall(LINE, LINE) == 1


def test_an_outlier_makes_recall_of_everything_and_not_coverage() -> None:
    """Naeem et al.'s point: one generated outlier has a ball that holds all reals; coverage counts 0."""
    y = np.arange(8.0)[:, None]
    x = np.array([[100.0], [101.0], [102.0], [103.0], [104.0], [500.0]])
    assert recall(x, y, k=5) == 1
    assert coverage(x, y) == 0


def test_rows_beyond_one_block() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 40, (1500, 2)).astype(float), rng.integers(0, 40, (1100, 2)).astype(float)
    D = ((x[:, None] - y[None]) ** 2).sum(axis=2)  # [n, m], exact: small whole numbers
    within = ((y[:, None] - y[None]) ** 2).sum(axis=2) + np.diag(np.full(len(y), np.inf))
    reach = np.sort(within, axis=1)
    assert precision(x, y) == (reach[:, 2] >= D).any(axis=1).mean()
    assert coverage(x, y) == (D.min(axis=0) <= reach[:, 4]).mean()


whole = arrays(np.float64, st.tuples(st.integers(6, 12), st.just(2)), elements=st.integers(-9, 9).map(float))


@settings(max_examples=40, deadline=None)
@given(whole, whole)
def test_laws(x: np.ndarray, y: np.ndarray) -> None:
    for share in (precision, recall, coverage):
        value = share(x, y, k=2)
        assert value == share(x[::-1] * 2 + 3, y * 2 + 3, k=2)  # order, scale and place do not matter
        assert share(x, y, k=4) >= value  # larger balls hold more
    assert precision(x, y, k=2) == recall(y, x, k=2)
    assert coverage(np.concatenate([x, y]), y, k=2) == 1  # with the reals among them


def test_what_has_no_neighbours_is_refused() -> None:
    with pytest.raises(ValueError, match="k=3 of 3 samples"):
        precision(LINE, LINE[:3])
    with pytest.raises(ValueError, match=r"shapes \[10, 1\] and \[10, 2\]"):
        coverage(LINE, np.zeros((10, 2)))
    with pytest.raises(ValueError, match="not finite"):
        recall(LINE * np.nan, LINE)


def test_the_command_prints_them_with_k(tmp_path: Path) -> None:
    a, b = pictures(tmp_path / "a", 9), pictures(tmp_path / "b", 12, seed=1)
    ref = f"--ref={tmp_path / 'b.npz'}"
    run("ref", f"--data={b}", ref.replace("--ref", "--dest"), *PIXELS)
    metrics = "--metrics=precision,recall,coverage"
    itself = as_json("calc", f"--images={b}", ref, *PIXELS, metrics)
    assert [(row["label"], row["value"], row["k"]) for row in itself["metrics"]] == [
        ("Precision-Pixels", 1, 3), ("Recall-Pixels", 1, 3), ("Coverage-Pixels", 1, 5)
    ]  # fmt: skip
    output = run("calc", f"--images={a}", ref, *PIXELS, metrics)
    assert "n = 9 against 12; k = 5" in output
    assert "Warning: precision, recall, coverage: balls of k neighbours shrink" in output
    same = shutil.copytree(a, tmp_path / "same")
    row = as_json("compare", a, same, ref, *PIXELS, "--metrics=precision", "--bootstrap=9")["metrics"][0]
    assert (row["difference"], row["low"], row["high"]) == (0, 0, 0)
    assert "coverage has no interval by resampling" in error("compare", a, same, ref, *PIXELS, "--metrics=coverage")
    np.savez(tmp_path / "edm.npz", mu=np.zeros(192), sigma=np.eye(192))
    message = error("calc", f"--images={a}", f"--ref={tmp_path / 'edm.npz'}", *PIXELS, "--metrics=fid,recall")
    assert "keeps no features, which recall needs" in message
