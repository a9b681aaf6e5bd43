"""Fréchet distance and its companions: statistics of data sets, distances of images and networks, paired changes."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import Any, TypeVar

if os.environ.get("LOCAL_WORLD_SIZE", "1") != "1":  # ranks that share cores must not spin; read once, by torch's import
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import click
import numpy as np
import torch

from dnnlib.cli import Command, Destination, Group, SeedList, check_once, with_options
from dnnlib.errors import UserError, counted
from rods.config import SAMPLERS
from rods.eval.dreamsim import dreamsim_extractor
from rods.eval.extraction import extract
from rods.eval.extractors import NAMES, default_extractor, extractor_of_reference, open_extractor
from rods.eval.features import Extractor
from rods.eval.metrics import METRICS, NEED_REFERENCE, measure, parse_metrics, reference_warnings, size_warnings
from rods.eval.paired import NO_INTERVAL, paired_differences
from rods.eval.reference import Reference, read_reference, reference_of, write_reference
from rods.runs.decode import add_vae_option, open_network
from rods.runs.guidance import GUIDANCE_OPTIONS, add_guidance_options, guidance_option
from rods.runs.options import add_sampler_options, flag, given_options, sampler_choice, sampler_from_options
from rods.runs.presets import find_preset, preset_notes
from rods.runs.sources import Source, image_source, network_source, paired_sources
from torch_utils import distributed
from training.header import tool_version
from training.model_zoo import MODELS

NUM = 50_000
F = TypeVar("F", bound=Callable[..., Any])


def _extractor_options(command: F) -> F:
    options = (
        click.option("--detector", metavar="NAME|FILE|URL",
                     help=f"What makes the features: {', '.join(NAMES)}, or a file of the Inception [default: "
                          "that of --ref; else inception, or efficientnet-lite0 where its file is not to be had]."),
        click.option("--resize", help="How images reach the detector [default: as those of --ref; else tf1, as EDM's "
                                      "references, or bicubic-224]; also half-pixel (pytorch-fid's), bicubic-128."),
        click.option("--trust-detector", metavar="SHA256", help="You vouch for the detector's file with this checksum: "
                                                                "its numbers are called FID, and TorchScript may run."),
        click.option("--batch", type=click.IntRange(1, 100_000), default=64, show_default=True, help="Images at once."),
        click.option("--device", type=click.Choice(["auto", "cpu", "cuda", "mps"]), default="auto", show_default=True,
                     help="Where to run."),
        click.option("--threads", type=click.IntRange(1, 1024), help="CPU threads per rank [default: its cores]."),
    )  # fmt: skip
    return with_options(command, options)


def _reference_options(command: F) -> F:
    options = (
        click.option("--ref", metavar="NPZ|URL", help="Reference statistics, of fid.py ref or of EDM."),
        click.option("--metrics", default="fid,kid,inception-var", show_default=True,
                     help="; ".join(f"{name}: {what}" for name, what in METRICS.items())),
        click.option("--force", is_flag=True, help="Compare although detector or resize differ."),
        click.option("--json", "as_json", is_flag=True, help="Print JSON."),
    )  # fmt: skip
    return with_options(command, options)


@click.group(cls=Group)
def main() -> None:
    """Fréchet distance and its companions, with what a number must not be printed without.

    \b
    Examples:
      python fid.py ref --data=train.zip --dest=train.npz --detector=efficientnet-lite0
      python fid.py calc --images=out --ref=train.npz --detector=efficientnet-lite0
      python fid.py compare out-edm out-rods --ref=train.npz --detector=efficientnet-lite0
      torchrun --standalone --nproc_per_node=3 -- fid.py calc --images=out --ref=train.npz

    Under torchrun the `--` is needed: without it, torchrun takes --num for an option of its own.
    """


@main.command(cls=Command)
@click.option("--images", metavar="DIR|ZIP", help="The images.")
@click.option("--from-network", metavar="FILE|URL", help="Sample from this network in place of --images.")
@click.option("--num", type=click.IntRange(2, 10_000_000), help=f"How many images [default: all, {NUM} at most].")
@click.option("--seed", type=click.IntRange(0), help="Which images, where there are more than --num [default: 0].")
@click.option("--seeds", type=SeedList(), help="Seeds to sample, with --from-network [default: 0 to --num - 1].")
@click.option(
    "--class",
    "class_index",
    type=click.IntRange(0),
    help="Class label, with --from-network [default: random per seed].",
)
@click.option("--sampler", type=click.Choice(list(SAMPLERS)), help="Sampler; its options, below, are generate.py's.")
@click.option("--preset", metavar="NAME|FILE", help="Settings of the sampler, as generate.py's.")
@add_vae_option
@_reference_options
@_extractor_options
@add_guidance_options
@partial(add_sampler_options, without=("detector",))  # --detector is what makes the features
def calc(**opts: Any) -> None:
    """Distance of images, or of a network's samples, to reference statistics."""
    if (opts["images"] is None) == (opts["from_network"] is None):
        raise UserError("give either --images=DIR or --from-network=FILE")
    _refuse_idle_options(opts)
    names, device = parse_metrics(opts["metrics"]), _start(opts)
    with distributed.rank0_first():
        reference = _reference(names, opts)
        extractors = _extractors(names, opts, device, reference)
        warnings = reference_warnings(
            names, reference, extractors[0], where=f"--ref={opts['ref']}", force=opts["force"]
        )
        source = _network(opts, device) if opts["images"] is None else image_source(
            opts["images"], option="--images", batch=opts["batch"], num=opts["num"], most=NUM, seed=opts["seed"] or 0
        )  # fmt: skip
    warnings += _passed_over(source)
    found = extract(source.num_blocks, source.load, extractors, num_images=source.num)
    if found is not None:
        results = measure(names, found, extractors, reference)
        warnings += size_warnings(names, found.n, reference.n if reference else None)
        if reference and reference.data_sha256 == found.data_sha256:
            warnings.append(f"--ref={opts['ref']} was made of these very images: a distance to themselves")
        _report(opts, [asdict(r) for r in results], [r.describe() for r in results], warnings, extractors,
                {"images": source.what, "data_sha256": found.data_sha256})  # fmt: skip
    distributed.close()


