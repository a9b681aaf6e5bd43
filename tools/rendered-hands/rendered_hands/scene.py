"""Rendered hands with ground truth: the data of the benchmark's task hands-64r.

A rigged hand mesh (the package anny, an extra: `rendered_hands.mesh`) is shaped, posed, lit and seen from its back or
its palm on white, the fingers apart enough to be counted. Hand i of a seed depends on (seed, i) alone, and the same
draws with another number of fingers give the same hand with one finger missing or one more. The forearm leaves every
picture, so that no cut shows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from rendered_hands.mesh import Rig, load_rig, turn
from rendered_hands.paint import Skin, shade
from rendered_hands.pose import FingerPose, PosedHand, pose_hand
from rendered_hands.raster import rasterise, vertex_normals

F64 = NDArray[np.float64]

FINGERS = (4, 5, 6)
NAMES = ("thumb", "index", "middle", "ring", "little")
MIN_RESOLUTION = 32
SAMPLES = 2  # per pixel and axis
MARGIN = 0.035  # of the picture, kept free around the hand
HIDDEN = -0.22  # everything behind this y (hand's frame) may leave the picture
NUM_DRAWS = 96
KNUCKLES = ((-0.24, 0.37), (-0.25, 1.01), (0.0, 1.0), (0.19, 0.94), (0.37, 0.85))  # of the mesh, x and y
BESIDE_LITTLE = (0.05, -0.16)


@dataclass(frozen=True)
class Hand:
    """Everything that is drawn at random for one picture; the ground truth."""

    side: str  # "left" or "right"
    aspect: str  # "dorsal" or "palmar"
    shape: tuple[tuple[str, float], ...]  # of rendered_hands.mesh.SHAPES
    fingers: tuple[FingerPose, ...]  # the mesh's five
    extra: FingerPose | None
    changed: str  # which finger is missing ("index"), or which gap the sixth is in ("index-middle"); "" with five
    skin: Skin
    rotation: float  # in the picture, radians
    tilt: tuple[float, float]
    zoom: float  # share of the largest size that fits
    place: tuple[float, float]  # -1..1 in the room that is left


def render_hands(
    indices: int | Iterable[int], *, seed: int, resolution: int | tuple[int, int] = 64, num_fingers: int = 5
) -> NDArray[np.uint8]:
    """Renders hands: uint8 [N, H, W, 3] on white. About 15 ms a hand at 64x64, 50 ms at 128x128.

    indices: the hands to render (an int n means 0..n-1); hand i depends on (seed, i) alone. resolution: pixels, or
    (width, height). num_fingers: 5 is a real hand; with 4 one is missing, with 6 there is one more.
    Raises ValueError for a negative seed or index, fewer than 32 pixels, or a number of fingers outside 4..6; UserError
    where the package anny is missing.
    """
    index = list(range(indices)) if isinstance(indices, int) else [int(i) for i in indices]
    size = (resolution, resolution) if isinstance(resolution, int) else resolution
    if (isinstance(indices, int) and indices < 0) or min(index, default=0) < 0:
        raise ValueError("render_hands: the indices must not be negative")
    if min(size) < MIN_RESOLUTION:
        raise ValueError(f"render_hands: resolution {size[0]}x{size[1]} is too small, use {MIN_RESOLUTION} or more")
    rig = load_rig()
    images = np.empty((len(index), size[1], size[0], 3), dtype=np.uint8)
    for image, i in zip(images, index, strict=True):
        image[:] = _render(rig, draw_hand(seed, i, num_fingers=num_fingers), draw_hand(seed, i), size)
    return images


def as_grey(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Luma (ITU-R 601) of pictures [..., 3] -> [...]."""
    grey: NDArray[np.uint8] = np.rint(images @ np.array([0.299, 0.587, 0.114])).astype(np.uint8)
    return grey  # [...]


def draw_hand(seed: int, index: int, *, num_fingers: int = 5) -> Hand:
    """Hand `index` of `seed`. Raises ValueError as `render_hands` does."""
    if seed < 0 or index < 0:
        raise ValueError(f"draw_hand: seed {seed} and index {index} must not be negative")
    if num_fingers not in FINGERS:
        raise ValueError(f"draw_hand: num_fingers {num_fingers} is not one of 4, 5 and 6")
    draws = iter(np.random.default_rng([seed, index]).random(NUM_DRAWS))

    def uniform(low: float, high: float) -> float:
        return low + (high - low) * float(next(draws))

    side, aspect = ("left", "right")[uniform(0, 1) < 0.5], ("dorsal", "palmar")[uniform(0, 1) < 0.5]
    skin = _draw_skin(uniform)
    rotation, tilt = np.radians(uniform(-24, 24)), (np.radians(uniform(-9, 9)), np.radians(uniform(-11, 11)))
    zoom, place = uniform(0.86, 1.0), (uniform(-1, 1), uniform(-1, 1))
    shape = _draw_shape(uniform)
    fingers, extra, changed = _change(_draw_fingers(uniform), num_fingers, uniform)
    return Hand(side, aspect, shape, fingers, extra, changed, skin, float(rotation), tilt, zoom, place)


