"""How far two raters agree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Agreement:
    """Two raters' answers to the same n items."""

    categories: tuple[str, ...]
    table: tuple[tuple[int, ...], ...]  # [first rater][second rater], in the order of `categories`
    kappa: float  # Cohen's kappa; nan where chance alone would always agree, or n = 0

    @property
    def n(self) -> int:
        return sum(map(sum, self.table))

    @property
    def observed(self) -> float:
        """The share of items with the same answer; nan for n = 0."""
        same = sum(self.table[i][i] for i in range(len(self.categories)))
        return same / self.n if self.n else float("nan")


def cohen_kappa(first: Sequence[str], second: Sequence[str], *, categories: Sequence[str]) -> Agreement:
    """Cohen's kappa (1960): (p_o - p_e) / (1 - p_e), p_e the agreement of independent raters with the same habits.

    Raises ValueError for unequal lengths or an answer outside `categories`.
    """
    if len(first) != len(second):
        raise ValueError(f"cohen_kappa: {len(first)} and {len(second)} answers; give two to each item")
    place = {category: i for i, category in enumerate(categories)}
    if unknown := {*first, *second} - place.keys():
        raise ValueError(f"cohen_kappa: {sorted(unknown)[0]!r} is none of the categories")
    table = [[0] * len(place) for _ in place]
    for a, b in zip(first, second, strict=True):
        table[place[a]][place[b]] += 1
    n = len(first)
    rows, columns = [sum(row) for row in table], [sum(column) for column in zip(*table, strict=True)]
    expected = sum(r * c for r, c in zip(rows, columns, strict=True)) / n**2 if n else 1.0
    observed = sum(table[i][i] for i in range(len(table))) / n if n else 1.0
    kappa = (observed - expected) / (1 - expected) if expected < 1 else float("nan")
    return Agreement(tuple(categories), tuple(map(tuple, table)), kappa)
