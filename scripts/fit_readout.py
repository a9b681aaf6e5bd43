"""Fit a readout: a score of images, learned from labels, that reads the network's own activations.

python scripts/fit_readout.py --task=hands-32 --dest=models/hands-32.preset.json
python scripts/fit_readout.py --network=my.pkl --images=out/euler --answers=out/answers.jsonl --dest=my.preset.json
"""

from __future__ import annotations

import hashlib
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import click
import numpy as np
import PIL.Image
import torch
from numpy.typing import NDArray
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works from a plain checkout, installed or not

from rods.bench.results import read_results
from rods.readout import fingerprint, write_readout

from dnnlib.cli import Command, NumberList, SeedList
from dnnlib.errors import UserError
from dnnlib.util import atomic_write
from rods.bench.methods import BASELINE, resolve
from rods.bench.readout_fit import chosen_levels, decoder_blocks, fit, judge, learning_curve, pooled_activations
from rods.bench.run import Place, run_methods
from rods.bench.stored import load_images
from rods.bench.task import LoadedNetwork, Task, load_network
from rods.bench.tasks import TASKS
from rods.eval.labels import Label
from rods.labels.agreement import settle
from rods.labels.session import NORMAL, read_answers
from rods.presets import parse_preset, with_readout
from rods.runs.presets import beside_preset, read_preset
from rods.types import Denoiser
from torch_utils.distributed import usable_cores
from training.checkpoint import load_snapshot

FIRST_SEED, NUM_SEEDS = 2_000_000, 4096  # seeds that neither calibration nor a report uses
LEVELS = "0.25,0.5,0.8,1.2"
BATCH = 64


@dataclass(frozen=True)
class Labelled:
    """Images of a network and whether each is bad."""

    images: NDArray[np.uint8]  # [N, C, H, W]
    bad: NDArray[np.bool_]  # [N]
    source: str  # where they are from, in words


def of_task(task: Task, network: LoadedNetwork, seeds: list[int], out: Path) -> Labelled:
    """The baseline's images of these seeds, as the task labels them, without those that it is unsure of."""
    setting = resolve(BASELINE, task, None, network.denoiser)
    run_methods(task, network, [setting], seeds, out=out, batch=BATCH)
    place = Place(out, task.name, network.name)
    results = read_results(place.results(setting))
    pictures = load_images(place, results)
    if pictures is None:
        raise UserError(f"--out={out}: pictures of {results.path} are missing; remove that file and sample again")
    where = results.position()
    codes = results.labels[[where[seed] for seed in seeds]]
    images = np.stack([pictures[seed] for seed in seeds])
    sure = codes != Label.AMBIGUOUS
    source = f"{task.name}, euler, {len(seeds)} seeds from {seeds[0]}"
    return Labelled(images[sure], codes[sure] == Label.BAD, source)


def of_raters(network: LoadedNetwork, folder: Path, answers: Path) -> Labelled:
    """The images of run A that people have rated; all answers but "normal" are bad."""
    settled = settle(read_answers(answers), "image").answers
    names = sorted(name for run, name in settled if run == "A")
    if not names:
        raise UserError(f"--answers={answers} has no settled answer to an image of the run --images; label some first")
    d, images = network.denoiser, []
    if d.label_dim:
        raise UserError(f"--network: {network.name} needs class labels, which the answers do not tell; use another")
    for name in names:
        if not (folder / name).is_file():
            raise UserError(f"--images={folder} has no {name}, which was labelled; give the folder that was labelled")
        try:
            with PIL.Image.open(folder / name) as picture:
                pixels = np.asarray(picture.convert("L" if d.img_channels == 1 else "RGB"))
        except OSError:
            raise UserError(f"--images={folder}: {name} is no readable picture; copy it again") from None
        images.append(pixels[None] if d.img_channels == 1 else pixels.transpose(2, 0, 1))
        if images[-1].shape != (d.img_channels, d.img_resolution, d.img_resolution):
            raise UserError(f"--images={folder}: {name} has another size than {network.name} draws; use its own")
    bad = np.array([settled["A", name]["answer"] != NORMAL for name in names])
    return Labelled(np.stack(images), bad, f"{len(names)} images of {folder}, labelled by people ({answers.name})")


