"""Makes an average of the weights, of any width, from the snapshots that a training with --ema-std has stored."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import click
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works from a plain checkout, installed or not

from dnnlib.cli import Command, Destination
from dnnlib.errors import UserError
from dnnlib.util import file_sha256
from training.checkpoint import load_snapshot, read_header, save_snapshot
from training.ema import MAX_STD, Profile, reconstruction
from training.header import Header

Stored = tuple[Path, Header, Profile]


@click.command(cls=Command, context_settings={"show_default": True, "max_content_width": 120})
@click.argument("run", metavar="RUN", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--std", type=click.FloatRange(0, MAX_STD, min_open=True), required=True, help="The relative width.")
@click.option("--kimg", type=click.FloatRange(0, min_open=True), help="At this point of training [default: the last].")
@click.option("--dest", type=Destination(), required=True, help="The .safetensors file to write.")
@click.option("--force", is_flag=True, help="Replace an existing file.")
def main(run: Path, std: float, kimg: float | None, dest: Path, force: bool) -> None:
    """Combine the snapshots in the run folder RUN to the average by power function of another width.

    By least squares on the profiles of the stored averages (arXiv 2312.02696, Section 3). The error that is printed is
    the distance between the profiles, relative: train with more widths, or with snapshots more often, if it is large.

    \b
    Example:
      python scripts/posthoc_ema.py training-runs/00000-mnist-32 --std=.07 --dest=mnist-32-0.07.safetensors
    """
    if dest.suffix != ".safetensors":
        raise UserError(f"--dest {dest}: the name of a snapshot ends with .safetensors")
    if dest.exists() and not force:
        raise UserError(f"--dest {dest} exists; choose another name or add --force")
    stored = stored_averages(run)
    last = max(profile.images for _, _, profile in stored) / 1000
    if kimg is not None and kimg > last:
        raise UserError(f"--kimg={kimg:g}: the last snapshot in {run} is of {last:g} thousand images; give less")
    wanted = Profile(std, (last if kimg is None else kimg) * 1000)
    try:
        weights, error = reconstruction([profile for _, _, profile in stored], wanted)
    except ValueError as e:
        raise UserError(f"--kimg={kimg:g}: {e}; the first snapshots in {run} are later") from None
    used = [(one, float(x)) for one, x in zip(stored, weights, strict=True) if x != 0]
    header = used[-1][0][1]
    net = load_snapshot(used[-1][0][0]).net  # of the last one are the buffers, which training does not change
    net.load_state_dict(combined([(path, x) for (path, _, _), x in used]), strict=False)
    dest.parent.mkdir(parents=True, exist_ok=True)
    save_snapshot(
        dest,
        net,
        init_kwargs=header.init_kwargs,
        label_names=header.label_names,
        kimg=wanted.images / 1000,
        dataset=header.dataset,
        extra={**header.extra, "ema_std": std, "posthoc": {"snapshots": len(used), "error": error}},
    )
    click.echo(
        f"std {std:g} at {wanted.images / 1000:g} thousand images from {len(used)} snapshots, "
        f"relative error of the profile {error:.2g}"
    )
    click.echo(f"wrote {dest}, sha256 {file_sha256(dest)}")


def stored_averages(run: Path) -> list[Stored]:
    """The snapshots of averages by power function in a run folder, by training length. UserError: there are none."""
    found: list[Stored] = []
    for path in sorted(run.glob("network-snapshot-*.safetensors")):
        header = read_header(path)
        std = header.extra.get("ema_std")
        if isinstance(std, float | int) and header.kimg and "posthoc" not in header.extra:
            found.append((path, header, Profile(std, header.kimg * 1000)))
    if not found:
        raise UserError(f"{run} has no snapshots of averages by power function; train with --ema-std, or --arch=edm2")
    if len({str(header.extra.get("training")) for _, header, _ in found}) > 1:
        raise UserError(f"{run} has snapshots of several trainings; leave those of one in it")
    return sorted(found, key=lambda one: one[2].images)


def combined(parts: Sequence[tuple[Path, float]]) -> dict[str, Tensor]:
    """The parameters of the snapshots, summed with these weights in float64, one file in memory at a time."""
    total: dict[str, Tensor] = {}
    for path, x in parts:
        for name, p in load_snapshot(path).net.named_parameters():
            total[name] = x * p.to(torch.float64) + total.get(name, 0)
    return total


if __name__ == "__main__":
    main()
