"""From a source to a data set that networks train on: each image shaped alike, some held out."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL.Image import Image

from dnnlib.errors import UserError, shown
from training.datasets.images import BLACK, Colour, centre_crop, centre_on, resize
from training.datasets.sources import Item
from training.datasets.writer import DatasetWriter, write_dataset


@dataclass(frozen=True)
class Shaping:
    """How each image gets its size and mode. Nothing is done by default.

    Args:
        transform: `center-crop` cuts out the largest centred square, `center-crop-wide` the largest centred window
            with the aspect of `resolution`; both need `resolution`.
        resolution: (width, height) that the image is resampled to (without `transform`, stretched to).
            `center-crop-wide` then adds black bars above and below, so that the result is square.
        pad: centre the image on a canvas of this many pixels across, without resampling.
        colour: of that canvas.
        mode: `L` or `RGB` converts, `keep` leaves grey grey and RGB RGB.
    """

    transform: str | None = None
    resolution: tuple[int, int] | None = None
    pad: int | None = None
    colour: Colour = BLACK
    mode: str = "keep"

    def __post_init__(self) -> None:
        if self.transform is not None and self.resolution is None:
            raise UserError(f"--transform={self.transform} needs --resolution=WxH, the size of the result")
        if self.resolution is not None and self.pad is not None:
            raise UserError("--pad keeps the pixels as they are and --resolution resamples them; give one of the two")
        if self.resolution is not None:
            w, h = self.resolution
            if self.transform == "center-crop-wide" and w < h:
                raise UserError(
                    f"--resolution={w}x{h} is upright; center-crop-wide takes a width of at least the height"
                )
            if self.transform != "center-crop-wide" and w != h:
                raise UserError(
                    f"--resolution={w}x{h} is not a square, as networks need; use --transform=center-crop-wide"
                )

    def __call__(self, image: Image) -> Image:
        """The image in its final size and mode. Raises UserError if it does not fit on the canvas."""
        if self.mode != "keep":
            image = image.convert(self.mode)
        if self.resolution is not None:
            if self.transform is not None:
                image = centre_crop(image, self.resolution)
            image = resize(image, self.resolution)
            return centre_on(image, (image.width, image.width), BLACK)
        return image if self.pad is None else centre_on(image, (self.pad, self.pad), self.colour)

    def remark(self, image: Image) -> str | None:
        """What happens to an image of this size that its owner may not expect."""
        if self.resolution is None:
            return None
        window = image if self.transform is None else centre_crop(image, self.resolution)
        if window.width * self.resolution[1] != window.height * self.resolution[0] and self.transform is None:
            return "stretched to another aspect"
        return "enlarged" if window.width < self.resolution[0] or window.height < self.resolution[1] else None


@dataclass
class Outcome:
    """What a conversion wrote: a line for each file, and how many images each remark holds for."""

    lines: list[str] = field(default_factory=list)
    remarks: dict[str, int] = field(default_factory=dict)


def convert(
    items: Iterable[Item],
    dest: Path,
    shaping: Shaping,
    *,
    held_out: Path | None = None,
    every: int = 5,
    label_names: Sequence[str] = (),
) -> Outcome:
    """Writes the images to `dest` in their order, one at a time in memory.

    `label_names` says what each class is. With `held_out`, the last of each `every` pictures (of number
    i % every == every - 1) goes there instead.

    Raises UserError: an image that cannot be read, or is not square, of the size and mode of the others, a label unlike
    the others, or a file that cannot be written. Neither data set is there then.
    """
    outcome = Outcome()
    with contextlib.ExitStack() as stack:
        kept = stack.enter_context(write_dataset(dest, label_names=label_names))
        held = None
        if held_out is not None:
            held = stack.enter_context(write_dataset(held_out, option="--held-out", label_names=label_names))
        for i, item in enumerate(items):
            writer = held if held is not None and i % every == every - 1 else kept
            _add(writer, item, shaping, outcome)
    outcome.lines = [f"{path}: {w.summary()}" for path, w in ((dest, kept), (held_out, held)) if w is not None]
    return outcome


def _add(writer: DatasetWriter, item: Item, shaping: Shaping, outcome: Outcome) -> None:
    image = item.load()
    if remark := shaping.remark(image):
        outcome.remarks[remark] = outcome.remarks.get(remark, 0) + 1
    try:
        shaped = shaping(image)
    except UserError as e:
        raise UserError(f"--pad={shaping.pad}: the image {shown(item.name)}: {e}; give more, or --resolution") from None
    if shaped.width != shaped.height:
        raise UserError(
            f"the image {shown(item.name)} is {shaped.width}x{shaped.height} pixels, and networks take squares; "
            "add --transform=center-crop --resolution=WxH"
        )
    writer.add(shaped, item.label, source=item.name)
