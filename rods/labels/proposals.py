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
COMPONENTS = 16  # principal components of activations that distances are taken of


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

    With `activations` [N, K], in the order of `sums`: those that are farthest from all that have a label, which teaches
    a readout more than those it is least sure of (docs/lab/2026-11-27-next-labels.md). Without, where every image has a
    score: those whose chance to be hallucinated is nearest to 1/2 by a logistic regression of MIN_EACH labels of either
    verdict or more on all such scores; with fewer labels, those nearest in rank to the threshold of a score, or to its
    median. Without scores: any, in the order `shuffled`.
    """
    verdicts = [labels[checksum].label if checksum in labels else None for checksum in sums]
    left = [i for i, said in enumerate(verdicts) if said is None]
    counts = f"{verdicts.count(VALID)} valid and {verdicts.count(HALLUCINATED)} hallucinated labels"
    if activations is not None:
        chosen = farthest(activations, [i for i, said in enumerate(verdicts) if said is not None], count)
        how = "their activations are farthest from those of all images with a label, and from each other"
        return Order("next activations", [sums[i] for i in chosen]), how
    complete = [name for name, own in scores.items() if all(checksum in own for checksum in sums)]
    if not complete:
        unlabelled = [checksum for checksum in shuffled if checksum not in labels]
        return Order(SHUFFLED, unlabelled[:count]), "any, because no score is in the records of all"
    if min(verdicts.count(VALID), verdicts.count(HALLUCINATED)) >= MIN_EACH:
        features = np.column_stack([ranks([scores[name][checksum] for checksum in sums]) for name in complete])
        away = np.abs(chances(features, verdicts) - 0.5)
        what = ", ".join(complete)
        name, how = f"next {what}", f"a regression on scores ({what}), fitted to {counts}, is least sure of them"
    else:
        name = next((score for score in complete if score in thresholds), complete[0])
        values = [scores[name][checksum] for checksum in sums]
        limit = thresholds.get(name, float(np.median(values)))
        away = np.abs(ranks([*values, limit])[:-1] - ranks([*values, limit])[-1])
        where = f"the threshold {limit:g}" if name in thresholds else f"the median {limit:g}, for want of a threshold,"
        name, how = f"next {name}", f"nearest to {where} of {name} ({counts} are too few to fit anything to)"
    return Order(name, [sums[i] for i in sorted(left, key=lambda i: away[i])[:count]]), how


def farthest(features: F64, labelled: Sequence[int], count: int) -> list[int]:
    """Greedily the `count` rows of features [N, K] that are farthest from the labelled and chosen ones (k-centre).

    Distances are of the COMPONENTS largest principal components of the standardised features. Without labelled rows,
    the one nearest to the mean is the first.
    """
    varies = features.std(axis=0) > 1e-9
    z = (features[:, varies] - features[:, varies].mean(axis=0)) / features[:, varies].std(axis=0)
    u, s, _ = np.linalg.svd(z, full_matrices=False)
    x = u[:, :COMPONENTS] * s[:COMPONENTS]  # [N, COMPONENTS]
    chosen = [] if len(labelled) else [int((x**2).sum(axis=1).argmin())]
    taken = [*labelled, *chosen]
    away = np.min([((x - x[i]) ** 2).sum(axis=1) for i in taken], axis=0)  # [N] squared distance to the nearest
    away[taken] = -1.0
    while len(chosen) < min(count, len(x) - len(labelled)):
        i = int(away.argmax())
        chosen.append(i)
        away = np.minimum(away, ((x - x[i]) ** 2).sum(axis=1))
        away[[*labelled, *chosen]] = -1.0
    return chosen


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
    bias, weights = fit_logistic(own[labelled], bad[labelled])
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
