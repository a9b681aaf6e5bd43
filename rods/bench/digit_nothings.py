"""Pictures that show no digit, made from digits: what the labeller of digits learns to refuse.

Most are drawn with real strokes (pieces of two digits, digits on their side or mirrored, digits bent too far), for that
is what a denoiser gets wrong: its strokes are good, and what they add up to is not.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Generator, Tensor

from rods.bench.digit_labels import RESOLUTION
from rods.bench.spoil import bend, blur, field

MIX = (0.3, 0.7)  # share of either digit in a mean of two
BENT = (0.14, 0.24)  # of the picture's width
SIDEWAYS = (1, 2, 3, 4, 5, 6, 7, 9)  # digits that are none after a quarter turn
MIRRORED = (3, 4, 6, 7, 9)  # digits that are none in a mirror: 2 and 5 become nearly each other


def nothings(x: Tensor, y: Tensor, n: int, g: Generator) -> Tensor:
    """n pictures [n, 32, 32] without a digit, made from digits [N, 32, 32] with classes [N]; a kind for each at random.

    Pieces of two digits are of different classes. A few do show a digit by chance: half an 8 is a 3.
    """
    if not n:
        return x[:0]
    kind = torch.multinomial(torch.tensor([share for _, share in KINDS]), n, replacement=True, generator=g)
    parts = [make(x, y, int((kind == k).sum()), g) for k, (make, _) in enumerate(KINDS)]
    mixed = torch.cat([part for part in parts if len(part)])
    return mixed / mixed.amax(dim=(1, 2), keepdim=True).clamp(min=1e-3)  # as bright as digits are


def _pairs(x: Tensor, y: Tensor, n: int, g: Generator) -> tuple[Tensor, Tensor]:
    """n digits, and a partner of another class for each."""
    a = torch.randint(len(x), (n,), generator=g)
    b = torch.randint(len(x), (8, n), generator=g)  # eight tries: the first that fits
    fits = (y[b] != y[a]).float().argmax(dim=0, keepdim=True)
    b = b.gather(0, fits)[0]
    return x[a], x[b]


def _mean(x: Tensor, y: Tensor, n: int, g: Generator) -> Tensor:
    a, b = _pairs(x, y, n, g)
    share = MIX[0] + (MIX[1] - MIX[0]) * torch.rand(n, 1, 1, generator=g)
    return share * a + (1 - share) * b


def _over(x: Tensor, y: Tensor, n: int, g: Generator) -> Tensor:
    """One over the other, moved a little."""
    a, b = _pairs(x, y, n, g)
    dy, dx = (int(torch.randint(-4, 5, (), generator=g)) for _ in range(2))
    return torch.maximum(a, b.roll((dy, dx), (1, 2)))


def _halves(x: Tensor, y: Tensor, n: int, g: Generator) -> Tensor:
    """One side of a line through the first one's middle, the other side of another digit, moved by up to 5 pixels."""
    a, b = _pairs(x, y, n, g)
    dy, dx = (int(torch.randint(-5, 6, (), generator=g)) for _ in range(2))
    return torch.where(_side(a, g), a, b.roll((dy, dx), (1, 2)))


def _patches(x: Tensor, y: Tensor, n: int, g: Generator) -> Tensor:
    """Patches of two digits, with soft edges."""
    a, b = _pairs(x, y, n, g)
    share = (12 * field(g, n, RESOLUTION, nodes=5)[:, 0]).sigmoid() if n else a
    return share * a + (1 - share) * b


def _piece(x: Tensor, y: Tensor, n: int, g: Generator) -> Tensor:
    a, _ = _pairs(x, y, n, g)
    return torch.where(_side(a, g), a, 0)


def _sideways(x: Tensor, y: Tensor, n: int, g: Generator) -> Tensor:
    a = _of(x, y, SIDEWAYS, n, g)
    left = torch.rand(n, 1, 1, generator=g) < 0.5
    return torch.where(left, a.rot90(1, (1, 2)), a.rot90(-1, (1, 2)))


def _mirrored(x: Tensor, y: Tensor, n: int, g: Generator) -> Tensor:
    return _of(x, y, MIRRORED, n, g).flip(2)


def _bent(x: Tensor, y: Tensor, n: int, g: Generator) -> Tensor:
    a, _ = _pairs(x, y, n, g)
    most = BENT[0] + (BENT[1] - BENT[0]) * float(torch.rand((), generator=g))
    return bend(a[:, None], g, most=most)[:, 0] if n else a


def _blob(x: Tensor, y: Tensor, n: int, g: Generator) -> Tensor:
    """Blurred until no stroke is left."""
    a, _ = _pairs(x, y, n, g)
    return blur(a[:, None], 2.5 + float(torch.rand((), generator=g)))[:, 0] if n else a


def _noise(x: Tensor, y: Tensor, n: int, g: Generator) -> Tensor:
    """Noise, or spots of one size."""
    spots = (
        (8 * field(g, n, RESOLUTION, nodes=4 + int(torch.randint(8, (), generator=g)))[:, 0]).sigmoid() if n else x[:0]
    )
    white = torch.rand(n, RESOLUTION, RESOLUTION, generator=g)
    return torch.where(torch.rand(n, 1, 1, generator=g) < 0.5, spots, white)


KINDS: tuple[tuple[Callable[[Tensor, Tensor, int, Generator], Tensor], float], ...] = (  # with their shares
    (_mean, 0.20),
    (_over, 0.14),
    (_halves, 0.14),
    (_patches, 0.14),
    (_piece, 0.08),
    (_sideways, 0.07),
    (_mirrored, 0.06),
    (_bent, 0.09),
    (_blob, 0.06),
    (_noise, 0.04),
)


def _of(x: Tensor, y: Tensor, classes: tuple[int, ...], n: int, g: Generator) -> Tensor:
    """n digits of some classes."""
    rows = torch.isin(y, torch.tensor(classes)).nonzero()[:, 0]
    return x[rows[torch.randint(len(rows), (n,), generator=g)]]


def _side(a: Tensor, g: Generator) -> Tensor:
    """Which pixels [n, 32, 32] lie on one side of a line at a random angle through a picture's centre of mass."""
    angle = 2 * math.pi * torch.rand(len(a), 1, 1, generator=g)
    axis = torch.arange(RESOLUTION) - (RESOLUTION - 1) / 2
    mass = a.sum(dim=(1, 2), keepdim=True).clamp(min=1e-6)
    cx = (a * axis[None, None, :]).sum(dim=(1, 2), keepdim=True) / mass
    cy = (a * axis[None, :, None]).sum(dim=(1, 2), keepdim=True) / mass
    return (axis[None, None, :] - cx) * angle.cos() + (axis[None, :, None] - cy) * angle.sin() > 0
