"""The benchmark's tasks by name, as `--task` takes them."""

from __future__ import annotations

from collections.abc import Callable

from rods.bench.digits import mnist
from rods.bench.grid25 import grid25, grid25_exact
from rods.bench.hands_task import hands_32
from rods.bench.rendered_task import hands_64r
from rods.bench.shapes_task import shapes
from rods.bench.task import Task

TASKS: dict[str, Callable[[], Task]] = {
    "grid25": grid25,
    "grid25-exact": grid25_exact,
    "shapes": shapes,
    "hands-32": hands_32,
    "hands-64r": hands_64r,
    "mnist": mnist,
}