def measured(
    network: LoadedNetwork,
    labelled: Labelled,
    blocks: tuple[str, ...],
    levels: tuple[float, ...],
    *,
    draws: int,
    out: Path,
) -> dict[tuple[str, float], NDArray[np.float64]]:
    """Activations by block and noise level; those of a level are kept in `out` for the next time."""
    found, todo = {}, len(levels) * len(labelled.images)
    what = hashlib.sha256(labelled.images.tobytes() + repr((network.sha256, blocks, draws)).encode()).hexdigest()
    out.mkdir(parents=True, exist_ok=True)
    with tqdm(total=todo, unit="img", desc="activations", disable=not sys.stderr.isatty()) as bar:
        for t in levels:
            path = out / f"activations-{what[:12]}-{t:g}.npz"
            if not path.is_file():
                p = pooled_activations(
                    network.denoiser, labelled.images, t, blocks, draws=draws, batch=BATCH, report=bar.update
                )
                with atomic_write(path) as temporary, temporary.open("wb") as f:
                    np.savez(f, **cast(dict[str, Any], p))
            with np.load(path) as saved:
                found.update({(block, t): saved[block] for block in blocks})
    return found


def write_preset(dest: Path, network: LoadedNetwork, text: str, remark: str) -> list[str]:
    """The readout into a preset: a new one, or in the place of the one that `dest` has; what of that one went."""
    old: dict[str, Any] = {"name": network.name, "network": network.name, "source": "", "samplers": {"euler": {}}}
    if dest.exists():
        old = json.loads(dest.read_text())
    preset, dropped = with_readout(old, text)
    others = [part for part in old["source"].split(" | ") if part and not part.startswith("readout: ")]
    preset["source"] = " | ".join([*others, f"readout: {remark}"])
    parse_preset(preset, where="the preset with the readout")
    with atomic_write(dest) as temporary:
        temporary.write_text(json.dumps(preset, indent=2) + "\n")
    return dropped


def loaded(opts: dict[str, Any]) -> tuple[Task | None, LoadedNetwork]:
    """The network, and the task if that is what has been asked for."""
    by_task, by_people = opts["task"] is not None, opts["images"] is not None or opts["answers"] is not None
    if by_task == by_people or (by_people and None in (opts["network"], opts["images"], opts["answers"])):
        raise UserError("give --task, or all of --network, --images and --answers: labels by a program, or by people")
    if not by_task:
        snapshot = load_snapshot(opts["network"])
        return None, LoadedNetwork(cast(Denoiser, snapshot.net), snapshot.name, snapshot.sha256)
    task = TASKS[opts["task"]]()
    if not task.is_picture:
        raise UserError(f"--task={task.name}: its network has no layers to read; use a task of pictures")
    return task, load_network(task, opts["network"])


@click.command(cls=Command, context_settings={"show_default": True, "max_content_width": 120})
@click.option("--task", type=click.Choice(list(TASKS)), help="A task of the benchmark: a program labels its samples.")
@click.option("--network", help="A network file or URL; with --task one of its networks [default: its first].")
@click.option(
    "--images", type=click.Path(exists=True, file_okay=False, path_type=Path), help="A run that was labelled."
)
@click.option(
    "--answers", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="The answers of scripts/label.py."
)
@click.option("--seeds", type=SeedList(), help=f"task: seeds to sample [default: {NUM_SEEDS} from {FIRST_SEED}].")
@click.option("--levels", type=NumberList(float), default=LEVELS, help="Noise levels to look at the images from.")
@click.option(
    "--draws", type=click.IntRange(1, 64), default=4, help="Of noise, for each image: what a score costs in F."
)
@click.option("--blocks", help="Modules to read, with commas between [default: the U-Net's blocks on the way up].")
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads [default: all cores].")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), default=Path("out/readout"),
              help="Where samples and activations are kept; the same command goes on there.")  # fmt: skip
