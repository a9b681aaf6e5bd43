"""Where the time of a sampling run goes, and how far the network is from what the device can do."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from rods.evaluation import Point, bind
from rods.pipeline import Chunk, SamplerConfig, sample_chunk
from rods.runs.outputs import OutputFolder
from rods.runs.sampling import Job, write_chunk
from rods.runs.trajectories import Recorder
from torch_utils.rng import SeedStreams

SIGMA = 1.0  # where the network is timed
TOP = 12  # operations listed
MATMUL_SIDE = {"cpu": 1024, "cuda": 8192}
COPIED_BYTES = {"cpu": 1 << 27, "cuda": 1 << 30}


def seconds(run: Callable[[], object], device: torch.device, *, repeats: int) -> float:
    """The median time of `repeats` runs after one that is not timed; on a GPU until its work is done."""
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
    return median(times[1:])


def matmul_peak(device: torch.device, dtype: torch.dtype, *, repeats: int) -> float:
    """FLOP/s of a square matrix product, the most that a network of convolutions can hope for."""
    side = MATMUL_SIDE.get(device.type, 1024)
    a = torch.randn(side, side, device=device).to(dtype)
    return 2 * side**3 / seconds(lambda: a @ a, device, repeats=repeats)


def copy_bandwidth(device: torch.device, *, repeats: int) -> float:
    """Bytes per second read plus written by a large copy."""
    source = torch.zeros(COPIED_BYTES.get(device.type, 1 << 27) // 4, device=device)
    target = torch.empty_like(source)
    return 2 * source.numel() * 4 / seconds(lambda: target.copy_(source), device, repeats=repeats)


class Work(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up, over operations: FLOP of products and convolutions, and the bytes read and written, views aside.

    The bytes are what a run moves where nothing stays in a cache between two operations.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.flops = self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func.overloadpacket in flop_registry:
            self.flops += flop_registry[func.overloadpacket](*args, **(kwargs or {}), out_val=out)
        made = [t for t in (out if isinstance(out, tuple | list) else [out]) if isinstance(t, Tensor)]
        if not func.is_view:
            read = [t for t in args if isinstance(t, Tensor)]
            self.bytes += sum(t.numel() * t.element_size() for t in [*read, *made])
        return out


def evaluations(net: Any, x: Tensor) -> dict[str, Callable[[], object]]:
    """`forward`: D(x; 1), and `probe`: D and the gradient of the score norm, F + B, as a sampler evaluates them."""
    sigma = torch.tensor(SIGMA, dtype=x.dtype, device=x.device)
    labels = torch.eye(net.label_dim, device=x.device)[:1].expand(len(x), -1) if net.label_dim else None
    return {
        "forward": lambda: Point(bind(net, len(x), labels), x, sigma).d,
        "probe": lambda: Point(bind(net, len(x), labels), x, sigma).g,
    }


def roofline(net: Any, x: Tensor, *, dtype: torch.dtype, repeats: int) -> dict[str, Any]:
    """Per evaluation: seconds, FLOP, bytes, and the least time that the device's peak and bandwidth allow."""
    device = x.device
    peak, bandwidth = matmul_peak(device, dtype, repeats=repeats), copy_bandwidth(device, repeats=repeats)
    found: dict[str, Any] = {"matmul_flop_per_s": peak, "copy_bytes_per_s": bandwidth}
    for name, run in evaluations(net, x).items():
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            took = seconds(run, device, repeats=repeats)
            with Work() as counted:
                run()
            top = top_operations(run, device)
        work, moved = counted.flops, counted.bytes
        found[name] = {
            "seconds": took,
            "flop_per_image": work / len(x),
            "bytes_per_image": moved / len(x),
            "seconds_at_peak": work / peak,
            "seconds_at_bandwidth": moved / bandwidth,
            "times_the_peak": took / (work / peak) if work else None,
            "operations": top,
        }
    return found


def top_operations(run: Callable[[], object], device: torch.device) -> list[dict[str, Any]]:
    """The operations that take most time, each with its share of all."""
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    with profile(activities=activities) as profiled:
        run()
    key = "self_device_time_total" if device.type == "cuda" else "self_cpu_time_total"
    events = sorted(profiled.key_averages(), key=lambda e: -float(getattr(e, key)))
    total = sum(float(getattr(e, key)) for e in events) or 1.0
    return [{"name": e.key, "share": float(getattr(e, key)) / total, "calls": e.count} for e in events[:TOP]]


def breakdown(
    net: Any, config: SamplerConfig, *, batch: int, device: torch.device, dtype: str, repeats: int
) -> dict[str, Any]:
    """Seconds of one chunk of `batch` seeds: random numbers, network, sampler's arithmetic, files; and F and B.

    The network's share is measured inside the run, by a clock around each call; a backward pass is not a call: what
    `sampler_and_backward` holds beyond a run without probes is theirs. Files: PNG and JSON lines on a local disk.
    """
    clocked = Clocked(net, device)
    chunk = Chunk(0, tuple(range(batch)))
    torch_dtype = torch.bfloat16 if dtype == "bf16" else torch.float32
    shape = (net.img_channels, net.img_resolution, net.img_resolution)
    numbers = seconds(lambda: SeedStreams(chunk.seeds, device).randn(shape), device, repeats=repeats)
    totals, calls, writing = [], [], []
    for r in range(repeats + 1):
        clocked.seconds, start = 0.0, time.perf_counter()
        done = sample_chunk(clocked, chunk, config, device=device, dtype=torch_dtype)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        total = time.perf_counter() - start
        with tempfile.TemporaryDirectory() as folder:
            job = Job(net, "", config, [chunk], batch, device, None, dtype, "device", None, subdirs=False)
            out = OutputFolder(Path(folder) / "out", identity=job.identity())
            with out.open({}):
                start = time.perf_counter()
                write_chunk(job, done, Recorder(()), out)
                took = time.perf_counter() - start
        if r:
            totals.append(total)
            calls.append(clocked.seconds)
            writing.append(took)
    run = median(totals)
    return {
        "sampler": config.describe(),
        "sampling": run,
        "random_numbers": numbers,
        "network_forward": median(calls),
        "sampler_and_backward": run - median(calls) - numbers,
        "files": median(writing),
        "files_share": median(writing) / (run + median(writing)),
        "images_per_s": batch / run,
        "forward": sum(record.forward for record in done.records) / batch,
        "backward": sum(record.backward for record in done.records) / batch,
    }


class Clocked:
    """A denoiser that adds up the time of its calls."""

    def __init__(self, net: Any, device: torch.device) -> None:
        self.net, self.device, self.seconds = net, device, 0.0
        self.img_channels, self.img_resolution, self.label_dim = net.img_channels, net.img_resolution, net.label_dim
        self.sigma_min, self.sigma_max, self.round_sigma = net.sigma_min, net.sigma_max, net.round_sigma

    def __call__(self, x: Tensor, sigma: Tensor, class_labels: Tensor | None = None) -> Tensor:
        start = time.perf_counter()
        denoised: Tensor = self.net(x, sigma, class_labels)
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.seconds += time.perf_counter() - start
        return denoised
