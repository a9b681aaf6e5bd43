"""Drawn hands, 32x32 grey: the generator of the hands task.

A hand is a union of signed distance fields: a palm (rounded box), a wrist that leaves through the bottom edge, a thumb
and four fingers (two tapered segments each). Lengths are in units of 1/32 of the image's width, y points down, and
angles are measured from the hand's axis. Fingers are fanned so that neighbouring tips keep about two pixels of
background between them, and the hand is placed so that no finger touches the frame: this is what makes the count of
fingers (`rods.bench.tasks.hands.hand_counter`) an objective label. Hand i of a seed depends on (seed, i) alone, and the
same draws with another number of fingers give the same hand with fingers missing from their places or squeezed in.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]

MIN_FINGERS, MAX_FINGERS = 3, 7
MIN_RESOLUTION, MAX_RESOLUTION = 32, 1024  # fingers need 32 pixels to keep apart
CHUNK = 256  # hands drawn at a time: about 1 MiB per field, which stays in cache
GRID = 32.0  # the unit of length is 1/32 of the image's width
MARGIN = 1.5  # the least distance from a finger to the frame

LENGTHS = np.array([0.93, 1.0, 0.95, 0.84])  # index, middle, ring, little finger; relative to the middle finger
NUM_HAND_DRAWS, NUM_FINGER_DRAWS = 24, 5


@dataclass(frozen=True)
class Pose:
    """Geometry and shades of N hands. Coordinates in units of the image's width / 32, y down."""

    centre: F32  # [N, 2] palm centre
    axis: F32  # [N] angle of the hand's axis from the vertical, radians
    palm: F32  # [N, 2] half-width and half-height of the palm
    wrist: F32  # [N] half-width of the wrist
    knots: F32  # [N, F, 3, 2] base, joint and tip of each finger, relative to the palm centre
    radii: F32  # [N, F, 3] half-widths there
    present: NDArray[np.bool_]  # [N, F]
    shade: F32  # [N, 2] background and hand, 0..1


def draw_hands(
    indices: int | Iterable[int], *, seed: int, resolution: int = 32, num_fingers: int = 5
) -> NDArray[np.uint8]:
    """Draws hands: uint8 [N, resolution, resolution], a bright hand on a dark background.

    indices: the hands to draw (an int n means 0..n-1); hand i depends on (seed, i) alone, not on its batch mates.
    num_fingers: 5 is a real hand; 3, 4, 6 and 7 are planted errors in the same style and with the same draws.
    Raises ValueError for a negative seed or index, a resolution below 32, or a number of fingers outside 3..7.
    """
    index = np.arange(indices) if isinstance(indices, int) else np.fromiter(indices, dtype=np.int64)
    if seed < 0 or (isinstance(indices, int) and indices < 0) or (index < 0).any():
        raise ValueError(f"draw_hands: seed {seed} and the indices must not be negative")
    if resolution < MIN_RESOLUTION:
        raise ValueError(
            f"draw_hands: resolution {resolution} is too small for fingers to separate, use {MIN_RESOLUTION} or more"
        )
    if not MIN_FINGERS <= num_fingers <= MAX_FINGERS:
        raise ValueError(f"draw_hands: num_fingers {num_fingers} is outside {MIN_FINGERS}..{MAX_FINGERS}")
    images = np.empty((len(index), resolution, resolution), dtype=np.uint8)
    for start in range(0, len(index), CHUNK):
        chunk = index[start : start + CHUNK]
        draws = np.stack([_draws(seed, int(i)) for i in chunk])
        images[start : start + CHUNK] = _render(_pose(draws, num_fingers), resolution)
    return images  # [N, H, W]


def _draws(seed: int, index: int) -> NDArray[np.float64]:
    """All uniform draws of one hand: first the hand's own, then NUM_FINGER_DRAWS for each finger slot."""
    draws: NDArray[np.float64] = np.random.default_rng([seed, index]).random(
        NUM_HAND_DRAWS + NUM_FINGER_DRAWS * MAX_FINGERS
    )
    return draws


