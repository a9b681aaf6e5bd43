"""What --accept costs and gains at the end and in flight, on a task of the benchmark.

python scripts/early_stop.py --preset=models/hands-32-gate.preset.json --end-limit=16.4 --seeds=0-255 --out=out/pool
"""

from __future__ import annotations

import sys
from pathlib import Path

import click

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works from a plain checkout, installed or not

from dnnlib.cli import Command, Destination, SeedList
from dnnlib.errors import UserError, user_errors
from rods.bench.early_stop import END, Pool, table
from rods.bench.tasks import TASKS
from rods.presets import RESTART_SCORES
from rods.restart import Restart
from rods.runs.chunk import cut_chunks
from rods.runs.presets import read_preset
from torch_utils import distributed
from torch_utils.rng import LARGEST_REDRAWN


@click.command(cls=Command, context_settings={"show_default": True, "max_content_width": 120})
@click.option(
    "--task", "task_name", type=click.Choice(list(TASKS)), default="hands-32", help="Whose images and labels."
)
@click.option("--preset", multiple=True, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path),
              help="Its restart's gate scores at its score_at; the first one's finished images, too.")  # fmt: skip
@click.option("--share", type=click.FloatRange(0, 1), default=0.5, help="Of each preset's scores below its limit.")
@click.option("--end-limit", type=float, required=True, help="The limit of finished images.")
@click.option("--tries", type=click.IntRange(1, 16), default=4, help="Images that are drawn at most per seed.")
@click.option("--seeds", type=SeedList(), default="0-1023", help="Seeds.")
@click.option("--batch", type=click.IntRange(1), default=64, help="Images per chunk.")
@click.option("--threads", type=click.IntRange(1, 1024), help="CPU threads [default: all cores].")
@click.option("--out", type=Destination(file_okay=False), required=True, help="Where the tries are kept.")
def main(task_name: str, preset: tuple[Path, ...], share: float, end_limit: float, tries: int, seeds: list[int],
         batch: int, threads: int | None, out: Path) -> None:  # fmt: skip
    """Compare --accept of finished images with --accept in flight, by one pool of tries; it goes on where it was.

    Every try is run to its end once, scored by each gate at its level and finished, and labelled by the task's program.
    """
    if seeds and max(seeds) >= LARGEST_REDRAWN:
        raise UserError(f"--seeds: {max(seeds)} cannot be redrawn; give seeds below {LARGEST_REDRAWN:,}")
    distributed.begin("cpu", threads)
    gates, limits = {}, {END: end_limit}
    for path in preset:
        found = read_preset(path)
        restart = found.samplers.get("restart")
        if not isinstance(restart, Restart) or restart.score_at == END:
            raise UserError(f"--preset={path} has no restart that scores in flight; scripts/fit_gate.py makes one")
        gates[restart.score_at] = restart.detector
        gates.setdefault(END, restart.detector)
        with user_errors("--preset"):
            limits[restart.score_at] = found.quantile(RESTART_SCORES, share)
    with user_errors("--out"):
        pool = Pool(out / "tries.jsonl", TASKS[task_name](), gates, limits, tries)
    with user_errors("--preset"):
        for level, gate in gates.items():
            gate.check(pool.network, [t for t in pool.sampler.levels(pool.network) if t > level])
    out.mkdir(parents=True, exist_ok=True)
    for chunk in cut_chunks(seeds, batch=batch):
        pool.add(chunk)
    for line in table(pool):
        click.echo(line)


if __name__ == "__main__":
    main()
