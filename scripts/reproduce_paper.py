"""The paper's experiment on one network, in one command: sample, measure, label, Tables 1 and 2, figures, one JSON."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that it runs without installing the project

from dnnlib.cli import Command
from dnnlib.errors import UserError
from dnnlib.util import atomic_write
from rods.bench.paper import METHODS, TABLE_1_METHODS, Study
from rods.bench.paper_commands import (
    about,
    measured,
    open_quality,
    open_runs,
    parse_methods,
    quality_options,
    run_options,
    say,
)
from rods.bench.paper_correction import (
    BASELINE,
    CAS,
    answered_labels,
    correction_rows,
    detection_row,
    write_machine_answers,
)
from rods.bench.paper_quality import task_of
from rods.bench.paper_runs import Runs, machine
from rods.bench.paper_text import correction_json, correction_table, detection_lines, quality_json, quality_table
from rods.bench.plots.commands import PLANS
from rods.bench.rating_report import agreements, settle
from rods.runs.rating import read_answers
from rods.runs.sampling import finite, largest_score
from training.header import tool_version

ROOT = Path(__file__).resolve().parent.parent
RESULT = "reproduction.json"
FIGURES = {
    "ffhq": ("fig4", "fig6", "fig11", "fig14"),
    "afhqv2": ("fig3", "fig8", "fig11", "fig13"),
    "11k-hands": ("fig5", "fig7", "fig9", "fig10", "fig12"),
}
REHEARSAL = {"seeds": [0, 1, 2, 3], "batch": 4, "num_real": 100, "detector": "efficientnet-lite0",
             "resize": "bicubic-128"}  # fmt: skip
RATERS = ("machine-1", "machine-2")


@click.command(cls=Command)
@run_options
@quality_options
@click.option("--samplers", default=",".join(METHODS), show_default=True, help=f"Some of {','.join(METHODS)}.")
@click.option("--figures", help="Figures to draw, as scripts/figures.py names them; none for none [default: the "
                                "data set's own].")  # fmt: skip
@click.option("--rehearse", is_flag=True, help="Small numbers, and labels by the task's labeller in place of people.")
def main(**opts: Any) -> None:
    """Repeat the paper's experiment on a network: sample, time, Table 1, labels by hand, Table 2, figures.

    The same command goes on where it was: it stops once for the labels, and is run again when they are there. What to
    send back is OUT/reproduction.json; it holds a part for every network that was run with the same --out.

    \b
    Examples:
      python scripts/reproduce_paper.py --network=edm-ffhq-64x64-uncond-ve.pkl --ref=ffhq-64x64.npz --out=repro
      python scripts/reproduce_paper.py --network=my-hands.safetensors --preset=hands-128-ve --ref=hands.npz --out=repro
      python scripts/reproduce_paper.py --rehearse --out=out/rehearsal
    """
    opts = with_rehearsal(opts) if opts["rehearse"] else opts
    methods = parse_methods(opts["samplers"], need=(BASELINE, CAS))
    out = Path(opts["out"])
    runs, study = open_runs({**opts, "out": out / "samples"}, methods)
    names, extractors, reference = open_quality(opts, runs, say=say)
    start = time.monotonic()
    found: dict[str, Any] = {**about(runs, study, methods), "rehearsal": opts["rehearse"], "made_on": made_on(runs)}
    say(f"1 of 5: {runs.protocol.num} images by each of {', '.join(methods)}")
    runs.sample(methods, say=say)
    say("2 of 5: seconds a batch")
    seconds = found["seconds_a_batch"] = runs.times(methods, repeats=1 if opts["rehearse"] else 3, say=say)
    say("3 of 5: Table 1")
    shown = [m for m in TABLE_1_METHODS if m in methods]
    rows, lines = measured(opts, runs, shown, study, names, extractors, reference)
    click.echo("\n".join(["Table 1", quality_table(rows).text(), *lines, ""]))
    found["table1"] = {"rows": quality_json(rows), "notes": lines}
    say("4 of 5: labels")
    answers = {m: out / "answers" / runs.snapshot.name / f"{m}.jsonl" for m in methods if m != BASELINE}
    if opts["rehearse"]:
        label_by_machine(runs, answers, study)
    there = {m: path for m, path in answers.items() if path.is_file() and read_answers(path)}
    if there:
        found |= table_2(runs, study, there, seconds)
        say("5 of 5: figures")
        found["figures"] = draw(opts, runs, study, there, out)
    save(out / RESULT, runs.snapshot.name, found)
    if waiting := [m for m in answers if m not in there]:
        click.echo(how_to_label(runs, study, {m: answers[m] for m in waiting}))
    say(f"{out / RESULT} is what to send back ({time.monotonic() - start:.0f} s in this run)")


def with_rehearsal(opts: dict[str, Any]) -> dict[str, Any]:
    """The options with small numbers where none were given. Raises UserError for a network that no task labels."""
    name = Path(opts["network"]).stem if opts["network"] else "hands-32"
    if task_of(name) is None:
        raise UserError(f"--rehearse --network={opts['network']}: nothing labels its images; leave --network out")
    context = click.get_current_context()
    given = click.core.ParameterSource.COMMANDLINE
    small = {k: v for k, v in REHEARSAL.items() if context.get_parameter_source(k) is not given}
    if context.get_parameter_source("detector") is given:
        small.pop("resize", None)
    return {**opts, **small}


def made_on(runs: Runs) -> dict[str, Any]:
    return {
        "machine": machine(runs.protocol.device),
        "torch": torch.__version__,
        "version": tool_version(),
        "network": runs.snapshot.describe(),
    }


def label_by_machine(runs: Runs, answers: dict[str, Path], study: Study) -> None:
    """Answers of the task's labeller, in the page's form and through its own store; the raters' names say so."""
    task = task_of(runs.snapshot.name)
    assert task is not None  # with_rehearsal has checked
    for method, path in answers.items():
        count = write_machine_answers(runs, method, path, kind=study.kind, task=task, raters=RATERS)
        say(f"{path}: {count} answers by the labeller of {task.name}, no person's")


