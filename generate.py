"""Sample images with EDM's samplers or with RODS: options -> frozen config -> the pipeline, chunk by chunk."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from math import isfinite
from pathlib import Path
from typing import Any

import click
import numpy as np
import PIL.Image
import torch
from tqdm import tqdm

from dnnlib.cli import Command, SeedList
from dnnlib.errors import UserError
from dnnlib.images import contact_sheet, save_png, to_pil, to_uint8
from dnnlib.outputs import OutputFolder
from rods.correctors import check_window
from rods.pipeline import (
    SAMPLERS,
    Chunk,
    ChunkResult,
    SamplerConfig,
    check_class,
    cut_chunks,
    parse_window,
    sample_chunk,
    sampler_options,
)
from rods.presets import PAPER_PRESETS, Preset, parse_preset
from torch_utils import distributed
from training.checkpoint import Snapshot, load_snapshot

MODELS = Path(__file__).resolve().parent / "models"
EMBEDDED = MODELS / "hands-32.safetensors"
DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16}
MAX_GRID = 256

# How sampler arguments are spelt on the command line, where it is not --name.
SPELLING = {
    "sampler": "--sampler",
    "num_steps": "--steps",
    "discretization": "--disc",
    "time_rho": "--time-rho",
    "sas_sign": "--sas-sign",
}
SPELLING |= {"ascent_steps": "--ascent-steps", "sigma_min": "--sigma_min", "sigma_max": "--sigma_max"}
ABLATION_OPTIONS = ("solver", "discretization", "schedule", "scaling")


class WindowText(click.ParamType):
    """`.1,.5` (fractions of the steps) or `sigma:1,5` (noise levels)."""

    name = "lo,hi|sigma:lo,hi"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            window = parse_window(value)
            check_window(window)
            return window
        except ValueError as e:
            self.fail(str(e).removeprefix("window: "), param, ctx)


def sampler_choice(name: str | None, given: dict[str, Any], *, say: Any) -> str:
    """The sampler: as named; the ablation sampler where one of its own options is given; else edm."""
    if name is not None:
        return name
    asked = [spelling(option) for option in ABLATION_OPTIONS if option in given]
    if asked:
        say(f"{', '.join(asked)} given without --sampler: using --sampler=ablation")
        return "ablation"
    return "edm"


def spelling(argument: str) -> str:
    """How a sampler's argument is spelt on the command line."""
    return SPELLING.get(argument, f"--{argument}")


def find_preset(name: str | None, network: str) -> Preset | None:
    """The preset of that name or file; without a name, the one made for this network. UserError if there is none."""
    if name == "none":
        return None
    if name is None:
        known = {p.network: p for p in PAPER_PRESETS.values() if p.network}
        path = MODELS / f"{network}.preset.json"
        return known.get(network) or (read_preset(path) if path.is_file() else None)
    if name in PAPER_PRESETS:
        return PAPER_PRESETS[name]
    for path in (MODELS / f"{name}.preset.json", Path(name)):
        if path.is_file():
            return read_preset(path)
    embedded = [p.name.removesuffix(".preset.json") for p in sorted(MODELS.glob("*.preset.json"))]
    raise UserError(f"--preset={name} is unknown; use a JSON file or one of {', '.join([*PAPER_PRESETS, *embedded])}")


def read_preset(path: Path) -> Preset:
    try:
        data = json.loads(path.read_text())
    except (ValueError, UnicodeDecodeError):
        raise UserError(f"--preset={path} is not JSON; make it again with scripts/calibrate.py") from None
    return parse_preset(data, where=f"--preset={path}")


