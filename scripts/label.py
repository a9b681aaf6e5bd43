"""Label images by hand in the browser, and report what the raters found (paper, appendix B.6).

python scripts/label.py serve --images=out/euler --labels=good,bad --answers=out/labels.jsonl
python scripts/label.py serve --images=out/euler --against=out/restart --answers=out/labels.jsonl
python scripts/label.py report --answers=out/labels.jsonl --images=out/euler --against=out/restart
python scripts/label.py export --answers=out/labels.jsonl --dest=labels.csv
python scripts/label.py import labels.csv --images=out/euler --answers=out/labels.jsonl
"""

from __future__ import annotations

import secrets
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that it runs without installing the project

from dnnlib.cli import Command, Destination, Group, check_once
from dnnlib.errors import UserError, counted, user_errors
from dnnlib.util import alone
from rods.bench.proposal_activations import proposal_activations
from rods.labels.agreement import people_in
from rods.labels.exchange import read_class_folders, read_csv, write_class_folders, write_csv
from rods.labels.folders import Folder, read_folder
from rods.labels.growing_file import Line, append_lines, end_whole, ident
from rods.labels.label_set import LabelSet, label_set
from rods.labels.labels import settle
from rods.labels.old_answers import read_any
from rods.labels.proposals import by_score, most_telling, run_thresholds, scores_by_sum
from rods.labels.report import Runs, agreement_lines, detector_lines, pair_lines, rate_lines
from rods.labels.server import serve as serve_session
from rods.labels.session import RATER, Answers, Order, open_session

FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)
FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


class LabelSetType(click.ParamType):  # type: ignore[type-arg]
    name = "labels"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> LabelSet:
        if isinstance(value, LabelSet):
            return value
        with user_errors("--labels"):
            return label_set(value)


labels_option = click.option(
    "--labels",
    type=LabelSetType(),
    default="hands",
    help="Answers with commas between, such as good,bad: the first is for a valid image, the others for hallucinated "
    "ones, or as WORD=valid|hallucinated|uncertain says; or a set of the paper, hands or faces.",
)


def images_option(text: str, *, required: bool = False) -> Callable[[Any], Any]:
    return click.option("--images", type=FOLDER, multiple=True, required=required, help=text)


@click.group(cls=Group)
def main() -> None:
    """Label images by hand: `serve` opens the page, `report` prints agreement and rates.

    `import` and `export` exchange labels with other tools. All work on one file of labels, --answers, which grows.
    """


@main.command(cls=Command, context_settings={"show_default": True, "max_content_width": 120})
@images_option("A folder of images, such as a run; can be given several times.", required=True)
@click.option("--against", type=FOLDER, help="A second run of the same seeds, for pairs too: the corrected one.")
@click.option("--answers", type=Destination(dir_okay=False), required=True, help="The file of labels, which grows.")
@labels_option
@click.option("--order", metavar="SCORE", help="The highest score of the runs' records first, such as lid.")
@click.option("--next", "count", type=click.IntRange(min=1), help="Only so many images, whose labels would tell most.")
@click.option("--network", type=FILE, help="next: choose by this network's activations, at one F an image.")
@click.option("--repeat", type=click.IntRange(min=0), default=0, help="Images to ask a second time, at the end.")
@click.option("--seed", type=click.IntRange(min=0), default=0, help="Order, and side of each run in a pair.")
@click.option("--port", type=click.IntRange(0, 65535), default=0, help="0: any that is free.")
@click.option("--token", metavar="TEXT", help="The secret part of the address [default: random].")
def serve(images: Sequence[Path], against: Path | None, answers: Path, token: str | None, **opts: Any) -> None:
    """Serve the labelling page on this machine (127.0.0.1) until Ctrl-C.

    Every rater opens the address, types an id, and works by keyboard or clicks in a grid; every answer is one line of
    --answers, on the disk before it counts as given. The same command goes on where it was, and with more images it
    asks for what the file lacks: labels belong to image files, wherever these lie.
    """
    if token is not None and not (token.isascii() and token.isalnum()):
        raise UserError(f"--token={token} must be letters and digits")
    if opts["order"] and opts["count"]:
        raise UserError(f"--order={opts['order']} and --next both say which images come first; give one of them")
    if opts["network"] and not opts["count"]:
        raise UserError(f"--network={opts['network']} is for --next; give it, or leave --network out")
    check_once([*images, *([against] if against else [])], option="--images, --against: ")
    folders = [read_folder(path, option="--images") for path in images]
    second = None if against is None else read_folder(against, option="--against")
    order = _order([*folders, *([second] if second else [])], answers, opts)
    session = open_session(
        folders, second, labels=opts["labels"], seed=opts["seed"], repeat=opts["repeat"], order=order
    )
    end_whole(answers)  # whose file it is, before anything is done to it
    answers.parent.mkdir(parents=True, exist_ok=True)
    with open(answers, "ab"):
        pass
    with alone(answers, busy=f"--answers={answers}: another server appends to it; stop that one first"):
        store = Answers(answers, session)
        shown, pairs = len(session.of_mode("image")), len(session.of_mode("pair"))
        click.echo(
            f"{counted(shown, 'image')}, {counted(pairs, 'pair')} of different images; "
            f"{counted(len(store.lines), 'answer')} so far. {session.labels.describe()}"
        )
        serve_session(store, port=opts["port"], token=token or secrets.token_hex(16), say=click.echo)


