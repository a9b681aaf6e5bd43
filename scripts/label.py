"""Label images by hand in the browser, and report what the raters found (paper, appendix B.6)."""

from __future__ import annotations

import json
import secrets
import sys
from math import inf
from pathlib import Path
from typing import Any

import click

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that it runs without installing the project

from dnnlib.cli import Command, Destination, Group
from dnnlib.errors import UserError, counted
from dnnlib.util import alone
from rods.eval.correction import Proportion, proportion_interval
from rods.labels.agreement import agreements, flagged, hallucination_rate, outcomes, settle, verdicts
from rods.labels.server import serve as serve_session
from rods.labels.session import CATEGORIES, Answers, open_session, read_answers
from rods.runs.records import largest_score

SAMPLES = "samples.jsonl"


@click.group(cls=Group)
def main() -> None:
    """Label images by hand: `serve` opens the page, `report` prints agreement and rates."""


@main.command(cls=Command, context_settings={"show_default": True})
@click.option("--images", type=click.Path(path_type=Path), required=True, metavar="DIR", help="Run A: the baseline.")
@click.option("--against", type=click.Path(path_type=Path), metavar="DIR", help="Run B: the same seeds, corrected.")
@click.option("--answers", type=Destination(dir_okay=False), required=True, help="The file to append to.")
@click.option("--kind", type=click.Choice(sorted(CATEGORIES)), default="hands", help="Which labels there are.")
@click.option(
    "--seed", type=click.IntRange(min=0), default=0, help="Order of the items, and side of each run in a pair."
)
@click.option("--port", type=click.IntRange(0, 65535), default=0, help="0: any that is free.")
@click.option("--token", metavar="TEXT", help="The secret part of the address [default: random].")
def serve(
    images: Path, against: Path | None, answers: Path, kind: str, seed: int, port: int, token: str | None
) -> None:
    """Serve the labelling page on this machine (127.0.0.1) until Ctrl-C.

    Every rater opens the address, types an id, and works by keyboard; every answer is one line of --answers, on the
    disk before it counts as given. The same command goes on where it was.
    """
    if token is not None and not (token.isascii() and token.isalnum()):
        raise UserError(f"--token={token} must be letters and digits")
    session = open_session(images, against, kind=kind, seed=seed)
    if answers.exists():
        read_answers(answers, session.identity)  # whose file it is, before anything is done to it
    answers.parent.mkdir(parents=True, exist_ok=True)
    with open(answers, "ab"):
        pass
    with alone(answers, busy=f"--answers={answers}: another server appends to it; stop that one first"):
        store = Answers(answers, session)
        pairs = len(session.of_mode("pair"))
        click.echo(
            f"{counted(len(session.of_mode('image')), 'image')}, {counted(pairs, 'pair')} of different images; "
            f"{counted(len(store.lines), 'answer')} so far"
        )
        serve_session(store, port=port, token=token or secrets.token_hex(16), say=click.echo)


@main.command(cls=Command)
@click.option("--answers", type=click.Path(exists=True, dir_okay=False, path_type=Path), required=True)
@click.option(
    "--samples", type=click.Path(exists=True, path_type=Path), help=f"{SAMPLES} of the run, for the detector."
)
@click.option("--run", type=click.Choice(["A", "B"]), default="A", show_default=True, help="Which run --samples is of.")
@click.option("--eps", type=click.FloatRange(min=0), help="The detector flags an image whose largest H reaches this.")
def report(answers: Path, samples: Path | None, run: str, eps: float | None) -> None:
    """Print the raters' agreement, hallucination, correction and new-hallucination rates, and the confusion matrix."""
    if (samples is None) != (eps is None):
        raise UserError("--samples and --eps belong together; give both or none")
    lines = read_answers(answers)
    if not lines:
        raise UserError(f"--answers={answers} holds no answers yet; label some images first")
    kind = _kind(answers)
    for mode in ("image", "pair"):
        _print_agreement(lines, mode, kind)
    labels, pairs = settle(lines, "image"), settle(lines, "pair")
    if labels.answers:
        click.echo(f"\nImages: {len(labels.answers)} with one label, {labels.disputed} disputed (left out)")
        for name in sorted({where for where, _ in labels.answers}):
            click.echo(f"  hallucinated, run {name}: {_rate(hallucination_rate(labels, name))}")
        paired = outcomes(labels)
        if paired.n:
            click.echo(f"  corrected (hallucinated in A, normal in B): {_rate(paired.repaired)}")
            click.echo(f"  newly hallucinated (normal in A, not in B): {_rate(paired.broken)}")
            click.echo(f"  McNemar, exact: p = {paired.mcnemar_p:.3g}")
    if pairs.answers:
        counts, p = verdicts(pairs)
        said = ", ".join(f"{k} {v}" for k, v in counts.items())
        click.echo(f"\nPairs: run B against run A: {said}; {pairs.disputed} disputed; sign test p = {p:.3g}")
    if samples is not None and eps is not None:
        found = flagged(labels, _max_scores(samples), run=run, eps=eps)
        tpr = proportion_interval(found.tp, found.tp + found.fn)
        fpr = proportion_interval(found.fp, found.fp + found.tn)
        click.echo(f"\nDetector, largest H >= {eps:g}: tp {found.tp}, fp {found.fp}, fn {found.fn}, tn {found.tn}")
        click.echo(f"  found of the hallucinated: {_rate(tpr)}\n  false alarms: {_rate(fpr)}")


def _print_agreement(lines: Any, mode: str, kind: str) -> None:
    for (a, b), agreement in agreements(lines, mode, kind).items():
        if not agreement.n:
            continue
        click.echo(
            f"{a} and {b}, {mode}s: n = {agreement.n}, same answer {agreement.observed:.1%}, "
            f"Cohen's kappa {agreement.kappa:.3f}"
        )
        width = max(map(len, agreement.categories))
        for category, row in zip(agreement.categories, agreement.table, strict=True):
            click.echo(f"  {category:{width}} " + " ".join(f"{count:4d}" for count in row))


def _kind(answers: Path) -> str:
    with open(answers) as f:
        return str(json.loads(f.readline())["session"]["kind"])


def _rate(p: Proportion) -> str:
    return f"{p.k} of {p.n} = {p.rate:.1%} ({p.low:.1%} to {p.high:.1%})" if p.n else "none"


def _max_scores(samples: Path) -> dict[str, float]:
    path = samples / SAMPLES if samples.is_dir() else samples
    try:
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        return {line["name"]: largest_score(line) for line in lines if largest_score(line) > -inf}
    except (ValueError, LookupError, TypeError):
        raise UserError(f"--samples={samples} is not the {SAMPLES} of a run; give that of generate.py") from None


if __name__ == "__main__":
    main()