def table_2(runs: Runs, study: Study, answers: dict[str, Path], seconds: dict[str, float]) -> dict[str, Any]:
    """Table 2 from answers, printed, and what goes into the JSON, with each image's labels and largest H."""
    labels, judged = answered_labels(runs, answers, kind=study.kind)
    rows = correction_rows(runs, labels, study, seconds=seconds, judged=judged)
    detection = detection_row(runs, labels[BASELINE])
    rating = {m: agreement(read_answers(path), study.kind) for m, path in answers.items()}
    lines = [f"Labels: {len(labels[BASELINE])} of {runs.protocol.num} baseline images have one label"]
    for method, r in rating.items():
        kappas = ", ".join(f"{kappa:.2f} ({who})" for who, kappa in r["kappa"].items())
        lines.append(f"{method}: {r['disputed']} images disputed; Cohen's kappa {kappas or 'needs two raters'}")
    lines += detection_lines(detection, study)
    click.echo("\n".join(["Table 2", correction_table(rows).text(), *lines, ""]))
    images = [
        {
            "name": record["name"],
            "H": finite([largest_score(record)])[0],
            "labels": {m: own[record["name"]].name.lower() for m, own in labels.items() if record["name"] in own},
        }
        for record in runs.records(CAS)
    ]
    return {"table2": {**correction_json(rows, detection, study), "rating": rating, "notes": lines}, "images": images}


def agreement(lines: Sequence[dict[str, Any]], kind: str) -> dict[str, Any]:
    """How many images and pairs have an answer, how many are disputed, and Cohen's kappa of every two raters."""
    images, pairs = settle(lines, "image"), settle(lines, "pair")
    kappas = {f"{a}, {b}": round(x.kappa, 4) for (a, b), x in agreements(lines, "image", kind).items() if x.n}
    return {"images": len(images.answers), "disputed": images.disputed, "pairs": len(pairs.answers), "kappa": kappas}


def how_to_label(runs: Runs, study: Study, answers: dict[str, Path]) -> str:
    """The commands that open the labelling page, one for each method."""
    lines = [
        "Now label by hand (docs/labelling.md): two raters, then the rater 'consensus'. Open, one after the other,"
    ]
    for method, path in answers.items():
        lines.append(
            f"  python scripts/label.py serve --kind={study.kind} --images={runs.path(BASELINE)} "
            f"--against={runs.path(method)} --answers={path}"
        )
    return "\n".join([*lines, "then run the same command again: Table 2 and the figures come from the answers."])


def draw(opts: dict[str, Any], runs: Runs, study: Study, answers: dict[str, Path], out: Path) -> dict[str, str]:
    """Every figure by its own command, on the images that are there; a figure that fails stops no other."""
    names = FIGURES[study.name] if opts["figures"] is None else [n for n in opts["figures"].split(",") if n != "none"]
    p = runs.protocol
    said = {}
    for name in names:
        options = {"network": opts["network"] or runs.snapshot.source, "preset": opts["preset"], "batch": p.batch,
                   "seeds": ",".join(map(str, p.seeds)), "device": p.device.type, "threads": opts["threads"],
                   "out": out}  # fmt: skip
        command = [sys.executable, str(ROOT / "scripts" / "figures.py"), name]
        command += [f"--{k}={v}" for k, v in options.items() if v is not None]
        command.append("--per-image" if p.per_image else "--per-batch")
        shown = PLANS[name].methods if name in PLANS else ()
        command += [f"--answers={m}={path}" for m, path in answers.items() if m in shown]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        text = (done.stdout if done.returncode == 0 else done.stderr).strip()
        said[name] = text if done.returncode == 0 else f"not drawn: {text.splitlines()[-1] if text else 'no reason'}"
        say(f"{name}: {said[name].splitlines()[0]}")
    return said


def save(path: Path, network: str, found: dict[str, Any]) -> None:
    """Puts a network's part into the JSON, beside those of other networks."""
    everything = json.loads(path.read_text()) if path.is_file() else {"schema": 1, "networks": {}}
    everything["networks"][network] = found
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(everything, indent=1) + "\n")


if __name__ == "__main__":
    main()
