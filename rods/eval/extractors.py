"""Feature extractors by name."""

from __future__ import annotations

from collections.abc import Callable

import torch

from dnnlib.errors import UserError
from rods.eval import efficientnet, inception
from rods.eval.efficientnet import efficientnet_extractor
from rods.eval.features import Extractor, pixel_extractor
from rods.eval.inception import inception_extractor
from rods.eval.reference import Reference

NAMES = ("inception", "efficientnet-lite0", "pixels")
RESIZES = {"inception": tuple(inception.RESIZES), "efficientnet-lite0": tuple(efficientnet.RESIZES)}


def default_extractor(*, device: torch.device, say: Callable[[str], object]) -> Extractor:
    """The Inception; where its file is missing and cannot be fetched, EfficientNet-Lite0, whose numbers are not a FID.

    `say` gets a line for the user in that case. Raises UserError where neither can be loaded.
    """
    try:
        return open_extractor("inception", device=device)
    except UserError as e:
        reason = str(e).split(";")[0]
    try:
        found = open_extractor("efficientnet-lite0", device=device)
    except UserError as e:
        raise UserError(f"without --detector, {reason}; in its place, {e}") from None
    say(f"Without the Inception, the numbers are those of {found.name}, and no FID ({reason})")
    return found


def extractor_of_reference(
    reference: Reference, *, device: torch.device, resize: str | None = None, trust: str | None = None
) -> Extractor:
    """The extractor that made a reference, as far as it says; one of EDM's, which says nothing, is the Inception's.

    `resize` and `trust` are the user's own, if any. Raises UserError as `open_extractor` does.
    """
    if reference.detector is None and len(reference.mu) != inception.DIM:
        raise UserError(f"--ref holds {len(reference.mu)} features and does not say of what; name it with --detector")
    name = reference.detector if reference.detector in NAMES else "inception"
    if resize is None and reference.resize and name != "pixels":
        option = reference.resize.removesuffix("-299")  # the Inception's size, which is not part of its option
        resize = option if option in RESIZES[name] else None
    return open_extractor(name, device=device, resize=resize, trust=trust)


def open_extractor(
    name: str, *, device: torch.device, resize: str | None = None, trust: str | None = None
) -> Extractor:
    """The extractor `name` of `NAMES`, or the Inception in a file or at an address.

    Raises UserError: its file or package is missing or damaged, or an option that it does not have.
    """
    if name in ("efficientnet-lite0", "pixels") and trust is not None:
        raise UserError(f"--trust-detector is for files; --detector={name} has none: leave it out")
    if name == "efficientnet-lite0":
        return efficientnet_extractor(device=device, resize=resize)
    if name == "pixels":
        if resize is not None:
            raise UserError(f"--resize={resize}: --detector=pixels resizes in one way only; leave it out")
        return pixel_extractor(device)
    return inception_extractor(None if name == "inception" else name, device=device, resize=resize, trust=trust)