def _pose(u: NDArray[np.float64], num_fingers: int) -> Pose:
    """Turns uniform draws u [N, K] into poses."""
    column = iter(u[:, :NUM_HAND_DRAWS].T)

    def uniform(low: float, high: float) -> NDArray[np.float64]:
        return np.asarray(low + (high - low) * next(column))  # [N]

    own = u[:, NUM_HAND_DRAWS:].reshape(len(u), MAX_FINGERS, NUM_FINGER_DRAWS)  # [N, slots, 5]
    mirror = np.where(uniform(-1, 1) < 0, -1.0, 1.0)  # left and right hands
    size = uniform(0.90, 1.06)
    reach = uniform(14.4, 15.8) * size  # palm centre to the tip of the middle finger
    axis = np.radians(uniform(-26, 26))
    palm = np.stack([uniform(4.5, 5.3), uniform(4.6, 5.3)], axis=1) * size[:, None]
    wrist = palm[:, 0] * uniform(0.58, 0.72)
    width = uniform(1.22, 1.45) * size  # half-width of a finger
    spread = np.radians(uniform(21.5, 26.0))  # between neighbouring fingers
    thumb_gap = np.radians(uniform(36, 52))
    thumb_reach = uniform(0.70, 0.80)
    lean = np.radians(uniform(-7, 7))
    bend = np.radians(uniform(-9, 9))
    background = uniform(0.04, 0.32)
    hand = background + (0.97 - background) * uniform(0.55, 1.0)
    place = np.stack([uniform(0, 1), uniform(0, 1)], axis=1)
    who = next(column), next(column)  # which fingers are missing or doubled

    finger, slot, present = _slots(num_fingers, *who)
    jitter = own[np.arange(len(u))[:, None], slot] * 2 - 1  # [N, F, 5]
    M = finger.shape[1] - 1  # fingers beside the thumb
    if M > 4:
        width, spread = width * 0.95, spread * 0.97
    which = np.clip(finger - 1, 0, 3)  # [N, F] whose length each finger has
    length = LENGTHS[which] * reach[:, None] * (1 + 0.04 * jitter[:, :, 0])
    angle = lean[:, None] + spread[:, None] * (np.arange(-1, M) - (M - 1) / 2 + 0.08 * jitter[:, :, 1])
    half = width[:, None] * (1 + 0.06 * jitter[:, :, 2])
    length[:, 0] = reach * thumb_reach * (1 + 0.04 * jitter[:, 0, 0])
    angle[:, 0] = angle[:, 1] - thumb_gap
    half[:, 0] = width * 1.12
    turn = bend[:, None] + np.radians(3) * jitter[:, :, 3]
    turn[:, 0] = np.radians(10) + np.radians(8) * jitter[:, 0, 3]  # the thumb bends towards the fingers

    knots = _knots(length, angle, turn, palm)  # [N, F, 3, 2] with the axis upright
    knots[..., 0] *= mirror[:, None, None]
    c, s = np.cos(axis)[:, None, None], np.sin(axis)[:, None, None]
    knots = np.stack([c * knots[..., 0] - s * knots[..., 1], s * knots[..., 0] + c * knots[..., 1]], axis=-1)
    radii = half[:, :, None] * np.array([1.08, 1.02, 0.92])
    f32 = [a.astype(np.float32) for a in (axis, palm, wrist, knots, radii, np.stack([background, hand], axis=1))]
    return Pose(_place(knots, radii, present, place), f32[0], f32[1], f32[2], f32[3], f32[4], present, f32[5])