@main.command(cls=Command)
@click.option("--data", metavar="DIR|ZIP", required=True, help="The images.")
@click.option("--dest", metavar="NPZ", type=Destination(), required=True, help="The file to write.")
@click.option("--features", type=click.IntRange(0), default=10_000, show_default=True,
              help="How many features to keep for the kernel distance, drawn at random.")  # fmt: skip
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Which features are kept.")
@click.option("--force", is_flag=True, help="Replace an existing file.")
@_extractor_options
def ref(**opts: Any) -> None:
    """Reference statistics of a data set: mu and sigma, and what they were made of."""
    dest = opts["dest"]
    if dest.suffix != ".npz" or dest.is_dir():
        raise UserError(f"--dest={dest} must be a file that ends in .npz")
    if dest.exists() and not opts["force"]:
        raise UserError(f"--dest={dest} exists; choose another name or add --force")
    device = _start(opts)
    with distributed.rank0_first():
        extractor = _extractors([], opts, device, None)[0]
        source = image_source(opts["data"], option="--data", batch=opts["batch"])
        dest.parent.mkdir(parents=True, exist_ok=True)
    found = extract(source.num_blocks, source.load, [extractor], num_images=source.num)
    if found is not None:
        reference = reference_of(found, extractor, keep=opts["features"], seed=opts["seed"], version=tool_version())
        write_reference(dest, reference)
        click.echo(f"{dest}: {extractor.describe()}, n = {counted(found.n, 'image')}")
        _warn([*_passed_over(source), *size_warnings(["fid"], None, found.n)])
    distributed.close()


@main.command(cls=Command)
@click.argument("a", metavar="A")
@click.argument("b", metavar="B")
@click.option("--bootstrap", type=click.IntRange(2, 1_000_000), default=1000, show_default=True,
              help="Resamples behind the intervals.")  # fmt: skip
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of the resamples.")
@_reference_options
@_extractor_options
def compare(a: str, b: str, **opts: Any) -> None:
    """What changed from the images A to the images B of the same seeds, with 95 % intervals over seeds."""
    check_once([a, b], option="")
    names = parse_metrics(opts["metrics"])
    if refused := [name for name in names if name in NO_INTERVAL]:
        raise UserError(f"--metrics={opts['metrics']}: {refused[0]} has no interval by resampling; use fid.py calc")
    device = _start(opts)
    with distributed.rank0_first():
        reference = _reference(names, opts)
        extractors = _extractors(names, opts, device, reference)
        warnings = reference_warnings(
            names, reference, extractors[0], where=f"--ref={opts['ref']}", force=opts["force"]
        )
        sources = paired_sources(a, b, batch=opts["batch"])
        if unpaired := sources[0].left_out + sources[1].left_out:
            warnings.append(f"{counted(unpaired, 'image')} left out, without a partner of equal name")
        warnings += [line for source in sources for line in _passed_over(source)]
    sets = [extract(s.num_blocks, s.load, extractors, num_images=s.num) for s in sources]
    if sets[0] is not None and sets[1] is not None:
        rows = paired_differences(
            names, sets[0], sets[1], extractors, reference, resamples=opts["bootstrap"], seed=opts["seed"]
        )
        warnings += size_warnings(names, sets[0].n, reference.n if reference else None)
        heading = f"{'':<26} {'A':<11} {'B':<11} B - A (95 %, {opts['bootstrap']} resamples of seeds)"
        _report(opts, [asdict(r) for r in rows], [heading, *(r.describe() for r in rows)], warnings, extractors,
                {"a": a, "b": b, "data_sha256": [s.data_sha256 for s in sets if s]})  # fmt: skip
    distributed.close()


