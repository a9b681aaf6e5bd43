"""Corruptions: negatives (out-of-distribution images) that a learned labeller must reject, made from real images.

A denoiser's hallucination has good strokes or good skin that add up to nothing, so most negatives here are made of
pieces of real images. All images are float tensors [B, 1, H, H] in normalised tone
(`rods.bench.tasks.tone_control.normalise`): hands are 0 on a background of 1, digits 1 on 0. The generator of a call
decides everything that is random in it.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

# Hands.


def corrupt_hands(x: Tensor, g: Generator) -> Tensor:
    """No real hand in any of them: blends, cuts, melted or torn hands, blobs; a kind for each, drawn evenly."""
    kinds = torch.randint(len(HAND_CORRUPTIONS), (len(x),), generator=g)
    out = x.clone()
    for k, corrupt in enumerate(HAND_CORRUPTIONS):
        mine = kinds == k
        if mine.any():
            out[mine] = corrupt(x[mine], x[torch.randint(len(x), (int(mine.sum()),), generator=g)], g)
    return out


def _blend_hands(x: Tensor, other: Tensor, g: Generator) -> Tensor:
    """Two hands at once: one over the other, half transparent or whole."""
    share = 0.35 + 0.3 * torch.rand(len(x), 1, 1, 1, generator=g)
    solid = torch.rand(len(x), 1, 1, 1, generator=g) < 0.4
    other = torch.where(torch.rand(len(x), 1, 1, 1, generator=g) < 0.5, other.flip(3), other.flip(2))
    return torch.where(solid, torch.minimum(x, other), share * x + (1 - share) * other)


def _cut_hands(x: Tensor, other: Tensor, g: Generator) -> Tensor:
    """The upper half or more of the hand is background: nothing is left of most fingers."""
    H = x.shape[-1]
    y, at = torch.arange(H)[:, None] / H, 0.42 + 0.25 * torch.rand(len(x), 1, 1, 1, generator=g)
    slope = 0.4 * symmetric(g, len(x), 1, 1, 1) * (torch.arange(H)[None, :] / H - 0.5)
    edge = torch.sigmoid((at + slope - y) * (8 + 60 * torch.rand(len(x), 1, 1, 1, generator=g)))
    return x + (1 - x) * edge


def _close_gaps(x: Tensor, other: Tensor, g: Generator) -> Tensor:
    """The fingers have grown together: skin closes the gaps (opening and closing by wide windows)."""
    window = 7 + 2 * int(torch.randint(3, (), generator=g))
    closed = _widest(-_widest(-x, window), window - 4)
    return F.avg_pool2d(closed, 3, 1, 1, count_include_pad=False)


def _melt_hands(x: Tensor, other: Tensor, g: Generator) -> Tensor:
    """Bent until no finger keeps its shape."""
    return bend(x, g, most=0.11 + 0.09 * float(torch.rand((), generator=g)))


def _swap_halves(x: Tensor, other: Tensor, g: Generator) -> Tensor:
    """The left half of one hand and the right half of another, or upper and lower."""
    H = x.shape[-1]
    at = 0.4 + 0.2 * torch.rand(len(x), 1, 1, 1, generator=g)
    across, down = (torch.arange(H) / H)[None, :], (torch.arange(H) / H)[:, None]
    beside = torch.rand(len(x), 1, 1, 1, generator=g) < 0.6
    first = torch.where(beside, across < at, down < at)
    return torch.where(first, x, other.flip(3))


def _blobs(x: Tensor, other: Tensor, g: Generator) -> Tensor:
    """Spots without the shape of a hand, sometimes on a piece of one."""
    spots = (field(g, len(x), x.shape[-1], nodes=9) * 6).sigmoid()
    return torch.where(torch.rand(len(x), 1, 1, 1, generator=g) < 0.7, spots, torch.maximum(spots, x))


def _drown(x: Tensor, other: Tensor, g: Generator) -> Tensor:
    """Blurred or noisy until no finger can be told."""
    blurred = blur(x, 5.0)
    noisy = x + 1.2 * torch.randn(x.shape, generator=g)
    return torch.where(torch.rand(len(x), 1, 1, 1, generator=g) < 0.6, blurred, noisy).clamp(-1, 2)


HandCorruption = Callable[[Tensor, Tensor, Generator], Tensor]  # (hands, a partner of each, generator)
HAND_CORRUPTIONS: tuple[HandCorruption, ...] = (
    _blend_hands,
    _cut_hands,
    _close_gaps,
    _melt_hands,
    _swap_halves,
    _blobs,
    _drown,
)


# Digits.

MIX = (0.3, 0.7)  # share of either digit in a mean of two
BENT = (0.14, 0.24)  # of the image's width
SIDEWAYS = (1, 2, 3, 4, 5, 6, 7, 9)  # digits that are none after a quarter turn
MIRRORED = (3, 4, 6, 7, 9)  # digits that are none in a mirror: 2 and 5 become nearly each other


def digit_negatives(x: Tensor, y: Tensor, n: int, g: Generator) -> Tensor:
    """n images [n, 1, H, H] without a digit, made from digits [N, 1, H, H] with classes [N]; a random kind for each.

    Pieces of two digits are of different classes. A few do show a digit by chance: half an 8 is a 3.
    """
    if not n:
        return x[:0]
    kind = torch.multinomial(torch.tensor([share for _, share in DIGIT_NEGATIVES]), n, replacement=True, generator=g)
    number = torch.bincount(kind, minlength=len(DIGIT_NEGATIVES)).tolist()
    mixed = torch.cat([make(x, y, m, g) for (make, _), m in zip(DIGIT_NEGATIVES, number, strict=True) if m])
    return mixed / mixed.amax(dim=(2, 3), keepdim=True).clamp(min=1e-3)  # as bright as digits are


def _pairs(x: Tensor, y: Tensor, n: int, g: Generator) -> tuple[Tensor, Tensor]:
    """n digits, and a partner of another class for each."""
    a = torch.randint(len(x), (n,), generator=g)
    b = torch.randint(len(x), (8, n), generator=g)  # eight tries: the first that fits
    fits = (y[b] != y[a]).float().argmax(dim=0, keepdim=True)
    return x[a], x[b.gather(0, fits)[0]]


def _mean(x: Tensor, y: Tensor, n: int, g: Generator) -> Tensor:
    a, b = _pairs(x, y, n, g)
    share = MIX[0] + (MIX[1] - MIX[0]) * torch.rand(n, 1, 1, 1, generator=g)
    return share * a + (1 - share) * b


def _over(x: Tensor, y: Tensor, n: int, g: Generator) -> Tensor:
    """One over the other, moved a little."""
    a, b = _pairs(x, y, n, g)
    dy, dx = (int(torch.randint(-4, 5, (), generator=g)) for _ in range(2))
    return torch.maximum(a, b.roll((dy, dx), (2, 3)))


def _halves(x: Tensor, y: Tensor, n: int, g: Generator) -> Tensor:
    """One side of a line through the first one's middle, the other side of another digit, moved by up to 5 pixels."""
    a, b = _pairs(x, y, n, g)
    dy, dx = (int(torch.randint(-5, 6, (), generator=g)) for _ in range(2))
    return torch.where(_side(a, g), a, b.roll((dy, dx), (2, 3)))


