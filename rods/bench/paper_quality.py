"""Table 1 of the paper on one network: distance, variance and diversity of each method's images.

The numbers carry the name of their detector: a FID is the TF-Inception's alone, and everything else is called so.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dnnlib.errors import UserError
from dnnlib.util import atomic_write
from rods.bench.paper import Quality, Study
from rods.bench.paper_runs import Runs, Say
from rods.bench.sources import image_source
from rods.bench.task import Task
from rods.bench.tasks import TASKS
from rods.eval.extraction import extract
from rods.eval.features import Extractor
from rods.eval.metrics import Result, measure
from rods.eval.reference import Reference, read_reference, reference_of, write_reference
from rods.runs.images import to_uint8
from training.header import tool_version

CACHE = "table1.json"
REAL_SEED = 0
KEPT = 10_000  # features of a reference


@dataclass(frozen=True)
class QualityRow:
    """A method's line of Table 1: what was measured, and what the paper printed for its network."""

    method: str
    results: tuple[Result, ...]
    paper: Quality | None

    def result(self, metric: str) -> Result | None:
        return next((r for r in self.results if r.metric == metric), None)


def task_of(network: str) -> Task | None:
    """The benchmark's task of an embedded network: its labeller, its real data. None for other networks."""
    return next((task for make in TASKS.values() if network in (task := make()).networks), None)


def quality_rows(
    runs: Runs,
    methods: Sequence[str],
    study: Study,
    extractors: Sequence[Extractor],
    reference: Reference,
    *,
    metrics: Sequence[str],
    num: int,
    batch: int,
    say: Say,
) -> list[QualityRow]:
    """The first `num` images of every method, measured. What was measured before on the same images is not again.

    Raises UserError: images that are not there, or fewer than two.
    """
    path = runs.folder / CACHE
    cache: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    rows = []
    for method in methods:
        records = runs.records(method)[:num]
        recipe = {
            "images": [f"{r['name']} {r['sha256'][:12]}" for r in records],
            "detectors": [e.describe() for e in extractors],
            "reference": [reference.n, reference.data_sha256, float(reference.mu.sum()), float(reference.sigma.sum())],
            "metrics": list(metrics),
        }
        old = cache.get(method, {})
        if old.get("recipe") != recipe:
            say(f"{method}: features of {len(records)} images")
            source = image_source(
                str(runs.path(method)), option="--out", batch=batch, names=[r["name"] for r in records]
            )
            found = extract(source.num_blocks, source.load, extractors, num_images=source.num)
            assert found is not None  # one process
            results = measure(metrics, found, extractors, reference)
            old = cache[method] = {"recipe": recipe, "results": [asdict(r) for r in results]}
            with atomic_write(path) as temporary:
                temporary.write_text(json.dumps(cache) + "\n")
        rows.append(QualityRow(method, tuple(Result(**r) for r in old["results"]), study.quality.get(method)))
    return rows


def reference_for(
    runs: Runs, extractor: Extractor, *, given: str | None, force: bool, num_real: int, batch: int, say: Say
) -> Reference:
    """The statistics `given`, else those of fresh real data of the network's task, made once below the runs.

    Raises UserError: a network of no task and none given, or statistics of other features.
    """
    if given is not None:
        reference = read_reference(given)
        mismatch = reference.mismatch(extractor)
        if mismatch and (not force or len(reference.mu) != extractor.dim):
            raise UserError(f"--ref={given} {mismatch}; use the same --detector and --resize for both")
        return reference
    name = runs.snapshot.name
    task = task_of(name)
    if task is None:
        raise UserError(
            f"--ref is needed for network {name}: `python fid.py ref --data=DATA.zip --dest=ref.npz` makes one "
            "of its training images; EDM's published references will do for --detector=inception"
        )
    path = runs.folder / f"reference-{extractor.frechet_name}-{num_real}.npz"
    if path.is_file() and not read_reference(path).mismatch(extractor):
        return read_reference(path)
    say(f"Reference: up to {num_real} fresh real images of task {task.name}")
    return _real_reference(path, to_uint8(task.real(num_real, REAL_SEED)), extractor, batch=batch)


def _real_reference(path: Path, images: NDArray[np.uint8], extractor: Extractor, *, batch: int) -> Reference:
    blocks = [torch.from_numpy(images[i : i + batch]) for i in range(0, len(images), batch)]
    found = extract(len(blocks), blocks.__getitem__, [extractor], num_images=len(images))
    assert found is not None  # one process
    reference = reference_of(found, extractor, keep=KEPT, seed=0, version=tool_version())
    path.parent.mkdir(parents=True, exist_ok=True)
    write_reference(path, reference)
    return reference
