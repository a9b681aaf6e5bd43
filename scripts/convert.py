"""Converts an EDM network pickle to a safetensors snapshot, without running anything that the pickle carries."""

from __future__ import annotations

import sys
from pathlib import Path

import click

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works from a plain checkout, installed or not

from dnnlib.cli import Command, Destination, Sha256
from dnnlib.errors import UserError, of_option
from dnnlib.util import file_sha256
from training.checkpoint import DTYPES, load_snapshot, save_snapshot


@click.command(cls=Command)
@click.option("--source", required=True, help="EDM pickle or snapshot: a path or an https address.")
@click.option("--dest", required=True, type=Destination(), help="The .safetensors file to write.")
@click.option("--sha256", metavar="HEX", type=Sha256(), help="The checksum that the source must have.")
@click.option("--dtype", type=click.Choice(list(DTYPES)), default="float32", show_default=True, help="Storage.")
@click.option("--force", is_flag=True, help="Replace an existing file.")
def main(source: str, dest: Path, sha256: str | None, dtype: str, force: bool) -> None:
    """Convert an EDM network pickle to safetensors. Nothing that the pickle carries is run."""
    if dest.suffix != ".safetensors":
        raise UserError(f"--dest {dest}: the name of a snapshot ends with .safetensors")
    if dest.exists() and not force:
        raise UserError(f"--dest {dest} exists; choose another name or add --force")
    with of_option("--source"):
        snapshot = load_snapshot(source, sha256=sha256)
    h = snapshot.header
    extra = {**h.extra, "converted_from": {"name": snapshot.name, "sha256": snapshot.sha256}}
    dest.parent.mkdir(parents=True, exist_ok=True)
    save_snapshot(
        dest,
        snapshot.net,
        init_kwargs=h.init_kwargs,
        label_names=h.label_names,
        kimg=h.kimg,
        dataset=h.dataset,
        extra=extra,
        dtype=dtype,
    )
    click.echo(snapshot.describe())
    click.echo(f"wrote {dest}, sha256 {file_sha256(dest)}")


if __name__ == "__main__":
    main()
