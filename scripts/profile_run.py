"""Measures where a sampling run's time and memory go and how far the network is from this device's limits: one JSON."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works from a plain checkout, installed or not

from dnnlib.cli import Command
from dnnlib.errors import UserError
from dnnlib.util import atomic_write
from rods.bench.embedded import MODELS
from rods.bench.profiling import breakdown, roofline
from rods.bench.speed import peak_mib
from rods.pipeline import SamplerConfig
from torch_utils import distributed
from torch_utils.machine import facts, keep_freed_memory
from training.checkpoint import STORED_DTYPES, load_snapshot
from training.execution import checkpoint_blocks, set_layout
from training.precond import VEPrecond

# EDM's FFHQ network at 64x64 (its ddpmpp/ncsnpp options), with random weights: its speed is that of the real one.
FFHQ_VE: dict[str, Any] = {
    "model_type": "SongUNet", "model_channels": 128, "channel_mult": (1, 2, 2, 2), "channel_mult_noise": 2,
    "resample_filter": (1, 3, 3, 1), "embedding_type": "fourier", "encoder_type": "residual", "augment_dim": 9,
}  # fmt: skip
SAMPLERS: dict[str, dict[str, Any]] = {"euler": {}, "rods-cas": {"eps": 0.0, "rho": 1.0}}


@click.command(cls=Command, context_settings={"show_default": True})
@click.option(
    "--network",
    metavar="PATH|URL|ffhq-ve",
    default=str(MODELS / "hands-32.safetensors"),
    help="An EDM pickle or a snapshot; ffhq-ve: the size of EDM's FFHQ network, 62.8 M random weights.",
)
@click.option("--batch", type=click.IntRange(min=1), default=8, help="Images at once.")
@click.option("--steps", type=click.IntRange(min=1), default=20, help="Sampling steps of the runs.")
@click.option("--repeats", type=click.IntRange(min=1), default=3, help="Timed rounds; medians are reported.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", help="Where to run.")
@click.option("--dtype", type=click.Choice(list(STORED_DTYPES)), default="float32", help="Inside the network.")
@click.option("--channels-last", is_flag=True, help="Memory layout of the network's tensors.")
@click.option("--checkpoint-blocks", is_flag=True, help="Backward passes compute blocks again.")
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads; by default all cores.")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), default="profile.json", help="The JSON.")
def main(**opts: Any) -> None:
    """Profile a network and two samplers on this device. The CUDA branch was never run by its authors."""
    out: Path = opts["out"]
    if not out.resolve().parent.is_dir():
        raise UserError(f"--out={out}: there is no folder {out.parent}; make it first")
    device, dtype = distributed.pick_device(opts["device"]), opts["dtype"]
    keep_freed_memory()
    torch.set_num_threads(opts["threads"] or distributed.usable_cores())
    name, net = load(opts["network"], device)
    set_layout(net, channels_last=opts["channels_last"])
    if opts["checkpoint_blocks"]:
        checkpoint_blocks(net)
    shape = (opts["batch"], net.img_channels, net.img_resolution, net.img_resolution)
    x = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).to(device)
    result: dict[str, Any] = {
        **facts(),
        "network": name,
        "device": str(device),
        **{key: opts[key] for key in ("batch", "steps", "repeats", "dtype", "channels_last", "checkpoint_blocks")},
        "roofline": roofline(net, x, dtype=STORED_DTYPES[dtype], repeats=opts["repeats"]),
    }
    result["runs"] = [
        profiled(net, SamplerConfig(s, {"num_steps": opts["steps"], **options}), x, opts, device)
        for s, options in SAMPLERS.items()
    ]
    click.echo(text(result))
    with atomic_write(out) as temporary:
        temporary.write_text(json.dumps(result, indent=2) + "\n")
    click.echo(f"wrote {out}")


def load(network: str, device: torch.device) -> tuple[str, Any]:
    """A name and the network, in eval mode, its parameters without gradients."""
    if network != "ffhq-ve":
        snapshot = load_snapshot(network, device=device)
        return snapshot.describe(), snapshot.net
    torch.manual_seed(0)
    net = VEPrecond(64, 3, **FFHQ_VE).to(device).eval().requires_grad_(False)
    return f"ffhq-ve, {sum(p.numel() for p in net.parameters()) / 1e6:.1f} M random weights", net


def profiled(
    net: Any, config: SamplerConfig, x: torch.Tensor, opts: dict[str, Any], device: torch.device
) -> dict[str, Any]:
    """The time of one sampler's run by its parts, and the peak memory of a process that does nothing else."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    run = breakdown(net, config, batch=len(x), device=device, dtype=opts["dtype"], repeats=opts["repeats"])
    if device.type == "cuda":
        return {**run, "peak_mib": torch.cuda.max_memory_allocated(device) / 2**20}
    return {**run, "peak_mib": peak_mib(net, x.float(), config)}


def text(result: dict[str, Any]) -> str:
    """What the JSON says, for people."""
    limits = result["roofline"]
    lines = [f"{key}: {value}" for key, value in result.items() if key not in ("roofline", "runs")]
    lines.append(f"matrix product {limits['matmul_flop_per_s'] / 1e9:.1f} GFLOP/s, copy "
                 f"{limits['copy_bytes_per_s'] / 1e9:.1f} GB/s")  # fmt: skip
    for name in ("forward", "probe"):
        e = limits[name]
        far = f", {e['times_the_peak']:.2f} times the time at the matrix product's speed" if e["times_the_peak"] else ""
        lines.append(
            f"{name}: {e['seconds']:.4f} s, {e['flop_per_image'] / 1e9:.3f} GFLOP and "
            f"{e['bytes_per_image'] / 1e6:.1f} MB an image{far}"
        )
        lines.append("  " + ", ".join(f"{o['name']} {o['share']:.0%}" for o in e["operations"][:6]))
    for run in result["runs"]:
        parts = ("random_numbers", "network_forward", "sampler_and_backward", "files")
        lines.append(
            f"{run['sampler']['sampler']}: {run['images_per_s']:.2f} images/s, F {run['forward']:.0f} + B "
            f"{run['backward']:.0f}, peak {run['peak_mib']:.0f} MiB; seconds: "
            + ", ".join(f"{part.replace('_', ' ')} {run[part]:.4f}" for part in parts)
            + f" ({run['files_share']:.1%} of all)"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