def sampler_config(sampler: str, given: dict[str, Any], preset: Preset | None, network: str) -> SamplerConfig:
    """The frozen config. UserError, naming the option, for one that the sampler does not have, or that is missing."""
    known = sampler_options(sampler)
    for option in given:
        if option not in known:
            raise UserError(_misplaced(option, sampler))
    calibrated = preset.samplers.get(sampler, {}) if preset else {}
    if sampler.startswith("rods") and not {"eps", "rho"} <= {*given, *calibrated}:
        missing = " and ".join(f"--{k}" for k in ("eps", "rho") if k not in {*given, *calibrated})
        raise UserError(
            f"{missing} needed: --sampler={sampler} has no preset for network {network!r}. To calibrate, run once with "
            "--eps=inf and a radius --rho, read H in samples.jsonl, and set --eps to a high quantile of it "
            "(docs/calibration.md)"
        )
    try:
        return preset.config(sampler, given) if preset else SamplerConfig(sampler, given)
    except ValueError as e:
        raise UserError(respell(str(e))) from None


def _misplaced(option: str, sampler: str) -> str:
    owners = [name for name in SAMPLERS if option in sampler_options(name)]
    message = f"{spelling(option)} is an option of {', '.join(owners)}; --sampler={sampler} has none"
    if option == "rho":
        return message + ": it is RODS's radius. The exponent of the noise grid (EDM's --rho) is --time-rho"
    return message + f": leave it out or choose --sampler={owners[0]}"


def respell(message: str) -> str:
    """A library's `argument: what is wrong` with the argument as the command line spells it."""
    names, found, rest = message.partition(": ")
    if not found or not all(part.isidentifier() for part in names.split(", ")):
        return message
    return ", ".join(spelling(part) for part in names.split(", ")) + ": " + rest


@dataclass(frozen=True)
class Job:
    """Everything that one run needs."""

    snapshot: Snapshot
    config: SamplerConfig
    chunks: Sequence[Chunk]
    device: torch.device
    class_index: int | None
    dtype: str
    rng: str
    subdirs: bool

    def identity(self) -> dict[str, Any]:
        """What decides the images' bytes, seeds aside; a folder holds one identity."""
        return {
            "network_sha256": self.snapshot.sha256,
            **self.config.describe(),
            "class": self.class_index,
            "device": self.device.type,
            "dtype": self.dtype,
            "rng": self.rng,
            "rows_per_seed": self.chunks[0].rows_per_seed,
        }

    def names(self, chunk: Chunk) -> list[str]:
        """File names of a chunk's images, relative to the output folder."""
        names = []
        for seed, row in chunk.row_seeds():
            name = f"{seed:06d}.png" if chunk.rows_per_seed == 1 else f"{seed:06d}_{row:03d}.png"
            names.append(f"{seed - seed % 1000:06d}/{name}" if self.subdirs else name)
        return names


def sample_to_folder(job: Job, chunk: Chunk, folder: OutputFolder) -> None:
    """Sample a chunk and write it; an image that is not finite is recorded and never becomes a picture."""
    try:
        done = sample_chunk(
            job.snapshot.net,
            chunk,
            job.config,
            device=job.device,
            class_index=job.class_index,
            rng_on_cpu=job.rng == "cpu",
            dtype=DTYPES[job.dtype],
        )
    except ValueError as e:
        raise UserError(respell(str(e))) from None
    finite = done.images.isfinite().flatten(1).all(dim=1).tolist()
    pixels = done.images.cpu().numpy()
    images = [to_pil(to_uint8(x)) if ok else None for x, ok in zip(pixels, finite, strict=True)]
    folder.write(f"{chunk.seeds[0]:012d}-{len(chunk.seeds)}", images, record_lines(job, done))


def record_lines(job: Job, done: ChunkResult) -> list[dict[str, Any]]:
    """One JSON-ready dict per image."""
    rows = zip(job.names(done.chunk), done.chunk.row_seeds(), done.classes, done.records, strict=True)
    lines = []
    for name, (seed, row), class_index, record in rows:
        line = {"name": name, "seed": seed, "class": class_index, **asdict(record)}
        if done.chunk.rows_per_seed > 1:
            line["row"] = row
        for key in ("H", "H_scaled"):
            line[key] = [h if isfinite(h) else None for h in line[key]]
        lines.append(line)
    return lines