def _patches(x: Tensor, y: Tensor, n: int, g: Generator) -> Tensor:
    """Patches of two digits, with soft edges."""
    a, b = _pairs(x, y, n, g)
    share = (12 * field(g, n, x.shape[-1], nodes=5)).sigmoid()
    return share * a + (1 - share) * b


def _piece(x: Tensor, y: Tensor, n: int, g: Generator) -> Tensor:
    a, _ = _pairs(x, y, n, g)
    return torch.where(_side(a, g), a, 0)


def _sideways(x: Tensor, y: Tensor, n: int, g: Generator) -> Tensor:
    a = _of(x, y, SIDEWAYS, n, g)
    left = torch.rand(n, 1, 1, 1, generator=g) < 0.5
    return torch.where(left, a.rot90(1, (2, 3)), a.rot90(-1, (2, 3)))


def _mirrored(x: Tensor, y: Tensor, n: int, g: Generator) -> Tensor:
    return _of(x, y, MIRRORED, n, g).flip(3)


def _bent(x: Tensor, y: Tensor, n: int, g: Generator) -> Tensor:
    a, _ = _pairs(x, y, n, g)
    return bend(a, g, most=BENT[0] + (BENT[1] - BENT[0]) * float(torch.rand((), generator=g)))


def _blurred(x: Tensor, y: Tensor, n: int, g: Generator) -> Tensor:
    """Blurred until no stroke is left."""
    a, _ = _pairs(x, y, n, g)
    return blur(a, 2.5 + float(torch.rand((), generator=g)))