def _order(folders: Sequence[Folder], answers: Path, opts: dict[str, Any]) -> Order | None:
    """What --order or --next ask for; None: shuffled."""
    if not opts["order"] and not opts["count"]:
        return None
    sums = list(dict.fromkeys(checksum for folder in folders for checksum in folder.sums.values()))
    scores = scores_by_sum(folders)
    if opts["order"]:
        return by_score(opts["order"], scores, sums)
    labels = settle(people_in(read_any(answers))) if answers.exists() else {}
    activations = None
    if opts["network"]:
        files = {checksum: path for folder in folders for checksum, path in folder.by_sum.items()}
        activations = proposal_activations(opts["network"], [files[checksum] for checksum in sums])
    shuffled = [
        item.sums[0] for item in open_session(folders, labels=opts["labels"], seed=opts["seed"]).of_mode("image")
    ]
    order, how = most_telling(
        opts["count"], sums, labels, activations=activations, scores=scores, thresholds=run_thresholds(folders),
        shuffled=shuffled,
    )  # fmt: skip
    if not order.sums:
        raise UserError(f"--next={opts['count']}: {answers} has a label of every image; sample more")
    left = len(set(sums) - labels.keys())
    click.echo(f"The next {counted(len(order.sums), 'image')} of {left} without a label: {how}")
    return order


@main.command(cls=Command, context_settings={"max_content_width": 120})
@click.option("--answers", type=FILE, required=True, help="The file of labels; one of before version 0.2 will do.")
@click.option("--images", type=FOLDER, help="The run whose rates are wanted [default: all images of the file].")
@click.option("--against", type=FOLDER, help="A second run, compared with it.")
@click.option("--eps", type=click.FloatRange(min=0), help="Judge the detector that flags an image whose largest H "
              "reaches this, by the records of --images.")  # fmt: skip
def report(answers: Path, images: Path | None, against: Path | None, eps: float | None) -> None:
    """Print agreement of the raters, rates and verdicts.

    Rates are the share of hallucinated images, and with --against what was corrected and what newly hallucinated.
    """
    if images is None and (against is not None or eps is not None):
        raise UserError("--against and --eps need --images; give the run that is the baseline")
    check_once([path for path in (images, against) if path is not None], option="--images, --against: ")
    folders = {
        run: read_folder(path, option=option)
        for run, path, option in (("A", images, "--images"), ("B", against, "--against"))
        if path is not None
    }
    lines = read_any(answers, folders or None)
    if not lines:
        raise UserError(f"--answers={answers} holds no answers of these images yet; label some first")
    runs = Runs.of(lines, folders)
    said = [*agreement_lines(lines), *rate_lines(lines, runs), *pair_lines(lines, runs)]
    if eps is not None and images is not None:
        said += detector_lines(runs, images, eps)
    for line in said:
        click.echo(line)


