"""A small software rasteriser: which triangle each pixel sees, and where on it. Orthographic, z-buffered, numpy."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]


@dataclass(frozen=True)
class Fragments:
    """The P covered pixels of a picture, each with the triangle that is nearest to the viewer there."""

    pixel: I64  # [P] y * width + x
    triangle: I64  # [P] row of `faces`
    weights: F64  # [P, 3] barycentric coordinates there


def rasterise(vertices: F64, faces: I64, *, width: int, height: int) -> Fragments:
    """Visible surface of a triangle mesh, sampled at the centres of the pixels.

    vertices: [V, 3], x and y in pixels (y down, pixel centres at .5), z towards the viewer. faces: [T, 3]; a triangle
    counts from both sides. Cost: one row of work for each pixel in each triangle's bounding box, so it is meant for
    small triangles. Raises ValueError for a picture without pixels.
    """
    if width < 1 or height < 1:
        raise ValueError(f"rasterise: a picture of {width}x{height} has no pixels")
    corners = vertices[faces]  # [T, 3, 3]
    a, b, c = (corners[:, k, :2] for k in range(3))  # pairwise below: numpy reduces short axes slowly
    low = np.ceil(np.minimum(np.minimum(a, b), c) - 0.5).astype(np.int64)  # first pixel centre inside the box
    high = np.floor(np.maximum(np.maximum(a, b), c) - 0.5).astype(np.int64) + 1
    low, high = np.maximum(low, 0), np.minimum(high, [width, height])
    across, down = np.maximum(high - low, 0).T
    triangle = np.repeat(np.arange(len(faces)), across * down)  # [K] candidates: a triangle and a pixel of its box
    first = np.cumsum(across * down) - across * down
    step = np.arange(len(triangle)) - first[triangle]
    row, column = np.divmod(step, across[triangle])
    x, y = low[triangle, 0] + column, low[triangle, 1] + row

    weights = _barycentric(corners, triangle, x + 0.5, y + 0.5)
    inside = (weights[:, 0] >= 0) & (weights[:, 1] >= 0) & (weights[:, 2] >= 0)
    triangle, weights, pixel = triangle[inside], weights[inside], (y * width + x)[inside]
    depth = np.einsum("kc,kc->k", weights, corners[triangle, :, 2])
    order = np.argsort(depth, kind="stable")
    nearest = np.full(width * height, -1)
    nearest[pixel[order]] = order  # of a repeated index the last one stays: the nearest
    seen = nearest[nearest >= 0]
    return Fragments(pixel[seen], triangle[seen], weights[seen])


def _barycentric(corners: F64, triangle: I64, x: F64, y: F64) -> F64:
    """Barycentric coordinates [K, 3] of points in their triangles; negative outside, and for triangles seen edge-on."""
    a, b, c = (corners[:, i, :2] for i in range(3))
    ab, ac = b - a, c - a
    area = ab[:, 0] * ac[:, 1] - ab[:, 1] * ac[:, 0]
    scale = np.divide(1.0, area, out=np.full_like(area, np.nan), where=np.abs(area) > 1e-12)
    px, py = x - a[triangle, 0], y - a[triangle, 1]
    v = (px * ac[triangle, 1] - py * ac[triangle, 0]) * scale[triangle]
    w = (py * ab[triangle, 0] - px * ab[triangle, 1]) * scale[triangle]
    return np.stack([1 - v - w, v, w], axis=1)


def vertex_normals(vertices: F64, faces: I64) -> F64:
    """Unit normals [V, 3]: the means of the normals of the triangles around each vertex, weighted by area."""
    a, b, c = (vertices[faces[:, i]] for i in range(3))
    face = np.cross(b - a, c - a)  # [T, 3]
    total = np.stack(
        [np.bincount(faces.ravel(), np.repeat(face[:, k], 3), minlength=len(vertices)) for k in range(3)], axis=1
    )
    return np.asarray(total / np.maximum(np.linalg.norm(total, axis=1, keepdims=True), 1e-12))
