"""Registries, and the one place where text and JSON become values: samplers, detectors, correctors, windows.

To add a detector, a corrector or a sampler, write a frozen dataclass and enter it here: it is then an option of every
command (`--detector`, `--filter`, `--accept`; a corrector: `--inside`, and a `--sampler`), of presets and of the
benchmark. A command generates its options when it is imported: register before that (docs/extending.md).

    lid:sigma=1.6,draws=8      a detector or corrector by name, with options
    .1,.5   sigma:1.2,5        a window, in fractions of the steps or in noise levels
    {"sampler": "rods-cas", "eps": 0.1, "rho": 1, ...}     a sampler as presets and options.json hold it
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from math import inf
from typing import Any, TypeVar

from rods.asced import Asced, Jump
from rods.base_samplers import Ablation, Edm, Euler, Sampler
from rods.correctors import (
    Cas,
    Iq,
    IqThrough,
    Laplacian,
    NamedCorrector,
    Overshoot,
    RandomShift,
    Sas,
    SgPrev,
    SigmaOffset,
    Tag,
)
from rods.costly_detectors import LambdaMax, Lmi
from rods.detectors import CurvatureIndex, Detector, Lid
from rods.gate import ActivationDetector, DensityRatio, Readout
from rods.restart import Restart
from rods.samplers import Corrected, RodsCas, RodsSas
from rods.schedules import SigmaWindow, Window
from rods.schema import REQUIRED, Option, digits, options_of, window_from_text, window_to_text
from rods.trajectory import Corrector
from rods.variance import Tvf

DETECTORS: dict[str, type[Detector]] = {
    "lid": Lid,
    "tvf": Tvf,
    "h-index": CurvatureIndex,
    "lambda-max": LambdaMax,
    "lmi": Lmi,
    "jump": Jump,
}
FITTED: dict[str, type[ActivationDetector]] = {"readout": Readout, "density-ratio": DensityRatio}
"""Detectors whose weights belong to a network: they are named alone, and a preset has the weights."""
CORRECTORS: dict[str, type[Corrector]] = {
    "cas": Cas,
    "sas": Sas,
    "overshoot": Overshoot,
    "sigma-offset": SigmaOffset,
    "iq": Iq,
    "iq-through": IqThrough,
    "tag": Tag,
    "sg-prev": SgPrev,
    "random": RandomShift,
    "laplacian": Laplacian,
}
SAMPLERS: dict[str, type[Sampler] | type[NamedCorrector]] = {
    "edm": Edm,
    "euler": Euler,
    "ablation": Ablation,
    "rods-cas": RodsCas,
    "rods-sas": RodsSas,
    "restart": Restart,
    "asced": Asced,
    **{name: kind for name, kind in CORRECTORS.items() if issubclass(kind, NamedCorrector)},
}
"""A corrector stands for `Corrected`, whose options are then the corrector's, the window and the grid."""
_CHURN = ("S_min", "S_max", "S_noise")
_Value = TypeVar("_Value", Detector, Corrector)


# -- what options there are -------------------------------------------------------------------------------------------


def options(sampler: str) -> dict[str, Option]:
    """The options of a sampler by name, its own before the grid's. Raises ValueError for an unknown sampler."""
    kind = _entry(sampler)
    if issubclass(kind, NamedCorrector):
        found = {**options_of(kind), **options_of(Corrected)}
        window = kind.window
        found["window"] = replace(found["window"], default=REQUIRED if window is None else window)
        del found["correct"]
    else:
        found = options_of(kind)
    grid = [f.name for f in fields(Sampler)]
    return {name: found[name] for name in [*(n for n in found if n not in grid), *grid]}


def _entry(sampler: str) -> type[Sampler] | type[NamedCorrector]:
    if sampler not in SAMPLERS:
        raise ValueError(f"sampler: unknown sampler {sampler!r}; use one of {', '.join(SAMPLERS)}")
    return SAMPLERS[sampler]


# -- samplers ---------------------------------------------------------------------------------------------------------


