"""What the commands table1 and table2 of scripts/figures.py do, and share with scripts/reproduce_paper.py."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click
import torch

from dnnlib.cli import SeedList, with_options
from dnnlib.errors import UserError
from rods.bench.paper import BATCH, METHODS, NUM_TABLE_1, STUDIES, Study, study_of
from rods.bench.paper_correction import BASELINE, CAS, answered_labels, correction_rows, detection_row, task_labels
from rods.bench.paper_quality import QualityRow, quality_rows, reference_for, task_of
from rods.bench.paper_runs import Protocol, Runs, Say
from rods.bench.paper_text import (
    FORMATS,
    correction_json,
    correction_table,
    detection_lines,
    quality_json,
    quality_table,
    rendered,
)
from rods.eval.dreamsim import dreamsim_extractor
from rods.eval.extractors import NAMES, default_extractor, open_extractor
from rods.eval.features import Extractor
from rods.eval.metrics import parse_metrics, size_warnings
from rods.eval.reference import Reference
from rods.runs.presets import find_preset
from torch_utils import distributed
from training.checkpoint import load_snapshot
from training.model_zoo import MODELS

EMBEDDED = MODELS / "hands-32.safetensors"
FEATURE_BATCH = 64
TABLE_1_METRICS = "fid,inception-var,cosine"
F = TypeVar("F", bound=Callable[..., Any])


def run_options(command: F) -> F:
    """Which images: network, seeds, settings, and where they go."""
    options = (
        click.option("--network", metavar="FILE|URL", help="Network [default: the embedded hands-32]."),
        click.option("--preset", metavar="NAME|FILE", help="Settings of rods-cas [default: by the network's name]."),
        click.option("--paper", "study", type=click.Choice(list(STUDIES)),
                     help="Whose values to print beside ours [default: by the network's name; else 11k-hands]."),
        click.option("--seeds", type=SeedList(), help="Seeds [default: the paper's, 0-119; hands 0-99]."),
        click.option("--batch", type=click.IntRange(1, 100_000), default=BATCH, show_default=True,
                     help="Images in a batch; a seed draws a whole one, as in the paper."),
        click.option("--per-image", is_flag=True, help="A seed per image in place of a seed per batch."),
        click.option("--out", type=click.Path(file_okay=False, path_type=Path), default="out/tables",
                     show_default=True, help="Where images and numbers are kept; a second run goes on from there."),
        click.option("--device", type=click.Choice(["auto", "cpu", "cuda", "mps"]), default="auto", show_default=True,
                     help="Where to run."),
        click.option("--threads", type=click.IntRange(1, 1024), help="CPU threads [default: all cores]."),
    )  # fmt: skip
    return with_options(command, options)


format_option = click.option(
    "--format",
    "form",
    type=click.Choice(FORMATS),
    default="text",
    show_default=True,
    help="How the table is printed.",
)


def quality_options(command: F) -> F:
    """How images are measured."""
    options = (
        click.option("--ref", metavar="NPZ|URL", help="Reference statistics [default: real data of the network's "
                                                      "task; needed for other networks]."),
        click.option("--force", is_flag=True, help="Compare although detector or resize of --ref differ."),
        click.option("--num-real", type=click.IntRange(4), default=2000, show_default=True,
                     help="Real images where there is no --ref."),
        click.option("--num", type=click.IntRange(2), default=NUM_TABLE_1, show_default=True,
                     help="Images measured, the first of each run."),
        click.option("--metrics", default=TABLE_1_METRICS, show_default=True, help="As fid.py's; dreamsim too."),
        click.option("--detector", metavar="NAME|FILE|URL",
                     help=f"{', '.join(NAMES)}, or a file of the Inception [default: inception; efficientnet-lite0 "
                          "where it is not to be had]."),
        click.option("--resize", help="As fid.py's."),
        click.option("--trust-detector", metavar="SHA256", help="As fid.py's."),
    )  # fmt: skip
    return with_options(command, options)


def table_1(opts: dict[str, Any]) -> str:
    """Table 1 as it is printed, from the command's options."""
    methods = parse_methods(opts["samplers"], need=())
    runs, study = open_runs(opts, methods)
    names, extractors, reference = open_quality(opts, runs, say=say)
    runs.sample(methods, say=say)
    rows, lines = measured(opts, runs, methods, study, names, extractors, reference)
    data = {"table": 1, **about(runs, study, methods), "notes": lines, "rows": quality_json(rows)}
    return rendered(quality_table(rows), lines, data, opts["form"])


def table_2(opts: dict[str, Any]) -> str:
    """Table 2 as it is printed, from the command's options."""
    methods = parse_methods(opts["samplers"], need=(BASELINE,))
    answers = parse_answers(opts["answers"], methods)
    runs, study = open_runs(opts, methods)
    task = None if answers else task_of(runs.snapshot.name)
    if task is None and not answers:
        raise UserError(
            f"--answers is needed: nothing labels the images of {runs.snapshot.name} by machine. Label by hand with "
            "scripts/label.py serve, then give --answers=rods-cas=FILE"
        )
    runs.sample(methods, say=say)
    seconds = runs.times(methods, say=say) if opts["times"] else {}
    if task is None:
        labels, judged = answered_labels(runs, answers, kind=study.kind)
        source = "the labelling page"
    else:
        labels, judged, source = {m: task_labels(task, runs, m) for m in methods}, {}, f"the labeller of {task.name}"
    rows = correction_rows(runs, labels, study, seconds=seconds, judged=judged)
    found = detection_row(runs, labels[BASELINE]) if CAS in methods else None
    lines = [f"Labels: {source}; {runs.protocol.num} images each", *detection_lines(found, study)]
    data = {"table": 2, **about(runs, study, methods), "notes": lines, **correction_json(rows, found, study)}
    return rendered(correction_table(rows), lines, data, opts["form"])