def _slots(
    num_fingers: int, who: NDArray[np.float64], who_else: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
    """For each finger, in angular order: which one it is (0 the thumb), its slot of draws, its presence; [N, F] each.

    A missing finger leaves a gap. An extra one is a second index, middle, ring or little finger beside the first.
    """
    N = len(who)
    finger = np.tile(np.arange(5), (N, 1))
    first = np.minimum((who * 5).astype(np.int64), 4)
    second = (first + 1 + np.minimum((who_else * 4).astype(np.int64), 3)) % 5  # another one
    victims = np.stack([first, second], axis=1)
    if num_fingers <= 5:
        missing = victims[:, : 5 - num_fingers]  # [N, 0..2]
        return finger, finger, ~(finger[:, :, None] == missing[:, None, :]).any(axis=2)
    extra = np.maximum(victims[:, : num_fingers - 5], 1)
    finger = np.concatenate([finger, extra], axis=1)
    slot = np.argsort(finger, axis=1, kind="stable")  # the extra fingers have the last slots, so twins differ
    return np.take_along_axis(finger, slot, axis=1), slot, np.ones(finger.shape, dtype=bool)


def _knots(
    length: NDArray[np.float64], angle: NDArray[np.float64], turn: NDArray[np.float64], palm: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Base, joint and tip of each finger [N, F, 3, 2] for an upright hand, relative to the palm centre.

    The fingers fan out of a point below the palm centre, as the bones of the hand do; the thumb leaves from beside it.
    """
    direction = np.stack([np.sin(angle), -np.cos(angle)], axis=-1)  # [N, F, 2]
    origin = np.zeros_like(direction)
    origin[:, 1:, 1] = 1.2
    origin[:, 0, 1] = 1.5
    base = 0.30 * length
    joint = origin + direction * (0.62 * length)[..., None]
    beyond = angle + turn
    tip = joint + np.stack([np.sin(beyond), -np.cos(beyond)], axis=-1) * (0.38 * length - 0.5)[..., None]
    return np.stack([origin + direction * base[..., None], joint, tip], axis=2)


def _place(
    knots: NDArray[np.float64], radii: NDArray[np.float64], present: NDArray[np.bool_], place: NDArray[np.float64]
) -> F32:
    """Palm centres [N, 2], uniform where every finger keeps MARGIN to the frame and some wrist shows."""
    far = radii.max(axis=2)[..., None] + MARGIN
    tips = np.where(present[..., None], knots[:, :, 2], 0.0)
    low = np.maximum((far - tips).max(axis=1), 7.0)  # [N, 2]
    high = np.minimum((GRID - far - tips).min(axis=1), [25.0, 22.5])
    middle = (low + high) / 2
    slack = np.maximum(high - low, 0) / 2
    centre: F32 = (middle + np.minimum(slack, [3.0, 2.0]) * (2 * place - 1)).astype(np.float32)
    return centre


def _render(pose: Pose, resolution: int) -> NDArray[np.uint8]:
    """Antialiased images uint8 [N, H, W]: coverage of a pixel = clip(1/2 - signed distance in pixels, 0, 1)."""
    unit = GRID / resolution
    axis = (np.arange(resolution, dtype=np.float32) + 0.5) * unit
    x = axis[None, None, :] - pose.centre[:, 0, None, None]  # [N, 1, W]
    y = axis[None, :, None] - pose.centre[:, 1, None, None]  # [N, H, 1]
    c, s = np.cos(pose.axis)[:, None, None], np.sin(pose.axis)[:, None, None]
    across, along = c * x + s * y, c * y - s * x  # [N, H, W] in the hand's own frame
    corner = 0.62 * pose.palm.min(axis=1)[:, None, None]
    qx = np.abs(across) - (pose.palm[:, 0, None, None] - corner)
    qy = np.abs(along) - (pose.palm[:, 1, None, None] - corner)
    palm = np.hypot(np.maximum(qx, 0), np.maximum(qy, 0)) + np.minimum(np.maximum(qx, qy), 0) - corner
    wrist = np.hypot(across, np.minimum(along, 0)) - pose.wrist[:, None, None]
    fingers = np.full_like(palm, GRID)
    for f in range(pose.present.shape[1]):
        for j in (0, 1):
            d = _segment(x, y, pose.knots[:, f, j : j + 2], pose.radii[:, f, j : j + 2])
            fingers = np.minimum(fingers, np.where(pose.present[:, f, None, None], d, GRID))
    distance = _blend(_blend(palm, wrist, 1.5), fingers, 1.0)
    coverage = np.clip(0.5 - distance / unit, 0, 1)
    background, hand = pose.shade[:, 0, None, None], pose.shade[:, 1, None, None]
    images: NDArray[np.uint8] = np.rint(255 * (background + (hand - background) * coverage)).astype(np.uint8)
    return images


def _segment(x: F32, y: F32, ends: F32, radii: F32) -> F32:
    """Signed distance [N, H, W] to a segment between ends [N, 2, 2]; its half-width goes from radii[:, 0] to [:, 1]."""
    ax, ay = ends[:, 0, 0, None, None], ends[:, 0, 1, None, None]
    bx, by = ends[:, 1, 0, None, None] - ax, ends[:, 1, 1, None, None] - ay
    px, py = x - ax, y - ay
    t = np.clip((px * bx + py * by) / (bx * bx + by * by), 0, 1)
    radius = radii[:, 0, None, None] + t * (radii[:, 1] - radii[:, 0])[:, None, None]
    distance: F32 = np.hypot(px - t * bx, py - t * by) - radius
    return distance


def _blend(a: F32, b: F32, width: float) -> F32:
    """Union of two distance fields with a fillet: the quadratic smooth minimum, exact where they differ by `width`."""
    h = np.maximum(width - np.abs(a - b), 0) / width
    union: F32 = np.minimum(a, b) - h * h * (width / 4)
    return union
