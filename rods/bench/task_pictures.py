"""One picture per task: real samples and planted errors, each with what its labeller says; points as a scatter plot."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import PIL.Image
import PIL.ImageDraw
import torch
from numpy.typing import NDArray

from rods.bench import digits, grid25, rendered_task
from rods.bench.counter import RESOLUTION, label_rendered
from rods.bench.counter_training import spoilt
from rods.bench.digit_labels import load_labeller
from rods.bench.fingers import label_hands
from rods.bench.hands import draw_hands
from rods.bench.hands_task import AUDIT_SEED, PLANTED
from rods.bench.rendered import FINGERS, as_grey, render_hands
from rods.bench.shapes import draw_shapes
from rods.bench.shapes_labels import label_shapes
from rods.bench.shapes_planted import PLANTED as PLANTED_SHAPES
from rods.bench.shapes_planted import plant_errors as plant_shapes
from rods.eval.labels import Label
from rods.samplers import euler_sampler

U8 = NDArray[np.uint8]
COLOURS = {Label.WELL: (40, 160, 80), Label.BAD: (230, 60, 40), Label.AMBIGUOUS: (240, 170, 30)}
MEANING = "green: surely well    orange: ambiguous    red: surely bad"
COLUMNS, GAP, TEXT = 12, 6, 14
POINTS, SIZE, REACH = 4000, 420, 2.0  # of the scatter plot: samples, pixels across, half its width in units


def rows_picture(rows: Mapping[str, U8], label: Callable[[NDArray[Any]], NDArray[np.int8]]) -> PIL.Image.Image:
    """A row of tiles [n, H, H] under each heading, framed in the colour of the label."""
    side = next(iter(rows.values())).shape[1]
    tile = side * max(1, 64 // side)
    pitch, height = tile + GAP, TEXT + tile + GAP
    sheet = PIL.Image.new("RGB", (COLUMNS * pitch + GAP, len(rows) * height + TEXT + GAP), "white")
    draw = PIL.ImageDraw.Draw(sheet)
    draw.text((GAP, 1), MEANING, fill="black")
    for r, (heading, images) in enumerate(rows.items()):
        top = TEXT + r * height
        draw.text((GAP, top + 1), heading, fill="black")
        for c, (image, code) in enumerate(zip(images[:COLUMNS], label(images[:COLUMNS]), strict=True)):
            x, y = GAP + c * pitch, top + TEXT
            draw.rectangle((x - 2, y - 2, x + tile + 1, y + tile + 1), fill=COLOURS[Label(code)])
            sheet.paste(PIL.Image.fromarray(image).resize((tile, tile), PIL.Image.Resampling.NEAREST), (x, y))
    return sheet


def hands_picture() -> PIL.Image.Image:
    """Real hands, and hands with 3, 4, 6 and 7 fingers."""
    rows = {f"planted: {f} fingers": draw_hands(COLUMNS, seed=AUDIT_SEED, num_fingers=f) for f in PLANTED}
    return rows_picture({"real": draw_hands(COLUMNS, seed=AUDIT_SEED), **rows}, label_hands)


def shapes_picture() -> PIL.Image.Image:
    """Real pictures of Simple Shapes, and each planted error."""
    rows = {f"planted: {kind}": plant_shapes(kind, COLUMNS, seed=AUDIT_SEED) for kind in PLANTED_SHAPES}
    return rows_picture({"real": draw_shapes(COLUMNS, seed=AUDIT_SEED), **rows}, label_shapes)


def rendered_picture() -> PIL.Image.Image:
    """Rendered hands, with four and six fingers, and spoilt. Raises UserError where the package anny is missing."""
    hands = {
        f: as_grey(render_hands(COLUMNS, seed=rendered_task.AUDIT_SEED, resolution=RESOLUTION, num_fingers=f))
        for f in FINGERS
    }
    rows = {f"planted: {f} fingers": hands[f] for f in rendered_task.PLANTED}
    ruined = spoilt(hands, seed=rendered_task.AUDIT_SEED, num=COLUMNS)
    return rows_picture({"real": hands[5], **rows, "planted: a spoilt hand": ruined}, label_rendered)


def digits_picture() -> PIL.Image.Image:
    """Held-out digits, and each error planted in them. Raises UserError where the digits are missing."""
    images, classes = digits.audit_digits()
    few = np.random.default_rng(1).permutation(len(images))[:COLUMNS]
    rows = {
        f"planted: {kind}": digits.plant_errors(kind, images[few], classes[few], seed=AUDIT_SEED)
        for kind in digits.PLANTED
    }
    return rows_picture({"real, held out": images[few], **rows}, load_labeller().label)


def grid25_picture() -> PIL.Image.Image:
    """Real points, and what Euler draws with 40 steps on the exact denoiser and on the first learnt one."""
    latents = torch.randn(POINTS, 2, 1, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    panels = {"real": grid25.real_points(POINTS, 0)}
    for task in (grid25.grid25_exact(), grid25.grid25()):
        name, load = next(iter(task.networks.items()))
        with torch.no_grad():
            panels[f"{name}, Euler, 40 steps"] = euler_sampler(load().denoiser, latents).numpy()
    sheet = PIL.Image.new("RGB", (len(panels) * (SIZE + GAP) + GAP, SIZE + 2 * TEXT + GAP), "white")
    draw = PIL.ImageDraw.Draw(sheet)
    draw.text((GAP, 1), MEANING, fill="black")
    for i, (heading, points) in enumerate(panels.items()):
        left, top = GAP + i * (SIZE + GAP), 2 * TEXT
        labels = grid25.label_points(points)
        bad = 100 * float((labels == Label.BAD).mean())
        draw.text((left, TEXT), f"{heading}: {bad:.1f} % of {POINTS} surely bad", fill="black")
        draw.rectangle((left, top, left + SIZE, top + SIZE), outline=(200, 200, 200))
        for (x, y), code in zip(points[:, :, 0, 0] / REACH, labels, strict=True):
            if max(abs(x), abs(y)) < 1:
                px, py = left + (1 + x) * SIZE / 2, top + (1 - y) * SIZE / 2
                draw.rectangle((px, py, px + 1, py + 1), fill=COLOURS[Label(code)])
    return sheet


PICTURES: dict[str, Callable[[], PIL.Image.Image]] = {
    "grid25": grid25_picture,
    "shapes": shapes_picture,
    "hands-32": hands_picture,
    "hands-64r": rendered_picture,
    "mnist": digits_picture,
}
