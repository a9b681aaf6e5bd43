"""Which score finds what labels call hallucinated, of a run that is not sampled again, and at which threshold.

python scripts/score.py out/euler --labels=labels.jsonl
python scripts/score.py out/euler --network=my.pkl --detector=lid --detector=density-ratio
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import click
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works from a plain checkout, installed or not

from dnnlib.cli import Command
from dnnlib.errors import UserError, counted, of_option
from rods.bench.gate_run import progress
from rods.bench.labelled import LabelledRun, read_run
from rods.bench.scores import (
    Score,
    auroc_table,
    check_readable,
    finite_only,
    gate_in_flight,
    images_of,
    judged,
    label_counts,
    measured_score,
    name_of_finished,
    quantile_table,
    ranked,
    recorded_scores,
    score_sheet,
    threshold_table,
    with_labels,
)
from rods.detectors import Detector
from rods.labels.labels import LABELS_NAME, read_labels
from rods.runs.folder import Sheet
from rods.runs.images import save_png
from rods.runs.options import detector_option
from rods.runs.presets import find_preset, other_network
from rods.types import Denoiser
from torch_utils import distributed
from training.checkpoint import load_snapshot
from training.model_zoo import MODELS

SHEET = "scores.png"
MOST = 256


@click.command(cls=Command, context_settings={"show_default": True, "max_content_width": 120})
@click.argument("run_folder", metavar="RUN", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option(
    "--labels",
    metavar="FILE|SOURCE|FILE:SOURCE",
    help=f"A file of labels, or whose labels in RUN/{LABELS_NAME} [default: the only ones there].",
)
@click.option("--detector", "detectors", metavar="NAME[:OPTION=VALUE,...]", multiple=True,
              help="Also score the finished images by this detector of --network, such as lid, or a preset's "
              "density-ratio or readout. Can be given several times.")  # fmt: skip
@click.option("--network", metavar="FILE|URL", help="detector: the network that sampled the run.")
@click.option("--preset", metavar="NAME|FILE", help="detector: whose gate is meant [default: by the network's name].")
@click.option("--by", metavar="NAME", help="The score that orders the sheet [default: the first of the table].")
@click.option("--sheet", type=Sheet(folder_exists=True), help=f"Where to draw it [default: RUN/{SHEET}].")
@click.option("--most", type=click.IntRange(2, 4096), default=MOST, help="Images on the sheet: where there are more, "
              "every second, third, ... in the order of the score.")  # fmt: skip
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda", "mps"]), default="auto", help="Where to compute.")
@click.option("--threads", type=click.IntRange(1, 1024), help="CPU threads [default: all cores].")
def main(run_folder: Path, **opts: Any) -> None:
    """Tell how well each score of a run's images finds the hallucinated ones, and draw the images in its order.

    The scores are those that the run has recorded, at no cost, and those of each --detector, read off the finished
    images: its draws, in network evaluations an image. Without labels: quantiles and the sheet. RUN is a folder that
    generate.py made; score.py writes the sheet and nothing else.
    """
    for option in ("network", "preset"):
        if opts[option] is not None and not opts["detectors"]:
            raise UserError(f"--{option}={opts[option]} is for --detector; give one, such as lid, or leave it out")
    if opts["detectors"] and opts["network"] is None:
        raise UserError(
            f"--detector={opts['detectors'][0]} reads the network; give --network=FILE, which sampled the run"
        )
    run = finite_only(read_run(run_folder, labelled=False))
    labels = None
    if opts["labels"] is not None or (run_folder / LABELS_NAME).is_file():
        labels = read_labels(run_folder, source=opts["labels"])
        run = with_labels(run, labels)
    scores = recorded_scores(run)
    reading = Reading.of(run, opts) if opts["detectors"] else None
    names = [score.name for score in scores] + (reading.names if reading else [])
    if not names:
        raise UserError(
            f"{run_folder} has recorded no score; give --network=FILE and --detector=lid, which reads finished images"
        )
    wanted = None if opts["by"] is None else by_name(names, opts["by"])
    if reading:
        scores += reading.scores(run, opts["detectors"])
    ordered = scores
    if labels is None:
        click.echo(f"{counted(len(run), 'image')}, no labels: nothing here says which score finds what is hallucinated")
        click.echo(quantile_table(scores).markdown())
    else:
        click.echo(label_counts(run, labels))
        ordered = told(run, scores)
    chosen = next((score for score in scores if score.name == wanted), ordered[0])
    if labels is not None and judged(run, chosen):
        click.echo(f"\nThresholds of {chosen.name}:\n{threshold_table(run, chosen).markdown()}")
    draw(run, chosen, opts["sheet"] or run_folder / SHEET, opts["most"])


@dataclass(frozen=True)
class Reading:
    """Detectors that will read the finished images of a run."""

    net: Denoiser
    detectors: list[Detector]
    device: torch.device

    @classmethod
    def of(cls, run: LabelledRun, opts: dict[str, Any]) -> Reading:
        """Those that were asked for. UserError where one of them cannot read this run."""
        device = distributed.pick_device(opts["device"])
        torch.set_num_threads(opts["threads"] or distributed.usable_cores())
        with of_option("--network"):
            snapshot = load_snapshot(opts["network"], device=device)
        sha256 = run.options.get("network_sha256")
        if sha256 and sha256 != snapshot.sha256:
            raise UserError(
                f"--network={opts['network']} has checksum {snapshot.sha256[:12]}, and {run.path} was sampled by "
                f"{sha256[:12]}; give that network"
            )
        preset = find_preset(opts["preset"], network=snapshot.name, folder=MODELS, source=snapshot.source)
        for note in other_network(preset, snapshot.name, snapshot.net):
            click.echo(note)
        detectors = [detector_option(text, preset, option="--detector") for text in opts["detectors"]]
        found = cls(cast(Denoiser, snapshot.net), detectors, device)
        if repeated := next((name for name in found.names if found.names.count(name) > 1), None):
            raise UserError(f"--detector: {repeated.partition(', of')[0]} is given twice; give it once")
        check_readable(run, detectors, found.net)
        if note := gate_in_flight(preset, detectors, network=opts["network"]):
            click.echo(note)
        return found

    @property
    def names(self) -> list[str]:
        """Of the scores."""
        return [name_of_finished(detector) for detector in self.detectors]

    def scores(self, run: LabelledRun, texts: Sequence[str]) -> list[Score]:
        """What they say of the images; `texts` are their names as they were given."""
        images, found = images_of(run, "--detector"), []
        for text, detector in zip(texts, self.detectors, strict=True):
            with progress(len(run), text) as bar:
                found.append(measured_score(run, images, detector, self.net, device=self.device, report=bar.update))
        return found


def told(run: LabelledRun, scores: Sequence[Score]) -> list[Score]:
    """Prints how well each score finds what is hallucinated; the scores in that order."""
    found = ranked(run, scores)
    if not found:
        click.echo("AUROC needs hallucinated and valid images, of either kind one or more; label more")
        click.echo(quantile_table(scores).markdown())
        return list(scores)
    click.echo(auroc_table(found).markdown())
    if any(score.chose for score, _ in found):
        click.echo("* The run kept images for having a low one: on its images it finds less than it did on Euler's.")
    return [score for score, _ in found]


def by_name(names: Sequence[str], wanted: str) -> str:
    """The name that a text begins. UserError where there is none."""
    if found := next((name for name in names if name.startswith(wanted)), None):
        return found
    raise UserError(f"--by={wanted} is not a score of this run; it has {'; '.join(names)}")


def draw(run: LabelledRun, score: Score, path: Path, most: int) -> None:
    """Writes the sheet, and says what is on it or why there is none."""
    if run.is_points:
        click.echo("No sheet: the samples are points")
        return
    if all(run.image(i) is None for i in range(len(run))):
        click.echo(f"No sheet: {run.path} has its records and no PNGs")
        return
    sheet, every = score_sheet(run, score, most=most)
    save_png(sheet, path)
    shown = f"one of every {every} of {len(run)}" if every > 1 else f"all {len(run)}"
    click.echo(f"\nWrote {path}: {shown} images, by {score.name}, the highest first; frames: red hallucinated, green "
               "valid, grey uncertain or not labelled")  # fmt: skip


if __name__ == "__main__":
    main()