def write_grid(folder: OutputFolder, lines: Sequence[dict[str, Any]], path: Path) -> None:
    """A contact sheet of the run's first images: seed, largest H, and a red frame where a step was flagged."""
    shown = [line for line in lines if line["sha256"]][:MAX_GRID]
    images, captions = [], []
    for line in shown:
        with PIL.Image.open(folder.outdir / line["name"]) as image:
            array = np.asarray(image)
        images.append(array[None] if array.ndim == 2 else array.transpose(2, 0, 1))
        H = [h for h in line["H"] if h is not None]
        captions.append(f"{line['seed']}" + (f"  H {max(H):.3g}" if H else ""))
    sheet = contact_sheet(images, captions, marked=[bool(line["flagged"]) for line in shown])
    save_png(sheet, path)


SAMPLER_OPTION = {"default": None, "show_default": False}


@click.command(cls=Command, context_settings={"max_content_width": 120})
@click.option(
    "--network",
    metavar="FILE|URL",
    help="Network: an EDM pickle or a safetensors snapshot [default: the embedded hands-32].",
)
@click.option("--sha256", metavar="HEX", help="What the network file's checksum must be.")
@click.option("--outdir", metavar="DIR", required=True, help="Where to put the images, samples.jsonl and options.json.")
@click.option("--seeds", type=SeedList(), default="0-63", show_default=True, help="Random seeds, such as 1,2,5-10.")
@click.option("--subdirs", is_flag=True, help="A subfolder for every 1000 seeds.")
@click.option("--class", "class_index", metavar="INT", type=int, help="Class label [default: random per seed].")
@click.option(
    "--batch",
    type=click.IntRange(min=1),
    default=64,
    show_default=True,
    help="Images per chunk; chunks are shared out to the ranks.",
)
@click.option(
    "--grid", is_flag=True, help=f"Also write grid.png, a labelled contact sheet of the first {MAX_GRID} images."
)
@click.option(
    "--sampler",
    type=click.Choice(list(SAMPLERS)),
    help="Sampler [default: edm, or ablation if one of its options is given].",
)
@click.option(
    "--preset",
    metavar="NAME|FILE",
    help="Settings of the sampler for this network [default: by the network's name; none: no preset].",
)
@click.option(
    "--steps",
    "num_steps",
    type=click.IntRange(min=1),
    **SAMPLER_OPTION,
    help="Sampling steps [default: 18; euler, rods-*, overshoot, sigma-offset: 40].",
)
@click.option(
    "--sigma_min",
    "--sigma-min",
    type=float,
    **SAMPLER_OPTION,
    help="Lowest noise level [default: .002; ablation: by --disc].",
)
@click.option(
    "--sigma_max",
    "--sigma-max",
    type=float,
    **SAMPLER_OPTION,
    help="Highest noise level [default: 80; ablation: by --disc].",
)
@click.option("--time-rho", type=float, **SAMPLER_OPTION, help="Exponent of the noise grid, EDM's --rho [default: 7].")
@click.option(
    "--rho",
    type=float,
    **SAMPLER_OPTION,
    help="RODS: radius of the neighbourhood, in units of the state. Not EDM's exponent.",
)
@click.option(
    "--eps",
    type=float,
    **SAMPLER_OPTION,
    help="RODS: correct where the curvature index H >= eps; 0 corrects all, inf only records H.",
)
@click.option(
    "--window",
    type=WindowText(),
    **SAMPLER_OPTION,
    help="RODS and controls: where to act, as fractions of the steps or in noise levels [default: .1,.5].",
)
@click.option(
    "--ascent-steps", type=click.IntRange(min=1), **SAMPLER_OPTION, help="rods-cas: inner ascent steps [default: 1]."
)
@click.option(
    "--sas-sign",
    type=click.Choice(["uphill", "downhill"]),
    **SAMPLER_OPTION,
    help="rods-sas: which way to look [default: uphill].",
)
@click.option(
    "--detect",
    type=bool,
    **SAMPLER_OPTION,
    help="RODS: measure H; false needs --eps=0 and saves a third of the passes [default: true].",
)
@click.option(
    "--kappa",
    type=float,
    **SAMPLER_OPTION,
    help="sigma-offset: relative offset of the noise level told to the network.",
)
@click.option(
    "--solver",
    type=click.Choice(["euler", "heun"]),
    **SAMPLER_OPTION,
    help="ablation [default: heun] and base solver of rods-* [default: euler].",
)
@click.option(
    "--disc",
    "discretization",
    type=click.Choice(["vp", "ve", "iddpm", "edm"]),
    **SAMPLER_OPTION,
    help="ablation: noise grid [default: edm].",
)
@click.option(
    "--schedule",
    type=click.Choice(["vp", "ve", "linear"]),
    **SAMPLER_OPTION,
    help="ablation: noise schedule sigma(t) [default: linear].",
)
@click.option(
    "--scaling",
    type=click.Choice(["vp", "none"]),
    **SAMPLER_OPTION,
    help="ablation: signal scaling s(t) [default: none].",
)
@click.option(
    "--S_churn", "S_churn", type=float, **SAMPLER_OPTION, help="edm, ablation: stochasticity strength [default: 0]."
)
@click.option(
    "--S_min", "S_min", type=float, **SAMPLER_OPTION, help="edm, ablation: lowest noise level with churn [default: 0]."
)
@click.option(
    "--S_max",
    "S_max",
    type=float,
    **SAMPLER_OPTION,
    help="edm, ablation: highest noise level with churn [default: inf].",
)
@click.option("--S_noise", "S_noise", type=float, **SAMPLER_OPTION, help="edm, ablation: noise inflation [default: 1].")
@click.option(
    "--seeding",
    type=click.Choice(["per-image", "per-batch"]),
    default="per-image",
    show_default=True,
    help="per-batch: each seed draws a whole --batch, as in the RODS paper.",
)
@click.option(
    "--rng",
    type=click.Choice(["device", "cpu"]),
    default="device",
    show_default=True,
    help="Where random numbers are drawn; cpu gives the same latents on every device.",
)
@click.option(
    "--dtype",
    type=click.Choice(list(DTYPES)),
    default="float32",
    show_default=True,
    help="Precision inside the network; the state is float64.",
)
@click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda", "mps"]),
    default="auto",
    show_default=True,
    help="Where to run (mps was never tried).",
)
def main(**opts: Any) -> int:
    """Sample images, measure the risk of each (curvature index H), and repair while sampling.

    The outdir gets a PNG per seed, samples.jsonl (per image: H per step, flagged steps, network passes, sha256) and
    options.json. The same command completes what an interrupted run left, and changes nothing else.

    \b
    Examples:
      python generate.py --outdir=out --sampler=rods-cas --seeds=0-63 --grid
      python generate.py --network=edm-ffhq-64x64-uncond-ve.pkl --sampler=rods-cas --outdir=out --seeds=0-8
      torchrun --standalone --nproc_per_node=2 generate.py --sampler=edm --steps=18 --outdir=out
    """
    device = distributed.pick_device(opts["device"])
    lead = distributed.rank() == 0
    say = click.echo if lead else lambda text: None
    job = prepare(opts, device, say=say)
    folder = OutputFolder(opts["outdir"], identity=job.identity())
    distributed.init(device)
    if lead:
        folder.begin({**describe_run(opts), "network": job.snapshot.describe()})
    distributed.barrier()
    run_chunks(job, folder, show_progress=lead)
    distributed.barrier()
    code = report(job, folder, grid=opts["grid"], say=say) if lead else 0
    distributed.close()
    return code


