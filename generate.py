"""Sample images with EDM's samplers or with RODS: options -> a frozen `Job` -> `run_chunks`, chunk by chunk."""

from __future__ import annotations

import os
import shlex
import textwrap
from contextlib import nullcontext
from typing import Any

if os.environ.get("LOCAL_WORLD_SIZE", "1") != "1":  # ranks that share cores must not spin; read once, by torch's import
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import click
import torch

from dnnlib.cli import Command, Destination, SeedList, Sha256
from dnnlib.errors import UserError, counted, user_errors
from rods.base_samplers import Sampler
from rods.config import SAMPLERS, to_json
from rods.guidance import Guidance
from rods.latents import codec_of
from rods.runs.chunk import check_class, cut_chunks
from rods.runs.decode import add_vae_option, check_channels, open_network
from rods.runs.estimate import estimate
from rods.runs.execution_options import AUTO, add_execution_options, executed, execution_config
from rods.runs.folder import CONTACT_SHEET, OutputFolder
from rods.runs.guidance import GuidedNetwork, add_guidance_options, guidance_option, guided_network
from rods.runs.options import (
    add_sampler_options,
    flag,
    given_options,
    respell,
    sampler_choice,
    sampler_from_options,
    with_restart_share,
)
from rods.runs.presets import find_preset, preset_notes
from rods.runs.records import restart_summary, risk_summary, selection_summary
from rods.runs.run import MAX_GRID, Job, run_chunks, write_grid
from rods.runs.select import add_selection_options, selection
from torch_utils import distributed
from torch_utils.machine import keep_freed_memory
from training.execution import ExecutionConfig
from training.header import tool_version
from training.model_zoo import MODELS, saying_files, with_published

EMBEDDED = MODELS / "hands-32.safetensors"
HEADER = 200  # characters of a preset's source that are printed; options.json has all


@click.command(cls=Command, context_settings={"max_content_width": 120})
@click.option(
    "--network",
    metavar="FILE|URL|NAME",
    help="Network: an EDM or EDM2 pickle or a safetensors snapshot, or a published one's name, such as "
    "edm2-img64-s-fid [default: the embedded hands-32].",
)
@click.option("--sha256", metavar="HEX", type=Sha256(), help="What the network file's checksum must be.")
@add_vae_option
@click.option(
    "--outdir",
    metavar="DIR",
    type=Destination(),
    required=True,
    help="Where to put the images, samples.jsonl and options.json.",
)
@click.option("--seeds", type=SeedList(), default="0-63", show_default=True, help="Random seeds, such as 1,2,5-10.")
@click.option("--subdirs", is_flag=True, help="A subfolder for every 1000 seeds.")
@click.option(
    "--class", "class_index", metavar="INT", type=click.IntRange(0), help="Class label [default: random per seed]."
)
@add_execution_options
@click.option(
    "--grid", is_flag=True, help=f"Also write grid.png, a labelled contact sheet of the first {MAX_GRID} images."
)
@click.option(
    "--trajectory",
    metavar="STEPS",
    type=SeedList("step"),
    help="Also write OUTDIR/trajectories/SEED.png: x_t above D(x_t) at these steps (the first is 0), such as "
    "0,10,20,30,39, and the image. x_t is scaled by 1/sqrt(1 + t^2); after a restart, the first run.",
)
@click.option(
    "--sampler",
    type=click.Choice(list(SAMPLERS)),
    help="Sampler [default: edm, or ablation if one of its options is given].",
)
@click.option(
    "--preset",
    metavar="NAME|FILE",
    help="Settings of the sampler for this network [default: by the network's name; none: no preset]; or a published "
    "network with its guide, such as edm2-img512-xs-guid-fid.",
)
@add_guidance_options
@add_sampler_options
@click.option(
    "--restart-share",
    metavar="FLOAT",
    type=click.FloatRange(0, 1),
    help="restart: the threshold is what this share of the preset's calibration samples exceeds.",
)
@add_selection_options
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
    "--device",
    type=click.Choice(["auto", "cpu", "cuda", "mps"]),
    default="auto",
    show_default=True,
    help="Where to run (mps was never tried).",
)
@click.option("-n", "--dry-run", is_flag=True, help="Check all inputs, print what applies, time and memory, and stop.")
def main(**opts: Any) -> int:
    """Sample images, score how likely each is hallucinated, and repair while sampling.

    The outdir gets a PNG per seed, samples.jsonl (per image: scores, restarts, H per step, flagged steps, tries, NFE,
    sha256) and options.json. The same command completes what an interrupted run left, and changes nothing else.

    \b
    Examples:
      python generate.py --outdir=out --sampler=restart --seeds=0-63 --grid
      python generate.py --network=conditional.pkl --guidance=2 --guide=none --guidance-interval=.2,5 --outdir=out
      python generate.py --network=edm-ffhq-64x64-uncond-ve.pkl --sampler=rods-cas --outdir=out --seeds=0-8
      python generate.py --sampler=euler --filter=lid --filter-threshold=15 --outdir=out
      python generate.py --sampler=euler --accept='lid<12' --max-tries=4 --outdir=out
      python generate.py --sampler=euler --preset=hands-32-gate --accept='density-ratio<50%@.131' --outdir=out
      torchrun --standalone --nproc_per_node=2 generate.py --sampler=edm --steps=18 --outdir=out
    """
    device = distributed.pick_device(opts["device"])
    keep_freed_memory()
    torch.set_num_threads(opts["threads"] or distributed.own_cores())
    lead = distributed.rank() == 0
    distributed.init(device)
    with distributed.rank0_first():
        job, about, notes = prepare(opts, device)
        folder = OutputFolder(opts["outdir"], identity=job.identity())
    if opts["dtype"] == AUTO and len(set(distributed.gather((job.dtype, job.channels_last)))) > 1:
        raise UserError(
            f"--dtype={AUTO} chooses differently on the machines of these ranks; give --dtype=float32 or mixed"
        )
    if opts["dry_run"]:
        for line in [*notes, *estimate(job, ranks=distributed.world_size())] if lead else ():
            click.echo(line)
        distributed.close()
        return 0
    with folder.open(about) if lead else nullcontext():
        for note in notes if lead else ():
            click.echo(note)
        distributed.barrier()
        run_chunks(job, folder, show_progress=lead)
        distributed.barrier()
        code = report(job, folder, grid=opts["grid"]) if lead else 0
    distributed.close()
    return code


