"""What an architecture tells of itself, so that one class is enough to train, load and convert it.

A class that extends `Architecture` and stands in `training.networks.architectures` is known to `train.py --arch`, to
network files and to `scripts/convert.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, ClassVar

from torch import nn

Check = Callable[[object], Any]  # the value in the type that the constructor takes; ValueError says what is allowed
Arguments = Mapping[str, Check]
Variants = Mapping[str, Mapping[str, Any]]
Defaults = Mapping[str, Any]


class Architecture(nn.Module):
    """F(x; c_noise) of a preconditioned denoiser.

    Its constructor takes (img_resolution, in_channels, out_channels, label_dim) and the arguments of `arguments`.
    """

    arguments: ClassVar[Arguments] = {}  # which a network file may hold, with their bounds
    variants: ClassVar[Variants] = {}  # the arguments that each name of --arch stands for
    training_defaults: ClassVar[Defaults] = {}  # of train.py's options, by their Python names, where others suit it
    resolutions: Sequence[int] = ()  # of the levels, finest first

    @classmethod
    def least_size(cls, kwargs: Mapping[str, Any]) -> tuple[int, int]:
        """(parameters, blocks) that a network with these checked arguments has at least: a cheap lower bound.

        `kwargs` are those of the denoiser. An argument that is left out counts as a small value.
        """
        raise AssertionError("an architecture defines its own least size")

    def attention_resolutions(self) -> list[int]:
        """The resolutions at which it has self-attention, finest first."""
        return []

    def blocks(self) -> list[Any]:
        """Its residual blocks, in order of evaluation, for `--checkpoint-blocks`."""
        return []

    def decoder_blocks(self) -> dict[str, nn.Module]:
        """The blocks, by their paths in this module, whose outputs describe the image at every scale."""
        return {}


def integer(low: int, high: int) -> Check:
    def check(value: object) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise ValueError(f"a whole number from {low} to {high}")
        return value

    return check


def number(low: float, high: float) -> Check:
    def check(value: object) -> float:
        if value == "inf":  # JSON has no other way to write it
            value = math.inf
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not low <= value <= high:
            raise ValueError(f"a number from {low:g} to {high:g}")
        return value

    return check


def flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError("true or false")
    return value


def choice(names: Collection[str]) -> Check:
    def check(value: object) -> str:
        if not isinstance(value, str) or value not in names:
            raise ValueError(f"one of {', '.join(names)}")
        return value

    return check


def list_of(item: Check, shortest: int, longest: int) -> Check:
    def check(value: object) -> list[Any]:
        if not isinstance(value, (list, tuple)) or not shortest <= len(value) <= longest:
            raise ValueError(f"a list of {shortest} to {longest} values")
        try:
            return [item(v) for v in value]
        except ValueError as e:
            raise ValueError(f"a list, each {e}") from None

    return check
