"""Makes every mistake of a list, on purpose, and writes what the commands say to docs/errors.md."""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import runpy
import shlex
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click
import PIL.Image
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works from a plain checkout, installed or not

from dnnlib.cli import Command
from dnnlib.util import atomic_write
from training.checkpoint import save_snapshot
from training.networks import EDMPrecond

ROOT = Path(__file__).resolve().parents[1]
GENERATE = "generate.py --outdir=out --network="
WITH_PLAIN = "generate.py --network=plain.safetensors --outdir="
CONVERT = "scripts/convert.py --dest=new.safetensors --source="
CALC = "fid.py calc --detector=pixels --images=finished"
TABLE = "scripts/figures.py table1 --out=out --network=plain.safetensors"
TRAIN = "train.py --outdir=runs --batch=4 --cbase=4 --cres=1 --data="

# (what you did, the command); the files that they name are made by `prepare`.
MISTAKES = (
    ("named a network that is not there", GENERATE + "nowhere.pkl"),
    ("named a folder as the network", GENERATE + "empty"),
    ("a corrupt pickle (cut short)", GENERATE + "corrupt.pkl"),
    ("a hostile pickle (it would run a program)", GENERATE + "hostile.pkl"),
    ("a pickle without a network", GENERATE + "numbers.pkl"),
    ("a web page in place of the network", GENERATE + "page.pkl"),
    ("an empty file", GENERATE + "empty.pkl"),
    ("a file of `torch.save`", GENERATE + "weights.pt"),
    ("a snapshot cut short", GENERATE + "cut.safetensors"),
    ("an address without https", GENERATE + "http://example.com/net.pkl"),
    ("the network has another checksum", GENERATE + "plain.safetensors --sha256=abc"),
    ("`--class` on an unconditional network", GENERATE + "plain.safetensors --class=0"),
    ("`--class` out of range", GENERATE + "classes.safetensors --class=3"),
    ("seeds backwards", GENERATE + "plain.safetensors --seeds=3-1"),
    ("a seed twice", GENERATE + "plain.safetensors --seeds=0-3,2"),
    ("EDM's `--rho` (its exponent) with EDM's sampler", GENERATE + "plain.safetensors --sampler=edm --rho=7"),
    ("`--eps` without a RODS sampler", GENERATE + "plain.safetensors --eps=.1"),
    ("an ablation option with a RODS sampler", GENERATE + "plain.safetensors --sampler=rods-cas --disc=vp"),
    ("no steps", GENERATE + "plain.safetensors --steps=0"),
    ("no range of noise levels", GENERATE + "plain.safetensors --sigma_min=90"),
    ("an exponent that is none", GENERATE + "plain.safetensors --time-rho=0"),
    ("RODS without `--eps`, no preset", GENERATE + "plain.safetensors --sampler=rods-cas --rho=1"),
    ("RODS without `--eps` and `--rho`, no preset", GENERATE + "plain.safetensors --sampler=rods-sas"),
    ("a negative radius", GENERATE + "plain.safetensors --sampler=rods-cas --eps=.1 --rho=-1"),
    ("a window backwards", GENERATE + "plain.safetensors --sampler=rods-cas --eps=0 --rho=1 --window=.5,.1"),
    ("a preset that does not exist", GENERATE + "plain.safetensors --sampler=rods-cas --preset=best"),
    ("a preset with a misspelt option", GENERATE + "plain.safetensors --sampler=rods-cas --preset=bad.json"),
    ("`--keep` without a calibrated threshold", GENERATE + "plain.safetensors --filter=lid --keep=.96"),
    ("a filter without a threshold", GENERATE + "plain.safetensors --filter=lid"),
    ("a score that does not exist", GENERATE + "plain.safetensors --filter=best --keep=.96"),
    ("`--accept` without a limit", GENERATE + "plain.safetensors --accept=lid"),
    ("`--accept` with a seed that cannot be redrawn",
     GENERATE + "plain.safetensors --accept='lid<12' --seeds=99999999"),
    ("a strip of a step that the run does not have",
     GENERATE + "plain.safetensors --sampler=euler --steps=4 --trajectory=0,4"),
    ("a score of steps behind restart",
     GENERATE + "plain.safetensors --sampler=restart --threshold=9 --sigma-r=2 --filter=tvf --filter-threshold=1"),
    ("misspelt an option", GENERATE + "plain.safetensors --sampler=rods-cas --epsilon=.1"),
    ("a sampler that does not exist", GENERATE + "plain.safetensors --sampler=ddim"),
    ("an outdir that cannot be written", WITH_PLAIN + "notes.txt/out"),
    ("a file as the outdir", WITH_PLAIN + "notes.txt"),
    ("an outdir of other settings", WITH_PLAIN + "finished --steps=2 --threads=1"),
    ("an outdir with images of unknown origin", WITH_PLAIN + "foreign"),
    ("convert: the source is hostile", CONVERT + "hostile.pkl"),
    ("convert: the destination exists", "scripts/convert.py --source=corrupt.pkl --dest=plain.safetensors"),
    ("fid: no reference", CALC),
    ("fid: a metric that does not exist", CALC + " --metrics=fod"),
    ("fid: images and a network at once", CALC + " --from-network=plain.safetensors"),
    ("fid: an option of the network's sampler with images", CALC + " --steps=9"),
    ("fid: the reference is no .npz", CALC + " --ref=broken.zip"),
    ("fid: the reference is a web page", CALC + " --ref=page.pkl"),
    ("fid: a reference of one image", "fid.py ref --detector=pixels --data=finished --dest=new.npz"),
    ("fid: no such detector", "fid.py calc --images=finished --metrics=cosine --detector=nowhere.pth"),
    ("fid: the detector's file is a web page", "fid.py calc --images=finished --metrics=cosine --detector=page.pkl"),
    ("fid: another checksum than the one vouched for",
     "fid.py calc --images=finished --metrics=cosine --detector=broken.zip --trust-detector=abc"),
    ("fid: another resize than the detector has", "fid.py calc --images=finished --metrics=cosine --detector=pixels "
     "--resize=tf1"),
    ("fid: an interval that resampling cannot give",
     "fid.py compare finished finished --detector=pixels --metrics=recall"),
    ("tables: an unknown sampler", TABLE + " --samplers=euler,ddim"),
    ("tables: nothing to label the images with", TABLE.replace("table1", "table2") + " --samplers=euler"),
    ("train: no such data set", TRAIN + "nowhere.zip"),
    ("train: an empty folder", TRAIN + "empty"),
    ("train: a broken zip", TRAIN + "broken.zip"),
    ("train: images of several sizes", TRAIN + "mixed.zip"),
    ("train: a file that is no image", TRAIN + "text.zip"),
    ("train: classes wanted, and no labels", TRAIN + "mixed.zip --cond=1"),
)  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    """What a command did: its exit code, and what it wrote to stderr."""

    code: int
    errors: str

    def message(self) -> str:
        """Its one line. Raises ValueError: it was no clear refusal."""
        if self.code != 2 or not self.errors.startswith("Error: ") or self.errors.count("\n") != 1:
            raise ValueError(f"exit code {self.code}, and on stderr: {self.errors!r}")
        return self.errors.strip()