def say(line: str) -> None:
    """Progress, on stderr: the table alone is on stdout."""
    click.echo(line, err=True)


def parse_methods(text: str, *, need: Sequence[str]) -> list[str]:
    """`euler,heun` -> methods in the paper's order. Raises UserError: an unknown one, or one of `need` is missing."""
    given = [part.strip() for part in text.split(",")]
    if unknown := [name for name in given if name not in METHODS]:
        raise UserError(f"--samplers={text}: {unknown[0]!r} is unknown; use some of {','.join(METHODS)}")
    if missing := [name for name in need if name not in given]:
        raise UserError(f"--samplers={text}: {missing[0]} is missing; all others are compared with it")
    return [name for name in METHODS if name in given]


def parse_answers(given: Sequence[str], methods: Sequence[str]) -> dict[str, Path]:
    """`rods-cas=answers.jsonl` -> {method: file}. Raises UserError: another form, no such file, another method."""
    found = {}
    for text in given:
        method, equals, path = text.partition("=")
        if not equals or method not in methods or method == BASELINE:
            others = [m for m in methods if m != BASELINE]
            raise UserError(f"--answers={text}: write SAMPLER=FILE with one of {', '.join(others)}")
        if not Path(path).is_file():
            raise UserError(f"--answers={text}: there is no file {path}; scripts/label.py serve makes it")
        found[method] = Path(path)
    return found


def open_runs(opts: dict[str, Any], methods: Sequence[str]) -> tuple[Runs, Study]:
    """The runs of --network below --out, checked, and the paper's study beside them."""
    device = distributed.pick_device(opts["device"])
    torch.set_num_threads(opts["threads"] or distributed.usable_cores())
    snapshot = load_snapshot(opts["network"] or EMBEDDED, device=device)
    study = STUDIES[opts["study"]] if opts["study"] else study_of(snapshot.name)
    preset = find_preset(opts["preset"], network=snapshot.name, folder=MODELS)
    protocol = Protocol(tuple(opts["seeds"] or study.seeds), opts["batch"], device, opts["per_image"])
    runs = Runs(opts["out"] / snapshot.name, snapshot, preset, protocol)
    runs.check(methods)
    return runs, study


def open_quality(opts: dict[str, Any], runs: Runs, *, say: Say) -> tuple[list[str], list[Extractor], Reference]:
    """(metrics, extractors, reference) of Table 1; everything that can be missing is missing now."""
    names, device = parse_metrics(opts["metrics"]), runs.protocol.device
    main = _main_extractor(opts, device, say=say)
    extractors = [main, *([dreamsim_extractor(device=device)] if "dreamsim" in names else [])]
    reference = reference_for(
        runs, main, given=opts["ref"], force=opts["force"], num_real=opts["num_real"], batch=FEATURE_BATCH, say=say
    )
    return names, extractors, reference


def _main_extractor(opts: dict[str, Any], device: torch.device, *, say: Say) -> Extractor:
    name, resize, trust = opts["detector"], opts["resize"], opts["trust_detector"]
    if name is None and resize is None and trust is None:
        return default_extractor(device=device, say=say)
    return open_extractor(name or "inception", device=device, resize=resize, trust=trust)


def measured(
    opts: dict[str, Any],
    runs: Runs,
    methods: Sequence[str],
    study: Study,
    names: Sequence[str],
    extractors: Sequence[Extractor],
    reference: Reference,
) -> tuple[list[QualityRow], list[str]]:
    """Table 1's rows, and what they must not be printed without."""
    rows = quality_rows(
        runs, methods, study, extractors, reference, metrics=names, num=opts["num"], batch=FEATURE_BATCH, say=say
    )
    lines = [f"Features: {'; '.join(e.describe() for e in extractors)}; reference n = {reference.n or 'unknown'}"]
    lines.append(f"The paper's values: {study.title}, its network, TF-Inception; ours: {runs.snapshot.describe()}")
    if "dreamsim" not in names:
        has = "" if importlib.util.find_spec("dreamsim") else " (pip install 'rods-toolkit[dreamsim]')"
        lines.append(
            f"DreamSim was not measured: add dreamsim to --metrics{has}; Cosine is its formula on our features"
        )
    return rows, lines + [f"Warning: {w}" for w in size_warnings(names, rows[0].results[0].n, reference.n)]


def about(runs: Runs, study: Study, methods: Sequence[str]) -> dict[str, Any]:
    """What a table's JSON says of its images."""
    p = runs.protocol
    return {
        "network": runs.snapshot.name,
        "network_sha256": runs.snapshot.sha256,
        "study": study.name,
        "seeds": [p.seeds[0], p.seeds[-1], len(p.seeds)],
        "batch": p.batch,
        "seeding": "per-image" if p.per_image else "per-batch",
        "configs": {method: runs.config(method).describe() for method in methods},
    }
