"""Options of how the network is carried out: batch, threads, layout, precision, memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from dnnlib.cli import with_options
from training.checkpoint import DTYPES

F = TypeVar("F", bound=Callable[..., Any])

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
        type=click.Choice(list(DTYPES)),
        default="float32",
        show_default=True,
        help="Precision inside the network; the state is float64.",
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