def _draw_skin(uniform: Callable[[float, float], float]) -> Skin:
    tone, tint = uniform(0, 1), np.array([1 + uniform(-0.03, 0.03), 1 + uniform(-0.02, 0.02), 1 + uniform(-0.04, 0.04)])
    around, height = uniform(0, 2 * np.pi), np.radians(uniform(38, 80))
    light = np.array([np.cos(height) * np.cos(around), np.cos(height) * np.sin(around), np.sin(height)])
    ambient = uniform(0.35, 0.6)
    waves = np.array([[uniform(-9, 9) for _ in range(3)] for _ in range(3)])
    return Skin(tone, tint, light, ambient, np.concatenate([waves, [[uniform(0, 2 * np.pi) for _ in range(3)]]]))


def _draw_shape(uniform: Callable[[float, float], float]) -> tuple[tuple[str, float], ...]:
    """Strengths along the pairs of SHAPES."""
    axes = (("female", "male"), ("heavy", "thin"), ("long", "short"), ("thick", "slim"), ("wide", "narrow"))
    drawn = [(axis, uniform(-1, 1)) for axis in (*axes, ("strong-wrist", "slim-wrist"))]
    shape = [(axis[0] if x > 0 else axis[1], abs(x) * (0.35 if "long" in axis else 0.9)) for axis, x in drawn]
    return (*shape, ("old", uniform(0, 0.9)), ("muscular", uniform(0, 0.8)))


def _draw_fingers(uniform: Callable[[float, float], float]) -> list[FingerPose]:
    """Five fingers with room between neighbours. Azimuths from thumb (negative) to little finger."""
    gaps = [uniform(8.5, 15), uniform(8, 14), uniform(10, 18)]
    lean, bend = uniform(-5, 5), uniform(0, 1) ** 1.5
    middle = -gaps[0] / 2 + 4 + lean
    azimuths = [uniform(-56, -38) + lean, middle - gaps[0], middle, middle + gaps[1], middle + gaps[1] + gaps[2]]
    bends = [(uniform(0, 14), uniform(-4, 14), uniform(0, 18))]
    bends += [(uniform(-6, 8) + 10 * bend, uniform(1, 12) + 18 * bend, uniform(1, 9) + 10 * bend) for _ in range(4)]
    return [
        FingerPose(
            f,
            float(np.radians(azimuth)),
            (float(np.radians(b[0])), float(np.radians(b[1])), float(np.radians(b[2]))),
            width=uniform(0.95, 1.05),
            length=uniform(0.95, 1.05),
        )
        for f, (azimuth, b) in enumerate(zip(azimuths, bends, strict=True))
    ]


def _change(
    fingers: list[FingerPose], num_fingers: int, uniform: Callable[[float, float], float]
) -> tuple[tuple[FingerPose, ...], FingerPose | None, str]:
    """Takes one finger away or adds one: the fingers, the extra one, and where it happened."""
    which, closing, room = min(int(uniform(0, 5)), 4), uniform(-0.7, 1), uniform(11, 14)
    stump = uniform(0.0, 0.4)  # fingers leave the palm at about 0.4 of their first bone
    if num_fingers == 5:
        return tuple(fingers), None, ""
    if num_fingers == 4:
        fingers[which] = replace(fingers[which], missing=True, stump=stump if which else 0.5 + stump)
        if which == 0:  # what is left of it lies beside the palm
            fingers[0] = _turned(fingers[0], np.radians(-20) - fingers[0].azimuth)
        if which in (2, 3) and closing > 0:  # its neighbours come closer, on some hands until no gap is left
            gap = fingers[which + 1].azimuth - fingers[which - 1].azimuth
            fingers = _part(fingers, which, -closing * (gap - np.radians(room)), -0.08 * closing)
        return tuple(fingers), None, NAMES[which]
    if which == 0:
        inner = min(fingers[0].azimuth + np.radians(10), fingers[1].azimuth - np.radians(12))
        extra = _turned(fingers[0], inner - fingers[0].azimuth)
        fingers[0] = _turned(extra, -np.radians(20 + room))
        return tuple(fingers), extra, "thumb"
    if which == 4:
        fingers = [_turned(finger, np.radians(-room) / 2) for finger in fingers]
        return tuple(fingers), replace(_turned(fingers[4], np.radians(12 + room)), shift=BESIDE_LITTLE), "little"
    gap = fingers[which + 1].azimuth - fingers[which].azimuth
    fingers = _part(fingers, which + 0.5, max(2 * np.radians(room) - gap, 0), 0.07)
    first, second = fingers[which : which + 2]
    middle = (np.array(KNUCKLES[which]) + KNUCKLES[which + 1]) / 2 - KNUCKLES[which]
    extra = replace(
        first,
        azimuth=(first.azimuth + second.azimuth) / 2,
        shift=(float(middle[0]), float(middle[1])),
        length=(first.length + second.length) / 2 * (0.93 if which == 3 else 0.99),
    )
    return tuple(fingers), extra, f"{NAMES[which]}-{NAMES[which + 1]}"


