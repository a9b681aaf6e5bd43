"""What holds of every registered class as a value: frozen, equal, hashable, printable, written and read back."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import click
import pytest
import registries
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import generate
import rods
from rods import Corrector, Detector
from rods.config import (
    CORRECTORS,
    DETECTORS,
    SAMPLERS,
    build,
    changed,
    from_json,
    from_text,
    name_of,
    options,
    to_json,
    to_text,
    values_of,
)
from rods.runs import options as command_line
from rods.schema import window_from_text, window_to_text

patient = settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much]
)
KINDS: dict[str, tuple[type[Any], type[Any]]] = {
    **{f"detector {name}": (Detector, kind) for name, kind in DETECTORS.items()},
    **{f"corrector {name}": (Corrector, kind) for name, kind in CORRECTORS.items()},
}
NAMES = {**vars(rods), "inf": math.inf}  # what a printed value is made of


@pytest.mark.parametrize("name", [*KINDS, *(f"sampler {name}" for name in SAMPLERS)])
def test_its_class_is_of_the_library(name: str) -> None:
    """What a value prints is then code: `from rods import *` and the print make it again."""
    kind = KINDS[name][1] if name in KINDS else SAMPLERS[name.removeprefix("sampler ")]
    assert NAMES.get(kind.__name__) is kind, f"{name}: export {kind.__name__} in rods/__init__.py (import and __all__)"


def check_value(value: Any) -> None:
    """Frozen; equal to what its print makes, in hash too; unequal to a changed one."""
    assert dataclasses.is_dataclass(value)
    again = eval(repr(value), NAMES)
    assert again == value
    assert hash(again) == hash(value)
    assert len({again, value}) == 1
    for field in dataclasses.fields(value):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(value, field.name, None)


@patient
@given(st.data())
@pytest.mark.parametrize("name", SAMPLERS)
def test_a_sampler_is_a_value_and_survives_json(name: str, data: st.DataObject) -> None:
    sampler = data.draw(registries.samplers(name))
    check_value(sampler)
    assert name_of(sampler) == name
    assert build(name, values_of(sampler)) == changed(sampler, {}) == sampler
    text = json.dumps(to_json(sampler), allow_nan=False)
    assert from_json(json.loads(text)) == sampler
    assert json.dumps(to_json(from_json(json.loads(text)))) == text


@patient
@given(st.data())
@pytest.mark.parametrize("kind", KINDS)
def test_a_detector_or_corrector_is_a_value_and_survives_text(kind: str, data: st.DataObject) -> None:
    base, cls = KINDS[kind]
    value = data.draw(registries.instances(cls))
    check_value(value)
    text = to_text(value)
    assert from_text(base, text, option="x") == value
    assert to_text(from_text(base, text, option="x")) == text
    assert text.startswith(kind.split()[1] + ":")


@patient
@given(registries.WINDOWS)
def test_a_window_survives_text(window: Any) -> None:
    assert window_from_text(window_to_text(window)) == window


@pytest.mark.parametrize("name", SAMPLERS)
def test_options_that_do_not_act_are_not_written(name: str) -> None:
    written = to_json(registries.a_sampler(name))
    assert written.pop("sampler") == name
    known = options(name)
    assert set(written) <= set(known)
    assert not [option for option in written if not known[option].help], "constants at their defaults"
    assert not [option for option in written if option.startswith("S_") and option != "S_churn"], "churn is off"


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_option_is_on_the_command_line_with_its_help_and_default(name: str) -> None:
    offered = {o.name: o for o in generate.main.params if isinstance(o, click.Option)}
    for option in options(name).values():
        if not option.help:
            assert option.name not in offered
            continue
        param = offered[option.name]
        assert option.flag in param.opts
        assert param.default is None or not option.default, "so that what was not given is known"
        assert option.help.removesuffix(".") in (param.help or "")
        assert command_line._default(option) in (param.help or "")


@pytest.mark.parametrize("name", SAMPLERS)
def test_an_unknown_option_of_a_sampler_is_named(name: str) -> None:
    values = values_of(registries.a_sampler(name))
    with pytest.raises(ValueError, match=f"^radius: unknown option of {name}"):
        build(name, {**values, "radius": 1})
    for option in (o for o in options(name).values() if o.kind is float):
        with pytest.raises(ValueError, match=f"^{option.name}: .* must be a number"):
            from_json({"sampler": name, option.name: "low"})


@pytest.mark.parametrize("name", [*DETECTORS, *CORRECTORS])
def test_an_unknown_option_of_a_detector_or_corrector_is_named(name: str) -> None:
    base = Detector if name in DETECTORS else Corrector
    with pytest.raises(ValueError, match=f"^x: {name} has no option 'radius'"):
        from_text(base, f"{name}:radius=1", option="x")
    for option in (o for o in registries.options_of(name).values() if o.kind in (int, float)):
        with pytest.raises(ValueError, match=f"^x: {name}: {option.name}: 'low': must be "):
            from_text(base, f"{name}:{option.name}=low", option="x")
