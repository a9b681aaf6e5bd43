"""Counts the fingers of drawn hands along circles around the palm centre, and labels hands by the count.

How an image is read:

1. Tone: background and hand levels are the medians of the two sides of the mid-grey, and the image is mapped so that
   they become 0 and 1. An affine change of tone therefore changes nothing.
2. Palm centre and radius: the peak of the distance transform.
3. Circles: the image is sampled on circles of growing radius, and each circle is cut into arcs above a threshold.
   Arcs on neighbouring circles that overlap are linked, which gives a tree that grows from the palm outwards.
4. Fingers: branches of this tree that are at least PERSISTENCE long. Two fingers that are joined up to some radius
   count as two because they part further out; a bump of the palm does not count because it ends at once. The branch
   that leaves through the bottom edge is the wrist.

The count is read at three thresholds. A hand with the wrong count at all three is hallucinated, one with five fingers
at all three valid, and every other one uncertain. Images that are no hand (nothing there, no wrist, no palm,
a loose second piece) have the count NO_HAND, which is always wrong.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from rods.bench.tasks.tone_control import MIN_CONTRAST, as_unit, normalise
from rods.eval.labels import combine_readings

F32 = NDArray[np.float32]
I64 = NDArray[np.int64]

THRESHOLDS = (0.35, 0.5, 0.65)
NO_HAND = -1
FINGERS = 5
CHUNK = 128  # images read at a time: about 5 MiB of circle samples, which bounds the memory and stays near the cache

# Lengths are in units of 1/32 of the image's width, as in rods.bench.tasks.hands.data.
PERSISTENCE = 1.5  # the least length of a finger beyond the fork with its neighbour
PALM_RADIUS = (2.8, 8.0)  # of the largest disk in the hand
LOOSE_AREA = 4.0  # the largest total area of pieces apart from the hand
RADIAL_STEP, NUM_ANGLES = 0.5, 180
MAX_RADIUS = 25.0  # reaches the bottom edge from the highest palm
UPSAMPLE = 2  # for the distance transform


def count_fingers(images: NDArray[Any], *, thresholds: tuple[float, ...] = THRESHOLDS) -> I64:
    """Fingers [N, T] of images [N, H, H] at each threshold; NO_HAND where no hand is recognised.

    images: uint8, or floats as a sampler returns them (in -1..1), bright hand on a darker background, wrist at the
    bottom edge. thresholds: between background (0) and hand (1).
    Raises ValueError for wrong shapes, values that are not finite, or thresholds outside (0, 1).
    """
    if not thresholds or not all(0 < t < 1 for t in thresholds):
        raise ValueError(f"count_fingers: thresholds {thresholds} must lie between 0 and 1, such as {THRESHOLDS}")
    unit = as_unit(images)
    chunks = [_count(unit[i : i + CHUNK], thresholds) for i in range(0, len(unit), CHUNK)]
    return np.concatenate(chunks) if chunks else np.empty((0, len(thresholds)), dtype=np.int64)


def label_hands(images: NDArray[Any]) -> NDArray[np.int8]:
    """Labels int8 [N] (codes of `rods.eval.labels.Label`) of images [N, H, H]: are there five fingers?

    Arguments and errors as `count_fingers`.
    """
    return combine_readings(count_fingers(images) == FINGERS)


def _count(unit: F32, thresholds: tuple[float, ...]) -> I64:
    """`count_fingers` of one chunk [N, H, H] in 0..1."""
    scale = unit.shape[1] / 32
    shape, contrast = normalise(unit)
    centre, radius = _palm(shape)  # in units
    circles, outside = _sample_circles(shape, centre * scale, radius * scale, scale)
    seen = (contrast >= MIN_CONTRAST) & (radius >= PALM_RADIUS[0]) & (radius <= PALM_RADIUS[1])
    counts = np.empty((len(unit), len(thresholds)), dtype=np.int64)
    for j, threshold in enumerate(thresholds):
        fingers, wrist = _count_branches(circles > threshold, outside)
        hand = seen & wrist & (_loose_area(shape > threshold, centre * scale) <= LOOSE_AREA * scale**2)
        counts[:, j] = np.where(hand, fingers, NO_HAND)
    return counts


def _palm(shape: F32) -> tuple[F32, F32]:
    """Palm centre [N, 2] (x, y) and radius [N] in units: the peak of the distance transform.

    A long palm has a ridge instead of a peak; the middle of what lies within half a unit of the top is stable.
    """
    N, H, _ = shape.shape
    zoomed = ndimage.zoom(shape, (1, UPSAMPLE, UPSAMPLE), order=1, mode="nearest", grid_mode=True) > 0.5
    zoomed[:, 0, :] = False  # so that every image has some background to measure from
    unit = 32 / (H * UPSAMPLE)
    distance = np.stack([ndimage.distance_transform_edt(z, sampling=unit) for z in zoomed])  # [N, 2H, 2H]
    radius = distance.reshape(N, -1).max(axis=1)
    top = distance >= (radius - 0.5)[:, None, None]
    axis = (np.arange(H * UPSAMPLE) + 0.5) * unit
    weight = np.maximum(top.sum(axis=(1, 2)), 1)
    x, y = (top.sum(axis=1) * axis).sum(axis=1) / weight, (top.sum(axis=2) * axis).sum(axis=1) / weight
    return np.stack([x, y], axis=1).astype(np.float32), radius.astype(np.float32)


def _sample_circles(shape: F32, centre: F32, radius: F32, scale: float) -> tuple[F32, NDArray[np.bool_]]:
    """Values on circles [N, K, A] and which samples lie beyond the bottom edge; `centre` and `radius` in pixels.

    The first circle has .9 of the palm's radius. Beyond the bottom edge the last row goes on; beyond the other edges
    there is background.
    """
    N, H, W = shape.shape
    steps = np.arange(0, MAX_RADIUS, RADIAL_STEP, dtype=np.float32) * scale
    r = 0.9 * radius[:, None] + steps  # [N, K]
    angle = np.arange(NUM_ANGLES, dtype=np.float32) * np.float32(2 * np.pi / NUM_ANGLES)
    x = centre[:, 0, None, None] + r[:, :, None] * np.sin(angle) - 0.5 + 1  # pixel index in the padded image
    y = centre[:, 1, None, None] + r[:, :, None] * np.cos(angle) - 0.5 + 1
    outside = y > H  # below the centre of the last row
    padded = np.pad(shape, ((0, 0), (1, 1), (1, 1)))
    padded[:, -1] = padded[:, -2]
    x, y = np.clip(x, 0, W + 0.999), np.clip(y, 0, H + 0.999)
    x0, y0 = x.astype(np.int32), y.astype(np.int32)
    fx, fy = x - x0, y - y0
    flat = padded.reshape(-1)
    at = (np.arange(N, dtype=np.int32) * ((H + 2) * (W + 2)))[:, None, None] + y0 * (W + 2) + x0
    upper = flat[at] * (1 - fx) + flat[at + 1] * fx
    lower = flat[at + W + 2] * (1 - fx) + flat[at + W + 3] * fx
    return upper * (1 - fy) + lower * fy, outside


def _arcs(inside: NDArray[np.bool_]) -> NDArray[np.int32]:
    """Numbers the arcs of each circle [N, K, A]: 1, 2, ... in a circle, 0 between arcs; a full circle is one arc."""
    start = inside & ~np.roll(inside, 1, axis=2)
    start[..., 0] |= inside.all(axis=2)
    number = np.cumsum(start, axis=2, dtype=np.int32)
    number = np.where(number == 0, number[..., -1:], number)  # an arc across angle 0 is the last arc going on
    return np.where(inside, number, 0)


def _count_branches(inside: NDArray[np.bool_], outside: NDArray[np.bool_]) -> tuple[I64, NDArray[np.bool_]]:
    """Fingers [N], and whether there is a wrist [N], of circles [N, K, A] cut at a threshold.

    Walks from the outermost circle in. Every arc carries the fingers beyond it, the radius that its longest branch
    reaches, and whether the wrist passes through it. An arc without fingers beyond it whose branch is long enough, and
    not the wrist, is one finger.
    """
    N, K, _ = inside.shape
    arcs = _arcs(inside)
    Q = int(arcs.max()) + 1
    row = (np.arange(N) * Q)[:, None]  # arc q of image n has the index n Q + q; q = 0 collects what is no arc
    fingers, tip, wrist = np.zeros(N * Q, dtype=np.int64), np.full(N * Q, -1), np.zeros(N * Q, dtype=bool)
    for k in range(K - 1, -1, -1):
        here = row + arcs[:, k]  # [N, A]
        beyond_fingers, beyond_tip, beyond_wrist = fingers, tip, wrist
        fingers, tip, wrist = np.zeros(N * Q, dtype=np.int64), np.full(N * Q, -1), np.zeros(N * Q, dtype=bool)
        tip[here] = k
        wrist[here[outside[:, k]]] = True
        if k + 1 < K:
            both = (arcs[:, k] > 0) & (arcs[:, k + 1] > 0)
            parent = np.zeros(N * Q, dtype=np.int64)
            parent[(row + arcs[:, k + 1])[both]] = here[both]  # an arc that overlaps two hangs on one of them
            child = np.flatnonzero(parent)
            np.add.at(fingers, parent[child], beyond_fingers[child])
            np.maximum.at(tip, parent[child], beyond_tip[child])
            np.logical_or.at(wrist, parent[child], beyond_wrist[child])
        long = (tip - k) * RADIAL_STEP >= PERSISTENCE
        fingers = np.maximum(fingers, long & ~wrist)
        fingers[row[:, 0]], wrist[row[:, 0]] = 0, False
    return fingers.reshape(N, Q).sum(axis=1), np.asarray(wrist.reshape(N, Q).any(axis=1))


def _loose_area(mask: NDArray[np.bool_], centre: F32) -> I64:
    """Pixels [N] of a mask [N, H, W] that are not connected to the palm centre (in pixels), diagonals connect."""
    N, H, _ = mask.shape
    flat = np.zeros((3, 3, 3), dtype=bool)
    flat[1] = True  # no connection between images
    pieces, _ = ndimage.label(mask, structure=flat)
    x, y = np.clip(centre.astype(np.int64).T, 0, H - 1)
    hand = pieces[np.arange(N), y, x]
    return np.asarray((mask & (pieces != hand[:, None, None])).sum(axis=(1, 2)))
