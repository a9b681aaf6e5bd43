"""What a network file says of the autoencoder behind its latents: EDM2's, whose weights are another file."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dnnlib.errors import UserError, shown
from torch_utils.persistence import PersistentObject
from torch_utils.pickle_arrays import Array

ENTRY = "encoder"
"""Its entry in the `extra` of a network file's header."""
FILES = "config.json and diffusion_pytorch_model.safetensors"
"""What an autoencoder's folder holds."""
REPOSITORY = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


@dataclass(frozen=True)
class StoredEncoder:
    """Latents are those of the autoencoder `vae_name`, of images in [0, 1], times scale, plus bias, by channel."""

    vae_name: str
    scale: tuple[float, ...]
    bias: tuple[float, ...]

    def __post_init__(self) -> None:
        if not REPOSITORY.fullmatch(self.vae_name):
            raise ValueError(f"{shown(self.vae_name)} is not the name of an autoencoder, such as owner/name")
        if not self.scale or len(self.scale) != len(self.bias):
            raise ValueError(f"{len(self.scale)} scales and {len(self.bias)} biases; one of each a channel is needed")
        if not all(map(math.isfinite, (*self.scale, *self.bias))) or not all(self.scale):
            raise ValueError("a scale or bias is not finite, or a scale is 0")


def files_of(vae_name: str) -> str:
    """The files of an autoencoder, and where they are."""
    return f"{FILES} of https://huggingface.co/{vae_name}"


def pickled_encoder(found: object) -> Mapping[str, Any]:
    """What a pickle's encoder adds to the header's `extra`: nothing for plain pixels. Raises UserError."""
    if not isinstance(found, PersistentObject) or found.class_name != "StabilityVAEEncoder":
        return {}
    name = found.state.get("vae_name")
    scale, bias = (_numbers(found.state.get(key)) for key in ("scale", "bias"))
    if not isinstance(name, str) or scale is None or bias is None:
        raise UserError("damaged or hostile pickle: its encoder lacks its name, scale or bias")
    return {ENTRY: {"vae_name": name, "scale": scale, "bias": bias}}


def stored_encoder(extra: Mapping[str, Any]) -> StoredEncoder | None:
    """The encoder of a network, by the `extra` of its file's header; None: it draws pixels. Raises UserError."""
    match extra.get(ENTRY):
        case None:
            return None
        case {"vae_name": str(name), "scale": [*scale], "bias": [*bias]} if all(
            isinstance(v, int | float) for v in (*scale, *bias)
        ):
            try:
                return StoredEncoder(name, tuple(map(float, scale)), tuple(map(float, bias)))
            except ValueError as e:
                raise UserError(f"the network file's encoder is damaged: {e}") from None
    raise UserError("the network file's encoder is damaged: it lacks its name, scale or bias, or has other values")


def _numbers(array: object) -> list[float] | None:
    """The values of a one-dimensional array of a pickle."""
    if not isinstance(array, Array) or array.value is None or array.value.ndim != 1 or len(array.value) > 64:
        return None
    return [float(v) for v in array.value]