def prepare(opts: dict[str, Any], device: torch.device) -> tuple[Job, dict[str, Any], list[str]]:
    """Load and check everything before anything is written: the job, what options.json says of it, what to print."""
    notes: list[str] = []
    published, opts = opts["preset"], with_published(opts)
    given = given_options(opts)
    sampler = sampler_choice(opts["sampler"], given, say=notes.append)
    if opts["network"] is None and not EMBEDDED.is_file():
        raise UserError(f"--network is needed: the embedded network {EMBEDDED} is missing")
    with saying_files(published):
        snapshot = open_network(opts["network"] or EMBEDDED, device=device, sha256=opts["sha256"], vae=opts["vae"])
    preset = find_preset(opts["preset"], network=snapshot.name, folder=MODELS, source=snapshot.source)
    # A score may take its weights and thresholds from a preset that has no settings of the sampler.
    by_score = any(opts[name] for name in ("filter", "accept", "detector"))
    applies = preset is not None and preset.applies_to(sampler, by_score=by_score)
    said = preset_notes(preset, asked=opts["preset"], sampler=sampler, network=snapshot.name, net=snapshot.net,
                        by_score=by_score, by_default=opts["sampler"] is None)  # fmt: skip
    given = with_restart_share(given, opts["restart_share"], sampler, preset)
    chosen_sampler = sampler_from_options(sampler, given, preset, snapshot.name)
    notes += said
    chosen = selection(opts, preset)
    guidance = guidance_option(opts, preset)
    execution = execution_config(opts, snapshot.net, device, say=notes.append)
    network = with_guide(opts, snapshot.net, guidance, execution, device)
    check_network(network.denoiser, chosen_sampler, opts["class_index"])
    network.check(chosen_sampler)
    chunks = cut_chunks(opts["seeds"], batch=opts["batch"], per_batch=opts["seeding"] == "per-batch")
    chosen.check(chosen_sampler, chunks, network.denoiser)
    job = Job(
        denoiser=network.denoiser,
        sampler=chosen_sampler,
        chunks=chunks,
        device=device,
        network_sha256=snapshot.sha256,
        batch=opts["batch"],
        class_index=opts["class_index"],
        dtype=execution.dtype,
        rng=opts["rng"],
        threads=torch.get_num_threads() if device.type == "cpu" else None,
        subdirs=opts["subdirs"],
        detect_eps=preset.risk_threshold(chosen_sampler) if preset else None,
        selection=chosen,
        trajectory=trajectory_steps(opts, chosen_sampler),
        probe_batch=opts["probe_batch"],
        channels_last=execution.channels_last,
        guidance=network.identity,
        compiled=opts["compile_network"],
    )
    applied = f"{preset.name} ({preset.source})" if preset and applies else None
    about = {
        "network": snapshot.describe(),
        **({"guide": network.guide} if network.guide else {}),
        "preset": applied,
        "seeds": f"{counted(len(opts['seeds']), 'seed')}, {opts['seeds'][0]} to {opts['seeds'][-1]}",
        "torch": torch.__version__,
        "version": tool_version(),
    }
    notes += [f"Network {snapshot.describe()}", *([f"Guide {network.guide}"] if network.guide else [])]
    return job, about, [*notes, *describe(job, applied)]


