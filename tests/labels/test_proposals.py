"""Which images come first: by a score, by what a label would tell; and what the server says of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import RESTART, SMALL, generated, records, refusal, said
from labelling import answer

from dnnlib.errors import UserError
from rods.labels.folders import read_folder
from rods.labels.growing_file import append_lines
from rods.labels.label_set import label_set
from rods.labels.labels import ImageLabel
from rods.labels.proposals import by_score, chances, farthest, most_telling, ranks, run_thresholds, scores_by_sum
from rods.labels.session import Answers, open_session
from scripts import label

SUMS = [f"{i:03d}" for i in range(100)]


def labelled(first: range, verdict: str) -> dict[str, ImageLabel]:
    return {SUMS[i]: ImageLabel("x.png", verdict, "people", sha256=SUMS[i]) for i in first}


def told(labels: dict[str, ImageLabel], **given: Any) -> tuple[list[str], str, str]:
    usual: dict[str, Any] = {"activations": None, "scores": {}, "thresholds": {}, "shuffled": SUMS[::-1]}
    order, how = most_telling(4, SUMS, labels, **usual | given)
    return list(order.sums), order.name, how


def test_ranks_are_places_and_equal_values_share_theirs() -> None:
    assert ranks([3.0, 1.0, 2.0]).tolist() == [1.0, 0.0, 0.5]
    assert ranks([1.0, 1.0, np.inf]).tolist() == [0.25, 0.25, 1.0]


def test_the_highest_score_first_and_those_without_one_last() -> None:
    scores = {"lid:sigma=1": {SUMS[1]: 5.0, SUMS[2]: 7.0}, "tvf": {SUMS[0]: 1.0}}
    order = by_score("lid", scores, SUMS[:3])
    assert (order.name, list(order.sums)) == ("score lid:sigma=1", [SUMS[2], SUMS[1], SUMS[0]])
    with pytest.raises(UserError, match="--order=h-index is none of the scores in the runs' records: lid:sigma=1, tvf"):
        by_score("h-index", scores, SUMS)
    with pytest.raises(UserError, match="is several of"):
        by_score("lid", {**scores, "lid:sigma=2": {}}, SUMS)


def test_a_regression_on_scores_proposes_what_it_is_least_sure_of() -> None:
    """Images 0 to 19 are valid and 80 to 99 hallucinated: the boundary is in the middle."""
    labels = labelled(range(20), "valid") | labelled(range(80, 100), "hallucinated")
    x = np.arange(100.0)
    scores = {"lid": dict(zip(SUMS, np.exp(x).tolist(), strict=True)), "tvf": {SUMS[0]: 1.0}}
    sums, name, how = told(labels, scores=scores)
    assert (set(sums), name) == (set(SUMS[48:52]), "next lid"), "not every image has the other score"
    assert "fitted to 20 valid and 20 hallucinated labels" in how
    assert (np.diff(chances(x[:, None], [labels[s].label if s in labels else None for s in SUMS])) > 0).all()


def test_activations_propose_what_is_farthest_from_the_labelled_and_from_each_other() -> None:
    """Five far groups of twenty; one of them has labels: the four others come first, one image each."""
    groups = np.repeat(np.eye(5) * 9, 20, axis=0) + np.random.default_rng(0).standard_normal((100, 5)) / 9
    features = np.column_stack([groups, np.ones(100)])  # and one that is the same everywhere
    sums, name, how = told(labelled(range(40, 45), "valid"), activations=features)
    assert (sorted(SUMS.index(checksum) // 20 for checksum in sums), name) == ([0, 1, 3, 4], "next activations")
    assert "farthest" in how
    first = farthest(features, [], 6)
    assert {i // 20 for i in first} == set(range(5))
    assert len({*first}) == 6
    assert sorted(farthest(features, range(97), 9)) == [97, 98, 99]


def test_with_few_labels_the_threshold_of_a_score_decides_and_without_scores_chance() -> None:
    labels = labelled(range(2), "valid")
    scores = {"lid": dict(zip(SUMS, map(float, range(100)), strict=True))}
    sums, name, how = told(labels, scores=scores, thresholds={"lid": 69.5})
    assert (set(sums), name) == (set(SUMS[68:72]), "next lid")
    assert "nearest to the threshold 69.5 of lid (2 valid and 0 hallucinated labels are too few" in how
    assert set(told(labels, scores=scores)[0]) == set(SUMS[48:52])
    assert told(labelled(range(98, 100), "valid"))[:2] == (SUMS[97:93:-1], "shuffled")


# -- the command ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("proposals") / "run"
    generated(folder, *RESTART, "--detector=lid", "--threshold=64", "--seeds=0-15")
    return folder


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[Answers]:
    """What `serve` would serve, in place of serving it."""
    found: list[Answers] = []
    monkeypatch.setattr(label, "serve_session", lambda store, **options: found.append(store))
    return found


def names(store: Answers) -> list[str]:
    return [item.name for item in store.session.of_mode("image")]


def test_serve_in_the_order_of_a_score(run: Path, served: list[Answers], tmp_path: Path) -> None:
    output = said(
        label.main, "serve", f"--images={run}", "--labels=good,bad", "--order=lid", f"--answers={tmp_path / 'x.jsonl'}"
    )
    assert "16 images, 0 pairs" in output
    assert "good: valid; bad: hallucinated; uncertain: uncertain" in output
    kept = {line["name"]: line["restart"]["scores"][line["restart"]["kept"]] for line in records(run)}
    assert names(served[0]) == sorted(kept, key=lambda name: -kept[name])
    first = next(iter(served[0].session.items))
    served[0].record("alice", answer(first, "bad", ident="00000001"))
    assert json.loads((tmp_path / "x.jsonl").read_text())["order"].startswith("score lid:")


def test_serve_the_next_images(run: Path, served: list[Answers], tmp_path: Path) -> None:
    path = tmp_path / "labels.jsonl"
    options = ("serve", f"--images={run}", "--labels=good,bad", f"--answers={path}", "--next=3")
    output = said(label.main, *options)
    assert "The next 3 images of 16 without a label: nearest to the threshold 64 of lid:" in output
    folder = read_folder(run, option="--images")
    store = Answers(path, open_session([folder], labels=label_set("good,bad")))
    for n, item in enumerate(store.session.of_mode("image")[:12]):
        store.record("alice", answer(item.key, ("good", "bad")[n % 2], ident=f"{n:08x}"))
    assert "of 4 without a label: a regression on scores (lid:" in said(label.main, *options)
    assert len(names(served[-1])) == 3
    assert set(names(served[-1])) <= {item.name for item in store.session.of_mode("image")[12:]}
    assert "their activations are farthest from those" in said(label.main, *options, f"--network={SMALL}")
    assert set(names(served[-1])) <= {item.name for item in store.session.of_mode("image")[12:]}
    assert run_thresholds([folder]) == {next(iter(scores_by_sum([folder]))): 64.0}
    for n, item in enumerate(store.session.of_mode("image")[12:], 12):
        store.record("alice", answer(item.key, "good", ident=f"{n:08x}"))
    assert "has a label of every image; sample more" in refusal(label.main, *options)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--order=lid", "--next=3"), "--order=lid and --next both say which images come first"),
        (("--order=tvf",), "--order=tvf is none of the scores in the runs' records: lid:"),
        ((f"--network={SMALL}",), "is for --next"),
        (("--labels=bad,good",), "--labels: 'good' is not the first"),
        (("--token=a b",), "--token=a b must be letters and digits"),
    ],
)
def test_what_serve_refuses(run: Path, options: tuple[str, ...], says: str, tmp_path: Path) -> None:
    path = tmp_path / "labels.jsonl"
    assert says in refusal(label.main, "serve", f"--images={run}", f"--answers={path}", *options)
    assert not path.exists()


def test_a_network_of_another_size_is_refused(tmp_path: Path, runs: tuple[Path, Path]) -> None:
    from PIL import Image

    Image.new("L", (16, 16)).save(tmp_path / "A/big.png")
    path = tmp_path / "labels.jsonl"
    append_lines(path, [])
    options = (f"--images={runs[0]}", f"--answers={path}", "--next=2", f"--network={SMALL}")
    assert "give the network that sampled the images" in refusal(label.main, "serve", *options)
