"""One image of a task: real samples and planted errors, each with its label; points as a scatter plot."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import PIL.Image
import PIL.ImageDraw
import torch
from numpy.typing import NDArray

from rods.bench.task import Task, load_network
from rods.eval.labels import Label
from rods.runs.images import to_uint8
from rods.samplers import euler_sampler

U8 = NDArray[np.uint8]
F64 = NDArray[np.float64]
COLOURS = {Label.VALID: (40, 160, 80), Label.HALLUCINATED: (230, 60, 40), Label.UNCERTAIN: (240, 170, 30)}
MEANING = "green: valid    orange: uncertain    red: hallucinated"
COLUMNS, GAP, TEXT = 12, 6, 14
POINTS, SIZE, REACH = 4000, 420, 2.0  # of the scatter plot: samples, pixels across, half its width in units


def examples(task: Task) -> PIL.Image.Image:
    """Rows of labelled images, or for points what is real and what Euler draws. UserError where data are missing."""
    if not task.is_picture:
        return scatter_plot(task)
    real = to_uint8(task.real(COLUMNS, 0))[:, 0]
    planted = task.planted(COLUMNS) if task.planted else {}
    return labelled_rows({"real": real, **{f"planted: {kind}": x for kind, x in planted.items()}}, task.label)


def labelled_rows(rows: Mapping[str, U8], label: Callable[[NDArray[Any]], NDArray[np.int8]]) -> PIL.Image.Image:
    """A row of images [n, H, H] under each heading, framed in the colour of the label."""
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


def scatter_plot(task: Task) -> PIL.Image.Image:
    """Real points, and what Euler draws with 40 steps on the task's first network."""
    latents = torch.randn(POINTS, 2, 1, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    network = load_network(task, None)
    with torch.no_grad():
        drawn = euler_sampler(network.denoiser, latents).numpy()
    panels: dict[str, F64] = {"real": task.real(POINTS, 0), f"{network.name}, Euler, 40 steps": drawn}
    sheet = PIL.Image.new("RGB", (len(panels) * (SIZE + GAP) + GAP, SIZE + 2 * TEXT + GAP), "white")
    draw = PIL.ImageDraw.Draw(sheet)
    draw.text((GAP, 1), MEANING, fill="black")
    for i, (heading, points) in enumerate(panels.items()):
        left, top = GAP + i * (SIZE + GAP), 2 * TEXT
        labels = task.label(points)
        rate = 100 * float((labels == Label.HALLUCINATED).mean())
        draw.text((left, TEXT), f"{heading}: {rate:.1f} % of {POINTS} hallucinated", fill="black")
        draw.rectangle((left, top, left + SIZE, top + SIZE), outline=(200, 200, 200))
        for (x, y), code in zip(points[:, :, 0, 0] / REACH, labels, strict=True):
            if max(abs(x), abs(y)) < 1:
                px, py = left + (1 + x) * SIZE / 2, top + (1 - y) * SIZE / 2
                draw.rectangle((px, py, px + 1, py + 1), fill=COLOURS[Label(code)])
    return sheet