def name_of(sampler: Sampler) -> str:
    """The name by which a sampler is registered. Raises ValueError for one that is not."""
    kind = type(sampler.correct) if isinstance(sampler, Corrected) else type(sampler)
    for name, registered in SAMPLERS.items():
        if registered is kind:
            return name
    raise ValueError(f"sampler: {kind.__name__} is not registered in rods.config")


def build(sampler: str, values: Mapping[str, Any]) -> Sampler:
    """The sampler of a name with these options. Raises ValueError: an unknown or missing one, or one out of range."""
    kind, known = _entry(sampler), options(sampler)
    for name in values:
        if name not in known:
            raise ValueError(f"{name}: unknown option of {sampler}; it has {', '.join(known)}")
    merged = {**{name: o.default for name, o in known.items()}, **values}
    if missing := [name for name, value in merged.items() if value is REQUIRED]:
        raise ValueError(
            f"{missing[0]}: {sampler} needs a value for it; give one, or a preset: scripts/fit_gate.py makes "
            "one for a restart, scripts/calibrate.py for the others"
        )
    if issubclass(kind, NamedCorrector):
        own = {f.name: merged.pop(f.name) for f in fields(kind)}  # type: ignore[arg-type]
        return Corrected(correct=kind(**own), **merged)
    return kind(**merged)


def values_of(sampler: Sampler) -> dict[str, Any]:
    """Every option of a sampler and its value: `build(name_of(sampler), values_of(sampler))` is equal to it."""
    found = {}
    for name in options(name_of(sampler)):
        has = isinstance(sampler, Corrected) and hasattr(sampler.correct, name) and name != "window"
        found[name] = getattr(sampler.correct if has else sampler, name)  # type: ignore[attr-defined]
    return found


def changed(sampler: Sampler, values: Mapping[str, Any]) -> Sampler:
    """The sampler with some options replaced. Raises ValueError as `build` does."""
    return build(name_of(sampler), {**values_of(sampler), **values})


def to_json(sampler: Sampler) -> dict[str, Any]:
    """A sampler as JSON can hold it, with the options that act; `from_json` reads it back."""
    name, found = name_of(sampler), {}
    for option, value in values_of(sampler).items():
        known = options(name)[option]
        is_dead = value is None or (option in _CHURN and not getattr(sampler, "S_churn", 0))
        is_constant = not known.help and value == known.default
        if not is_dead and not is_constant:
            found[option] = _plain(value)
    if isinstance(detector := getattr(sampler, "detector", None), ActivationDetector):
        found["detector_sha256"] = detector.digest
    return {"sampler": name, **found}


def from_json(data: Mapping[str, Any], *, fitted: Mapping[str, Detector] | None = None) -> Sampler:
    """The sampler that a preset or an options.json describes; `fitted` are the preset's detectors, by name.

    Raises ValueError: an unknown, missing or mistyped option, or one out of range.
    """
    sampler = data.get("sampler")
    if not isinstance(sampler, str):
        raise ValueError(f"sampler: {sampler!r} is not a name; use one of {', '.join(SAMPLERS)}")
    known = options(sampler)
    given = {name: value for name, value in data.items() if name not in ("sampler", "detector_sha256")}
    return build(sampler, {name: _read(known[name], value, fitted) if name in known else value
                           for name, value in given.items()})  # fmt: skip


def typed(sampler: str, name: str, value: Any, *, fitted: Mapping[str, Detector] | None = None) -> Any:
    """The value of a sampler's option from JSON or text; one that is typed already, and of an unknown name, stays.

    Raises ValueError for a value of another type.
    """
    option = options(sampler).get(name)
    if option is None or isinstance(value, Detector | Corrector | SigmaWindow | tuple):
        return value
    if isinstance(value, str) and option.kind in (int, float, bool):
        return _typed(option, value, option.name)
    return _read(option, value, fitted)


