"""Posing the hand mesh: straight or bent fingers at given angles, one of them missing or doubled."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rendered_hands.mesh import BONES, METACARPAL, Rig, along_chain, cross, joint_chain, turn

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

ROOT = -0.35  # where a copied finger begins, inside the palm, and narrower there
UP = np.array([0.0, 0.0, 1.0])


@dataclass(frozen=True)
class FingerPose:
    """One finger of a picture. Angles in radians; in the hand's frame, see `rendered_hands.mesh`."""

    source: int  # the finger of the mesh that it is made of
    azimuth: float  # of its first bone, from the hand's axis towards the little finger
    bends: tuple[float, float, float]  # at the knuckle (0: in the plane of the palm) and the two joints (0: straight)
    shift: tuple[float, float] = (0.0, 0.0)  # of its knuckle from the source's, x and y
    width: float = 1.0
    length: float = 1.0
    missing: bool = False
    stump: float = 0.0  # of a missing finger: how many of its bones are left, from its base


@dataclass(frozen=True)
class PosedHand:
    """A posed mesh; `source[v]` is the vertex of the rig it came from, for everything that is painted on."""

    vertices: F64  # [V', 3]
    faces: I64  # [T', 3]
    source: I64  # [V']


def pose_hand(rig: Rig, vertices: F64, joints: F64, fingers: list[FingerPose], extra: FingerPose | None) -> PosedHand:
    """Poses the shaped mesh (`vertices`, `joints`): one of `fingers` for each of the mesh's five; `extra` adds one.

    A missing finger is drawn back into a rounded knuckle. An extra one is a copy of its source's faces, whose open end
    lies inside the palm.
    """
    rest, weights = vertices.copy(), rig.weights.copy()
    rotations = np.tile(np.eye(3), (21, 1, 1))
    shifts = np.zeros((21, 3))
    for f, finger in enumerate(fingers):
        mine = rig.finger == f
        if finger.missing:
            rest[mine], weights[mine] = _draw_back(rest[mine], weights[mine], joints, finger)
        else:
            rest[mine] = _resize(rest[mine], joints, finger)
        _set_bones(rotations, shifts, joints, finger)
    posed = _skin(rest, weights, rotations, shifts)
    source = np.arange(len(posed))
    if extra is None:
        return PosedHand(posed, rig.faces, source)
    rotations, shifts = np.tile(np.eye(3), (21, 1, 1)), np.zeros((21, 3))
    shifts[:, :2] = extra.shift
    _set_bones(rotations, shifts, joints, extra)
    copied = (rig.finger == extra.source) & (rig.along > ROOT)
    kept = np.flatnonzero(copied)
    again = _skin(_root(_resize(vertices[kept], joints, extra), joints, extra), rig.weights[kept], rotations, shifts)
    number = np.full(len(posed), -1)
    number[kept] = len(posed) + np.arange(len(kept))
    faces = number[rig.faces[copied[rig.faces].all(axis=1)]]
    return PosedHand(np.concatenate([posed, again]), np.concatenate([rig.faces, faces]), np.concatenate([source, kept]))


def _set_bones(rotations: F64, shifts: F64, joints: F64, finger: FingerPose) -> None:
    """Writes the transforms x -> rotations[b] @ x + shifts[b] of a finger's bones and of its bone in the palm."""
    f = finger.source
    chain = joint_chain(joints, f)
    moved = np.array([*finger.shift, 0.0])
    if METACARPAL[f] >= 0:
        shifts[METACARPAL[f]] = moved
    total, offset = np.eye(3), moved
    for rotation, joint, bone in zip(_joint_rotations(chain, finger), chain, BONES[f], strict=False):
        offset = offset + total @ (joint - rotation @ joint)  # about the joint, before what is nearer to the palm
        total = total @ rotation
        rotations[bone], shifts[bone] = total, offset


def _joint_rotations(chain: F64, finger: FingerPose) -> list[F64]:
    """Rotations at the knuckle and the two joints of a finger, in the frame of the hand at rest."""
    d = np.diff(chain, axis=0)
    d = d / np.linalg.norm(d, axis=1, keepdims=True)
    axis = cross(d[0], d[2])
    axis = axis / np.linalg.norm(axis)  # at rest every finger is a little bent: this turns it further
    bent = [float(np.arctan2(axis @ cross(d[j], d[j + 1]), d[j] @ d[j + 1])) for j in range(2)]
    knuckle, *rest = finger.bends
    joints = [turn(axis, bend - was) for bend, was in zip(rest, bent, strict=True)]
    heading = np.array([np.sin(finger.azimuth), np.cos(finger.azimuth), 0.0])
    ahead = np.cos(knuckle) * heading - np.sin(knuckle) * UP
    if finger.source == 0:  # the thumb keeps its own twist: the least rotation
        across = cross(d[0], ahead)
        s = float(np.linalg.norm(across))
        return [turn(across / max(s, 1e-9), float(np.arctan2(s, d[0] @ ahead))), *joints]
    level = cross(ahead, UP)
    level = -level / np.linalg.norm(level)  # the axis about which it shall bend, in the plane of the palm
    before = np.stack([d[0], axis, cross(d[0], axis)], axis=1)
    before[:, 1] -= (before[:, 1] @ d[0]) * d[0]
    after = np.stack([ahead, level, cross(ahead, level)], axis=1)
    return [after @ np.linalg.inv(before), *joints]


def _resize(points: F64, joints: F64, finger: FingerPose) -> F64:
    """Makes a finger thinner or thicker about its bones, and shorter or longer from its knuckle."""
    if finger.width == finger.length == 1.0:
        return points
    chain = joint_chain(joints, finger.source)
    place, offset = along_chain(points, chain)
    onset = np.clip(place / 0.4, 0, 1)[:, None]
    thinner = points - offset * (1 - finger.width) * onset
    return np.asarray(chain[0] + (thinner - chain[0]) * (1 + (finger.length - 1) * onset))


def _root(points: F64, joints: F64, finger: FingerPose) -> F64:
    """Narrows a copied finger towards its open end, so that the end stays inside the palm."""
    place, offset = along_chain(points, joint_chain(joints, finger.source))
    return points - offset * (0.55 * np.clip((0.35 - place) / (0.35 - ROOT), 0, 1))[:, None]


def _draw_back(points: F64, weights: F64, joints: F64, finger: FingerPose) -> tuple[F64, F64]:
    """Points of a finger beyond its base, drawn back to a dome, and their weights moved to its first bone."""
    chain, bones = joint_chain(joints, finger.source), BONES[finger.source]
    place, offset = along_chain(points, chain)
    end = finger.stump
    beyond = place > end
    phi = np.clip((place - end) / (3 - end), 0, 1)[:, None] * np.pi / 2
    radius = float(np.median(np.linalg.norm(offset[beyond], axis=1)))
    ahead = (chain[1] - chain[0]) / np.linalg.norm(chain[1] - chain[0])
    dome = chain[0] + end * (chain[1] - chain[0]) + np.sin(phi) * 0.25 * radius * ahead + np.cos(phi) * offset
    moved = weights.copy()
    moved[:, bones[0]] += moved[:, bones[1:]].sum(axis=1)
    moved[:, bones[1:]] = 0
    return np.where(beyond[:, None], dome, points), moved


def _skin(rest: F64, weights: F64, rotations: F64, shifts: F64) -> F64:
    """Linear blend skinning [V, 3]: each vertex moves with the weighted mean of its bones' transforms."""
    matrices = (weights @ rotations.reshape(21, 9)).reshape(-1, 3, 3)
    return np.asarray(np.einsum("vij,vj->vi", matrices, rest) + weights @ shifts)
