"""Profiles sampling runs on this device by torch.profiler: speed, FLOP, memory, and the costliest operations."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works from a plain checkout, installed or not

from dnnlib.cli import Command, Destination
from dnnlib.errors import UserError, of_option
from dnnlib.util import atomic_write
from rods.base_samplers import Sampler
from rods.config import build
from torch_utils import distributed
from torch_utils.machine import facts, keep_freed_memory
from training.checkpoint import DTYPES, load_snapshot
from training.execution import ExecutionConfig, apply_execution, checkpoint_blocks
from training.model_zoo import MODELS
from training.networks import VEPrecond

# EDM's FFHQ network at 64x64 (its ddpmpp/ncsnpp options), with random weights: its speed is that of the real one.
FFHQ_VE: dict[str, Any] = {
    "model_type": "SongUNet", "model_channels": 128, "channel_mult": (1, 2, 2, 2), "channel_mult_noise": 2,
    "resample_filter": (1, 3, 3, 1), "embedding_type": "fourier", "encoder_type": "residual", "augment_dim": 9,
}  # fmt: skip
SAMPLERS: dict[str, dict[str, Any]] = {"euler": {}, "rods-cas": {"eps": 0.0, "rho": 1.0}}
TOP = 12  # operations listed


@click.command(cls=Command, context_settings={"show_default": True})
@click.option(
    "--network",
    metavar="PATH|URL|ffhq-ve",
    default=str(MODELS / "hands-32.safetensors"),
    help="An EDM pickle or a snapshot; ffhq-ve: the size of EDM's FFHQ network, 62.8 M random weights.",
)
@click.option("--batch", type=click.IntRange(min=1), default=8, help="Images at once.")
@click.option("--steps", type=click.IntRange(1, 100_000), default=20, help="Sampling steps of the runs.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", help="Where to run.")
@click.option("--dtype", type=click.Choice(list(DTYPES)), default="float32", help="Inside the network.")
@click.option("--channels-last", is_flag=True, help="Memory layout of the network's tensors.")
@click.option("--checkpoint-blocks", "checkpointed", is_flag=True, help="Backward passes compute blocks again.")
@click.option("--threads", type=click.IntRange(1, 1024), help="CPU threads; by default all cores.")
@click.option("--out", type=Destination(dir_okay=False), default="profile.json", help="The JSON.")
@click.option("--trace", type=Destination(dir_okay=False), help="Also a trace of the last run (Chrome).")
def main(
    network: str, batch: int, steps: int, device: str, dtype: str, channels_last: bool, checkpointed: bool,
    threads: int | None, out: Path, trace: Path | None,
) -> None:  # fmt: skip
    """Profile Euler and RODS-CAS with one network on this device."""
    for option, path in (("--out", out), ("--trace", trace)):
        if path is not None and not path.resolve().parent.is_dir():
            raise UserError(f"{option}={path}: there is no folder {path.parent}; make it first")
    keep_freed_memory()
    where = distributed.pick_device(device)
    name, net = load(network, where)
    execution = ExecutionConfig(threads or distributed.usable_cores(), channels_last, dtype)
    if checkpointed:
        checkpoint_blocks(net)
    shape = (batch, net.img_channels, net.img_resolution, net.img_resolution)
    latents = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).to(where)
    runs = []
    with apply_execution(net, execution):
        about: dict[str, Any] = {
            "network": name, "device": str(where), "batch": batch, "steps": steps, "dtype": dtype,
            "channels_last": channels_last, "checkpoint_blocks": checkpointed, **facts(),
        }  # fmt: skip
        click.echo("\n".join(f"{key}: {value}" for key, value in about.items()))
        for sampler, options in SAMPLERS.items():
            run = profiled(net, build(sampler, {"num_steps": steps, **options}), latents, trace=trace)
            runs.append({"sampler": sampler, **run})
            click.echo(text(runs[-1]))
    with atomic_write(out) as temporary:
        temporary.write_text(json.dumps({**about, "runs": runs}, indent=2) + "\n")
    click.echo(f"wrote {out}")


def load(network: str, device: torch.device) -> tuple[str, Any]:
    """A name and the network, in eval mode, its parameters without gradients."""
    if network != "ffhq-ve":
        with of_option("--network"):
            snapshot = load_snapshot(network, device=device)
        return snapshot.describe(), snapshot.net
    torch.manual_seed(0)
    net = VEPrecond(64, 3, **FFHQ_VE).to(device).eval().requires_grad_(False)
    return f"ffhq-ve, {sum(p.numel() for p in net.parameters()) / 1e6:.1f} M random weights", net


class Flops(TorchDispatchMode):
    """Adds up the FLOP of products and convolutions. (torch's FlopCounterMode cannot follow a gradient to an input.)"""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func.overloadpacket in flop_registry:
            self.total += flop_registry[func.overloadpacket](*args, **(kwargs or {}), out_val=out)
        return out


def profiled(net: Any, sampler: Sampler, latents: Tensor, *, trace: Path | None) -> dict[str, Any]:
    """Time, NFE, FLOP and peak memory (of a GPU) of one run, and its costliest operations. Cost: 4 runs."""
    device, B = latents.device, len(latents)
    with Flops() as work:  # also the run that warms up
        records = sampler.sample(net, latents).records
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    seconds = min(clocked(lambda: sampler.sample(net, latents), device) for _ in range(2))
    peak = torch.cuda.max_memory_allocated(device) / 2**20 if device.type == "cuda" else None
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    with profile(activities=activities) as p:
        clocked(lambda: sampler.sample(net, latents), device)
    if trace is not None:
        p.export_chrome_trace(str(trace))
    key = "self_device_time_total" if device.type == "cuda" else "self_cpu_time_total"
    events = sorted(p.key_averages(), key=lambda e: -float(getattr(e, key)))
    total = sum(float(getattr(e, key)) for e in events) or 1.0
    return {
        "seconds": seconds,
        "images_per_s": B / seconds,
        "forward": sum(r.forward for r in records) / B,
        "backward": sum(r.backward for r in records) / B,
        "gflop_per_image": work.total / B / 1e9,
        "gflop_per_s": work.total / seconds / 1e9,
        "peak_mib": peak,
        "operations": [
            {"name": e.key, "share": float(getattr(e, key)) / total, "calls": e.count} for e in events[:TOP]
        ],
    }


def clocked(run: Callable[[], object], device: torch.device) -> float:
    """Seconds of a run; on a GPU until its work is done."""
    start = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def text(run: dict[str, Any]) -> str:
    """What the JSON says of a run, for people."""
    peak = f", {run['peak_mib']:.0f} MiB at most" if run["peak_mib"] else ""
    operations = ", ".join(f"{o['name']} {o['share']:.0%}" for o in run["operations"][:6])
    return (
        f"{run['sampler']}: {run['images_per_s']:.2f} images/s, F {run['forward']:.0f} + B {run['backward']:.0f}, "
        f"{run['gflop_per_image']:.2f} GFLOP an image, {run['gflop_per_s']:.0f} GFLOP/s{peak}\n  {operations}"
    )


if __name__ == "__main__":
    main()
