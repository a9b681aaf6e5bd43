"""Prints the tables of docs/scaling.md, or writes them into it: what training costs on machines that are not here."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import click

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works from a plain checkout, installed or not

from dnnlib.cli import Command
from dnnlib.errors import UserError
from dnnlib.util import atomic_write
from training.cost import (
    Assumptions,
    Gpu,
    NetworkCost,
    StepTime,
    all_reduce_bytes,
    largest_batch_gpu,
    memory,
    network_cost,
    step_time,
)
from training.presets import PRECOND_CLASSES, PRESETS, network_kwargs

GIB, MIB = 2**30, 2**20
LARGE = [name for name in PRESETS if re.match(r"(ffhq|hands)-(64|128)-", name)]
GPUS = (  # DGX-1, DGX A100 and DGX H100; a box of eight cards on PCIe 4 with one 100 Gb/s port
    Gpu("V100 32 GB", 125e12, 32 * GIB, 900e9, 150e9, 50e9),
    Gpu("A100 80 GB", 312e12, 80 * GIB, 2039e9, 300e9, 200e9),
    Gpu("H100 80 GB", 989e12, 80 * GIB, 3350e9, 450e9, 400e9),
    Gpu("RTX 4090", 165e12, 24 * GIB, 1008e9, 32e9, 12.5e9),
)
WEAK_BATCH_GPU = 32  # images per GPU where the batch grows with the number of GPUs


@click.command(cls=Command, context_settings={"show_default": True})
@click.option("--preset", "presets", type=click.Choice(sorted(PRESETS)), multiple=True, default=LARGE)
@click.option("--channels", type=click.IntRange(min=1), default=3, help="Of the images: 3, or 1 for grey ones.")
@click.option("--achieved", type=click.FloatRange(0, 1, min_open=True), default=0.15, help="Share of the peak rate.")
@click.option("--launch", type=click.FloatRange(min=0), default=8.0, help="Microseconds per kernel, at least.")
@click.option("--link", type=click.FloatRange(0, 1, min_open=True), default=0.7, help="Share of the links' rate.")
@click.option("--page", type=click.Path(dir_okay=False, path_type=Path), help="Replace the tables of this page.")
def main(
    presets: tuple[str, ...], channels: int, achieved: float, launch: float, link: float, page: Path | None
) -> None:
    """Count what a training step of each preset costs, and estimate how fast GPUs would take it."""
    if page is not None and not page.is_file():
        raise UserError(f"--page={page}: there is no such page; name docs/scaling.md or leave the option out")
    assumed = Assumptions(achieved, launch * 1e-6, link)
    costs = {name: preset_cost(name, channels) for name in presets}
    found = tables(costs, assumed)
    if page is None:
        click.echo("\n\n".join(found.values()))
        return
    text = with_tables(page.read_text(), found, page)
    with atomic_write(page) as temporary:
        temporary.write_text(text)
    click.echo(f"wrote the tables of {page}")


def preset_cost(name: str, channels: int) -> NetworkCost:
    """The cost of a preset's network at the resolution in its name."""
    resolution = int(name.split("-")[1])
    kwargs = network_kwargs(PRESETS[name], img_resolution=resolution, img_channels=channels)
    return network_cost(PRECOND_CLASSES[PRESETS[name]["precond"]], kwargs)


def tables(costs: dict[str, NetworkCost], assumed: Assumptions) -> dict[str, str]:
    """Each table of the page by its name."""
    found = {"networks": networks_table(costs), "traffic": traffic_table(costs, assumed)}
    for name, cost in costs.items():
        found[f"memory {name}"] = memory_table(cost)
        found[f"throughput {name}"] = throughput_table(cost, PRESETS[name]["batch"], assumed)
    return found


def with_tables(text: str, found: dict[str, str], page: Path) -> str:
    """The page with each table in its place: between `<!-- table: NAME -->` and `<!-- end -->`."""
    for name, table in found.items():
        start, end = f"<!-- table: {name} -->\n", "<!-- end -->"
        new = f"{start}{table}\n{end}"
        text, count = re.subn(f"{re.escape(start)}.*?{end}", lambda _, new=new: new, text, flags=re.DOTALL)
        if count != 1:
            raise UserError(f"--page={page} has {count} places {start.strip()}; it needs one")
    return text


def networks_table(costs: dict[str, NetworkCost]) -> str:
    rows = (
        [
            f"`{name}`",
            f"{c.parameters / 1e6:.1f} M",
            f"{c.forward / 1e9:.1f}",
            f"{(c.forward + c.backward) / 1e9:.1f}",
            f"{c.fp32.per_image / MIB:.0f}",
            f"{c.half.per_image / MIB:.0f} (+ {c.half.fixed / MIB:.0f} once)",
            f"{c.operations:,}",
        ]
        for name, c in costs.items()
    )
    head = ["preset", "parameters", "GFLOP forward", "with backward", "MiB kept, fp32", "bf16, fp16", "operations"]
    return markdown(head, rows)


def memory_table(cost: NetworkCost) -> str:
    """GiB by batch-gpu, and the largest that fits each GPU."""
    batches = [1 << i for i in range(8)]
    rows = []
    for precision in ("fp32", "bf16"):
        used = [sum(memory(cost, precision=precision, batch_gpu=b).values()) / GIB for b in batches]
        fits = [largest_batch_gpu(cost, gpu, precision=precision) for gpu in GPUS]
        label = "fp32" if precision == "fp32" else "bf16, fp16"
        rows.append([label, *(f"{g:.1f}" for g in used), ", ".join(map(str, fits))])
    head = ["precision", *(f"{b}" for b in batches), "fits " + ", ".join(gpu.name.split()[0] for gpu in GPUS)]
    return markdown(head, rows)


def traffic_table(costs: dict[str, NetworkCost], assumed: Assumptions) -> str:
    rows = []
    for name, cost in costs.items():
        for ranks in (2, 8, 256):
            sent = all_reduce_bytes(cost.parameters, ranks)
            times = (
                step_time(cost, gpu, batch=ranks, batch_gpu=1, ranks=ranks, assumed=assumed).all_reduce for gpu in GPUS
            )
            rows.append([f"`{name}`", str(ranks), f"{sent / 1e6:.0f}", *(f"{1e3 * t:.1f}" for t in times)])
    return markdown(["preset", "GPUs", "MB sent by each", *(f"ms, {gpu.name}" for gpu in GPUS)], rows)


def throughput_table(cost: NetworkCost, batch: int, assumed: Assumptions) -> str:
    rows = []
    for gpu in GPUS:
        fits = largest_batch_gpu(cost, gpu, precision="bf16")
        for ranks, images in ((1, batch), (8, batch), (256, batch), (256, 256 * WEAK_BATCH_GPU)):
            batch_gpu = min(fits, -(-images // ranks))
            t = step_time(cost, gpu, batch=images, batch_gpu=batch_gpu, ranks=ranks, assumed=assumed)
            rate = images / t.total
            days = f"{200e6 / rate / 86400:.3g}"
            rows.append([gpu.name, str(ranks), str(images), str(batch_gpu), milliseconds(t), f"{rate:,.0f}", days])
    head = ["GPU", "GPUs", "batch", "batch-gpu", "ms passes + update + all-reduce", "images/s", "days for 200 Mimg"]
    return markdown(head, rows)


def milliseconds(t: StepTime) -> str:
    parts = (1e3 * seconds for seconds in (t.passes, t.update, t.all_reduce))
    return " + ".join(f"{ms:,.0f}" if ms >= 100 else f"{ms:.1f}" for ms in parts)


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


if __name__ == "__main__":
    main()
