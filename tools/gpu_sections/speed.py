"""Images per second, memory, and the distance to the card's ceilings: forward, probes, samplers, training steps."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from rods import Lid, edm_sampler, euler_sampler, restart_sampler, rods_sampler
from tools.gpu_sections.common import Section, arithmetic
from training.execution import compiled, set_layout
from training.networks import PRECONDS
from training.recipes import RECIPES, network_kwargs

FFHQ, HANDS = ("ffhq-64-ve", 64), ("hands-128-ve", 128)
STEPS = 10
VARIANTS = ("fp32", "default", "bf16", "bf16 channels last", "bf16 weights")


def build(section: Section, preset: tuple[str, int]) -> nn.Module:
    """The architecture of a preset with random weights; a small one with --quick."""
    options: dict[str, Any] = dict(RECIPES[preset[0]])
    if section.quick:
        options |= {"cbase": 8, "blocks": 1, "attn": ()}
    resolution = 16 if section.quick else preset[1]
    torch.manual_seed(0)
    net = PRECONDS["EDMPrecond"](**network_kwargs(options, img_resolution=resolution, img_channels=3))
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
    again: dict[str, Any] = {"sigma_r": 5.0, "rounds": 1, "num_steps": STEPS, "detector": Lid(draws=2)}
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
    for name in ("bf16",) if section.quick else ("default", "bf16"):
        for sampler, work in samplers(variant(net, name)[0], x[:whole]).items():
            with section.part(f"{name}, {sampler}"), arithmetic(section.device, variant(net, name)[1]):
                work() if sampler in ("euler", "cas") else None
                taken, mib = section.peak(work)
                section.record(f"{name}, {sampler}", {"images/s of 10 steps": whole / taken, "peak MiB": mib})


def ffhq(section: Section) -> None:
    sampling(section, FFHQ, (1, 4) if section.quick else (1, 2, 4, 8, 16, 32, 64, 256), 4 if section.quick else 64)


def hands128(section: Section) -> None:
    sampling(section, HANDS, (1, 2) if section.quick else (1, 8, 32), 2 if section.quick else 32)


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
