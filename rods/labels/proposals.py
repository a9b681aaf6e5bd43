"""Which images to label first: the highest scores, or those whose label would tell most."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from dnnlib.errors import UserError
from dnnlib.run_folder import OPTIONS_NAME
from rods.eval.logistic import fit_logistic
from rods.labels.folders import Folder
from rods.labels.label_set import HALLUCINATED, VALID
from rods.labels.labels import ImageLabel
from rods.labels.session import SHUFFLED, Order
from rods.runs.folder import read_identity
from rods.runs.scores import image_scores

F64 = NDArray[np.float64]
MIN_EACH = 5  # valid and hallucinated labels, below which nothing is fitted to them
RIDGE = 10.0  # few labels, many activations


def scores_by_sum(folders: Sequence[Folder]) -> dict[str, dict[str, float]]:
    """Score name -> checksum -> what the records of the folders say of the image."""
    found: dict[str, dict[str, float]] = {}
    for folder in folders:
        for score, by_name in image_scores(folder.path).items():
            known = {folder.sums[name]: value for name, value in by_name.items() if name in folder.sums}
            found.setdefault(score, {}).update(known)
    return found


def by_score(asked: str, scores: Mapping[str, Mapping[str, float]], sums: Sequence[str]) -> Order:
    """All images, the highest score first and those without one last.

    Raises UserError: no such score, or several that begin so.
    """
    found = [name for name in scores if asked in (name, name.split(":")[0].split(",")[0])]
    found = [asked] if asked in found else found
    if len(found) != 1:
        known = ", ".join(scores) or "none; sample with --filter=lid --filter-threshold=inf, which only records one"
        raise UserError(
            f"--order={asked} is {'several' if found else 'none'} of the scores in the runs' records: {known}"
        )
    own = scores[found[0]]
    ranked = sorted(sums, key=lambda checksum: -own.get(checksum, -np.inf))
    return Order(f"score {found[0]}", ranked)


def most_telling(
    count: int,
    sums: Sequence[str],
    labels: Mapping[str, ImageLabel],
    *,
    activations: F64 | None,
    scores: Mapping[str, Mapping[str, float]],
    thresholds: Mapping[str, float],
    shuffled: Sequence[str],
) -> tuple[Order, str]:
    """The images without a label whose label would tell most, and how they were chosen, in words.

    Where there are MIN_EACH labels of either verdict, those whose chance to be hallucinated is nearest to 1/2 by a
    logistic regression fitted to the labels so far, on `activations` [N, K] in the order of `sums`, else on all scores
    that every image has. Where there are fewer, those nearest in rank to the threshold of a score, or to its median.
    Where there is no score, any, in the order `shuffled`.
    """
    verdicts = [labels[checksum].label if checksum in labels else None for checksum in sums]
    counts = f"{verdicts.count(VALID)} valid and {verdicts.count(HALLUCINATED)} hallucinated labels"
    complete = [name for name, own in scores.items() if all(checksum in own for checksum in sums)]
    if activations is None and complete:
        activations = np.column_stack([ranks([scores[name][checksum] for checksum in sums]) for name in complete])
        what = "scores " + ", ".join(complete)
    else:
        what = "activations"
    if activations is not None and min(verdicts.count(VALID), verdicts.count(HALLUCINATED)) >= MIN_EACH:
        away = np.abs(chances(activations, verdicts) - 0.5)
        name, how = f"next {what}", f"a regression on {what}, fitted to {counts}, is least sure of them"
    elif complete:
        name = next((score for score in complete if score in thresholds), complete[0])
        values = [scores[name][checksum] for checksum in sums]
        limit = thresholds.get(name, float(np.median(values)))
        away = np.abs(ranks([*values, limit])[:-1] - ranks([*values, limit])[-1])
        where = f"the threshold {limit:g}" if name in thresholds else f"the median {limit:g}, for want of a threshold,"
        name, how = f"next {name}", f"nearest to {where} of {name} ({counts} are too few to fit anything to)"
    else:
        why = f"{counts} are too few to fit anything to" if activations is not None else "no score is in the records"
        unlabelled = [checksum for checksum in shuffled if checksum not in labels]
        return Order(SHUFFLED, unlabelled[:count]), f"any, because {why}"
    order = sorted((i for i, said in enumerate(verdicts) if said is None), key=lambda i: away[i])
    return Order(name, [sums[i] for i in order[:count]]), how


def ranks(values: Sequence[float]) -> F64:
    """The place of each value among all, from 0 to 1; equal ones share the middle of theirs."""
    _, where, sizes = np.unique(np.array(values, dtype=np.float64), return_inverse=True, return_counts=True)
    middle = np.cumsum(sizes) - (sizes + 1) / 2
    return np.asarray(middle[where] / max(len(values) - 1, 1), dtype=np.float64)


def chances(features: F64, verdicts: Sequence[str | None]) -> F64:
    """Of each image [N], the chance to be hallucinated by a regression on the labelled ones."""
    labelled = np.array([said in (VALID, HALLUCINATED) for said in verdicts])
    bad = np.array([said == HALLUCINATED for said in verdicts])
    own = features[:, features[labelled].std(axis=0) > 1e-9]
    bias, weights = fit_logistic(own[labelled], bad[labelled], ridge=RIDGE)
    return np.asarray(1 / (1 + np.exp(-(bias + own @ weights).clip(-500, 500))), dtype=np.float64)


def run_thresholds(folders: Sequence[Folder]) -> dict[str, float]:
    """The threshold that a restart of each run had, by the name of its score."""
    found = {}
    for folder in folders:
        identity = read_identity(folder.path / OPTIONS_NAME) or {}
        limit = identity.get("threshold")
        for name in image_scores(folder.path):
            if isinstance(limit, int | float) and name.startswith(str(identity.get("detector"))):
                found[name] = float(limit)
    return found
