"""Two small tasks on exact densities, for the tests of the benchmark: points and images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from rods.bench.labelled import LabelledRun, read_run
from rods.bench.methods import Method, resolve, split_methods
from rods.bench.run import Place, run_methods
from rods.bench.task import LoadedNetwork, Task
from rods.densities import Mixture
from rods.eval.labels import Label

CENTRES = torch.tensor([[-1.0, -1.0], [-1.0, 1.0], [1.0, -1.0], [1.0, 1.0]]) / 2
SPREAD = 0.05


def nearest(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    away = np.linalg.norm(x.reshape(len(x), 1, 2) - CENTRES.numpy()[None], axis=2)
    return away.argmin(axis=1), away.min(axis=1)


def label_points(x: np.ndarray) -> np.ndarray:
    _, away = nearest(x)
    return np.where(
        away > 3 * SPREAD, Label.HALLUCINATED, np.where(away > 2.5 * SPREAD, Label.UNCERTAIN, Label.VALID)
    ).astype(np.int8)


def mode_of(x: np.ndarray) -> np.ndarray:
    kind, away = nearest(x)
    return np.where(away > 5 * SPREAD, -1, kind)


def real_points(n: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    x = CENTRES.numpy()[rng.integers(4, size=n)] + SPREAD * rng.standard_normal((n, 2))
    return x.reshape(n, 2, 1, 1)


POINTS = Task(
    name="points",
    title="Four modes in the plane",
    networks={
        "exact": lambda: LoadedNetwork(Mixture(CENTRES.reshape(4, 2, 1, 1), torch.ones(4), SPREAD), "exact", "0" * 64)
    },
    label=label_points,
    kinds=mode_of,
    num_kinds=4,
    real=real_points,
    audit=lambda: (),
    is_picture=False,
    calibration_seeds=range(1000, 1024),
    report_seeds=range(64),
    batch=16,
    num_steps=6,
    settings={
        "rods-cas": {"eps": 0.0, "rho": 0.02, "window": "0.5,0.9"},
        "restart": {"threshold": 1.0, "sigma_r": 0.5, "detector": "lid:sigma=0.1,draws=2", "rounds": 2},
        "overshoot": {"rho": 0.02, "window": "0.5,0.9"},
    },
)


def bars(kind: np.ndarray) -> np.ndarray:
    """Pictures [N, 1, 16, 16] with a bright bar in the upper or lower half."""
    x = np.full((len(kind), 1, 16, 16), -0.8)
    x[kind == 0, :, 2:6] = 0.8
    x[kind == 1, :, 10:14] = 0.8
    return x


def label_bars(x: np.ndarray) -> np.ndarray:
    rows = x.mean(axis=(1, 3))
    rows = (rows - rows.min(axis=1, keepdims=True)) / np.maximum(np.ptp(rows, axis=1), 1e-6)[:, None]
    bright = (rows > 0.5).sum(axis=1)
    return np.where(bright == 4, Label.VALID, np.where(bright == 5, Label.UNCERTAIN, Label.HALLUCINATED)).astype(
        np.int8
    )


PICTURES = Task(
    name="bars",
    title="One bar in the upper or lower half",
    networks={
        "exact": lambda: LoadedNetwork(
            Mixture(
                torch.from_numpy(np.concatenate([bars(np.array([0, 1])), np.full((1, 1, 16, 16), 0.1)])),
                torch.tensor([0.4, 0.4, 0.2]),
                0.05,
            ),
            "exact",
            "1" * 64,
        )
    },
    label=label_bars,
    kinds=lambda x: (x[:, 0, 10:14].mean(axis=(1, 2)) > x[:, 0, 2:6].mean(axis=(1, 2))).astype(np.int64),
    num_kinds=2,
    real=lambda n, seed: bars(np.random.default_rng(seed).integers(2, size=n)),
    audit=lambda: (),
    calibration_seeds=range(1000, 1016),
    report_seeds=range(32),
    batch=8,
    num_steps=6,
    settings={"overshoot": {"rho": 2.0, "window": "0,1"}, "rods-cas": {"eps": 0.0, "rho": 2.0, "window": "0,1"}},
)


def run(task: Task, out: Path, methods: list[str], seeds: list[int] | None = None) -> dict[str, LabelledRun]:
    """Labelled runs of methods on a task's own network, sampled where they are not there yet."""
    network = task.networks["exact"]()
    chosen = [method(text, task) for text in methods]
    run_methods(task, network, chosen, seeds or list(task.report_seeds), out=out, batch=task.batch)
    return {m.name: read_run(folder(task, out, m.name)) for m in chosen}


def method(text: str, task: Task) -> Method:
    """`lid detector=lid:sigma=.1` as the command line has it."""
    ((name, given),) = split_methods(text)
    return resolve(name, task, given=given)


def folder(task: Task, out: Path, name: str) -> Path:
    return Place(out, task.name, "exact").folder / name
