"""The options of train.py: names, types, defaults and help. EDM's names keep EDM's meanings and defaults."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import click

from dnnlib.cli import Destination, NumberList, with_options
from torch_utils import distributed
from training.ema import MAX_STD
from training.networks import ARCH_OPTIONS, ARCHITECTURES, PRECOND_OPTIONS
from training.recipes import RECIPES, SOURCES

MAX_SEED = 2**32 - 1


class Number(click.FloatRange):
    """A finite number in a range: click lets nan and inf through. `word` is accepted beside numbers."""

    def __init__(self, min: float | None = None, *, max: float | None = None, open: str = "", word: str | None = None):
        super().__init__(min, max, min_open="min" in open, max_open="max" in open)
        self.word = word

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if self.word is not None and value == self.word:
            return value
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number", param, ctx)
        return number


class Halflives(NumberList):
    """Half-lives with commas between, `.5` or `.1,.5`: finite, from 0 on, each one once."""

    def __init__(self) -> None:
        super().__init__(float)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int | float, ...]:
        numbers = super().convert([value] if isinstance(value, int | float) else value, param, ctx)
        if not all(0 <= n < math.inf for n in numbers) or len({round(n * 1e6) for n in numbers}) < len(numbers):
            self.fail(f"{value!r} is not a list of different half-lives from 0 on, such as .1,.5", param, ctx)
        return numbers


class Widths(NumberList):
    """Relative widths of averages by power function with commas between, `.05,.1`: each one once."""

    def __init__(self) -> None:
        super().__init__(float)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int | float, ...]:
        numbers = super().convert([value] if isinstance(value, int | float) else value, param, ctx)
        if not all(0 < n <= MAX_STD for n in numbers) or len(set(numbers)) < len(numbers):
            self.fail(f"{value!r} is not a list of different widths in (0, {MAX_STD}], such as .05,.1", param, ctx)
        return numbers


class RecipeName(click.Choice):  # type: ignore[type-arg]  # generic from click 8.2 on
    """The name of a training recipe; it is --preset here too, and the presets of generate.py are something else."""

    def __init__(self) -> None:
        super().__init__(sorted(RECIPES))

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value not in RECIPES:
            self.fail(
                f"{value!r} is not a training recipe (presets of generate.py are settings of its samplers, not of a "
                f"training); use one of {', '.join(sorted(RECIPES))}",
                param,
                ctx,
            )
        return value


def _apply_recipe(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    """A recipe replaces the defaults; options given on the command line replace the recipe."""
    if value is not None:
        ctx.default_map = {**(ctx.default_map or {}), **RECIPES[value]}
        settings = {k: ",".join(map(str, v)) if isinstance(v, tuple) else v for k, v in RECIPES[value].items()}
        if distributed.rank() == 0:
            click.echo(
                f"Recipe {value} ({SOURCES[value]}): "
                + " ".join(f"--{k.replace('_', '-')}={v}" for k, v in settings.items())
            )
    return value


def _apply_architecture(ctx: click.Context, param: click.Parameter, value: str) -> str:
    """An architecture has defaults of its own, which a recipe and the command line replace."""
    defaults = ARCHITECTURES[ARCH_OPTIONS[value]["model_type"]].training_defaults
    ctx.default_map = {**defaults, **(ctx.default_map or {})}
    return value


def _by_architecture(name: str, kind: Any, help: str) -> Any:
    return click.option(name, type=kind, default=None, help=f"{help} [default: by architecture].")


_WHAT = (
    click.option(
        "--preset",
        type=RecipeName(),
        is_eager=True,
        callback=_apply_recipe,
        help="Training recipe: a named configuration to start from; it prints what it sets.",
    ),
    click.option(
        "--outdir", metavar="DIR", type=Destination(file_okay=False), required=True, help="Where to put the run folder."
    ),
    click.option("--data", metavar="ZIP|DIR", required=True, help="Training images, a zip or a folder."),
    click.option("--cond", type=bool, default=False, help="Train class-conditionally on dataset.json's labels."),
    click.option(
        "--arch",
        type=click.Choice(sorted(ARCH_OPTIONS)),
        default="ddpmpp",
        callback=_apply_architecture,
        help="Network architecture. edm2 has its own defaults of the options below; -n prints them.",
    ),
    click.option(
        "--precond", type=click.Choice(list(PRECOND_OPTIONS)), default="edm", help="Preconditioning, and its loss."
    ),
)
_NETWORK = (
    _by_architecture("--cbase", click.IntRange(min=4), "Channels of the finest level"),
    _by_architecture("--cres", NumberList(int), "Channel multiplier of each level"),
    _by_architecture("--blocks", click.IntRange(min=1), "Residual blocks per level"),
    _by_architecture(
        "--attn", NumberList(int, or_none=True), "Resolutions with self-attention; none: in the middle alone"
    ),
    click.option("--dropout", type=Number(0, max=1, open="max"), default=0.13, help="Dropout probability."),
    click.option(
        "--label-dropout",
        type=Number(0, max=1, open="max"),
        default=0.0,
        help="Share of the images that are trained without their class, so that --guide=none can guide by it.",
    ),
    click.option(
        "--sigma-data",
        metavar="auto|X",
        type=Number(0, open="min", word="auto"),
        default=0.5,
        help="Standard deviation of the data that --precond=edm and edm2 assume; auto measures it.",
    ),
)
_LEARNING = (
    click.option(
        "--duration", metavar="MIMG", type=Number(0, open="min"), default=200.0, help="Millions of images to train on."
    ),
    click.option("--batch", type=click.IntRange(min=1), default=512, help="Images per optimiser step, of all ranks."),
    click.option("--lr", type=Number(0, open="min"), default=1e-3, help="Learning rate after the ramp."),
    click.option(
        "--lr-rampup", metavar="MIMG", type=Number(0), default=10.0, help="Length of the linear learning-rate ramp."
    ),
    click.option(
        "--lr-decay",
        metavar="MIMG",
        type=Number(0),
        default=0.0,
        help="From here on the learning rate falls as 1/sqrt of the images seen; 0: it stays.",
    ),
    click.option(
        "--adam-beta2",
        type=Number(0, max=1, open="minmax"),
        default=0.999,
        help="Share of Adam's second moment that a step keeps.",
    ),
    click.option(
        "--ema",
        metavar="MIMG,...",
        type=Halflives(),
        default="0.5",
        help="Half-life of the weight average. With several, the first one's snapshots have the plain name.",
    ),
    click.option(
        "--ema-std",
        metavar="STD,...",
        type=Widths(),
        default=None,
        help="Relative widths of averages by power function, instead of half-lives; "
        "scripts/posthoc_ema.py makes other widths of them.",
    ),
    click.option("--p-mean", type=Number(), default=-1.2, help="Mean of ln(sigma), --precond=edm and edm2."),
    click.option(
        "--p-std",
        type=Number(0, open="min"),
        default=1.2,
        help="Standard deviation of ln(sigma), --precond=edm and edm2.",
    ),
    click.option(
        "--augment", type=Number(0, max=1), default=0.12, help="Probability of non-leaky augmentation; 0: none."
    ),
    click.option("--xflip", type=bool, default=False, help="Mirror half of the images."),
    click.option("--grad-clip", type=Number(0, open="min"), default=None, help="Largest norm of a gradient."),
    click.option(
        "--max-bad-steps",
        type=click.IntRange(min=1),
        default=20,
        help="Stop after so many steps in a row whose gradients are not finite.",
    ),
    click.option("--seed", type=click.IntRange(0, MAX_SEED), default=0, help="Seed of weights, data order and noise."),
    click.option("--transfer", metavar="FILE|URL", default=None, help="Start from the weights of this snapshot."),
    click.option(
        "--resume",
        metavar="FILE",
        default=None,
        help="Start a new run from this state of another run. (The same command goes on by itself.)",
    ),
)
_MACHINE = (
    click.option("--device", type=click.Choice(["auto", "cpu", "cuda", "mps"]), default="auto", help="Where to train."),
    click.option(
        "--batch-gpu", type=click.IntRange(min=1), default=None, help="Images per round of a rank [default: all]."
    ),
    click.option(
        "--precision",
        type=click.Choice(["fp32", "bf16", "fp16"]),
        default="fp32",
        help="bf16: autocast; fast where the hardware has it. fp16: on CUDA, with a gradient scaler.",
    ),
    click.option("--fp16", type=bool, default=False, help="EDM's name for --precision=fp16."),
    click.option(
        "--ls",
        type=Number(0, open="min"),
        default=1.0,
        help="Factor of the loss in the backward pass; undone after it.",
    ),
    click.option("--compile", "compiled", is_flag=True, help="torch.compile the network."),
    click.option("--channels-last", is_flag=True, help="Channels-last memory layout."),
    click.option("--bench", type=bool, default=True, help="Let cuDNN choose its kernels by trying them."),
    click.option("--threads", type=click.IntRange(1, 1024), help="CPU threads [default: torch's choice]."),
    click.option("--cache", type=bool, default=True, help="Keep decoded images in memory."),
    click.option("--workers", type=click.IntRange(0, 64), default=1, help="Threads that prepare batches ahead."),
)
_OUTPUT = (
    click.option("--desc", default=None, help="Text for the name of the run folder."),
    click.option("--nosubdir", is_flag=True, help="Use --outdir itself as the run folder."),
    click.option(
        "--tick", metavar="KIMG", type=Number(0, open="min"), default=50.0, help="Save the state and log this often."
    ),
    click.option(
        "--snap",
        metavar="TICKS",
        type=click.IntRange(min=0),
        default=50,
        help="Write a snapshot this often; 0: at the end only.",
    ),
    click.option(
        "--dump",
        metavar="TICKS",
        type=click.IntRange(min=0),
        default=500,
        help="Keep a state for good this often; 0: never.",
    ),
    click.option("--keep-states", type=click.IntRange(min=1), default=2, help="The last states to keep."),
    click.option(
        "--val", metavar="ZIP|DIR", default=None, help="Held-out images: their loss by noise level, per tick."
    ),
    click.option("--grid", is_flag=True, help="An image with each snapshot: fixed seeds, plain and with RODS."),
    click.option("-n", "--dry-run", is_flag=True, help="Check all inputs, print configuration, time and memory, stop."),
)


def add_training_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The decorators of all options of train.py."""
    options: Sequence[Any] = (*_WHAT, *_NETWORK, *_LEARNING, *_MACHINE, *_OUTPUT)
    return with_options(command, options)
