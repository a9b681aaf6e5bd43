"""Options of how the network is carried out: batch, threads, layout, precision, memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import click
import torch

from dnnlib.cli import with_options
from training.execution import PRECISIONS, ExecutionConfig, Mixed, checkpoint_blocks, compiled, set_layout
from training.precision import fastest

F = TypeVar("F", bound=Callable[..., Any])
AUTO = "auto"

EXECUTION_OPTIONS = (
    click.option(
        "--batch",
        type=click.IntRange(1, 100_000),
        default=64,
        show_default=True,
        help="Images per chunk; chunks are shared out to the ranks.",
    ),
    click.option(
        "--probe-batch",
        type=click.IntRange(1, 100_000),
        help="Images that go through a backward pass at once, which takes several times a forward pass's memory "
        "[default: all of --batch; where memory runs out, either is halved and the run goes on].",
    ),
    click.option(
        "--checkpoint-blocks",
        is_flag=True,
        help="Backward passes compute each block of the network again instead of keeping it: less memory, same images.",
    ),
    click.option(
        "--dtype",
        type=click.Choice([*PRECISIONS, AUTO]),
        default="float32",
        show_default=True,
        help="Precision inside the network; the state is float64. mixed: bf16, but float32 where a gradient or a gate "
        "reads it. auto: on a CPU, the fastest of float32 and mixed and of the layouts, by a short trial that is kept.",
    ),
    click.option("--channels-last", is_flag=True, help="Memory layout of the network's tensors."),
    click.option(
        "--compile",
        "compile_network",
        is_flag=True,
        help="torch.compile the network: minutes at the start, any batch size after it; a readout runs it uncompiled.",
    ),
    click.option(
        "--threads",
        type=click.IntRange(1, 1024),
        help="CPU threads per rank [default: the machine's cores, divided by its ranks]. Equal --threads give equal "
        "bytes for any number of ranks.",
    ),
)


def add_execution_options(command: F) -> F:
    """Decorator: the options above."""
    return with_options(command, EXECUTION_OPTIONS)


def execution_config(
    opts: Mapping[str, Any], net: Any, device: torch.device, *, say: Callable[[str], None]
) -> ExecutionConfig:
    """How the options have the network carried out; what --dtype=auto comes to is said."""
    threads, channels_last, dtype = torch.get_num_threads(), opts["channels_last"], opts["dtype"]
    if dtype == AUTO:
        choice = fastest(net, batch=opts["batch"], channels_last=channels_last, device=device)
        say(f"--dtype={AUTO}: {choice.describe()}")
        channels_last, dtype = choice.channels_last, choice.precision
    return ExecutionConfig(threads, channels_last, dtype)


def executed(opts: Mapping[str, Any], net: Any, execution: ExecutionConfig) -> Any:
    """The network as it will be called."""
    set_layout(net, channels_last=execution.channels_last)
    if opts["checkpoint_blocks"]:
        checkpoint_blocks(net)
    if opts["compile_network"] and not opts["dry_run"]:  # which measures, and compiling takes minutes
        net = compiled(net, batch=opts["batch"])
    return Mixed(net) if execution.dtype == "mixed" else net
