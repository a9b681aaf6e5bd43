"""Rendered hands: the rasteriser, the pose, the pictures and the folder in the layout of 11k-hands."""

import csv
import importlib.util
import re
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import render_hands as command
from rendered_hands.mesh import INSTALL, along_chain, cross, load_rig, turn
from rendered_hands.raster import rasterise, vertex_normals
from rendered_hands.scene import MIN_RESOLUTION, as_grey, draw_hand, render_hands

from dnnlib.errors import UserError

ROOT = Path(__file__).resolve().parents[3]
GOLDEN = ROOT / "tests" / "golden" / "rendered" / "hands-8.png"  # seed 8, hands 0-5 in 3 rows: 4, 5, 6 fingers
needs_anny = pytest.mark.skipif(importlib.util.find_spec("anny") is None, reason=f"no package anny; {INSTALL}")
SQUARE = np.array([[1.0, 1, 0], [7, 1, 0], [7, 5, 0], [1, 5, 0]])
UP = np.array([0.0, 0, 1])
TWO = np.array([[0, 1, 2], [0, 2, 3]])


def golden_hands():
    """[3, 6, 64, 64]: four, five and six fingers."""
    sheet = np.asarray(Image.open(GOLDEN))
    return sheet.reshape(3, 64, 6, 64).transpose(0, 2, 1, 3)


def test_a_square_covers_the_pixels_whose_centres_it_holds():
    seen = rasterise(SQUARE, TWO, width=10, height=8)
    y, x = np.divmod(np.sort(seen.pixel), 10)
    assert set(zip(y.tolist(), x.tolist(), strict=True)) == {(r, c) for r in range(1, 5) for c in range(1, 7)}
    assert len(seen.pixel) == 24, "no pixel twice along the shared edge"