@click.option("--dest", type=click.Path(dir_okay=False, path_type=Path), required=True,
              help="The preset that gets the readout; what else it has stays.")  # fmt: skip
def main(**opts: Any) -> None:
    """Learn a score from labelled samples: the chance that an image is bad, read off the network's own activations.

    The labels are those of a task of the benchmark, or people's (scripts/label.py). Blocks, alone or the last ones
    together, noise levels, and whether products of activations help are chosen by cross-validation. The score is then
    called `readout`: generate.py --preset=DEST --sampler=restart --detector=readout, or --filter=readout.
    """
    if not opts["dest"].resolve().parent.is_dir():
        raise UserError(f"--dest={opts['dest']}: there is no such folder; make it first")
    # Whatever is wrong with a preset that is there is said before the work.
    preset = read_preset(opts["dest"], option="--dest") if opts["dest"].exists() else None
    levels = chosen_levels(opts["levels"])
    torch.set_num_threads(opts["threads"] or usable_cores())
    torch.set_flush_denormal(True)
    task, network = loaded(opts)
    if preset and preset.network not in (None, network.name):
        raise UserError(f"--dest={opts['dest']} is for network {preset.network}, not {network.name}; name another file")
    net = cast(torch.nn.Module, network.denoiser)
    blocks = tuple(opts["blocks"].split(",")) if opts["blocks"] else decoder_blocks(net)
    if unknown := set(blocks) - (set(dict(net.named_modules())) - {""}):
        known = ", ".join(decoder_blocks(net))
        raise UserError(f"--blocks: {network.name} has no module {sorted(unknown)[0]!r}; it has {known}")
    if task is not None:
        seeds = list(opts["seeds"] or range(FIRST_SEED, FIRST_SEED + NUM_SEEDS))
        labelled = of_task(task, network, seeds, opts["out"])
    else:
        labelled = of_raters(network, opts["images"], opts["answers"])
    bad = labelled.bad
    click.echo(f"{labelled.source}: {len(bad)} sure labels, {int(bad.sum())} bad")
    at = measured(network, labelled, blocks, levels, draws=opts["draws"], out=opts["out"])
    with tqdm(unit="kind", desc="regressions", disable=not sys.stderr.isatty()) as bar:
        judged = judge(at, bad, report=lambda _: bar.update())
    best = judged[0].kind
    for j in judged[:10]:
        k = j.kind
        click.echo(f"AUROC {j.auroc:.3f}  {'+'.join(k.blocks)} at sigma {k.sigma:g}, ridge {k.ridge:g}"
                   + (", products of the first" if k.quadratic else ""))  # fmt: skip
    curve = learning_curve(best, at, bad)
    click.echo("AUROC by labels (bad ones): " + ", ".join(f"{n} ({b}) {a:.3f}" for n, b, a in curve))
    readout = fit(best, at, bad, draws=opts["draws"], network=fingerprint(net, best.blocks))
    remark = (
        f"scripts/fit_readout.py, {labelled.source}, {int(bad.sum())} of {len(bad)} bad, "
        f"network {network.sha256[:12]}; AUROC {judged[0].auroc:.3f} ({len(judged)} kinds, cross-validated)"
    )
    dropped = write_preset(opts["dest"], network, write_readout(readout), remark)
    log = beside_preset(opts["dest"], ".readout.jsonl")
    lines: list[dict[str, Any]] = [{"readout": remark, "draws": opts["draws"]}]
    lines += [{**asdict(j.kind), "auroc": round(j.auroc, 4)} for j in judged]
    lines += [{"labels": n, "bad": b, "auroc": round(a, 4)} for n, b, a in curve]
    with atomic_write(log) as temporary:
        temporary.write_text("".join(json.dumps(line) + "\n" for line in lines))
    click.echo(f"wrote {opts['dest']} and {log}")
    if dropped:
        click.echo(f"left out, for they were of the readout before: {' and '.join(dropped)}; calibrate again")


if __name__ == "__main__":
    main()