def prepare(opts: dict[str, Any], device: torch.device, *, say: Any) -> Job:
    """Load and check everything before anything is written; prints what applies."""
    options = {name for sampler in SAMPLERS for name in sampler_options(sampler)}
    given = {name: opts[name] for name in options if opts.get(name) is not None}
    sampler = sampler_choice(opts["sampler"], given, say=say)
    if opts["network"] is None and not EMBEDDED.is_file():
        raise UserError(f"--network is needed: the embedded network {EMBEDDED} is missing")
    snapshot = load_snapshot(opts["network"] or EMBEDDED, device=device, sha256=opts["sha256"])
    preset = find_preset(opts["preset"], snapshot.name)
    config = sampler_config(sampler, given, preset, snapshot.name)
    try:
        check_class(opts["class_index"], snapshot.net.label_dim)
    except ValueError as e:
        raise UserError(respell(str(e))) from None
    chunks = cut_chunks(opts["seeds"], batch=opts["batch"], per_batch=opts["seeding"] == "per-batch")
    say(f"Network {snapshot.describe()}")
    if preset and preset.samplers.get(sampler):
        say(f"Preset {preset.name} ({preset.source})")
    applied = " ".join(f"{spelling(k)}={v}" for k, v in config.describe().items())
    say(f"{applied} --dtype={opts['dtype']} --device={device}")
    return Job(
        snapshot, config, chunks, device, opts["class_index"], opts["dtype"], opts["rng"], subdirs=opts["subdirs"]
    )


