"""What is painted on the hand mesh: skin tone, palms, nails, creases; and how light falls on it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from rendered_hands.mesh import BONES, Rig
from rendered_hands.raster import Fragments, vertex_normals

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

TONES = np.array(  # sRGB of the back of a hand, from light to dark skin
    [[244, 210, 186], [230, 184, 152], [205, 152, 116], [166, 113, 82], [122, 78, 55], [88, 58, 46]]
)
PALM, NAIL = np.array([226, 168, 146]), np.array([236, 190, 178])
PALM_LINES = (  # in the hand's frame: heart, head and life line
    ((0.44, 0.70), (0.26, 0.76), (0.05, 0.80), (-0.12, 0.93)),
    ((-0.34, 0.72), (-0.12, 0.70), (0.12, 0.60), (0.32, 0.46)),
    ((-0.33, 0.74), (-0.14, 0.62), (-0.05, 0.42), (-0.07, 0.16)),
)


@dataclass(frozen=True)
class Skin:
    """Colour and light of one picture. Colours as sRGB 0..255, `light` a unit vector (z towards the viewer)."""

    tone: float  # 0 light .. 1 dark
    tint: F64  # [3] factors near 1
    light: F64  # [3]
    ambient: float  # share of the light that comes from everywhere
    mottle: F64  # [4, 3] waves of uneven colour over the hand


@cache
def _paint(rig: Rig) -> tuple[F64, F64, F64]:
    """Per vertex [V]: how much it is of the palm's skin, of a nail, and of a crease."""
    normals = vertex_normals(rig.vertices, rig.faces)
    palmar, nail, crease = np.clip(0.5 - 1.2 * normals[:, 2], 0, 1), np.zeros(len(normals)), np.zeros(len(normals))
    for f in range(5):
        mine = (rig.finger == f) & (rig.along > 0)
        chain = rig.joints[[*BONES[f], 21 + f]]
        side = np.cross(chain[1] - chain[0], chain[3] - chain[2])
        side /= np.linalg.norm(side)
        for j in range(3):
            ahead = (chain[j + 1] - chain[j]) / np.linalg.norm(chain[j + 1] - chain[j])
            here = mine & (np.floor(rig.along) == j)
            inwards = normals[here] @ np.cross(side, ahead)  # towards the side to which the finger bends
            palmar[here] = np.clip(0.5 + 1.2 * inwards, 0, 1)
        t = rig.along[mine]
        back = 1 - palmar[mine]
        nail[mine] = np.clip((back - 0.75) * 6, 0, 1) * np.clip((t - 2.5) * 8, 0, 1) * np.clip((2.97 - t) * 20, 0, 1)
        lines = sum(np.exp(-(((t - at) / 0.09) ** 2)) for at in ((1.0, 2.0) if f else (2.0,)))
        crease[mine] = lines
    return palmar, nail, crease


def shade(
    rig: Rig, source: I64, faces: I64, normals: F64, depth: F64, seen: Fragments, skin: Skin, *, size: tuple[int, int]
) -> F64:
    """The picture of a posed mesh on white, [H, W, 3], sRGB 0..1; `size` is (W, H).

    source: [V'] the rig's vertex that each vertex came from. normals: [V', 3], y up and z towards the viewer. depth:
    [V'] towards the viewer, in pixels. seen: the rasterised pixels.
    """
    W, H = size
    corners = faces[seen.triangle]  # [P, 3]

    def at_pixels(values: F64) -> F64:
        return np.asarray(np.einsum("pc,pc...->p...", seen.weights, values[corners]))

    palmar, nail, crease = _paint(rig)
    n = at_pixels(normals)
    n /= np.maximum(np.linalg.norm(n, axis=1, keepdims=True), 1e-9)
    place = at_pixels(rig.vertices[source])  # [P, 3] in the hand at rest
    palm, nails = at_pixels(palmar[source]), at_pixels(nail[source])
    colour = _skin_colour(skin, palm, nails)
    lines, inner = 0.10 * at_pixels(crease[source]) * (1 - nails), palm > 0
    lines[inner] += 0.12 * palm[inner] * _palm_lines(place[inner])
    mottle = 0.02 * np.sin(place @ skin.mottle[:3].T + skin.mottle[3]).sum(axis=1)
    falling = np.clip((n @ skin.light + 0.3) / 1.3, 0, 1)  # light wraps a little around skin
    light = skin.ambient + (1 - skin.ambient) * falling
    light *= 0.76 + 0.24 * np.sqrt(np.clip(n[:, 2], 0, 1))  # skin is darker where it turns away
    light *= 1 - _occlusion(at_pixels(depth), seen.pixel, W, H)
    halfway = skin.light + np.array([0.0, 0.0, 1.0])
    gloss = (0.05 + 0.10 * nails) * np.clip(n @ (halfway / np.linalg.norm(halfway)), 0, 1) ** 24
    picture = np.ones((H * W, 3))
    picture[seen.pixel] = np.clip(colour * (light * (1 + mottle - lines))[:, None] + gloss[:, None], 0, 1)
    return picture.reshape(H, W, 3)


def _skin_colour(skin: Skin, palm: F64, nails: F64) -> F64:
    """Colour [P, 3] in 0..1 under full light; palms are lighter than backs, most of all on dark skin."""
    place = skin.tone * (len(TONES) - 1)
    k = min(int(place), len(TONES) - 2)
    back = TONES[k] + (place - k) * (TONES[k + 1] - TONES[k])
    front = back + (0.2 + 0.35 * skin.tone) * (PALM - back)
    plate = back + (0.45 + 0.15 * skin.tone) * (NAIL - back)
    colour = back + palm[:, None] * (front - back)
    return np.asarray((colour + nails[:, None] * (plate - colour)) * skin.tint / 255)


def _palm_lines(place: F64) -> F64:
    """Depth 0..1 of the palm's lines at places [P, 3] of the hand at rest."""
    distance = np.full(len(place), np.inf)
    for line in PALM_LINES:
        for a, b in zip(np.array(line[:-1]), np.array(line[1:]), strict=True):
            t = np.clip((place[:, :2] - a) @ (b - a) / ((b - a) @ (b - a)), 0, 1)
            distance = np.minimum(distance, np.hypot(*(place[:, :2] - a - t[:, None] * (b - a)).T))
    return np.asarray(np.exp(-((distance / 0.022) ** 2)))


def _occlusion(depth: F64, pixel: I64, width: int, height: int) -> F64:
    """Share of light lost [P] where a pixel lies deeper than its surroundings: between fingers, under a bent one."""
    mask, field = np.zeros((2, height * width))
    mask[pixel], field[pixel] = 1, depth
    lost = np.zeros(len(pixel))
    for radius in (0.012, 0.03):
        sigma = radius * min(width, height)
        blurred = [ndimage.gaussian_filter(a.reshape(height, width), sigma, truncate=2) for a in (field, mask)]
        around = blurred[0].ravel()[pixel] / np.maximum(blurred[1].ravel()[pixel], 1e-6)
        lost += 0.3 * np.clip((around - depth) / (2 * sigma), 0, 1)
    return lost
