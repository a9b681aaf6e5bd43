"""Tables 1 and 2 of the paper from an experiment's run folders, the paper's values beside ours."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from dnnlib.errors import UserError
from rods.bench.paper import CAS, EULER, Experiment
from rods.bench.paper_values import Correction
from rods.bench.tables import Table
from rods.eval.correction import PairedOutcomes, Proportion, proportion_interval
from rods.eval.extraction import extract
from rods.eval.features import Extractor
from rods.eval.labels import Label
from rods.eval.metrics import Result, measure, size_warnings
from rods.eval.reference import Reference, read_reference, reference_of
from rods.runs.images import to_uint8
from rods.runs.run import sample_job
from rods.runs.sources import image_source
from training.header import tool_version

FEATURE_BATCH = 64
NUM_REAL, REAL_SEED = 2000, 0  # fresh real images, where no reference is given
KEPT_FEATURES = 10_000  # of a reference
PAPER_METRICS = {  # metric -> (field of the paper's values, heading)
    "fid": ("fid", "FID ↓"),
    "inception-var": ("variance", "Inception-Var ↑"),
    "dreamsim": ("dreamsim", "DreamSim ↑"),
}
TIMED_BATCHES = 3


@dataclass(frozen=True)
class PaperTable:
    """A table, the lines that it must not be printed without, and its numbers as JSON holds them."""

    table: Table
    notes: tuple[str, ...]
    numbers: Mapping[str, Any]

    def markdown(self) -> str:
        return "\n".join([self.table.markdown(), "", *(f"- {line}" for line in self.notes)])


def quality_table(
    e: Experiment,
    methods: Sequence[str],
    extractors: Sequence[Extractor],
    reference: Reference,
    *,
    metrics: Sequence[str],
    num: int,
) -> PaperTable:
    """Table 1: the first `num` images of each method against real images."""
    rows = {method: measured(e, method, extractors, reference, metrics=metrics, num=num) for method in methods}
    shown = list(dict.fromkeys([*(result.metric for result in rows[methods[0]]), *PAPER_METRICS]))
    lines, headings = [], ["sampler", "n"]
    for metric in shown:
        own = [result.label for result in rows[methods[0]] if result.metric == metric]
        headings += [*own, f"paper: {PAPER_METRICS[metric][1]}"] if metric in PAPER_METRICS else own
    for method, results in rows.items():
        cells, paper = [method, str(results[0].n)], e.study.quality.get(method)
        for metric in shown:
            cells += [value_and_sd(result) for result in results if result.metric == metric]
            if metric in PAPER_METRICS:
                cells.append("" if paper is None else f"{getattr(paper, PAPER_METRICS[metric][0]):g}")
        lines.append(tuple(cells))
    notes = [
        f"Features: {'; '.join(x.describe() for x in extractors)}; reference n = {reference.n or 'unknown'}.",
        f"The paper's values: {e.study.title}, its network, TF-Inception. Ours: {e.snapshot.describe()}, RODS with "
        f"{e.rods_settings()}.",
        *(f"Warning: {w}" for w in size_warnings(metrics, rows[methods[0]][0].n, reference.n)),
    ]
    if "dreamsim" not in metrics:
        notes.append("DreamSim was not measured (--metrics=...,dreamsim); Cosine is its formula on our features.")
    numbers = [
        {"method": m, "metrics": [asdict(r) for r in own], "paper": p and asdict(p)}
        for m, own in rows.items()
        for p in [e.study.quality.get(m)]
    ]
    return PaperTable(
        Table(tuple(headings), tuple(lines)), tuple(notes), {**e.describe(), "rows": numbers, "notes": notes}
    )


def value_and_sd(result: Result) -> str:
    if result.value is None:
        return "not defined"
    return f"{result.value:.5g}" + (f" +- {result.sd:.2g}" if result.sd is not None else "")


def measured(
    e: Experiment,
    method: str,
    extractors: Sequence[Extractor],
    reference: Reference,
    *,
    metrics: Sequence[str],
    num: int,
) -> list[Result]:
    """The metrics of a method's first images."""
    source = image_source(str(e.path(method)), option="--out", batch=FEATURE_BATCH, names=e.names()[:num])
    found = extract(source.num_blocks, source.load, extractors, num_images=source.num)
    assert found is not None  # one process
    return measure(metrics, found, extractors, reference)


def reference_for(e: Experiment, extractor: Extractor, given: str | None) -> Reference:
    """The statistics `given`, else those of fresh real data of the network's task.

    Raises UserError: a network of no task and none given, or statistics of other features.
    """
    if given is not None:
        reference = read_reference(given)
        if mismatch := reference.mismatch(extractor):
            raise UserError(f"--ref={given} {mismatch}; use the same --detector for both")
        return reference
    if e.task is None:
        raise UserError(
            f"--ref is needed for network {e.name}: `python fid.py ref --data=DATA.zip --dest=ref.npz` makes one "
            "of its training images; EDM's published references will do for --detector=inception"
        )
    images = torch.from_numpy(to_uint8(e.task.real(NUM_REAL, REAL_SEED)))
    blocks = [images[i : i + FEATURE_BATCH] for i in range(0, len(images), FEATURE_BATCH)]
    found = extract(len(blocks), blocks.__getitem__, [extractor], num_images=len(images))
    assert found is not None  # one process
    return reference_of(found, extractor, keep=KEPT_FEATURES, seed=0, version=tool_version())


