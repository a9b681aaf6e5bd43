"""One image of a data set: from a file's bytes to 8-bit grey or RGB, cropped, resized, padded."""

from __future__ import annotations

import io

import PIL.features
import PIL.Image
import PIL.ImageOps
from PIL.Image import Image

from dnnlib.errors import UserError, shown

Colour = tuple[int, int, int]  # red, green, blue in 0..255

SUFFIXES = {
    ".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm", ".pbm", ".pnm",
    *((".avif",) if PIL.features.check("avif") else ()),
}  # fmt: skip
MODES = {"1": "L", "L": "L", "P": "RGB", "RGB": "RGB"}  # Pillow's modes that become grey or RGB without a loss
GREY_WITH_ALPHA = ("LA", "La")
WITH_ALPHA = (*GREY_WITH_ALPHA, "PA", "RGBA", "RGBa")
BLACK, WHITE = (0, 0, 0), (255, 255, 255)


class TransparentError(UserError):
    """A transparent picture, and no colour to put behind it."""


def open_image(data: bytes, where: str, *, background: Colour | None = None) -> Image:
    """The image in a file, upright (EXIF), of Pillow's mode L or RGB.

    `background` is the colour behind transparent images: without it they are refused, as is all else that could not
    be converted without a loss. `where` begins every message. Raises UserError.
    """
    if data[:8] == b"\x89PNG\r\n\x1a\n" and data[24:25] == b"\x10":  # Pillow would drop half of the bits in silence
        raise UserError(f"{where} has 16 bits per channel; convert all images to 8")
    try:
        image = PIL.Image.open(io.BytesIO(data))
        frames = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)  # a camera's MPO has a preview beside it
        transparent = image.mode in WITH_ALPHA or (image.mode in MODES and "transparency" in image.info)
        mode = "with transparency" if transparent and image.mode in MODES else image.mode
        if frames == 1 and transparent and background is not None:
            return _put_on(PIL.ImageOps.exif_transpose(image), background)
        if frames == 1 and mode in MODES:
            return PIL.ImageOps.exif_transpose(image).convert(MODES[mode])
    except Exception as e:  # decoders of damaged files raise nearly anything: OSError, SyntaxError, struct.error, ...
        reason = "unknown format" if isinstance(e, PIL.UnidentifiedImageError) else str(e)
        raise UserError(f"{where} cannot be decoded ({shown(reason)}); remove or replace it") from None
    if frames > 1:
        raise UserError(f"{where} has {frames} pictures in one file; keep one of them")
    raise (TransparentError if transparent else UserError)(
        f"{where} has Pillow's mode {mode}; convert all images to 8-bit grey or RGB without alpha"
    )


def _put_on(image: Image, background: Colour) -> Image:
    """A transparent image in front of `background`; grey before grey stays grey."""
    canvas = PIL.Image.new("RGBA", image.size, (*background, 255))
    canvas.alpha_composite(image.convert("RGBA"))
    grey = image.mode in (*GREY_WITH_ALPHA, "L", "1") and len(set(background)) == 1
    return canvas.convert("RGB").convert("L") if grey else canvas.convert("RGB")


def centre_crop(image: Image, aspect: tuple[int, int] = (1, 1)) -> Image:
    """The largest centred window whose width and height are as `aspect`, to the pixel."""
    w = max(1, min(image.width, round(image.height * aspect[0] / aspect[1])))
    h = max(1, min(image.height, round(image.width * aspect[1] / aspect[0])))
    left, top = (image.width - w) // 2, (image.height - h) // 2
    return image.crop((left, top, left + w, top + h))


def resize(image: Image, size: tuple[int, int]) -> Image:
    """Resamples to (width, height) with Lanczos' filter; equal sizes are left alone."""
    return image if image.size == size else image.resize(size, PIL.Image.Resampling.LANCZOS)


def centre_on(image: Image, size: tuple[int, int], colour: Colour) -> Image:
    """The image in the middle of a (width, height) canvas of one colour (its luma for grey images).

    An odd pixel goes to the right and below. Raises UserError if it does not fit.
    """
    left, top = (size[0] - image.width) // 2, (size[1] - image.height) // 2
    if left < 0 or top < 0:
        raise UserError(f"{image.width}x{image.height} pixels do not fit on {size[0]}x{size[1]}")
    canvas = PIL.Image.new("RGB", size, colour).convert(image.mode)
    canvas.paste(image, (left, top))
    return canvas


def encode_png(image: Image) -> bytes:
    """PNG bytes that one version of Pillow makes the same every time."""
    png = io.BytesIO()
    image.save(png, format="png", compress_level=6)
    return png.getvalue()