@given(st.lists(st.tuples(*[st.floats(-6, 22)] * 3), min_size=6, max_size=6))
@settings(max_examples=60, deadline=None)
def test_barycentric_coordinates_give_back_the_pixels_and_the_nearest_triangle(corners):
    vertices, faces = np.array(corners), np.array([[0, 1, 2], [3, 4, 5]])
    seen = rasterise(vertices, faces, width=16, height=12)
    at = np.einsum("pc,pcd->pd", seen.weights, vertices[faces[seen.triangle]])
    centres = np.stack([seen.pixel % 16, seen.pixel // 16], axis=1) + 0.5
    np.testing.assert_allclose(at[:, :2], centres, atol=1e-6)
    np.testing.assert_allclose(seen.weights.sum(axis=1), 1, atol=1e-12)
    for t in range(2):  # wherever the other triangle is seen alone too, it is not nearer
        alone = rasterise(vertices, faces[[t]], width=16, height=12)
        depth = dict(zip(alone.pixel.tolist(), alone.weights @ vertices[faces[t], 2], strict=True))
        both = dict(zip(seen.pixel.tolist(), at[:, 2], strict=True))
        assert depth.keys() <= both.keys()
        assert all(both[p] >= z - 1e-9 for p, z in depth.items())


def test_the_nearest_surface_hides_the_others_in_any_order():
    near, far = SQUARE + UP, SQUARE - UP
    for stack, expected in (([near, far], {0, 1}), ([far, near], {2, 3})):
        seen = rasterise(np.concatenate(stack), np.concatenate([TWO, TWO + 4]), width=10, height=8)
        assert set(seen.triangle.tolist()) == expected


def test_edge_on_and_outside_triangles_are_not_seen_and_no_pixels_are_an_error():
    edge_on = np.array([[1.0, 1, 0], [5, 5, 1], [3, 3, 2]])
    assert len(rasterise(edge_on, TWO[:1], width=9, height=9).pixel) == 0
    assert len(rasterise(SQUARE + 40 * UP[[2, 0, 1]], TWO, width=9, height=9).pixel) == 0
    with pytest.raises(ValueError, match="0x9"):
        rasterise(SQUARE, TWO, width=0, height=9)


def test_normals_of_an_octahedron_point_away_from_its_centre():
    v = np.concatenate([np.eye(3), -np.eye(3)])
    faces = np.array([[0, 1, 2], [1, 3, 2], [3, 4, 2], [4, 0, 2], [1, 0, 5], [3, 1, 5], [4, 3, 5], [0, 4, 5]])
    np.testing.assert_allclose(vertex_normals(v, faces), v, atol=1e-12)


def test_turns_and_places_along_a_chain():
    axis = np.array([0.6, 0, 0.8])
    np.testing.assert_allclose(turn(axis, 0.7) @ turn(axis, 0.5), turn(axis, 1.2), atol=1e-12)
    np.testing.assert_allclose(turn(axis, 1.0) @ axis, axis, atol=1e-12)
    np.testing.assert_allclose(turn(np.array([0, 0, 1.0]), np.pi / 2) @ [1, 0, 0], [0, 1, 0], atol=1e-12)
    np.testing.assert_allclose(cross(axis, np.array([1.0, 2, 3])), np.cross(axis, [1, 2, 3]))
    chain = np.array([[0.0, 0, 0], [0, 2, 0], [0, 3, 0], [0, 4, 0]])
    place, offset = along_chain(np.array([[0.1, 1, 0], [0, 2.5, 0.2], [0.1, -1, 0], [0, 9, 0]]), chain)
    np.testing.assert_allclose(place, [0.5, 1.5, -0.5, 3])
    np.testing.assert_allclose(offset[:2], [[0.1, 0, 0], [0, 0, 0.2]])


def test_a_drawn_hand_depends_on_seed_and_index_and_shares_its_draws():
    five = draw_hand(3, 7)
    assert five.changed == ""
    assert draw_hand(3, 7).fingers == five.fingers
    assert draw_hand(3, 8).fingers != five.fingers
    for fingers in (4, 6):
        other = draw_hand(3, 7, num_fingers=fingers)
        assert (other.side, other.aspect, other.shape, other.zoom, other.skin.tone, other.rotation) == (
            (five.side, five.aspect, five.shape, five.zoom, five.skin.tone, five.rotation)
        )
        assert other.changed
        assert sum(finger.missing for finger in other.fingers) == (fingers == 4)
        assert (other.extra is not None) == (fingers == 6)


def test_the_ground_truth_varies_and_neighbouring_fingers_keep_apart():
    hands = [draw_hand(11, i, num_fingers=f) for f in (4, 5, 6) for i in range(120)]
    assert {h.side for h in hands} == {"left", "right"}
    assert {h.aspect for h in hands} == {"dorsal", "palmar"}
    assert {h.changed for h in hands[:120]} == {"thumb", "index", "middle", "ring", "little"}
    assert {h.changed for h in hands[240:]} == {"thumb", "index-middle", "middle-ring", "ring-little", "little"}
    for hand in hands:
        there = [*(f for f in hand.fingers if not f.missing), *([hand.extra] if hand.extra else [])]
        azimuths = np.sort(np.degrees([f.azimuth for f in there]))
        assert len(azimuths) == 5 if not hand.changed else len(azimuths) in (4, 6)
        assert np.diff(azimuths).min() > 7.5, hand.changed


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"seed": -1}, "seed -1"),
        ({"seed": 0, "num_fingers": 7}, "num_fingers 7 is not one of 4, 5 and 6"),
    ],
)
def test_bad_draws_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        draw_hand(index=0, **options)


def test_bad_pictures_are_refused():
    with pytest.raises(ValueError, match="indices must not be negative"):
        render_hands([-1], seed=0)
    with pytest.raises(ValueError, match=f"16x64 is too small, use {MIN_RESOLUTION}"):
        render_hands(1, seed=0, resolution=(16, 64))


def test_without_anny_one_line_says_what_to_install(monkeypatch):
    load_rig.cache_clear()
    monkeypatch.setitem(sys.modules, "anny", None)
    with pytest.raises(UserError, match=re.escape(INSTALL)) as e:
        load_rig()
    assert "\n" not in str(e.value)


def test_the_command_writes_nothing_without_anny(monkeypatch, tmp_path):
    load_rig.cache_clear()
    monkeypatch.setitem(sys.modules, "anny", None)
    result = CliRunner().invoke(command.main, [f"--dest={tmp_path / 'r'}", "--num=2"])
    assert result.exit_code == 2
    assert "pip install --no-deps anny" in result.output
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize("size", ["16", "64x", "axb", "5000x64"])
def test_the_command_refuses_other_sizes(size, tmp_path):
    result = CliRunner().invoke(command.main, [f"--dest={tmp_path / 'r'}", "--num=2", f"--resolution={size}"])
    assert result.exit_code == 2
    assert "write 64 or 160x120" in result.output