def describe_run(opts: dict[str, Any]) -> dict[str, Any]:
    """What is written beside the images for the reader, and does not decide their bytes."""
    return {
        "seeds": f"{len(opts['seeds'])} seeds, {opts['seeds'][0]} to {opts['seeds'][-1]}",
        "batch": opts["batch"],
        "preset": opts["preset"],
        "world_size": distributed.world_size(),
        "torch": torch.__version__,
        "version": tool_version(),
    }


def tool_version() -> str:
    try:
        return metadata.version("rods-toolkit")
    except metadata.PackageNotFoundError:
        return "not installed"


def run_chunks(job: Job, folder: OutputFolder, *, show_progress: bool) -> None:
    """The chunks of this rank that are not finished yet."""
    mine = [chunk for chunk in distributed.shard(job.chunks) if not folder.is_done(job.names(chunk))]
    total = sum(len(job.names(chunk)) for chunk in mine)
    with tqdm(total=total, unit="img", disable=None if show_progress else True) as progress:
        for chunk in mine:
            sample_to_folder(job, chunk, folder)
            progress.update(len(job.names(chunk)))


def report(job: Job, folder: OutputFolder, *, grid: bool, say: Any) -> int:
    """Closes the folder and says what is in it; the exit code is 1 if an image could not be made."""
    lines = folder.finish()
    wanted = {name for chunk in job.chunks for name in job.names(chunk)}
    mine = [line for line in lines if line["name"] in wanted]
    if grid and any(line["sha256"] for line in mine):
        write_grid(folder, mine, folder.outdir / "grid.png")
    passes = sum(line["forward"] for line in mine) / len(mine), sum(line["backward"] for line in mine) / len(mine)
    say(f"{len(mine)} images in {folder.outdir}, {passes[0]:.1f} forward and {passes[1]:.1f} backward passes an image")
    if any(line["H"] for line in mine):
        flagged = sum(bool(line["flagged"]) for line in mine)
        say(
            f"{flagged} of {len(mine)} at risk (H >= {job.config.options['eps']:g} at some step); H is in samples.jsonl"
        )
    broken = [str(line["seed"]) for line in mine if line["sha256"] is None]
    if broken:
        say(
            f"Error: {len(broken)} of {len(mine)} images are not finite and were not written (seeds "
            f"{', '.join(broken[:8])}{', ...' if len(broken) > 8 else ''}); try --dtype=float32 or another network"
        )
    return 1 if broken else 0


if __name__ == "__main__":
    main()
