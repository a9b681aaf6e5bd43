"""The gradient of a step: summed over rounds and ranks in one buffer, so that every rank sees the same numbers."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from torch_utils import distributed


class Gradients:
    """The gradients of all parameters as views into one buffer, which backward passes add to.

    Its last two values travel with the gradients: the loss, and how many ranks want to stop. One all-reduce a step
    then settles everything that the ranks must agree on, and a gradient that is not finite on one rank is so on all.
    A plain sum at the end of a step, and not DistributedDataParallel: a step of several rounds needs one anyway, the
    order of additions is fixed, and ranks may have shares of different sizes.
    """

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        parameters = list(parameters)
        sizes = [p.numel() for p in parameters]
        self.buffer = torch.zeros(sum(sizes) + 2, device=parameters[0].device)
        self.values, self.agreed = self.buffer[:-2], self.buffer[-2:]
        parts = self.values.split(sizes)  # type: ignore[no-untyped-call]
        for p, part in zip(parameters, parts, strict=True):
            p.grad = part.as_strided(p.shape, p.stride())  # the weights' own layout, channels last or not

    def zero(self) -> None:
        self.buffer.zero_()

    def reduce(self, loss: Tensor, *, stop: bool) -> tuple[float, bool]:
        """Sum over the ranks; (the loss [] summed, whether any rank wants to stop)."""
        self.agreed[0], self.agreed[1] = loss, float(stop)
        distributed.all_sum(self.buffer)
        total, stopping = self.agreed.tolist()
        return total, stopping > 0

    def norm(self) -> float:
        """Not finite if any gradient is not."""
        return float(torch.linalg.vector_norm(self.values))

    def clip(self, norm: float, largest: float | None) -> None:
        """Scales the gradients of norm `norm` down to `largest`, if they are above it."""
        if largest is not None and norm > largest:
            self.values.mul_(largest / norm)
