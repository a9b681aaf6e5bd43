"""Which constructor arguments a network file may hold, and within which bounds (spec: edm-compat, section 2).

The bounds are far outside of anything published; they are here so that a file cannot ask for absurd work.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from dnnlib.errors import UserError, shown

Check = Callable[[object], Any]  # the value in the type that the constructor takes; ValueError says what is allowed


def _integer(low: int, high: int) -> Check:
    def check(value: object) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise ValueError(f"a whole number from {low} to {high}")
        return value

    return check


def _number(low: float, high: float) -> Check:
    def check(value: object) -> float:
        if value == "inf":  # JSON has no other way to write it
            value = math.inf
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not low <= value <= high:
            raise ValueError(f"a number from {low:g} to {high:g}")
        return value

    return check


def _flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError("true or false")
    return value


def _choice(*names: str) -> Check:
    def check(value: object) -> str:
        if not isinstance(value, str) or value not in names:
            raise ValueError(f"one of {', '.join(names)}")
        return value

    return check


def _list_of(item: Check, shortest: int, longest: int) -> Check:
    def check(value: object) -> list[Any]:
        if not isinstance(value, (list, tuple)) or not shortest <= len(value) <= longest:
            raise ValueError(f"a list of {shortest} to {longest} values")
        try:
            return [item(v) for v in value]
        except ValueError as e:
            raise ValueError(f"a list, each {e}") from None

    return check


_SHARED: dict[str, Check] = {
    "img_resolution": _integer(1, 4096),
    "img_channels": _integer(1, 64),
    "label_dim": _integer(0, 100_000),
    "use_fp16": _flag,
    "model_type": _choice("SongUNet", "DhariwalUNet", "MLP"),
}
_PRECONDS: dict[str, dict[str, Check]] = {
    "EDMPrecond": {
        "sigma_min": _number(0, math.inf),
        "sigma_max": _number(0, math.inf),
        "sigma_data": _number(1e-6, 1e6),
    },
    "VPPrecond": {
        "beta_d": _number(1e-6, 1e3),
        "beta_min": _number(0, 1e3),
        "M": _integer(2, 100_000),
        "epsilon_t": _number(1e-12, 1),
    },
    "VEPrecond": {"sigma_min": _number(0, math.inf), "sigma_max": _number(0, math.inf)},
    "iDDPMPrecond": {"C_1": _number(1e-12, 1), "C_2": _number(0, 1), "M": _integer(2, 10_000)},
}
_DHARIWAL: dict[str, Check] = {
    "augment_dim": _integer(0, 1024),
    "model_channels": _integer(4, 4096),
    "channel_mult": _list_of(_integer(1, 64), 1, 10),
    "channel_mult_emb": _integer(1, 64),
    "num_blocks": _integer(1, 16),
    "attn_resolutions": _list_of(_integer(1, 4096), 0, 16),
    "dropout": _number(0, 1),
    "label_dropout": _number(0, 1),
}
_MODELS: dict[str, dict[str, Check]] = {
    "DhariwalUNet": _DHARIWAL,
    "SongUNet": {
        **_DHARIWAL,
        "embedding_type": _choice("positional", "fourier"),
        "channel_mult_noise": _integer(1, 64),
        "encoder_type": _choice("standard", "skip", "residual"),
        "decoder_type": _choice("standard", "skip"),
        "resample_filter": _list_of(_number(-1e6, 1e6), 1, 16),
    },
    "MLP": {"hidden": _integer(1, 65536), "num_layers": _integer(1, 64)},
}
_DEFAULT_MODEL = {
    "EDMPrecond": "DhariwalUNet", "iDDPMPrecond": "DhariwalUNet", "VPPrecond": "SongUNet", "VEPrecond": "SongUNet",
}  # fmt: skip


def check_init_kwargs(class_name: str, init_kwargs: Mapping[str, object]) -> dict[str, Any]:
    """The constructor arguments of a denoiser, in the types that it takes; `model_type` is filled in.

    Raises:
        UserError: an unknown class, an unknown or missing argument, or one out of bounds, by name.
    """
    if class_name not in _PRECONDS:
        raise UserError(f"{shown(class_name)} is no denoiser class; known are {', '.join(_PRECONDS)}")
    kwargs: dict[str, Any] = {"model_type": _DEFAULT_MODEL[class_name], **init_kwargs}
    model_type = _checked("model_type", kwargs["model_type"], _SHARED["model_type"])
    checks = {**_SHARED, **_PRECONDS[class_name], **_MODELS[model_type]}
    if unknown := [name for name in kwargs if name not in checks]:
        raise UserError(f"{class_name} with {model_type} takes no argument {', '.join(map(shown, unknown[:4]))}")
    for name in ("img_resolution", "img_channels"):
        if name not in kwargs:
            raise UserError(f"{class_name} needs the argument {name}, which the file leaves out")
    return {name: _checked(name, value, checks[name]) for name, value in kwargs.items()}


def argument_names(class_name: str, model_type: str) -> set[str]:
    """Every argument that `check_init_kwargs` knows for this pair."""
    return set(_SHARED) | set(_PRECONDS[class_name]) | set(_MODELS[model_type])


def least_size(class_name: str, kwargs: Mapping[str, Any]) -> tuple[int, int]:
    """(parameters, blocks) that a network with these checked arguments has at least.

    The parameters are those of the embedding and of three of the four 3x3 convolutions of each block and its mirror
    image in the decoder, the fourth having fewer inputs; whole networks have up to 5 times as many. An argument that
    is left out, and so has its default, counts as a small value. Of an MLP, the weights of its hidden layers.
    """
    if kwargs.get("model_type") == "MLP":
        hidden, layers = kwargs.get("hidden", 1), kwargs.get("num_layers", 1)
        inputs = kwargs["img_channels"] * kwargs["img_resolution"] ** 2
        return hidden * (inputs + hidden * (layers - 1)), layers
    channels, mults = kwargs.get("model_channels", 4), kwargs.get("channel_mult", [1])
    emb, noise = channels * kwargs.get("channel_mult_emb", 4), channels * kwargs.get("channel_mult_noise", 1)
    blocks = kwargs.get("num_blocks", 1)
    embedding = emb * (emb + noise) + kwargs.get("label_dim", 0) * channels + kwargs.get("augment_dim", 0) * channels
    convolutions = sum(blocks * channels * m * (27 * channels * m + 2 * emb) for m in mults)
    levels = kwargs.get("M", 1000) if class_name == "iDDPMPrecond" else 0
    return embedding + convolutions + levels, blocks * len(mults)


def _checked(name: str, value: object, check: Check) -> Any:
    try:
        return check(value)
    except ValueError as e:
        raise UserError(f"{name}={shown(value)} is not allowed in a network file: it must be {e}") from None
