"""Where the time goes: operations of a U-Net, its layers alone, and what launches cost small batches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tools.gpu_sections.common import Section, arithmetic
from tools.gpu_sections.speed import FFHQ, build, forward, probe, state, variant
from training.execution import set_layout


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
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0], device=section.device) / 8
    with torch.no_grad():
        for dtype in (torch.float32, torch.bfloat16):
            for layout in (torch.contiguous_format, torch.channels_last):
                x = torch.randn(B, C, R, R, device=section.device).to(dtype, memory_format=layout)
                w = torch.randn(C, C, 3, 3, device=section.device).to(dtype, memory_format=layout)
                name = f"{str(dtype)[6:]}, {'channels last' if layout is torch.channels_last else 'contiguous'}, ms"
                works = of_layers(x, w, torch.outer(taps, taps)[None, None].to(dtype))
                section.record(name, {key: 1000 * section.seconds(work, least=0.03) for key, work in works.items()})


def of_layers(x: Tensor, w: Tensor, f: Tensor) -> dict[str, Callable[[], Any]]:
    """A call of each layer; resampling by a filter `f` [1, 1, 4, 4] in two ways of telling torch."""
    B, C, R, _ = x.shape
    each, images = f.expand(C, 1, -1, -1), x.reshape(B * C, 1, R, R)
    gain, bias = w[0, :, 0, 0], w[1, :, 0, 0]
    return {
        "conv 3x3": lambda: F.conv2d(x, w, padding=1),
        "group norm": lambda: F.group_norm(x, C // 8, gain, bias),
        "silu": lambda: F.silu(x),
        "down, a group a channel": lambda: F.conv2d(x, each, stride=2, padding=1, groups=C),
        "up, a group a channel": lambda: F.conv_transpose2d(x, 4 * each, stride=2, padding=1, groups=C),
        "down, channels as images": lambda: F.conv2d(images, f, stride=2, padding=1),
        "up, channels as images": lambda: F.conv_transpose2d(images, 4 * f, stride=2, padding=1),
    }