@dataclass(frozen=True)
class CorrectionRow:
    """A method's line of Table 2; `outcomes` are against Euler, None for Euler itself."""

    method: str
    hallucinated: Proportion
    uncertain: Proportion
    outcomes: PairedOutcomes | None
    judged: Mapping[str, int]  # pairs that people found better, worse, the same, unclear
    forward: float  # per image
    backward: float
    seconds: float | None  # a batch
    paper: Correction | None

    def cells(self) -> tuple[str, ...]:
        """As the table prints it."""
        o, paper, bad = self.outcomes, self.paper, self.hallucinated
        values = (paper.hallucinated, paper.corrected, paper.broken, paper.seconds) if paper else (None,) * 4
        return (
            self.method,
            f"{counted(bad)} ({100 * bad.low:.1f}-{100 * bad.high:.1f})",
            f"{100 * self.uncertain.rate:.1f} %",
            counted(o.repaired) if o else "",
            counted(o.broken) if o else "",
            "/".join(map(str, self.judged.values())) if sum(self.judged.values()) else "",
            f"{self.forward:.0f}+{self.backward:.0f}",
            "" if self.seconds is None else f"{self.seconds:.2f}",
            *("" if value is None else f"{value:g}" for value in values),
        )


def correction_table(e: Experiment, methods: Sequence[str], seconds: Mapping[str, float]) -> PaperTable:
    """Table 2: what each method did to Euler's images, and what the index found; a line per method with labels."""
    labels = {method: e.labels(method) for method in methods}
    rows = [correction_row(e, m, own, seconds.get(m)) for m, own in labels.items() if any(x is not None for x in own)]
    found = detection(e, labels[EULER]) if CAS in methods else None
    headings = (
        "sampler", "hallucination rate ↓ (95 %)", "uncertain", "repaired ↑, of the hallucinated",
        "newly broken ↓, of the valid", "better/worse/same/unclear by eye", "NFE ↓ (F+B)", "seconds a batch ↓",
        "paper: hallucinated %", "repaired %", "newly broken %", "seconds",
    )  # fmt: skip
    d = e.study.detection
    theirs = f"Paper, {e.study.title}: {d.detected} of {d.hallucinated} hallucinated found, of {d.images} images"
    notes = [
        f"Labels: {e.label_source()}; {e.num} images each; RODS with {e.rods_settings()}.",
        theirs + ("." if d.better is None else f"; CAS better than Euler on {d.better}, worse on {d.worse}."),
    ]
    if found is not None:
        ours = f"{counted(found.hallucinated)} of the hallucinated images, {counted(found.valid)} of the valid ones"
        notes.insert(1, f"Largest H >= {found.eps:g} ({found.source}): {ours}.")
    numbers = {**e.describe(), "rows": [asdict(row) for row in rows],
               "detection": found and asdict(found), "notes": notes}  # fmt: skip
    return PaperTable(Table(headings, tuple(row.cells() for row in rows)), tuple(notes), numbers)


def correction_row(e: Experiment, method: str, labels: Sequence[Label | None], seconds: float | None) -> CorrectionRow:
    """A method's line from its labels [N] and records."""
    known, records = [label for label in labels if label is not None], e.records(method)
    return CorrectionRow(
        method,
        proportion_interval(known.count(Label.HALLUCINATED), len(known)),
        proportion_interval(known.count(Label.UNCERTAIN), len(known)),
        None if method == EULER else e.outcomes(method),
        e.judged(method),
        float(np.mean([record["forward"] for record in records])),
        float(np.mean([record["backward"] for record in records])),
        seconds,
        e.study.correction.get(method),
    )


@dataclass(frozen=True)
class DetectionRow:
    """The detector "largest H >= eps" against Euler's labels; uncertain images are left out."""

    eps: float
    source: str
    hallucinated: Proportion  # flagged of these
    valid: Proportion


def detection(e: Experiment, labels: Sequence[Label | None]) -> DetectionRow:
    """What the curvature index of the CAS run flags of Euler's images."""
    eps, source = e.threshold(CAS)
    flagged = e.scores(CAS) >= eps
    bad, valid = (flagged[[label is wanted for label in labels]] for wanted in (Label.HALLUCINATED, Label.VALID))
    return DetectionRow(eps, source, *(proportion_interval(int(x.sum()), len(x)) for x in (bad, valid)))


def batch_seconds(e: Experiment, methods: Sequence[str]) -> dict[str, float]:
    """Median seconds of a batch by method; methods take turns, after one round that is not timed."""
    jobs = {method: e.job(method) for method in methods}
    spent: dict[str, list[float]] = {method: [] for method in methods}
    for k in range(TIMED_BATCHES + 1):
        for method, job in jobs.items():
            start = time.perf_counter()
            sample_job(job, job.chunks[0]).images.cpu()
            if k:
                spent[method].append(time.perf_counter() - start)
    return {method: round(statistics.median(values), 4) for method, values in spent.items()}


def counted(p: Proportion) -> str:
    """`3/34 (8.8 %)`."""
    return f"{p.k}/{p.n} ({100 * p.rate:.1f} %)" if p.n else "0/0"