@main.command(cls=Command)
@click.argument("reference", metavar="REF")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def info(reference: str, as_json: bool) -> None:
    """What a file of reference statistics holds."""
    found = read_reference(reference, option="REF")
    lines = {
        "dimensions": len(found.mu), "n": found.n, "detector": found.detector, "detector_sha256": found.detector_sha256,
        "resize": found.resize, "features kept": 0 if found.features is None else len(found.features),
        "data_sha256": found.data_sha256, "version": found.version, "mean of mu": float(found.mu.mean()),
        "trace of sigma / d": float(np.trace(found.sigma)) / len(found.mu),
    }  # fmt: skip
    if as_json:
        click.echo(json.dumps(lines))
        return
    for name, value in lines.items():
        click.echo(f"{name:<20} {'not recorded' if value is None else value}")


# -- what the commands share ------------------------------------------------------------------------------------------


def _start(opts: dict[str, Any]) -> torch.device:
    device = distributed.pick_device(opts["device"])
    torch.set_num_threads(opts["threads"] or distributed.own_cores())
    distributed.init(device)
    return device


def _extractors(
    names: list[str], opts: dict[str, Any], device: torch.device, reference: Reference | None
) -> list[Extractor]:
    name, resize, trust = opts["detector"], opts["resize"], opts["trust_detector"]
    if name is None and reference is not None:
        main_one = extractor_of_reference(reference, device=device, resize=resize, trust=trust)
    elif name is resize is trust is None:
        lead = distributed.rank() == 0
        main_one = default_extractor(device=device, say=lambda line: click.echo(line, err=True) if lead else None)
    else:
        main_one = open_extractor(name or "inception", device=device, resize=resize, trust=trust)
    return [main_one, *([dreamsim_extractor(device=device)] if "dreamsim" in names else [])]


def _reference(names: list[str], opts: dict[str, Any]) -> Reference | None:
    """The reference; None where no metric needs one."""
    needing = [name for name in names if name in NEED_REFERENCE]
    if needing and opts["ref"] is None:
        raise UserError(f"--ref is needed for {needing[0]}: give statistics made with fid.py ref")
    return read_reference(opts["ref"]) if needing else None


def _sampler_options(opts: dict[str, Any]) -> dict[str, Any]:
    """The sampler options that were given. --detector is the features' here: restart's comes from a preset."""
    return given_options({name: value for name, value in opts.items() if name != "detector"})


def _refuse_idle_options(opts: dict[str, Any]) -> None:
    """UserError for what would be ignored in silence."""
    if opts["from_network"] is not None:
        if opts["seed"] is not None:
            raise UserError("--seed chooses among --images; the seeds of --from-network are --seeds")
        if opts["seeds"] is not None and opts["num"] is not None:
            raise UserError("--num and --seeds both say how many images; give one of them")
        return
    own = {"seeds": "--seeds", "class_index": "--class", "sampler": "--sampler", "preset": "--preset", "vae": "--vae",
           **{name: flag(name) for name in GUIDANCE_OPTIONS}}  # fmt: skip
    idle = [option for name, option in own.items() if opts[name] is not None]
    if idle := idle + [flag(name) for name in _sampler_options(opts)]:
        raise UserError(f"{idle[0]} is for --from-network; leave it out with --images")


def _network(opts: dict[str, Any], device: torch.device) -> Source:
    given = _sampler_options(opts)
    sampler = sampler_choice(opts["sampler"], given, say=lambda line: click.echo(line, err=True))
    snapshot = open_network(opts["from_network"], device=device, vae=opts["vae"], option="--from-network")
    preset = find_preset(opts["preset"], network=snapshot.name, folder=MODELS, source=snapshot.source)
    for note in preset_notes(preset, asked=opts["preset"], sampler=sampler, network=snapshot.name, net=snapshot.net):
        click.echo(note, err=True)
    chosen = sampler_from_options(sampler, given, preset, snapshot.name)
    seeds = opts["seeds"] or list(range(opts["num"] or NUM))
    return network_source(snapshot, chosen, seeds, batch=opts["batch"], device=device, class_index=opts["class_index"],
                          guidance=guidance_option(opts, preset))  # fmt: skip


def _report(
    opts: dict[str, Any],
    results: list[dict[str, Any]],
    lines: list[str],
    warnings: list[str],
    extractors: list[Extractor],
    about: dict[str, Any],
) -> None:
    """Prints numbers with their recipe, warnings last and on stderr."""
    recipe = {
        "detector": [extractor.describe() for extractor in extractors],
        **about, "ref": opts["ref"], "batch": opts["batch"], "version": tool_version(),
    }  # fmt: skip
    if opts["as_json"]:
        click.echo(json.dumps({"metrics": results, **recipe, "warnings": warnings}))
    else:
        click.echo("\n".join(lines))
        for name, value in recipe.items():
            click.echo(f"  {name}: {'; '.join(value) if isinstance(value, list) else value}")
    _warn(warnings)


def _passed_over(source: Source) -> list[str]:
    return [f"{source.what}: passed over {source.passed_over}"] if source.passed_over else []


def _warn(warnings: list[str]) -> None:
    for warning in warnings:
        click.echo(f"Warning: {warning}", err=True)


if __name__ == "__main__":
    main()
