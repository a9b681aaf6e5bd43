"""Which constructor arguments a network file may hold, and within which bounds.

The bounds, fields of the network classes, are far outside of anything published; they are there so that a file cannot
ask for absurd work.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dnnlib.errors import UserError, shown
from training.networks import ARCHITECTURES, PRECONDS
from training.networks.architecture import Check


def check_init_kwargs(
    class_name: str, init_kwargs: Mapping[str, object], *, options: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """The constructor arguments of a denoiser, in the types that it takes; `model_type` is filled in.

    Args:
        options: {argument: option} where arguments come from a command line: messages then name the option.
    Raises:
        UserError: an unknown class, an unknown or missing argument, or one out of bounds, by name.
    """
    if class_name not in PRECONDS:
        raise UserError(f"{shown(class_name)} is not a denoiser class; known are {', '.join(PRECONDS)}")
    kwargs: dict[str, Any] = {"model_type": PRECONDS[class_name].default_model, **init_kwargs}
    options, own = options or {}, PRECONDS[class_name].arguments
    model_type = _checked("model_type", kwargs["model_type"], own["model_type"], options)
    checks = {**own, **ARCHITECTURES[model_type].arguments}
    if unknown := [options.get(name) or shown(name) for name in kwargs if name not in checks]:
        raise UserError(f"{class_name} with {model_type} takes no argument {', '.join(unknown[:4])}")
    for name in ("img_resolution", "img_channels"):
        if name not in kwargs:
            raise UserError(f"{class_name} needs the argument {name}, which the file leaves out")
    return {name: _checked(name, value, checks[name], options) for name, value in kwargs.items()}


def argument_names(class_name: str, model_type: str) -> set[str]:
    """Every argument that `check_init_kwargs` knows for this pair."""
    return {*PRECONDS[class_name].arguments, *ARCHITECTURES[model_type].arguments}


def _checked(name: str, value: object, check: Check, options: Mapping[str, str]) -> Any:
    try:
        return check(value)
    except ValueError as e:
        where = "" if name in options else " in a network file"
        raise UserError(f"{options.get(name, name)}={shown(value)} is not allowed{where}: it must be {e}") from None
