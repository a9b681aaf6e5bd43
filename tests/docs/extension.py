"""A pytest plugin: the methods of docs/extending.md, and what the tables of the laws would say of them."""

from __future__ import annotations

import my_methods  # registers; before generate.py and the laws, which read the registries when they are imported
import pytest
import registries

COST = {
    "test_laws_of_detectors": {
        "noise-length": lambda detector, inside: (inside, 0),
        "roughness": lambda detector, inside: (0, 0),
    },
    "test_laws_of_samplers": {
        "straighten": lambda sampler, record, inside: (sampler.num_steps, 0),
        "heun-overshoot": lambda sampler, record, inside: (2 * sampler.num_steps - 1, 0),
    },
}
NEUTRAL = {"straighten": [{"weight": 0}, {"window": (0.3, 0.3)}], "heun-overshoot": [{"rho": 0}]}
registries.NEEDED["weight"] = 0.3


def pytest_collection_modifyitems(items: list[pytest.Function]) -> None:
    """Fill the tables, as a change to the repository would."""
    for name, tables in {item.module.__name__: vars(item.module) for item in items}.items():
        tables.get("COST", {}).update(COST.get(name, {}))
        tables.get("NEUTRAL", {}).update(NEUTRAL)
        tables.get("NAMES", {}).update(vars(my_methods))