def _part(fingers: list[FingerPose], at: float, angle: float, shift: float) -> list[FingerPose]:
    """Moves the fingers before and after place `at` apart, by an angle and a shift between them; not the thumb."""
    moved = [
        replace(_turned(finger, (1 if f > at else -1) * angle / 2), shift=((1 if f > at else -1) * shift / 2, 0.0))
        for f, finger in enumerate(fingers)
    ]
    return [_turned(fingers[0], min(-angle / 3, 0.0)), *moved[1:]]


def _turned(finger: FingerPose, angle: float) -> FingerPose:
    return replace(finger, azimuth=float(finger.azimuth + angle))


def _shaped(rig: Rig, hand: Hand) -> tuple[F64, F64]:
    """Vertices [V, 3] and joints of the hand at rest, with the hand's shape."""
    vertices, joints = rig.vertices.copy(), rig.joints.copy()
    for name, strength in hand.shape:
        vertices += strength * rig.directions[name][0]
        joints += strength * rig.directions[name][1]
    return vertices, joints


def _view(hand: Hand) -> F64:
    """The matrix [3, 3] from the hand's frame to the viewer's: x right, y up, z towards the viewer."""
    tilted = turn(np.array([1.0, 0, 0]), hand.tilt[0]) @ turn(np.array([0, 1.0, 0]), hand.tilt[1])
    aspect = np.diag([1.0, 1, 1] if hand.aspect == "dorsal" else [-1.0, 1, -1])
    side = np.diag([1.0 if hand.side == "right" else -1.0, 1, 1])
    return np.asarray(turn(np.array([0, 0, 1.0]), hand.rotation) @ side @ tilted @ aspect)


def _render(rig: Rig, hand: Hand, normal: Hand, size: tuple[int, int]) -> NDArray[np.uint8]:
    """One picture uint8 [H, W, 3]. `normal` is the same hand with five fingers: both have one size and place."""
    vertices, joints = _shaped(rig, hand)
    view = _view(hand)
    posed = pose_hand(rig, vertices, joints, list(hand.fingers), hand.extra)
    boxes = [_box(rig, posed, view)]
    if hand.changed:
        boxes.append(_box(rig, pose_hand(rig, vertices, joints, list(normal.fingers), None), view))
    low, high = np.min(boxes, axis=0)[0], np.max(boxes, axis=0)[1]
    W, H = SAMPLES * size[0], SAMPLES * size[1]
    free = np.array([W, H]) * (1 - 2 * MARGIN)
    scale = hand.zoom * float((free / (high - low)).min())
    centre = np.array([W, H]) / 2 + np.array(hand.place) * (free - scale * (high - low)) / 2
    screen = (posed.vertices @ view.T - [*(low + high) / 2, 0]) * scale * [1, -1, 1] + [*centre, 0]
    normals = vertex_normals(posed.vertices, posed.faces) @ view.T
    seen = rasterise(screen, posed.faces, width=W, height=H)
    picture = shade(rig, posed.source, posed.faces, normals, screen[:, 2], seen, hand.skin, size=(W, H))
    picture = picture.reshape(size[1], SAMPLES, size[0], SAMPLES, 3).mean(axis=(1, 3))
    image: NDArray[np.uint8] = np.rint(255 * picture).astype(np.uint8)
    return image


def _box(rig: Rig, posed: PosedHand, view: F64) -> F64:
    """Least and greatest x and y [2, 2] of the part of the hand that must lie inside the picture."""
    shown = (posed.vertices @ view.T)[rig.vertices[posed.source, 1] > HIDDEN, :2]
    return np.stack([shown.min(axis=0), shown.max(axis=0)])