def with_guide(
    opts: dict[str, Any], net: Any, guidance: Guidance | None, execution: ExecutionConfig, device: torch.device
) -> GuidedNetwork:
    """The network and its guide as they will be called. UserError for what does not go together."""
    if guidance and guidance.guide.partition(":")[0] == "dropout":
        for option, name in (("--compile", "compile_network"), ("--checkpoint-blocks", "checkpoint_blocks")):
            if opts[name]:
                raise UserError(f"{option}: the masks of --guide={guidance.guide} do not go through it; leave it out")
    net = executed(opts, net, execution)
    return guided_network(net, guidance, device=device, executed=lambda guide: executed(opts, guide, execution))


def trajectory_steps(opts: dict[str, Any], sampler: Sampler) -> tuple[int, ...]:
    """The steps that strips show, in order. UserError for other steps, or several runs an image."""
    steps = sorted(opts["trajectory"] or ())
    if steps and opts["accept"]:
        raise UserError("--trajectory shows one run, and --accept may draw an image several times; leave one out")
    if steps and "@" in (opts["filter"] or ""):
        raise UserError(f"--trajectory shows whole runs, and --filter={opts['filter']} gives some up; leave one out")
    if steps and steps[-1] >= (num_steps := sampler.num_steps):
        raise UserError(
            f"--trajectory={steps[-1]} is not a step of this run, which has 0 to {num_steps - 1}; name others"
        )
    return tuple(steps)


def check_network(net: Any, sampler: Sampler, class_index: int | None) -> None:
    """UserError where these options do not suit the network."""
    if net.img_resolution > 1 or codec_of(net):  # points are no images
        check_channels(net, option="--network")
    with user_errors(spelled=respell):
        check_class(class_index, net.label_dim)
        sampler.check(net)


def describe(job: Job, preset: str | None) -> list[str]:
    """Lines that say what applies."""
    lines = [f"Preset {textwrap.shorten(preset, HEADER, placeholder=' ...')}"] if preset else []
    options = {
        **to_json(job.sampler),
        **job.guidance,
        **job.selection.identity(),
        "dtype": job.dtype,
        "device": job.device,
    }
    options = {name: value for name, value in options.items() if not name.endswith("_sha256")}  # of a preset's weights
    if job.channels_last:
        options["channels_last"] = True
    if job.threads:
        options["threads"] = job.threads
        if busy := distributed.oversubscription(job.threads):
            lines.append(busy)
    switches = {"rejected", "channels_last"}  # without a value
    given = [(k, v) for k, v in options.items() if v is not None and not (k in switches and not v)]
    return [*lines, " ".join(flag(k) if k in switches else f"{flag(k)}={shlex.quote(str(v))}" for k, v in given)]


def report(job: Job, folder: OutputFolder, *, grid: bool) -> int:
    """Closes the folder and says what is in it; the exit code is 1 if an image could not be made."""
    lines = folder.finish()
    wanted = {name for chunk in job.chunks for name in job.names(chunk)}
    mine = [line for line in lines if line["name"] in wanted]
    dropped = sum(line.get("dropped", False) for line in mine)
    broken = [str(line["seed"]) for line in mine
              if line["sha256"] is None and line.get("x") is None and not line.get("dropped")]  # fmt: skip
    if grid and (said := write_grid(folder, mine, folder.outdir / CONTACT_SHEET, threshold=job.risk_threshold())):
        click.echo(said)
    nfe = sum(line["forward"] for line in mine) / len(mine), sum(line["backward"] for line in mine) / len(mine)
    click.echo(
        f"{counted(len(mine) - len(broken) - dropped, 'image')} in {folder.outdir}, "
        f"{nfe[0]:.1f} F + {nfe[1]:.1f} B network evaluations an image"
    )
    if any(line["H"] for line in mine):
        click.echo(risk_summary(mine, getattr(job.sampler, "eps", 0.0), job.risk_threshold()))
    elif "restart" in mine[0]:
        click.echo(restart_summary(mine, getattr(job.sampler, "threshold", 0.0)))
    for line in selection_summary(mine, job.selection):
        click.echo(line)
    if broken:
        shown = ", ".join(broken[:8]) + (", ..." if len(broken) > 8 else "")
        remedy = "use --dtype=float32" if job.dtype != "float32" else "choose other noise levels or another network"
        click.echo(
            f"Error: {len(broken)} of {counted(len(mine), 'image')} not finite and not written (seeds {shown}); "
            f"{remedy}",
            err=True,
        )
    return 1 if broken else 0


if __name__ == "__main__":
    main()
