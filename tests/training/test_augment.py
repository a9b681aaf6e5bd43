"""Augmentation against what it must do exactly, and its draws as a function of (seed, image counter) alone."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from training.augment import (
    ANISO_STD,
    NUM_LABELS,
    SCALE_STD,
    SHIFT_STD,
    SYM6,
    augment,
    augment_labels,
    inverse_transform,
)

X_FLIP, Y_FLIP, SCALE, COS, SIN, WX, WY, DX, DY = range(NUM_LABELS)


def labels(**values: float) -> Tensor:
    """One row; unnamed labels are 0."""
    row = torch.zeros(1, NUM_LABELS)
    for name, value in values.items():
        row[0, globals()[name]] = value
    return row


def turned(angle: float) -> Tensor:
    return labels(COS=math.cos(angle) - 1, SIN=math.sin(angle))


def waves(W: int, *, highest: int, at: tuple[Tensor, Tensor] | None = None) -> Tensor:
    """[1, 1, W, W] cosines up to `highest` half periods: going on by reflection is going on as they are.

    `at`: where to evaluate, (x, y) in pixels; else at the pixels.
    """
    a = torch.randn(highest + 1, highest + 1, generator=torch.Generator().manual_seed(0))
    y, x = torch.meshgrid(torch.arange(W), torch.arange(W), indexing="ij")
    x, y = at or (x, y)
    waves = (
        a[i, j] * (math.pi * i * x / (W - 1)).cos() * (math.pi * j * y / (W - 1)).cos()
        for i, j in itertools.product(range(highest + 1), repeat=2)
    )
    return torch.stack(list(waves)).sum(0)[None, None] / a.norm()


def noise(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(1)) * 2 - 1


# --- the filter -----------------------------------------------------------------------------------------------------


def daubechies(moments: int) -> list[np.ndarray]:
    """All scaling filters with `moments` vanishing moments and 2 `moments` taps: sqrt(2) ((1 + z) / 2)^N Q(z), where

    |Q|^2 = sum_k C(N - 1 + k, k) y^k with y = (2 - z - 1/z) / 4; each root y gives z and 1/z, of which one is taken
    (Daubechies, Ten Lectures on Wavelets, chapter 6).
    """
    P = [math.comb(moments - 1 + k, k) for k in reversed(range(moments))]
    roots = [y for y in np.roots(P) if y.imag >= 0]  # a complex root is taken with its conjugate
    filters = []
    for inside in itertools.product((False, True), repeat=len(roots)):
        Q = np.array([1.0])
        for y, small in zip(roots, inside, strict=True):
            z = min(np.roots([1, 4 * y - 2, 1]), key=abs)
            z = z if small else 1 / z
            Q = np.convolve(Q, np.poly([z] if y.imag == 0 else [z, z.conjugate()]).real)
        h = np.convolve(Q, np.poly([-1.0] * moments))
        filters.append(h * math.sqrt(2) / h.sum())
    return filters


def phase_error(h: np.ndarray) -> float:
    """How far the phase is from that of a symmetric filter: the largest deviation from a straight line."""
    w = np.linspace(0, math.pi * 0.9, 200)
    phase = np.unwrap(np.angle(np.exp(-1j * np.outer(w, np.arange(len(h)))) @ h))
    return float(np.abs(phase - w * (w @ phase) / (w @ w)).max())


def test_the_filter_is_the_daubechies_filter_that_is_nearest_to_symmetric() -> None:
    found = daubechies(6)
    assert len(found) == 8
    best = min(phase_error(h) for h in found)
    nearest = [h for h in found if phase_error(h) < best + 1e-6]
    assert len(nearest) == 2  # it and its mirror image
    assert min(float(np.abs(h - SYM6).max()) for h in nearest) < 1e-9


def test_the_filter_is_orthonormal_to_its_shifts_by_two() -> None:
    h = np.array(SYM6)
    products = [float(h[2 * m :] @ h[: 12 - 2 * m]) for m in range(6)]
    assert products == pytest.approx([1, 0, 0, 0, 0, 0], abs=1e-11)


# --- what is left alone ---------------------------------------------------------------------------------------------


def test_a_zero_row_leaves_its_image_alone() -> None:
    y = noise(3, 2, 16, 16)
    assert torch.equal(augment(y, torch.zeros(3, NUM_LABELS)), y)
    row = torch.cat([torch.zeros(1, NUM_LABELS), turned(1), torch.zeros(1, NUM_LABELS)])
    augmented = augment(y, row)
    assert torch.equal(augmented[::2], y[::2])
    assert not torch.equal(augmented[1], y[1])


@pytest.mark.parametrize("column", range(NUM_LABELS))
def test_every_label_moves_the_image(column: int) -> None:
    row = torch.zeros(1, NUM_LABELS)
    row[0, column] = 1
    y = noise(1, 1, 16, 16)
    assert (augment(y, row) - y).abs().max() > 0.1


def test_no_probability_means_only_the_x_flip() -> None:
    a = augment_labels(0, range(500), p=0)
    assert not a[:, 1:].any()
    assert set(a[:, 0].tolist()) == {0, 1}


# --- closed forms ---------------------------------------------------------------------------------------------------


def test_flips_move_pixels_and_change_nothing() -> None:
    y = noise(2, 3, 8, 12)
    assert torch.equal(augment(y, labels(X_FLIP=1).expand(2, -1)), y.flip(3))
    assert torch.equal(augment(y, labels(Y_FLIP=1).expand(2, -1)), y.flip(2))
    assert torch.equal(augment(y, labels(X_FLIP=1, Y_FLIP=1).expand(2, -1)), y.flip(2, 3))


def test_whole_pixels_are_shifted_exactly_and_the_edge_is_reflected() -> None:
    """Up- and downsampling are inverse to each other, so nothing is smoothed."""
    y = noise(1, 2, 16, 16)
    right = augment(y, labels(DX=3 / (SHIFT_STD * 16)))
    expected = torch.cat([y[..., [3, 2, 1]], y[..., :-3]], dim=3)
    torch.testing.assert_close(right, expected, rtol=0, atol=1e-4)
    down = augment(y, labels(DY=3 / (SHIFT_STD * 16)))
    torch.testing.assert_close(down, torch.cat([y[:, :, [3, 2, 1]], y[:, :, :-3]], dim=2), rtol=0, atol=1e-4)


def test_reflection_goes_on_without_end() -> None:
    """The reflected image repeats after 2 (W - 1) pixels."""
    y = noise(1, 1, 16, 16)
    for n in (30, -60):
        torch.testing.assert_close(augment(y, labels(DX=n / (SHIFT_STD * 16))), y, rtol=0, atol=2e-4)


@pytest.mark.parametrize(("quarters", "tolerance"), [(1, 0.025), (2, 0.025), (3, 0.025), (4, 1e-4)])
def test_a_quarter_turn_is_one(quarters: int, tolerance: float) -> None:
    """From x towards y, which is clockwise on the screen.

    Bilinear sampling halfway between samples loses w^2 / 8 of a wave on each axis: 1.2 % of the highest one here.
    """
    y = waves(32, highest=6)
    turned_y = augment(y, turned(quarters * math.pi / 2))
    torch.testing.assert_close(turned_y, torch.rot90(y, -quarters, (2, 3)), rtol=0, atol=tolerance)


@settings(max_examples=30, deadline=None)
@given(
    scale=st.floats(-1.5, 1.5),
    dx=st.floats(-1.5, 1.5),
    dy=st.floats(-1.5, 1.5),
    angle=st.floats(-3.1, 3.1),
    axis=st.floats(-1.5, 1.5),
    stretch=st.floats(-2, 2),
)
def test_a_smooth_image_is_where_the_transformation_says(
    scale: float, dx: float, dy: float, angle: float, axis: float, stretch: float
) -> None:
    """Every output pixel against the cosines themselves, evaluated where the matrices take it from."""
    W = 24
    row = labels(SCALE=scale, WX=stretch * math.cos(axis), WY=stretch * math.sin(axis), DX=dx, DY=dy) + turned(angle)
    G = np.linalg.inv(transform(scale, angle, stretch, axis))
    y, x = np.mgrid[:W, :W] - (W - 1) / 2
    x_in, y_in = np.einsum("ij,jhw->ihw", G, np.stack([x - SHIFT_STD * W * dx, y - SHIFT_STD * W * dy])) + (W - 1) / 2
    expected = waves(W, highest=4, at=(torch.from_numpy(x_in), torch.from_numpy(y_in)))
    torch.testing.assert_close(augment(waves(W, highest=4), row), expected.float(), rtol=0, atol=0.05)


def transform(scale: float, angle: float, stretch: float, axis: float) -> np.ndarray:
    """Rotation after stretching after scaling, written out."""

    def rotation(a: float) -> np.ndarray:
        return np.array([[math.cos(a), -math.sin(a)], [math.sin(a), math.cos(a)]])

    stretched = rotation(axis) @ np.diag([2 ** (ANISO_STD * stretch), 2 ** (-ANISO_STD * stretch)]) @ rotation(-axis)
    return rotation(angle) @ stretched * 2 ** (SCALE_STD * scale)


@given(
    scale=st.floats(-3, 3), angle=st.floats(-3.1, 3.1), stretch=st.floats(-3, 3), axis=st.floats(-1.57, 1.57)
)  # fmt: skip
def test_labels_say_everything(scale: float, angle: float, stretch: float, axis: float) -> None:
    """The transformation can be read off the labels, also which way the anisotropy stretches."""
    row = labels(SCALE=scale, WX=stretch * math.cos(axis), WY=stretch * math.sin(axis)) + turned(angle)
    G = inverse_transform(row)[0].double().numpy()
    np.testing.assert_allclose(G @ transform(scale, angle, stretch, axis), np.eye(2), atol=2e-5)


def test_fine_detail_that_shrinking_cannot_keep_is_smoothed_away() -> None:
    """Alternating columns at half the size would alias to a constant -1 or 1, or to waves; they must fade."""
    y = torch.ones(1, 1, 32, 32)
    y[..., ::2] = -1
    shrunk = augment(y, labels(SCALE=-0.8 / SCALE_STD))
    assert shrunk[..., 4:-4, 4:-4].square().mean().sqrt() < 0.1


# --- draws ----------------------------------------------------------------------------------------------------------


def test_draws_depend_on_seed_and_counter_alone_and_rows_on_themselves() -> None:
    a = augment_labels(5, range(100, 112), p=0.5)
    torch.manual_seed(1)
    assert torch.equal(a, torch.cat([augment_labels(5, range(i, i + 3), p=0.5) for i in range(100, 112, 3)]))
    assert not torch.equal(a, augment_labels(6, range(100, 112), p=0.5))
    y = noise(12, 3, 16, 16)
    whole = augment(y, a)
    assert all(torch.equal(whole[i : i + 1], augment(y[i : i + 1], a[i : i + 1])) for i in range(12))
    assert torch.equal(whole.flip(0), augment(y.flip(0), a.flip(0)))


def test_draws_have_their_law() -> None:
    N, p = 20_000, 0.3
    a = augment_labels(0, range(N), p=p)

    def near(share: Tensor, expected: float) -> bool:
        return abs(float(share.double().mean()) - expected) < 4 * (expected * (1 - expected) / N) ** 0.5

    assert near(a[:, X_FLIP] == 1, 0.5)
    assert near(a[:, Y_FLIP] == 1, p / 2)
    assert near(a[:, SCALE] != 0, p)
    assert near(a[:, SIN] != 0, p)
    assert near((a[:, WX] != 0), p)
    assert near(a[:, WY] != 0, p / 2)  # the axis is x for half of them
    assert near(a[:, DX] != 0, p)
    assert torch.equal(a[:, DX] != 0, a[:, DY] != 0)
    torch.testing.assert_close((a[:, COS] + 1) ** 2 + a[:, SIN] ** 2, torch.ones(N))
    normal = [a[:, SCALE], a[:, DX], a[:, DY], torch.hypot(a[:, WX], a[:, WY]).copysign(a[:, WX])]
    for values in normal:
        drawn = values[values != 0]
        assert abs(float(drawn.mean())) < 4 * len(drawn) ** -0.5
        assert float(drawn.std()) == pytest.approx(1, abs=4 * (2 * len(drawn)) ** -0.5)
    angle = torch.atan2(a[:, SIN], a[:, COS] + 1)[a[:, SIN] != 0]
    middle = angle.quantile(torch.tensor([0.25, 0.5, 0.75])) / math.pi
    torch.testing.assert_close(middle, torch.tensor([-0.5, 0.0, 0.5]), rtol=0, atol=0.06)
    gates = (a[:, [Y_FLIP, SCALE, SIN, WX, DX]] != 0).double().T
    off_diagonal = torch.corrcoef(gates) - torch.eye(5)
    assert off_diagonal.abs().max() < 4 / N**0.5


# --- mistakes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("p", [-0.1, 1.1, math.nan])
def test_what_is_no_probability_is_refused(p: float) -> None:
    with pytest.raises(ValueError, match=r"is not a probability; give a number from 0 to 1"):
        augment_labels(0, range(1), p=p)


def test_other_labels_and_single_pixels_are_refused() -> None:
    with pytest.raises(ValueError, match=r"labels are \[2, 9\]; 1 images need \[1, 9\]"):
        augment(noise(1, 1, 8, 8), torch.zeros(2, 9))
    with pytest.raises(ValueError, match=r"images of 8x1 pixels cannot be augmented"):
        augment(noise(1, 1, 1, 8), torch.zeros(1, 9))


@pytest.mark.gpu
def test_cuda_gives_the_same_images() -> None:
    y, a = noise(8, 3, 32, 32), augment_labels(0, range(8), p=1)
    torch.testing.assert_close(augment(y.cuda(), a).cpu(), augment(y, a), rtol=0, atol=1e-3)