def prepare() -> None:
    """The networks, files and folders of the mistakes, in the current folder."""
    plain = tiny_network("plain.safetensors", label_dim=0)
    tiny_network("classes.safetensors", label_dim=3)
    pickled = pickle.dumps(list(range(1000)), protocol=2)
    contents = {
        "numbers.pkl": pickled,
        "corrupt.pkl": pickled[:1000],
        "hostile.pkl": b"\x80\x02cos\nsystem\nX\x0a\x00\x00\x00echo owned\x85R.",
        "page.pkl": b"<!DOCTYPE html><html><body>Sign in</body></html>",
        "empty.pkl": b"",
        "cut.safetensors": plain[: len(plain) // 2],
        "notes.txt": b"",
        "broken.zip": b"PK\x03\x04 and no more",
        "bad.json": b'{"name": "bad", "network": null, "source": "", "samplers": {"rods-cas": {"epsilon": 0.1}}}',
        "foreign/000000.png": png(8),
    }
    os.mkdir("empty")
    os.mkdir("foreign")
    for name, content in contents.items():
        Path(name).write_bytes(content)
    torch.save({"weight": torch.zeros(1)}, "weights.pt")
    write_zip("mixed.zip", {f"{i}.png": png(8 if i < 7 else 16) for i in range(8)})
    write_zip("text.zip", {"0.png": b"not a picture"})
    done = run("generate.py --network=plain.safetensors --outdir=finished --seeds=0 --steps=1 --threads=1")
    assert done.code == 0, done.errors


def tiny_network(path: str, *, label_dim: int) -> bytes:
    """Writes a network for 8x8 images; returns the file's content."""
    kwargs = {
        "img_resolution": 8, "img_channels": 1, "label_dim": label_dim, "model_type": "SongUNet", "model_channels": 4,
        "channel_mult": [1], "num_blocks": 1, "attn_resolutions": [],
    }  # fmt: skip
    save_snapshot(path, EDMPrecond(**kwargs), init_kwargs=kwargs)
    return Path(path).read_bytes()


def png(size: int) -> bytes:
    data = io.BytesIO()
    PIL.Image.new("L", (size, size)).save(data, format="PNG")
    return data.getvalue()


def write_zip(path: str, contents: dict[str, bytes]) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in contents.items():
            archive.writestr(name, content)


def run(command: str) -> Outcome:
    """Runs a command of this project in this process, as Python would: a process for each would take minutes."""
    script, *options = shlex.split(command)
    argv, sys.argv = sys.argv, [script, *options]
    code, errors = 0, io.StringIO()
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(errors):
            runpy.run_path(str(ROOT / script), run_name="__main__")
    except SystemExit as e:
        code = e.code if isinstance(e.code, int) else 0 if e.code is None else 1
    finally:
        sys.argv = argv
    return Outcome(code, errors.getvalue())


@contextlib.contextmanager
def temporary_folder() -> Iterator[None]:
    """A new current folder, so that messages name files and no machine's paths."""
    before = os.getcwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            yield
        finally:
            os.chdir(before)


def error_table() -> str:
    """The page. Raises ValueError for a mistake that does not end with code 2 and one line, or that leaves output."""
    rows = []
    with temporary_folder():
        prepare()
        for what, command in MISTAKES:
            try:
                message = run(command).message()
            except ValueError as e:
                raise ValueError(f"{command}: {e}") from None
            if any(Path(name).exists() for name in ("out", "new.safetensors", "new.npz")):
                raise ValueError(f"{command}: it was refused, and something was written")
            rows.append(" | ".join(cell.replace("|", "\\|") for cell in (what, f"`{command}`", f"`{message}`")))
    return PAGE + "".join(f"| {row} |\n" for row in rows)


PAGE = """# Errors

What the commands say when something is wrong: one line on stderr and exit code 2. What can be checked is checked
before anything is written. An error that is nobody's mistake but ours keeps its traceback; a report of it is welcome.

This page is the output of `python scripts/error_table.py`, which makes each mistake; a test compares them.

| What you did | Command (`python ...`) | What it says |
|---|---|---|
"""


@click.command(cls=Command)
@click.option(
    "--dest",
    type=click.Path(dir_okay=False, path_type=Path),
    default=ROOT / "docs" / "errors.md",
    show_default="docs/errors.md",
    help="The page to write.",
)
def main(dest: Path) -> None:
    """Make every mistake of a list, on purpose, and write what the commands say."""
    page = error_table()
    with atomic_write(dest) as temporary:
        temporary.write_text(page)
    click.echo(f"{dest}: {len(MISTAKES)} mistakes")


if __name__ == "__main__":
    main()
