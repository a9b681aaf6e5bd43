"""The benchmark's tasks by name, as `--task` takes them. A new task is a folder here and an entry below."""

from __future__ import annotations

from collections.abc import Callable

from rods.bench.task import Task
from rods.bench.tasks.grid25.task import grid25, grid25_exact
from rods.bench.tasks.hands.task import hands_32
from rods.bench.tasks.mnist.task import mnist
from rods.bench.tasks.rendered.task import hands_64r
from rods.bench.tasks.shapes.task import shapes

TASKS: dict[str, Callable[[], Task]] = {
    "grid25": grid25,
    "grid25-exact": grid25_exact,
    "shapes": shapes,
    "hands-32": hands_32,
    "hands-64r": hands_64r,
    "mnist": mnist,
}
