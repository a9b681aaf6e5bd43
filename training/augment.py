"""Non-leaky augmentation (EDM, Appendix F.2): geometric transformations that the network is told about.

A network learns from transformed images and, given a zero vector as augmentation labels, samples untransformed ones.

The loop builds its network with `augment_dim=NUM_LABELS` and in each step does

    a = augment_labels(seed, range(start, start + B), p=.15)        # [B, 9], on the CPU
    y = augment(y, a)                                               # [B, C, H, W], on any device
    loss(net, y, class_labels, n=n, noise=noise, augment_labels=a.to(device))

Samplers pass no augmentation labels, which the network takes as zeros. With p = 0 leave all of it out.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from training.loss import stream_seed

NUM_LABELS = 9  # x-flip, y-flip, log2-scale, rotation (cos - 1, sin), anisotropy (w cos r, w sin r), shift (x, y)
SCALE_STD, ANISO_STD, SHIFT_STD = 0.2, 0.2, 0.125  # octaves, octaves, widths
CHUNK = 8  # images resampled together: one takes 16 times its own memory, and caches are small

# The scaling filter of the Daubechies wavelet with 6 vanishing moments that is nearest to symmetric (Daubechies, "Ten
# Lectures on Wavelets", 1992, chapters 6 and 8), as PyWavelets lists it: pywt.Wavelet("sym6").dec_lo. The tests derive
# it from its definition.
SYM6 = (
    0.015404109327027373, 0.0034907120842174702, -0.11799011114819057, -0.048311742585633,
    0.4910559419267466, 0.787641141030194, 0.3379294217276218, -0.07263752278646252,
    -0.021060292512300564, 0.04472490177066578, 0.0017677118642428036, -0.007800708325034148,
)  # fmt: skip
_DELAY = sum(i * h for i, h in enumerate(SYM6)) / sum(SYM6)  # where a smooth signal's sample k lies: at 2 k + _DELAY


def augment_labels(seed: int, counters: range, *, p: float) -> Tensor:
    """What to do to the images numbered `counters`: float32 [B, 9] on the CPU; a zero row leaves its image alone.

    A function of (seed, image counter) alone, like `image_draws`. The x-flip is drawn for every image, so half are
    flipped; the y-flip (of half), scale, rotation, anisotropy and shift take part with probability p each. Labels are
    the unit draws: flips 0 or 1, log2-scale, anisotropy and shift standard normal, the angle uniform in +-pi. The axis
    of the anisotropy is x in half of the cases, else uniform over all directions.

    Raises:
        ValueError: p is not a probability.
    """
    if not 0 <= p <= 1:
        raise ValueError(f"p={p} is not a probability; give a number from 0 to 1")
    u, z = torch.empty(len(counters), 10), torch.empty(len(counters), 4)
    g = torch.Generator()
    for row, counter in enumerate(counters):
        g.manual_seed(stream_seed(seed, counter, use=2))
        torch.rand(10, generator=g, out=u[row])
        torch.randn(4, generator=g, out=z[row])
    y_flipped, scaled, rotated, stretched, shifted = (u[:, 5:] < p).float().unbind(1)
    angle = (2 * u[:, 2] - 1) * math.pi
    # An axis and its opposite are one: over half a turn, (w cos r, w sin r) says which way w stretches.
    axis = (u[:, 3] - 0.5) * math.pi * (u[:, 4] < 0.5)
    columns = (
        *((u[:, 0] < 0.5).float(), (u[:, 1] < 0.5) * y_flipped, z[:, 0] * scaled),
        *((angle.cos() - 1) * rotated, angle.sin() * rotated),
        *(z[:, 1] * axis.cos() * stretched, z[:, 1] * axis.sin() * stretched),
        *(z[:, 2] * shifted, z[:, 3] * shifted),
    )
    return torch.stack(columns, dim=1)


def augment(y: Tensor, labels: Tensor) -> Tensor:
    """The images [B, C, H, W] transformed as `labels` [B, 9] say, each by its own row alone.

    In this order: flips; about the centre, isotropic scaling by 2^(.2 s), stretching by 2^(.2 w) along the axis r and
    by its inverse across it, rotation from x towards y; a shift of .125 W to the right and .125 H down per unit. Flips
    move pixels and change nothing else. The rest is sampled bilinearly at twice the resolution, between up- and
    downsampling by the sym6 filter, from the image continued by reflection without end. A row of zeros is copied bit
    for bit.

    Raises:
        ValueError: labels of another shape, or images with a side of one pixel, which cannot be reflected.
    """
    if labels.shape != (len(y), NUM_LABELS):
        raise ValueError(f"labels are {list(labels.shape)}; {len(y)} images need [{len(y)}, {NUM_LABELS}]")
    if min(y.shape[2:]) < 2:
        raise ValueError(f"images of {y.shape[3]}x{y.shape[2]} pixels cannot be augmented; both sides need 2 or more")
    x_flip, y_flip = (labels[:, :2].to(y.device) != 0)[:, :, None, None, None].unbind(1)  # [B, 1, 1, 1]
    y = torch.where(x_flip, y.flip(3), y)
    y = torch.where(y_flip, y.flip(2), y)
    moved = (labels[:, 2:] != 0).any(dim=1).nonzero().flatten()
    if not len(moved):
        return y
    rows, labels = moved.to(y.device), labels[moved].to(y)
    parts = (slice(start, start + CHUNK) for start in range(0, len(rows), CHUNK))
    return y.index_copy(0, rows, torch.cat([_resample(y[rows[part]], labels[part]) for part in parts]))


def inverse_transform(labels: Tensor) -> Tensor:
    """Where a point of the output, from the centre and after its shift is undone, comes from: [B, 2, 2] on (x, y).

    The inverse of rotation R(a) after stretching A(w, r) after scaling 2^(.2 s): 2^(-.2 s) A(-w, r) R(-a).
    """
    s, c, sin, wx, wy = labels[:, 2], labels[:, 3] + 1, labels[:, 4], labels[:, 5], labels[:, 6]
    w = torch.hypot(wx, wy).copysign(wx)
    r = torch.atan2(wy, wx)  # the axis, or its opposite
    along, across = torch.exp2(-ANISO_STD * w), torch.exp2(ANISO_STD * w)
    mean, half, cos2r, sin2r = (along + across) / 2, (along - across) / 2, (2 * r).cos(), (2 * r).sin()
    # A(-w, r) = R(r) diag(along, across) R(-r)
    axx, axy, ayy = mean + half * cos2r, half * sin2r, mean - half * cos2r
    rows = (axx * c - axy * sin, axx * sin + axy * c, axy * c - ayy * sin, axy * sin + ayy * c)
    return (torch.exp2(-SCALE_STD * s)[:, None] * torch.stack(rows, dim=1)).reshape(-1, 2, 2)


def _resample(y: Tensor, labels: Tensor) -> Tensor:
    """Output pixel (i, j) of each image from where its transformation says; every row on its own."""
    H, W = y.shape[2:]
    G = inverse_transform(labels)[:, :, :, None, None]  # [B, 2, 2, 1, 1]
    dx, dy = (SHIFT_STD * n * labels[:, k, None, None] for k, n in ((7, W), (8, H)))
    # What downsampling reads of the output at twice the resolution: its samples n lie at (n - _DELAY) / 2 pixels.
    x_out = (torch.arange(2 * W + 10, device=y.device) - _DELAY)[None, None, :] / 2 - (W - 1) / 2 - dx  # [B, 1, N]
    y_out = (torch.arange(2 * H + 10, device=y.device) - _DELAY)[None, :, None] / 2 - (H - 1) / 2 - dy  # [B, M, 1]
    x_in = G[:, 0, 0] * x_out + G[:, 0, 1] * y_out + (W - 1) / 2  # [B, M, N], pixels of the input
    y_in = G[:, 1, 0] * x_out + G[:, 1, 1] * y_out + (H - 1) / 2
    grid = torch.stack([_wrapped(x_in, W), _wrapped(y_in, H)], dim=3)
    u = F.grid_sample(_upsample(_upsample(y, 3), 2), grid, mode="bilinear", align_corners=True)
    return _downsample(_downsample(u, 3), 2)


def _wrapped(pixels: Tensor, size: int) -> Tensor:
    """Positions in the input as `grid_sample` counts them in one period of the upsampled, reflected image: -1 to 1."""
    period = 4 * (size - 1)
    return (2 * pixels + _DELAY).remainder(period) * (2 / period) - 1


def _upsample(x: Tensor, dim: int) -> Tensor:
    """One period, and its first sample again, of the x2 upsampled signal: u[n] = sum_k x[k] h[n - 2k].

    x[k] goes on by reflection about its end samples, so it repeats after 2 (size - 1).
    """
    size = x.shape[dim]
    period = 2 * (size - 1)
    k = torch.arange(-5, period, device=x.device).remainder(period)
    x = x.index_select(dim, torch.minimum(k, period - k))
    zero = torch.zeros((), device=x.device)
    even_odd = [sum((SYM6[2 * j + o] * x.narrow(dim, 5 - j, period) for j in range(6)), zero) for o in (0, 1)]
    u = torch.stack(even_odd, dim=dim + 1).flatten(dim, dim + 1)
    return torch.cat([u, u.narrow(dim, 0, 1)], dim=dim)


def _downsample(u: Tensor, dim: int) -> Tensor:
    """y[m] = sum_n u[n] h[n - 2m], the transpose of upsampling, and by orthonormality its inverse."""
    size = u.shape[dim] - 11
    taps = (h * u.narrow(dim, i, size).unfold(dim, 1, 2).squeeze(-1) for i, h in enumerate(SYM6))
    return sum(taps, torch.zeros((), device=u.device))
