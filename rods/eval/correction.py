"""Paired outcomes: hallucination rates before and after a correction, the repaired, and the newly broken.

A pair is one seed, sampled without and with correction; either image is labelled valid, hallucinated or uncertain
(`rods.eval.labels`). Every rate comes with its exact interval (Clopper and Pearson 1934).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import special, stats

from rods.eval.labels import Label


@dataclass(frozen=True)
class Proportion:
    """k of n, with a confidence interval [low, high] of the rate."""

    k: int
    n: int
    low: float
    high: float
    level: float

    @property
    def rate(self) -> float:
        """k / n, and nan for n = 0."""
        return self.k / self.n if self.n else float("nan")


@dataclass(frozen=True)
class PairedOutcomes:
    """Labels of n pairs before and after a correction."""

    table: tuple[tuple[int, int, int], ...]  # table[before][after], both in the codes of Label
    hallucinated_before: Proportion  # hallucinated, of all images
    hallucinated_after: Proportion
    uncertain_before: Proportion  # uncertain, of all images
    uncertain_after: Proportion
    repaired: Proportion  # hallucinated -> valid, of the hallucinated before
    broken: Proportion  # valid -> hallucinated, of the valid before
    mcnemar_p: float  # exact and two-sided, of repaired against broken

    @property
    def n(self) -> int:
        """The number of pairs."""
        return self.hallucinated_before.n


def proportion_interval(k: int, n: int, level: float = 0.95) -> Proportion:
    """The exact confidence interval (Clopper and Pearson 1934) for k successes in n trials; [0, 1] for n = 0.

    Its ends are the rates at which k or more, and k or fewer, have probability (1 - level) / 2: quantiles of the beta
    distribution.
    Raises ValueError unless 0 <= k <= n and 0 < level < 1.
    """
    if not 0 <= k <= n:
        raise ValueError(f"proportion_interval: k={k} must lie between 0 and n={n}")
    if not 0 < level < 1:
        raise ValueError(f"proportion_interval: level={level} must lie between 0 and 1, .95 is usual")
    tail = (1 - level) / 2
    low = float(special.betaincinv(k, n - k + 1, tail)) if k > 0 else 0.0
    high = float(special.betaincinv(k + 1, n - k, 1 - tail)) if k < n else 1.0
    return Proportion(k, n, low, high, level)


def mcnemar_p(b: int, c: int) -> float:
    """McNemar's exact two-sided p value for b changes one way and c the other; 1 without changes."""
    if b < 0 or c < 0:
        raise ValueError(f"mcnemar_p: counts b={b} and c={c} must not be negative")
    return float(stats.binomtest(b, b + c).pvalue) if b + c else 1.0


def paired_outcomes(
    labels_before: NDArray[np.int8], labels_after: NDArray[np.int8], *, level: float = 0.95
) -> PairedOutcomes:
    """Compares labels [n] of the same seeds before and after a correction (codes of `Label`).

    An image that becomes uncertain is neither repaired nor broken; `table` counts it.
    Raises ValueError for unequal lengths or unknown codes.
    """
    before, after = np.asarray(labels_before), np.asarray(labels_after)
    if before.ndim != 1 or before.shape != after.shape:
        raise ValueError(f"paired_outcomes: shapes {before.shape} and {after.shape} differ, pass two labels per seed")
    known = [int(label) for label in Label]
    if not (np.isin(before, known).all() and np.isin(after, known).all()):
        raise ValueError(f"paired_outcomes: labels must be the codes {known} of rods.eval.labels.Label")
    counts = np.bincount(before.astype(np.int64) * 3 + after, minlength=9).reshape(3, 3)
    was, became = counts.sum(axis=1), counts.sum(axis=0)
    n = len(before)
    repaired, broken = int(counts[Label.HALLUCINATED, Label.VALID]), int(counts[Label.VALID, Label.HALLUCINATED])
    return PairedOutcomes(
        table=tuple((int(row[0]), int(row[1]), int(row[2])) for row in counts),
        hallucinated_before=proportion_interval(int(was[Label.HALLUCINATED]), n, level),
        hallucinated_after=proportion_interval(int(became[Label.HALLUCINATED]), n, level),
        uncertain_before=proportion_interval(int(was[Label.UNCERTAIN]), n, level),
        uncertain_after=proportion_interval(int(became[Label.UNCERTAIN]), n, level),
        repaired=proportion_interval(repaired, int(was[Label.HALLUCINATED]), level),
        broken=proportion_interval(broken, int(was[Label.VALID]), level),
        mcnemar_p=mcnemar_p(repaired, broken),
    )
