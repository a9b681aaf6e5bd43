"""Pictures that show no real hand, made from ones that do; and changes that move no label. For training the counter.

All pictures here are float tensors [B, 1, H, W] with hand 0 and background 1 (`rods.bench.tone.normalise`). The
generator of a call decides everything that is random in it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Generator, Tensor
from torch.nn import functional as F


def augment(x: Tensor, g: Generator) -> Tensor:
    """The same hands moved, bent a little, and with another tone, sharpness and noise: no label changes."""
    x = bend(x, g, most=0.02)
    B = len(x)
    x = blur(x, float(torch.rand((), generator=g)) * 1.1)
    factor, offset = 1 + 0.25 * _sym(g, B, 1, 1, 1), 0.1 * _sym(g, B, 1, 1, 1)
    x = offset + factor * x + 0.15 * field(g, B, x.shape[-1])  # uneven light
    x = x + torch.rand(B, 1, 1, 1, generator=g) ** 2 * 0.12 * torch.randn(x.shape, generator=g)
    return torch.where(torch.rand(B, 1, 1, 1, generator=g) < 0.5, x.flip(3), x).clamp(-1, 2)


def spoil(x: Tensor, g: Generator) -> Tensor:
    """No real hand in any of them: blends, cuts, melted or torn pictures, blobs; a kind for each, drawn evenly."""
    kinds = torch.randint(len(SPOILERS), (len(x),), generator=g)
    out = x.clone()
    for k, spoiler in enumerate(SPOILERS):
        mine = kinds == k
        if mine.any():
            out[mine] = spoiler(x[mine], x[torch.randint(len(x), (int(mine.sum()),), generator=g)], g)
    return out


def _blend(x: Tensor, other: Tensor, g: Generator) -> Tensor:
    """Two hands at once: one over the other, half transparent or whole."""
    share = 0.35 + 0.3 * torch.rand(len(x), 1, 1, 1, generator=g)
    solid = torch.rand(len(x), 1, 1, 1, generator=g) < 0.4
    other = torch.where(torch.rand(len(x), 1, 1, 1, generator=g) < 0.5, other.flip(3), other.flip(2))
    return torch.where(solid, torch.minimum(x, other), share * x + (1 - share) * other)


def _cut(x: Tensor, other: Tensor, g: Generator) -> Tensor:
    """The upper half or more of the hand is background: nothing is left of most fingers."""
    H = x.shape[-1]
    y, at = torch.arange(H)[:, None] / H, 0.42 + 0.25 * torch.rand(len(x), 1, 1, 1, generator=g)
    slope = 0.4 * _sym(g, len(x), 1, 1, 1) * (torch.arange(H)[None, :] / H - 0.5)
    edge = torch.sigmoid((at + slope - y) * (8 + 60 * torch.rand(len(x), 1, 1, 1, generator=g)))
    return x + (1 - x) * edge


def _smear(x: Tensor, other: Tensor, g: Generator) -> Tensor:
    """The fingers have grown together: skin closes the gaps (opening and closing by wide windows)."""
    window = 7 + 2 * int(torch.randint(3, (), generator=g))
    closed = _widest(-_widest(-x, window), window - 4)
    return F.avg_pool2d(closed, 3, 1, 1, count_include_pad=False)


def _melt(x: Tensor, other: Tensor, g: Generator) -> Tensor:
    """Bent until no finger keeps its shape."""
    return bend(x, g, most=0.11 + 0.09 * float(torch.rand((), generator=g)))


def _swap(x: Tensor, other: Tensor, g: Generator) -> Tensor:
    """The left half of one hand and the right half of another, or upper and lower."""
    H = x.shape[-1]
    at = 0.4 + 0.2 * torch.rand(len(x), 1, 1, 1, generator=g)
    across, down = (torch.arange(H) / H)[None, :], (torch.arange(H) / H)[:, None]
    beside = torch.rand(len(x), 1, 1, 1, generator=g) < 0.6
    first = torch.where(beside, across < at, down < at)
    return torch.where(first, x, other.flip(3))


def _blob(x: Tensor, other: Tensor, g: Generator) -> Tensor:
    """Spots without the shape of a hand, sometimes on a piece of one."""
    spots = (field(g, len(x), x.shape[-1], nodes=9) * 6).sigmoid()
    return torch.where(torch.rand(len(x), 1, 1, 1, generator=g) < 0.7, spots, torch.maximum(spots, x))


def _drown(x: Tensor, other: Tensor, g: Generator) -> Tensor:
    """Blurred or noisy until no finger can be told."""
    blurred = blur(x, 5.0)
    noisy = x + 1.2 * torch.randn(x.shape, generator=g)
    return torch.where(torch.rand(len(x), 1, 1, 1, generator=g) < 0.6, blurred, noisy).clamp(-1, 2)


Spoiler = Callable[[Tensor, Tensor, Generator], Tensor]
SPOILERS: tuple[Spoiler, ...] = (_blend, _cut, _smear, _melt, _swap, _blob, _drown)


def _sym(g: Generator, *shape: int) -> Tensor:
    return 2 * torch.rand(shape, generator=g) - 1


def field(g: Generator, B: int, H: int, *, nodes: int = 4, channels: int = 1) -> Tensor:
    """Smooth random fields [B, channels, H, H] within -1..1."""
    return F.interpolate(_sym(g, B, channels, nodes, nodes), size=(H, H), mode="bicubic", align_corners=True)


def bend(x: Tensor, g: Generator, *, most: float) -> Tensor:
    """Elastic deformation by up to about `most` of the width, with a small shift, turn and change of size."""
    B, _, H, _ = x.shape
    angle, size = 0.12 * _sym(g, B), 1 + 0.08 * _sym(g, B)
    c, s = size * angle.cos(), size * angle.sin()
    shift = 0.06 * _sym(g, B, 2)
    theta = torch.stack([torch.stack([c, -s, shift[:, 0]], 1), torch.stack([s, c, shift[:, 1]], 1)], 1)
    grid = F.affine_grid(theta, [B, 1, H, H], align_corners=False)
    grid = grid + 2 * most * field(g, B, H, nodes=6, channels=2).permute(0, 2, 3, 1)
    return F.grid_sample(x, grid, padding_mode="border", align_corners=False)


def _widest(x: Tensor, window: int) -> Tensor:
    """The greatest value in a square window around each pixel."""
    return F.max_pool2d(F.max_pool2d(x, (window, 1), 1, (window // 2, 0)), (1, window), 1, (0, window // 2))


def blur(x: Tensor, sigma: float) -> Tensor:
    """Gaussian blur by `sigma` pixels."""
    if sigma < 0.2:
        return x
    r = max(int(3 * sigma), 1)
    k = torch.exp(-0.5 * (torch.arange(-r, r + 1) / sigma) ** 2)
    k = k / k.sum()
    x = F.pad(x, (r, r, r, r), mode="replicate")
    return F.conv2d(F.conv2d(x, k.reshape(1, 1, 1, -1)), k.reshape(1, 1, -1, 1))
