"""The hand mesh of the Python package anny (Apache-2.0, mesh CC0) as plain arrays, posed finger by finger.

Everything happens in the hand's own frame: the origin at the wrist, y towards the knuckle of the middle finger, x
towards the little finger, z out of the back of the hand (a right hand seen from its back). The unit is the distance
from the wrist to that knuckle. Fingers are numbered 0 (thumb) to 4 (little finger).
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dnnlib.errors import UserError

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

INSTALL = "pip install --no-deps anny==0.6.2 roma pyyaml trimesh"
WRIST = 1
BONES = np.array([[2, 3, 4], [6, 7, 8], [10, 11, 12], [14, 15, 16], [18, 19, 20]])  # of each finger, base to tip
METACARPAL = (-1, 5, 9, 13, 17)  # the bone of the palm that each finger but the thumb ends
SHAPES: Mapping[str, tuple[Mapping[str, float], Mapping[str, float]]] = {  # name -> phenotypes, local changes
    "male": ({"gender": 0.0}, {}),
    "female": ({"gender": 1.0}, {}),
    "old": ({"age": 1.0}, {}),
    "thin": ({"weight": 0.0}, {}),
    "heavy": ({"weight": 1.0}, {}),
    "muscular": ({"muscle": 1.0}, {}),
    "long": ({}, {"r-hand-fingers-length-incr": 1.0}),
    "short": ({}, {"r-hand-fingers-length-incr": -1.0}),
    "thick": ({}, {"r-hand-fingers-diameter-incr": 1.0}),
    "slim": ({}, {"r-hand-fingers-diameter-incr": -1.0}),
    "wide": ({}, {"r-hand-fingers-distance-incr": 1.0}),
    "narrow": ({}, {"r-hand-fingers-distance-incr": -1.0}),
    "strong-wrist": ({}, {"measure-wrist-circ-incr": 0.5}),
    "slim-wrist": ({}, {"measure-wrist-circ-incr": -1.0}),
}
FOREARM = ((0.35, 1.0), (0.9, 1.08), (1.8, 1.25), (4.0, 1.4))  # rings added behind the wrist: distance, widening


@dataclass(frozen=True, eq=False)
class Rig:
    """A hand mesh that can be shaped and posed. V vertices, 21 bones. One rig is one key of a cache."""

    vertices: F64  # [V, 3]
    joints: F64  # [21 + 5, 3] where each bone starts, then the five finger tips
    directions: Mapping[str, tuple[F64, F64]]  # of SHAPES: what full strength adds to vertices and joints
    faces: I64  # [T, 3]
    weights: F64  # [V, 21] of the bones, each row sums to 1
    along: F64  # [V] place on the vertex's finger in bones: 0 the knuckle, 3 the tip; negative in the palm
    finger: I64  # [V] the finger a vertex belongs to, -1 for palm and wrist


@cache
def load_rig() -> Rig:
    """The rig, from the installed package anny (about a minute the first time, while anny fills its own cache).

    Raises UserError where anny or one of its needs is missing, with the command that installs it.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of anny: deprecated defaults, no CUDA skinning
        try:
            import anny  # type: ignore[import-not-found, import-untyped]
        except ImportError as e:
            raise UserError(f"rendered hands need the package anny ({e}); run {INSTALL}") from None
        model: Any = anny.create_fullbody_model(rig="anny-hand.R", topology="hand.R", local_changes="default")
    rest = {name: _rest(model, *changes) for name, changes in {"rest": ({}, {}), **SHAPES}.items()}
    vertices, joints = rest.pop("rest")
    origin, rotation, unit = _frame(joints)
    quads = model.faces.numpy()
    weights = model.dense_vertex_bone_weights.numpy()
    directions = {
        name: (((v - vertices) @ rotation) / unit, ((j - joints) @ rotation) / unit) for name, (v, j) in rest.items()
    }
    vertices, joints = ((x - origin) @ rotation / unit for x in (vertices, joints))
    faces = np.concatenate([quads[:, [0, 1, 2]], quads[:, [0, 2, 3]]])
    vertices, faces, weights, directions = _add_forearm(vertices, faces, weights, directions)
    finger, along = _finger_coordinates(vertices, joints, weights)
    return Rig(vertices, joints, directions, faces, weights, along, finger)