def test_golden_hands_fill_their_frames_and_leave_below_only():
    hands = golden_hands().reshape(-1, 64, 64)
    assert (hands[:, 0] == 255).all()
    assert (hands[:, :20, [0, -1]] == 255).all()
    assert (hands[:, -1] < 250).any(axis=1).all(), "the forearm leaves the picture: no cut shows"
    assert ((hands < 250).mean(axis=(1, 2)) > 0.12).all()


@needs_anny
def test_renders_are_the_golden_ones():
    for fingers, golden in zip((4, 5, 6), golden_hands(), strict=True):
        rendered = as_grey(render_hands([0, 5, 2], seed=8, num_fingers=fingers))
        assert np.abs(rendered.astype(int) - golden[[0, 5, 2]]).max() <= 2


@needs_anny
def test_a_picture_depends_on_seed_index_and_size_alone():
    images = render_hands([4, 2, 4], seed=5, resolution=(48, 40))
    assert images.shape == (3, 40, 48, 3)
    np.testing.assert_array_equal(images[0], images[2])
    np.testing.assert_array_equal(images[1], render_hands([2], seed=5, resolution=(48, 40))[0])
    assert (images[0] != images[1]).any()


@needs_anny
def test_the_folder_has_the_layout_of_11k_hands_and_grows(tmp_path):
    dest = tmp_path / "hands"
    options = [f"--dest={dest}", "--resolution=40x32", "--fingers=6", "--seed=2"]
    assert CliRunner().invoke(command.main, [*options, "--num=2"]).exit_code == 0
    first = (dest / "Hands" / "Hand_0000001.jpg").read_bytes()
    (dest / "Hands" / "Hand_0000000.jpg").unlink()
    (dest / "HandInfo.csv").unlink()  # as if the first run had been stopped
    result = CliRunner().invoke(command.main, [*options, "--num=3"])
    assert result.exit_code == 0, result.output
    assert (dest / "Hands" / "Hand_0000001.jpg").read_bytes() == first
    names = [f"Hand_{i:07d}.jpg" for i in range(3)]
    assert sorted(p.name for p in (dest / "Hands").iterdir()) == names
    rows = list(csv.DictReader((dest / "HandInfo.csv").read_text().splitlines()))
    first_columns = "id,age,gender,skinColor,accessories,nailPolish,aspectOfHand,imageName,irregularities,"
    assert (dest / "HandInfo.csv").read_text().startswith(first_columns)
    assert [row["imageName"] for row in rows] == names
    for i, row in enumerate(rows):
        hand = draw_hand(2, i, num_fingers=6)
        assert row["aspectOfHand"] == f"{hand.aspect} {hand.side}"
        assert (row["numFingers"], row["changed"], row["irregularities"]) == ("6", hand.changed, "1")
        with Image.open(dest / "Hands" / row["imageName"]) as image:
            assert (image.size, image.mode) == ((40, 32), "RGB")
    refused = CliRunner().invoke(command.main, [*options[:2], "--num=3"])
    assert refused.exit_code == 2
    assert "holds hands with other options" in refused.output


@needs_anny
def test_a_zip_for_training_holds_the_same_hands_in_grey(tmp_path):
    options = ["--num=3", "--resolution=32", "--seed=6"]
    for name in ("a", "b"):
        assert CliRunner().invoke(command.main, [f"--dest={tmp_path / name}.zip", *options]).exit_code == 0
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()
    expected = as_grey(render_hands(3, seed=6, resolution=32))
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        assert archive.namelist() == [f"00000/img{i:08d}.png" for i in range(3)]
        for name, image in zip(archive.namelist(), expected, strict=True):
            np.testing.assert_array_equal(np.asarray(Image.open(archive.open(name))), image)


@needs_anny
def test_the_command_keeps_out_of_a_folder_of_real_hands(tmp_path):
    (tmp_path / "Hands").mkdir()
    (tmp_path / "Hands" / "Hand_0000002.jpg").write_bytes(b"real")
    result = CliRunner().invoke(command.main, [f"--dest={tmp_path}", "--num=3", "--resolution=32"])
    assert result.exit_code == 2
    assert "did not render" in result.output
    assert (tmp_path / "Hands" / "Hand_0000002.jpg").read_bytes() == b"real"