@main.command("import", cls=Command, context_settings={"show_default": True, "max_content_width": 120})
@click.argument("source", type=click.Path(exists=True, path_type=Path))
@images_option("Folders of the images that a CSV or an old answers file names; of the latter, run A.")
@click.option("--against", type=FOLDER, help="Run B of an old answers file.")
@labels_option
@click.option("--rater", default="import", help="Whose labels these are, where SOURCE does not say.")
@click.option("--answers", type=Destination(dir_okay=False), required=True, help="The file of labels to add to.")
def import_labels(
    source: Path, images: Sequence[Path], against: Path | None, labels: LabelSet, rater: str, answers: Path
) -> None:
    """Add labels to the file.

    SOURCE is a CSV (columns label, and name or sha256), a folder with folders that are named as the labels, another
    file of labels, or an answers file of before version 0.2. What is there already is not added again.
    """
    if not RATER.fullmatch(rater):
        raise UserError(f"--rater={rater} must be small letters, digits, - and _")
    check_once([*images, *([against] if against else [])], option="--images, --against: ")
    is_csv = source.suffix.lower() == ".csv"
    if against is not None and (source.is_dir() or is_csv or not images):
        what = "an answers file of before version 0.2, after --images" if not images else "such a file alone"
        raise UserError(
            f"--against={against} is for {what}; leave it out" + (", or give several --images" if is_csv else "")
        )
    if images and source.is_dir():
        raise UserError(f"--images={images[0]}: {source} holds its images itself; leave it out")
    if len(images) > 1 and not is_csv:
        raise UserError(f"--images={images[1]}: a file of labels is of one folder, and of --against; leave it out")
    folders = [read_folder(path, option="--images") for path in images]
    lines: Sequence[Line]
    if source.is_dir():
        lines = read_class_folders(source, labels, rater)
    elif is_csv:
        lines = read_csv(source, folders, labels, rater)
    else:
        pairs = zip(
            "AB", [*folders[:1], *([read_folder(against, option="--against")] if against else [])], strict=False
        )
        lines = _with_sums(source, dict(pairs))
    end_whole(answers)
    known = {ident(line) for line in read_any(answers)} if answers.exists() else set()
    new = [line for line in lines if ident(line) not in known]
    answers.parent.mkdir(parents=True, exist_ok=True)
    append_lines(answers, new)
    click.echo(f"{counted(len(new), 'label')} added to {answers}, there already: {len(lines) - len(new)}")


def _with_sums(source: Path, folders: dict[str, Folder]) -> list[Line]:
    lines = read_any(source, folders or None)
    if any(":" in text for line in lines for text in (line.get("sha256") or "", *line.get("pair", ()))):
        raise UserError(
            f"{source} is of before version 0.2; give the folders that were labelled by --images, --against"
        )
    return lines


@main.command(cls=Command, context_settings={"max_content_width": 120})
@click.option("--answers", type=FILE, required=True, help="The file of labels.")
@images_option("Folders whose labelled images are copied, where DEST is a folder.")
@click.option("--dest", type=Destination(), required=True, help="A file.csv, or a folder for one folder a label.")
def export(answers: Path, images: Sequence[Path], dest: Path) -> None:
    """Write labels as a CSV or as folders of images.

    A CSV gets a row for each answer that counts; a folder, copies of the images in DEST/valid, DEST/hallucinated and
    DEST/uncertain, by what the raters agree on.
    """
    lines = read_any(answers)
    if not people_in(lines):
        raise UserError(f"--answers={answers} has no labels of people; export writes theirs alone")
    check_once([*images, dest], option="--images, --dest: ")
    check_once([answers, dest], option="--answers, --dest: ")
    if any(dest.resolve().is_relative_to(path.resolve()) for path in images):
        raise UserError(f"--dest={dest} is inside of --images, which would hold the copies too; name another place")
    if dest.suffix.lower() == ".csv":
        if images:
            raise UserError(f"--images={images[0]} is for a folder to copy to; {dest} gets all labels: leave it out")
        click.echo(f"{counted(write_csv(lines, dest), 'label')} written to {dest}")
        return
    if not images:
        raise UserError(f"--dest={dest} is a folder to copy images to; give theirs by --images, or name a file.csv")
    counts = write_class_folders(lines, [read_folder(path, option="--images") for path in images], dest)
    click.echo(f"Copied to {dest}: " + (", ".join(f"{n} {label}" for label, n in sorted(counts.items())) or "no image"))


if __name__ == "__main__":
    main()
