"""Fit a readout: a score of images, learned from labels, that reads the network's own activations.

python scripts/fit_readout.py --task=hands-32 --dest=models/hands-32.preset.json
python scripts/fit_readout.py --network=my.pkl --run=out/euler --dest=my.preset.json
python scripts/fit_readout.py --network=my.pkl --images=out/euler --answers=out/answers.jsonl --dest=my.preset.json
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast

import click
import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works from a plain checkout, installed or not


from dnnlib.cli import Command, Destination, NumberList, SeedList
from dnnlib.errors import UserError, counted, of_option
from dnnlib.util import atomic_write
from rods.base_samplers import Euler
from rods.bench.gate_run import read_arrays, write_arrays
from rods.bench.labelled import read_run
from rods.bench.labelled_images import LabelledImages, of_run
from rods.bench.methods import BASELINE, Method
from rods.bench.readout_fit import (
    Judged,
    chosen_levels,
    decoder_blocks,
    fit,
    judge,
    learning_curve,
    pooled_activations,
)
from rods.bench.run import Place, run_methods, source_of
from rods.bench.task import LoadedNetwork, Task, load_network
from rods.bench.tasks import TASKS
from rods.eval.labels import Label
from rods.gate import Readout, fingerprint
from rods.labels.agreement import codes, people_in
from rods.labels.folders import read_folder
from rods.labels.labels import read_labels, settle
from rods.labels.old_answers import read_any
from rods.presets import Preset
from rods.runs.images import read_png
from rods.runs.presets import beside_preset, read_preset, write_preset
from rods.types import Denoiser
from torch_utils import distributed
from training.checkpoint import load_snapshot
from training.encoder import stored_encoder

FIRST_SEED, NUM_SEEDS = 2_000_000, 4096  # seeds that neither calibration nor a report uses
LEVELS = "0.25,0.5,0.8,1.2"
BATCH = 64
READOUT = "readout"


def of_task(
    task: Task, network: LoadedNetwork, seeds: Sequence[int], out: Path, device: torch.device
) -> LabelledImages:
    """The baseline's images of these seeds, as the task's program labels them."""
    method = Method(BASELINE, Euler(num_steps=task.num_steps))
    run_methods(task, network, [method], seeds, out=out, batch=BATCH, device=device)
    folder = Place(out, task.name, network.name).run(method)
    run = read_run(folder, source=source_of(task)).only(set(seeds))
    return of_run(run, network.sha256, f"{task.name}, euler, {len(seeds)} seeds from {seeds[0]}", option=f"--out={out}")


def of_raters(network: LoadedNetwork, folder: Path, answers: Path) -> LabelledImages:
    """The images of a folder that people have rated by scripts/label.py, those without a certain label left out."""
    of_folder = read_folder(folder, option="--images")
    labels = codes(settle(people_in(read_any(answers, {"A": of_folder}))), of_folder.sums)
    names = sorted(name for name, label in labels.items() if label is not Label.UNCERTAIN)
    if not names:
        raise UserError(f"--answers={answers} has no settled answer to an image of the run --images; label some first")
    d, images = network.denoiser, []
    for name in names:
        images.append(read_png(folder / name))
        if images[-1].shape != (d.img_channels, d.img_resolution, d.img_resolution):
            raise UserError(f"--images={folder}: {name} has another size than {network.name} draws; use its own")
    bad = np.array([labels[name] is Label.HALLUCINATED for name in names])
    return LabelledImages(
        np.stack(images), bad, f"{counted(len(names), 'image')} of {folder}, labelled by people ({answers.name})"
    )


def measured(
    network: LoadedNetwork,
    labelled: LabelledImages,
    blocks: tuple[str, ...],
    levels: tuple[float, ...],
    *,
    draws: int,
    out: Path,
    device: torch.device,
) -> dict[tuple[str, float], NDArray[np.float64]]:
    """Activations by block and noise level; those of a level are kept in `out` for the next time."""
    found, todo = {}, len(levels) * len(labelled.images)
    what = repr((network.sha256, blocks, draws, device.type)).encode()
    key = hashlib.sha256(labelled.images.tobytes() + what).hexdigest()[:12]
    out.mkdir(parents=True, exist_ok=True)
    with tqdm(total=todo, unit="img", desc="activations", disable=not sys.stderr.isatty()) as bar:
        for t in levels:
            path = out / f"activations-{key}-{t:g}.npz"
            if not path.is_file():
                p = pooled_activations(
                    network.denoiser, labelled.images, t, blocks, draws=draws, batch=BATCH, device=device,
                    report=bar.update,
                )  # fmt: skip
                write_arrays(path, p)
            found.update({(block, t): p for block, p in read_arrays(path).items()})
    return found


def with_readout(preset: Preset, readout: Readout, remark: str) -> tuple[Preset, list[str]]:
    """A preset with this readout, and the samplers whose settings went with the one before it."""
    stale = [
        name
        for name, sampler in preset.samplers.items()
        if isinstance(old := getattr(sampler, "detector", None), Readout) and old != readout
    ]
    samplers = {name: sampler for name, sampler in preset.samplers.items() if name not in stale}
    others = [part for part in preset.source.split(" | ") if part and not part.startswith("readout: ")]
    return replace(
        preset,
        source=" | ".join([*others, f"readout: {remark}"]),
        samplers=samplers or {BASELINE: Euler()},
        detect_eps={name: eps for name, eps in preset.detect_eps.items() if name not in stale},
        fitted={**preset.fitted, READOUT: readout},
    ), stale


def write_log(path: Path, remark: str, draws: int, judged: Sequence[Judged], curve: Sequence[tuple[Any, ...]]) -> None:
    """Every kind that was tried, and the learning curve, as JSON lines."""
    lines: list[dict[str, Any]] = [{"readout": remark, "draws": draws}]
    lines += [{**asdict(j.kind), "auroc": round(j.auroc, 4)} for j in judged]
    lines += [{"labels": n, "bad": b, "auroc": round(a, 4)} for n, b, a in curve]
    with atomic_write(path) as temporary:
        temporary.write_text("".join(json.dumps(line) + "\n" for line in lines))


def loaded(opts: dict[str, Any], device: torch.device) -> tuple[Task | None, LoadedNetwork]:
    """The network, and the task if that is what has been asked for."""
    given = [name for name in ("task", "run", "images") if opts[name] is not None]
    by_people = opts["images"] is not None or opts["answers"] is not None
    if len(given) != 1 or (by_people and None in (opts["images"], opts["answers"])):
        raise UserError(
            "give one of --task, --run, or --images with --answers: labels by a program, of a run, by people"
        )
    if given != ["task"] and opts["network"] is None:
        raise UserError(f"--network: give the network that sampled --{given[0]}={opts[given[0]]}")
    if opts["labels"] is not None and given != ["run"]:
        raise UserError(f"--labels={opts['labels']} says whose labels of --run count; give --run, or leave it out")
    if given != ["task"]:
        with of_option("--network"):
            snapshot = load_snapshot(opts["network"], device=device)
        if stored_encoder(snapshot.header.extra):
            raise UserError(f"--network: {snapshot.name} draws latents, and a readout is fitted to pixels alone; fit a "
                            "gate by scripts/fit_gate.py")  # fmt: skip
        if snapshot.net.label_dim:
            raise UserError(f"--network: {snapshot.name} needs class labels, and a readout is of images alone; use "
                            "another")  # fmt: skip
        return None, LoadedNetwork(cast(Denoiser, snapshot.net), snapshot.name, snapshot.sha256)
    task = TASKS[opts["task"]]()
    if not task.is_picture:
        raise UserError(f"--task={task.name}: its network has no layers to read; use a task of images")
    return task, load_network(task, opts["network"])


@click.command(cls=Command, context_settings={"show_default": True, "max_content_width": 120})
@click.option("--task", type=click.Choice(list(TASKS)), help="A task of the benchmark: a program labels its samples.")
@click.option("--network", help="A network file or URL; with --task one of its networks [default: its first].")
@click.option("--run", type=click.Path(exists=True, file_okay=False, path_type=Path), help="A labelled run folder.")
@click.option("--labels", help="run: whose labels, such as 'program hands-32' [default: the only ones].")
@click.option(
    "--images", type=click.Path(exists=True, file_okay=False, path_type=Path), help="A run that people rated."
)
@click.option(
    "--answers", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="The answers of scripts/label.py."
)
@click.option("--seeds", type=SeedList(), help=f"task: seeds to sample [default: {NUM_SEEDS} from {FIRST_SEED}].")
@click.option("--levels", type=NumberList(float), default=LEVELS, help="Noise levels to look at the images from.")
@click.option(
    "--draws", type=click.IntRange(1, 64), default=4, help="Of noise, for each image: what a score costs in F."
)
@click.option("--blocks", help="Modules to read, with commas between [default: the decoder's blocks].")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda", "mps"]), default="cpu", help="Where to compute.")
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads [default: all cores].")
@click.option("--out", type=Destination(file_okay=False), default=Path("out/readout"),
              help="Where samples and activations are kept; the same command goes on there.")  # fmt: skip
@click.option("--dest", type=Destination(dir_okay=False, folder_exists=True), required=True,
              help="The preset that gets the readout; what else it has stays.")  # fmt: skip
def main(**opts: Any) -> None:
    """Learn a score from labelled samples: the chance that an image is hallucinated, by the network's own activations.

    The labels are those of a task of the benchmark (--task), of a run folder with labels.jsonl (--run), or people's
    answers to scripts/label.py (--images, --answers). Blocks, alone or the last ones together, noise levels, and
    whether products of activations help are chosen by cross-validation. The score is then called `readout`:
    generate.py --preset=DEST --sampler=restart --detector=readout, or --filter=readout.
    """
    # Whatever is wrong with a preset that is there is said before the work.
    preset = read_preset(opts["dest"], option="--dest") if opts["dest"].exists() else None
    levels = chosen_levels(opts["levels"])
    device = distributed.begin(opts["device"], opts["threads"])
    task, network = loaded(opts, device)
    if preset and preset.network not in (None, network.name):
        raise UserError(f"--dest={opts['dest']} is for network {preset.network}, not {network.name}; name another file")
    net = cast(torch.nn.Module, network.denoiser)
    blocks = tuple(opts["blocks"].split(",")) if opts["blocks"] else decoder_blocks(net)
    if unknown := set(blocks) - (set(dict(net.named_modules())) - {""}):
        known = ", ".join(decoder_blocks(net))
        raise UserError(f"--blocks: {network.name} has no module {sorted(unknown)[0]!r}; it has {known}")
    if task is not None:
        labelled = of_task(
            task, network, opts["seeds"] or range(FIRST_SEED, FIRST_SEED + NUM_SEEDS), opts["out"], device
        )
    elif opts["run"] is not None:
        run = read_run(opts["run"], source=opts["labels"])
        by = opts["labels"] or next(iter(read_labels(opts["run"]).values())).source
        source = f"{counted(len(run), 'image')} of {opts['run']}, labelled by {by}"
        labelled = of_run(run, network.sha256, source, option=f"--run={opts['run']}")
    else:
        labelled = of_raters(network, opts["images"], opts["answers"])
    if distributed.rank() == 0:  # the others have done their part of the sampling
        fit_and_write(network, labelled, preset, blocks, levels, opts, device)
    distributed.close()


def fit_and_write(
    network: LoadedNetwork,
    labelled: LabelledImages,
    preset: Preset | None,
    blocks: tuple[str, ...],
    levels: tuple[float, ...],
    opts: dict[str, Any],
    device: torch.device,
) -> None:
    bad, draws = labelled.bad, opts["draws"]
    click.echo(f"{labelled.source}: {labelled.counts()}")
    at = measured(network, labelled, blocks, levels, draws=draws, out=opts["out"], device=device)
    with tqdm(unit="kind", desc="regressions", disable=not sys.stderr.isatty()) as bar:
        judged = judge(at, bad, report=lambda _: bar.update())
    best = judged[0].kind
    for j in judged[:10]:
        k = j.kind
        click.echo(f"AUROC {j.auroc:.3f}  {'+'.join(k.blocks)} at sigma {k.sigma:g}, ridge {k.ridge:g}"
                   + (", products of the first" if k.quadratic else ""))  # fmt: skip
    curve = learning_curve(best, at, bad)
    click.echo("AUROC by labels (bad ones): " + ", ".join(f"{n} ({b}) {a:.3f}" for n, b, a in curve))
    net = cast(torch.nn.Module, network.denoiser)
    readout = fit(best, at, bad, draws=draws, network=fingerprint(net, best.blocks))
    remark = (
        f"scripts/fit_readout.py, {labelled.source}, {int(bad.sum())} of {len(bad)} bad, "
        f"network {network.sha256[:12]}; AUROC {judged[0].auroc:.3f} ({len(judged)} kinds, cross-validated)"
    )
    new, stale = with_readout(preset or Preset(network.name, network.name, "", {}), readout, remark)
    log = beside_preset(opts["dest"], ".readout.jsonl")
    write_preset(opts["dest"], new)
    write_log(log, remark, draws, judged, curve)
    click.echo(f"wrote {opts['dest']} and {log}")
    if stale:
        click.echo(
            f"left out, for they were of the readout before: the settings of {', '.join(stale)}; calibrate again"
        )


if __name__ == "__main__":
    main()