def _read(option: Option, value: Any, fitted: Mapping[str, Detector] | None) -> Any:
    """The value of an option from JSON. Raises ValueError, naming it, for one of another type."""
    kind, is_number = option.kind, isinstance(value, int | float) and not isinstance(value, bool)
    if value is None and option.optional:
        return None
    if isinstance(value, str):
        if kind == Window:
            return window_from_text(value)
        if kind in (Detector, Corrector):
            return from_text(kind, value, option=option.name, fitted=fitted)
        if kind is float and value in ("inf", "-inf"):
            return float(value)
    matches = {float: (is_number and abs(value) < 2**1000) or value in (inf, -inf),
               int: is_number and isinstance(value, int),
               bool: isinstance(value, bool)}  # fmt: skip
    if matches.get(kind, False) if not isinstance(kind, tuple) else value in kind:
        return value
    raise ValueError(f"{option.name}: {value!r:.80}: must be {option.expected()}")


def _plain(value: Any) -> Any:
    if isinstance(value, SigmaWindow | tuple):
        return window_to_text(value)
    if isinstance(value, Detector | Corrector):
        return to_text(value)
    return str(value) if value in (inf, -inf) else value


# -- detectors and correctors -----------------------------------------------------------------------------------------


def detector_from_text(
    text: str, *, option: str = "detector", fitted: Mapping[str, Detector] | None = None
) -> Detector:
    """The detector that a text names, such as `lid:sigma=1.2,draws=4`; `fitted` are a preset's, by name.

    Raises ValueError: an unknown name or option, a value of another type or out of range.
    """
    return from_text(Detector, text, option=option, fitted=fitted)


def from_text(kind: type[_Value], text: str, *, option: str, fitted: Mapping[str, Detector] | None = None) -> _Value:
    """`detector_from_text`, and the same for correctors."""
    registry: Mapping[str, type[Any]] = DETECTORS if kind is Detector else CORRECTORS
    name, has_options, rest = (part.strip() for part in text.partition(":"))
    if kind is Detector and name in FITTED:
        if has_options:
            raise ValueError(f"{option}: the options of {name} are the preset's; give {name} alone")
        if fitted is None or name not in fitted:
            remedy = f"name one that has by --preset, or {FITTED[name].remedy}"
            raise ValueError(f"{option}: the preset in use has no weights of {name}; {remedy}")
        return fitted[name]  # type: ignore[return-value]
    if name not in registry:
        names, noun = [*registry, *(FITTED if kind is Detector else ())], kind.__name__.lower()
        said = f"unknown {noun} {name!r}" if name else f"no {noun} is named in {text!r}"
        raise ValueError(f"{option}: {said}; give {' or '.join(names)}")
    known = options_of(registry[name])
    given: dict[str, Any] = {}
    for part in rest.split(",") if has_options else []:
        key, _, value = (p.strip() for p in part.partition("="))
        if key not in known:
            raise ValueError(f"{option}: {name} has no option {key!r}; it has {', '.join(known)}")
        if key in given:
            raise ValueError(f"{option}: {name}: {key} is given twice; give it once")
        given[key] = _typed(known[key], value, f"{option}: {name}: {key}")
    if missing := [key for key, o in known.items() if o.default is REQUIRED and key not in given]:
        raise ValueError(f"{option}: {name} needs {missing[0]}; write {name}:{missing[0]}=value")
    try:
        return registry[name](**given)  # type: ignore[no-any-return]
    except ValueError as e:
        raise ValueError(f"{option}: {name}: {e}") from None


def _typed(option: Option, text: str, what: str) -> Any:
    """A value from text. Raises ValueError, naming it."""
    if isinstance(option.kind, tuple) and text in option.kind:
        return text
    if option.kind is bool and text in ("true", "false"):
        return text == "true"
    if option.kind in (int, float):
        try:
            return option.kind(text)
        except ValueError:
            pass
    raise ValueError(f"{what}: {text!r}: must be {option.expected()}")


def to_text(value: Detector | Corrector) -> str:
    """The text that is read back, with every option written out; of a fitted detector its name."""
    for name, kind in {**DETECTORS, **FITTED, **CORRECTORS}.items():
        if type(value) is kind:
            if name in FITTED:
                return name
            written = [f"{f.name}={digits(getattr(value, f.name))}" for f in fields(kind)]  # type: ignore[arg-type]
            return f"{name}:{','.join(written)}"
    raise ValueError(f"{type(value).__name__} is not registered in rods.config")
