"""Images per second, memory, and the distance to the card's ceilings: forward, probes, samplers, training steps."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.nn.functional as F
from gpu_sections.common import Section, arithmetic
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from rods import edm_sampler, euler_sampler, restart_sampler, rods_sampler
from training.config import Execution, TrainConfig
from training.execution import compiled, set_layout
from training.feed import Batch
from training.networks import NETWORKS
from training.presets import PRESETS, network_kwargs
from training.run import Run

FFHQ, HANDS = ("ffhq-64-ve", 64), ("hands-128-ve", 128)
STEPS = 10
VARIANTS = ("fp32", "default", "bf16", "bf16 channels last", "bf16 weights", "bf16 weights channels last")


def build(section: Section, preset: tuple[str, int]) -> nn.Module:
    """The architecture of a preset with random weights; a small one with --quick."""
    options: dict[str, Any] = dict(PRESETS[preset[0]])
    if section.quick:
        options |= {"cbase": 8, "blocks": 1, "attn": ()}
    resolution = 16 if section.quick else preset[1]
    torch.manual_seed(0)
    net = NETWORKS["EDMPrecond"](**network_kwargs(options, img_resolution=resolution, img_channels=3))
    return net.to(section.device).eval().requires_grad_(False)


def flops(net: nn.Module, x: Tensor) -> float:
    """GFLOP of one image's forward pass, as torch counts them."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(x[:1], torch.ones([], device=x.device))
    return counter.get_total_flops() / 1e9


def state(net: nn.Module, B: int, device: torch.device) -> Tensor:
    R = int(net.img_resolution)
    return torch.randn(B, 3, R, R, generator=torch.Generator().manual_seed(0)).to(device, torch.float64)