def _noise(x: Tensor, y: Tensor, n: int, g: Generator) -> Tensor:
    """Noise, or spots of one size."""
    spots = (8 * field(g, n, x.shape[-1], nodes=4 + int(torch.randint(8, (), generator=g)))).sigmoid()
    white = torch.rand(n, *x.shape[1:], generator=g)
    return torch.where(torch.rand(n, 1, 1, 1, generator=g) < 0.5, spots, white)


DIGIT_NEGATIVES: tuple[tuple[Callable[[Tensor, Tensor, int, Generator], Tensor], float], ...] = (  # with their shares
    (_mean, 0.20),
    (_over, 0.14),
    (_halves, 0.14),
    (_patches, 0.14),
    (_piece, 0.08),
    (_sideways, 0.07),
    (_mirrored, 0.06),
    (_bent, 0.09),
    (_blurred, 0.06),
    (_noise, 0.04),
)


def _of(x: Tensor, y: Tensor, classes: tuple[int, ...], n: int, g: Generator) -> Tensor:
    """n digits of some classes."""
    rows = torch.isin(y, torch.tensor(classes)).nonzero()[:, 0]
    return x[rows[torch.randint(len(rows), (n,), generator=g)]]


def _side(a: Tensor, g: Generator) -> Tensor:
    """Which pixels [n, 1, H, H] lie on one side of a line at a random angle through an image's centre of mass."""
    angle = 2 * math.pi * torch.rand(len(a), 1, 1, 1, generator=g)
    H = a.shape[-1]
    axis = torch.arange(H) - (H - 1) / 2
    mass = a.sum(dim=(2, 3), keepdim=True).clamp(min=1e-6)
    cx = (a * axis[None, :]).sum(dim=(2, 3), keepdim=True) / mass
    cy = (a * axis[:, None]).sum(dim=(2, 3), keepdim=True) / mass
    return (axis[None, :] - cx) * angle.cos() + (axis[:, None] - cy) * angle.sin() > 0


# Pieces of both.


def symmetric(g: Generator, *shape: int) -> Tensor:
    """Uniform numbers in -1..1."""
    return 2 * torch.rand(shape, generator=g) - 1


def field(g: Generator, B: int, H: int, *, nodes: int = 4, channels: int = 1) -> Tensor:
    """Smooth random fields [B, channels, H, H] within -1..1."""
    return F.interpolate(symmetric(g, B, channels, nodes, nodes), size=(H, H), mode="bicubic", align_corners=True)


def bend(x: Tensor, g: Generator, *, most: float) -> Tensor:
    """Elastic deformation by up to about `most` of the width, with a small shift, turn and change of size."""
    B, _, H, _ = x.shape
    angle, size = 0.12 * symmetric(g, B), 1 + 0.08 * symmetric(g, B)
    c, s = size * angle.cos(), size * angle.sin()
    shift = 0.06 * symmetric(g, B, 2)
    theta = torch.stack([torch.stack([c, -s, shift[:, 0]], 1), torch.stack([s, c, shift[:, 1]], 1)], 1)
    grid = F.affine_grid(theta, [B, 1, H, H], align_corners=False)
    grid = grid + 2 * most * field(g, B, H, nodes=6, channels=2).permute(0, 2, 3, 1)
    return F.grid_sample(x, grid, padding_mode="border", align_corners=False)


def blur(x: Tensor, sigma: float) -> Tensor:
    """Gaussian blur by `sigma` pixels."""
    if sigma < 0.2:
        return x
    r = max(int(3 * sigma), 1)
    k = torch.exp(-0.5 * (torch.arange(-r, r + 1) / sigma) ** 2)
    k = k / k.sum()
    x = F.pad(x, (r, r, r, r), mode="replicate")
    return F.conv2d(F.conv2d(x, k.reshape(1, 1, 1, -1)), k.reshape(1, 1, -1, 1))


def _widest(x: Tensor, window: int) -> Tensor:
    """The greatest value in a square window around each pixel."""
    return F.max_pool2d(F.max_pool2d(x, (window, 1), 1, (window // 2, 0)), (1, window), 1, (0, window // 2))