def _rest(model: Any, phenotypes: Mapping[str, float], changes: Mapping[str, float]) -> tuple[F64, F64]:
    """Vertices and joints of anny's hand at rest with these phenotypes and local changes."""
    import torch

    def tensors(values: Mapping[str, float]) -> dict[str, torch.Tensor]:
        return {k: torch.tensor([v], dtype=torch.float64) for k, v in values.items()}

    coefficients = model.get_phenotype_blendshape_coefficients(**tensors(phenotypes), local_changes=tensors(changes))[0]

    def blend(template: torch.Tensor, shapes: torch.Tensor) -> F64:
        return np.asarray((template + torch.einsum("k,kvc->vc", coefficients, shapes)).numpy())

    heads = blend(model.template_bone_heads, model.bone_heads_blendshapes)
    tails = blend(model.template_bone_tails, model.bone_tails_blendshapes)
    return blend(model.template_vertices, model.blendshapes), np.concatenate([heads, tails[BONES[:, 2]]])


def _frame(joints: F64) -> tuple[F64, F64, float]:
    """Origin, rotation (columns x, y, z) and unit of the hand's frame."""
    origin = joints[WRIST]
    y = joints[BONES[2, 0]] - origin
    unit = float(np.linalg.norm(y))
    y = y / unit
    x = joints[BONES[4, 0]] - joints[BONES[1, 0]]
    x = x - (x @ y) * y
    x = x / np.linalg.norm(x)
    return origin, np.stack([x, y, np.cross(x, y)], axis=1), unit


def _add_forearm(
    vertices: F64, faces: I64, weights: F64, directions: Mapping[str, tuple[F64, F64]]
) -> tuple[F64, I64, F64, dict[str, tuple[F64, F64]]]:
    """Extends the open end behind the wrist, far enough to leave every picture."""
    loop = _open_edge(faces)
    centre = vertices[loop].mean(axis=0)
    parts, part_faces = [vertices], [faces]
    before = loop
    for k, (distance, widening) in enumerate(FOREARM):
        ring = len(vertices) + k * len(loop) + np.arange(len(loop))
        parts.append(centre + (vertices[loop] - centre) * [widening, 0.5**k, widening] - [0, distance, 0])
        after = np.roll(np.arange(len(loop)), -1)
        part_faces += [
            np.stack([before[after], before, ring], axis=1),
            np.stack([before[after], ring, ring[after]], axis=1),
        ]
        before = ring
    copies = np.tile(loop, len(FOREARM))
    extended = {name: (np.concatenate([v, v[copies]]), j) for name, (v, j) in directions.items()}
    return np.concatenate(parts), np.concatenate(part_faces), np.concatenate([weights, weights[copies]]), extended


def _open_edge(faces: I64) -> I64:
    """The vertices around the mesh's one opening, in the order of its triangles' edges."""
    edges = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    present = {(int(a), int(b)) for a, b in edges}
    follow = {a: b for a, b in present if (b, a) not in present}
    loop = [min(follow)]
    while (following := follow[loop[-1]]) != loop[0]:
        loop.append(following)
    return np.array(loop)


def _finger_coordinates(vertices: F64, joints: F64, weights: F64) -> tuple[I64, F64]:
    """Which finger each vertex belongs to, and where along it."""
    share = np.stack([weights[:, bones].sum(axis=1) for bones in BONES], axis=1)  # [V, 5]
    finger = np.where(share.max(axis=1) > 0.02, share.argmax(axis=1), -1)
    along = np.full(len(vertices), -1.0)
    for f in range(5):
        mine = finger == f
        along[mine] = along_chain(vertices[mine], joint_chain(joints, f))[0]
    return finger, along


def joint_chain(joints: F64, finger: int) -> F64:
    """Knuckle, two joints and tip of a finger [4, 3]."""
    return joints[[*BONES[finger], 21 + finger]]


def along_chain(points: F64, chain: F64) -> tuple[F64, F64]:
    """Place on the chain of joints nearest to each point, in bones (negative before the first), and the offset."""
    best = np.full(len(points), np.inf)
    place, offset = np.zeros(len(points)), np.zeros((len(points), 3))
    for j in range(3):
        a, d = chain[j], chain[j + 1] - chain[j]
        t = np.clip((points - a) @ d / (d @ d), -np.inf if j == 0 else 0.0, 1.0)
        away = points - a - t[:, None] * d
        distance = np.linalg.norm(away, axis=1)
        closer = distance < best
        best[closer], place[closer], offset[closer] = distance[closer], j + t[closer], away[closer]
    return place, offset


def cross(a: F64, b: F64) -> F64:
    """The cross product of two vectors [3]; numpy's own takes ten times as long for so little."""
    return np.array([a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]])


def turn(axis: F64, angle: float) -> F64:
    """Rotation matrix about a unit axis by `angle` radians (Rodrigues)."""
    x, y, z = axis
    K = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.asarray(np.eye(3) + np.sin(angle) * K + (1 - np.cos(angle)) * (K @ K))