class InBf16(nn.Module):
    """The network with its layers in bf16 throughout, weights too, in place of autocast: what that would gain."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = copy.deepcopy(net)
        self.net.model.to(torch.bfloat16)
        inner = self.net.model.forward
        self.net.model.forward = lambda x, c, *rest: inner(x.to(torch.bfloat16), c.to(torch.bfloat16), *rest)
        self.sigma_min, self.sigma_max = net.sigma_min, net.sigma_max

    def forward(self, x: Tensor, sigma: Tensor, class_labels: Tensor | None = None) -> Tensor:
        denoised: Tensor = self.net(x, sigma, class_labels)
        return denoised


def variant(net: nn.Module, name: str) -> tuple[nn.Module, str]:
    """The network in this variant, and the arithmetic around it."""
    set_layout(net, channels_last=name.endswith("channels last"))
    if "weights" in name:
        return InBf16(net), "default"
    return net, name.removesuffix(" channels last")


def forward(net: nn.Module, x: Tensor) -> Callable[[], Any]:
    sigma = torch.ones([], device=x.device, dtype=torch.float64)

    def work() -> None:
        with torch.no_grad():
            net(x, sigma)

    return work


def probe(net: nn.Module, x: Tensor) -> Callable[[], Any]:
    sigma = torch.ones([], device=x.device, dtype=torch.float64)

    def work() -> None:
        y = x.clone().requires_grad_(True)
        torch.autograd.grad(net(y, sigma).square().sum(), y)

    return work


def samplers(net: nn.Module, x: Tensor) -> dict[str, Callable[[], Any]]:
    """Ten steps of each, the window 10-60 %: as many of its steps in proportion as half of 40."""
    rods: dict[str, Any] = {"method": "cas", "eps": 0.0, "rho": 4.0, "window": (0.1, 0.6), "num_steps": STEPS}
    again: dict[str, Any] = {"sigma_r": 5.0, "rounds": 1, "num_steps": STEPS, "draws": 2}
    return {
        "euler": lambda: euler_sampler(net, x, num_steps=STEPS),
        "heun": lambda: edm_sampler(net, x, num_steps=STEPS),
        "cas": lambda: rods_sampler(net, x, **rods),
        "cas, no detection": lambda: rods_sampler(net, x, detect=False, **rods),
        "cas, no detection, every 3rd": lambda: rods_sampler(net, x, detect=False, probe_every=3, **rods),
        "restart, scores only": lambda: restart_sampler(net, x, threshold=math.inf, **again),
        "restart, all": lambda: restart_sampler(net, x, threshold=0.0, **again),
    }


def best_of(ceiling: str, section: Section) -> float:
    """TFLOP/s of a large matrix product, measured here and now."""
    n = 8192 if section.cuda else 256
    dtype = torch.bfloat16 if ceiling == "bf16" else torch.float32
    a, b = (torch.randn(n, n, device=section.device).to(dtype) for _ in range(2))
    with arithmetic(section.device, "tf32" if ceiling != "fp32" else "fp32"):
        return 2 * n**3 / section.seconds(lambda: a @ b, least=0.1) / 1e12


def sampling(section: Section, preset: tuple[str, int], batches: tuple[int, ...], whole: int) -> None:
    """One network: forward and probe over batch sizes and variants; then the samplers at the batch `whole`."""
    with section.alone():
        net = build(section, preset)
        x = state(net, max(batches), section.device)
        cost = flops(net, x)
        top = {name: best_of(name, section) for name in ("fp32", "tf32", "bf16")}
        section.record("network", {"parameters": sum(p.numel() for p in net.parameters()), "GFLOP forward": cost,
                                   "ceilings, TFLOP/s": top})  # fmt: skip
        names = VARIANTS[1:3] if section.quick else VARIANTS
        for name in names:
            sizes = batches if name != "fp32" else (whole,)
            with section.part(name), arithmetic(section.device, variant(net, name)[1]):
                own, rates, probes = variant(net, name)[0], {}, {}
                for B in sizes:
                    rates[B] = B / section.seconds(forward(own, x[:B]))
                    if B in (8, whole):
                        probes[B] = B / section.seconds(probe(own, x[:B]), warm=1)
                ceiling = top["bf16" if "bf16" in name else "fp32" if name == "fp32" else "tf32"]
                share = max(rates.values()) * cost / 1000 / ceiling
                section.record(name, {"forward images/s": rates, "probe images/s": probes, "share of matmul": share})
        set_layout(net, channels_last=False)
        for name in ("bf16",) if section.quick else ("default", "bf16", "bf16 channels last"):
            for sampler, work in samplers(variant(net, name)[0], x[:whole]).items():
                with section.part(f"{name}, {sampler}"), arithmetic(section.device, variant(net, name)[1]):
                    work() if sampler in ("euler", "cas") else None
                    taken, mib = section.peak(work)
                    section.record(f"{name}, {sampler}", {"images/s of 10 steps": whole / taken, "peak MiB": mib})


def ffhq(section: Section) -> None:
    sampling(section, FFHQ, (1, 4) if section.quick else (1, 2, 4, 8, 16, 32, 64, 128, 256), 4 if section.quick else 64)


def hands128(section: Section) -> None:
    sampling(section, HANDS, (1, 2) if section.quick else (1, 4, 16, 32, 128), 2 if section.quick else 32)


def compiled_ffhq(section: Section) -> None:
    """The FFHQ network through torch.compile in bf16, all batch sizes by one graph: seconds to compile, images/s."""
    sizes, whole = ((2,), 2) if section.quick else ((1, 2, 4, 8, 16, 32, 64, 128), 64)
    net = build(section, FFHQ)
    own, x = compiled(net, batch=whole), state(net, max(sizes), section.device)
    with arithmetic(section.device, "bf16"):
        for name, work in (("forward", forward(own, x[:whole])), ("probe", probe(own, x[:whole]))):
            start = time.perf_counter()
            work()
            section.synchronize()
            section.record(f"seconds to compile, {name}", time.perf_counter() - start)
        for B in sizes:
            forward(own, x[:B])()
        section.synchronize()
        with section.alone():
            section.record("forward images/s", {B: B / section.seconds(forward(own, x[:B])) for B in sizes})
            section.record("probe images/s", {B: B / section.seconds(probe(own, x[:B])) for B in {sizes[0], whole}})
            if not section.quick:
                for sampler, work in samplers(own, x[:whole]).items():
                    if sampler in ("euler", "cas", "restart, all"):
                        work()
                        taken, mib = section.peak(work)
                        section.record(sampler, {"images/s of 10 steps": whole / taken, "peak MiB": mib})
    from torch._dynamo.utils import counters

    section.record("graphs", {k: int(v) for k, v in counters["stats"].items()})


def graphed(net: nn.Module, x: Tensor) -> Callable[[], Any]:
    """A forward pass as a CUDA graph: what the launches of small batches cost."""
    work, graph = forward(net, x), torch.cuda.CUDAGraph()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            work()
    torch.cuda.current_stream().wait_stream(side)
    with torch.cuda.graph(graph):
        work()
    return graph.replay


def profile(section: Section) -> None:
    """Where the time of the FFHQ network goes, by operation; and its small batches as CUDA graphs."""
    net, whole = build(section, FFHQ), 2 if section.quick else 64
    x = state(net, whole, section.device)
    kinds = [torch.profiler.ProfilerActivity.CPU, *([torch.profiler.ProfilerActivity.CUDA] if section.cuda else [])]
    with section.alone():
        for name in ("default", "bf16", "bf16 channels last", "bf16 weights"):
            own, mode = variant(net, name)
            for kind, work in (("forward", forward(own, x)), ("probe", probe(own, x))):
                with section.part(f"{name}, {kind}"), arithmetic(section.device, mode):
                    section.seconds(work, most=2)
                    with torch.profiler.profile(activities=kinds) as seen:
                        work()
                        section.synchronize()
                    spent = {e.key: e.self_device_time_total if section.cuda else e.self_cpu_time_total
                             for e in seen.key_averages()}  # fmt: skip
                    spent = {key: t for key, t in spent.items() if key.startswith("aten::")}
                    total = sum(spent.values()) or 1.0
                    first = sorted(spent, key=lambda key: -spent[key])[:10]
                    section.record(f"{name}, {kind}, share of the time", {key: spent[key] / total for key in first})
        set_layout(net, channels_last=False)
        for name in ("bf16", "bf16 weights") if section.cuda else ():
            own, mode = variant(net, name)
            with section.part(f"{name}, CUDA graphs"), arithmetic(section.device, mode):
                rates = {B: B / section.seconds(graphed(own, x[:B])) for B in (1, 2, 4, 8, 16, 64)}
                section.record(f"{name}, CUDA graphs, forward images/s", rates)


def layers(section: Section) -> None:
    """Milliseconds of the layers that an FFHQ-sized U-Net is made of, [64, 256, 32, 32], by precision and layout."""
    B, C, R = (2, 16, 8) if section.quick else (64, 256, 32)
    f = torch.tensor([1.0, 3.0, 3.0, 1.0], device=section.device)
    f = (torch.outer(f, f) / 64)[None, None]
    with section.alone(), torch.no_grad():
        for dtype in (torch.float32, torch.bfloat16):
            for layout in (torch.contiguous_format, torch.channels_last):
                x = torch.randn(B, C, R, R, device=section.device).to(dtype, memory_format=layout)
                w = torch.randn(C, C, 3, 3, device=section.device).to(dtype, memory_format=layout)
                g, k = torch.randn(2, C, device=section.device).to(dtype), f.to(dtype)
                works: dict[str, Callable[[], Any]] = {
                    "conv 3x3": lambda x=x, w=w: F.conv2d(x, w, padding=1),
                    "group norm": lambda x=x, g=g: F.group_norm(x, C // 8, g[0], g[1]),
                    "silu": lambda x=x: F.silu(x),
                    "down, a group a channel": lambda x=x, k=k: F.conv2d(x, k.expand(C, 1, -1, -1), stride=2, padding=1, groups=C),  # fmt: skip
                    "up, a group a channel": lambda x=x, k=k: F.conv_transpose2d(x, (4 * k).expand(C, 1, -1, -1), stride=2, padding=1, groups=C),  # fmt: skip
                    "down, channels as images": lambda x=x, k=k: F.conv2d(x.reshape(B * C, 1, R, R), k, stride=2, padding=1),  # fmt: skip
                    "up, channels as images": lambda x=x, k=k: F.conv_transpose2d(x.reshape(B * C, 1, R, R), 4 * k, stride=2, padding=1),  # fmt: skip
                }
                name = f"{str(dtype)[6:]}, {'channels last' if layout is torch.channels_last else 'contiguous'}, ms"
                section.record(name, {key: 1000 * section.seconds(work, least=0.03) for key, work in works.items()})


def random_batch(B: int, R: int) -> Batch:
    g = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (B, 3, R, R), dtype=torch.uint8, generator=g)
    noise, n = torch.randn(B, 3, R, R, generator=g), torch.randn(B, generator=g)
    return Batch(range(B), images, None, n, noise, torch.zeros(B, dtype=torch.bool), None)


def training_runs(section: Section, variants: dict[str, tuple[str, int, Execution]]) -> None:
    """The optimiser step of hands-128-ve, EMA and all, on batches that lie ready in memory."""
    for name, (precision, B, execution) in variants.items():
        with section.part(name):
            options: dict[str, Any] = {**PRESETS[HANDS[0]], "augment": 0}
            if section.quick:
                options |= {"cbase": 8, "blocks": 1, "attn": ()}
            R = 16 if section.quick else HANDS[1]
            network = {"class_name": "EDMPrecond", "init_kwargs": network_kwargs(options, img_resolution=R, img_channels=3)}  # fmt: skip
            run = Run(TrainConfig("", 1, network, batch=B, precision=precision), section.device, execution)
            batch = random_batch(B, R)
            start = time.perf_counter()
            run.step([batch])
            section.synchronize()
            first = time.perf_counter() - start
            with section.alone():
                cost = flops(run.net, torch.zeros(1, 3, R, R, device=section.device))
                top = best_of("bf16" if precision == "bf16" else "tf32", section)
                taken = section.seconds(lambda: run.step([batch]), least=1.0, warm=1)
                _, mib = section.peak(lambda: run.step([batch]))
                share = 3 * cost * B / taken / 1000 / top
                section.record(name, {"images/s": B / taken, "share of matmul": share, "peak MiB": mib,
                                      "seconds of the first step": first})  # fmt: skip
            del run
            if section.cuda:
                torch.cuda.empty_cache()


def training(section: Section) -> None:
    B = 2 if section.quick else 64
    variants = {f"bf16, batch {B}": ("bf16", B, Execution())}
    if not section.quick:
        variants |= {
            "bf16, batch 128": ("bf16", 128, Execution()),
            "bf16, channels last, batch 64": ("bf16", 64, Execution(channels_last=True)),
            "fp32 (tf32 in convolutions), batch 64": ("fp32", 64, Execution()),
        }
    torch.backends.cudnn.benchmark = True  # as train.py does
    training_runs(section, variants)


def compiled_training(section: Section) -> None:
    B = 2 if section.quick else 64
    training_runs(section, {f"bf16, compiled, batch {B}": ("bf16", B, Execution(compiled=True))})
