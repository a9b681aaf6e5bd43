"""Every registered sampler, detector and corrector with options to test it by; a new one says what it lacks.

An option without a default needs a value in `NEEDED`. Everything runs on the mixture of tests/exact.py.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
from exact import CPU, SEEDS, Counting
from hypothesis import reject
from hypothesis import strategies as st

from rods import Corrector, Detector, Sampler, SigmaWindow, Window
from rods import config as registry
from rods.config import CORRECTORS, DETECTORS
from rods.correctors import NamedCorrector
from rods.runs.chunk import Chunk, ChunkResult, sample_chunk
from rods.schema import REQUIRED, Option
from rods.schema import options_of as of_class

STEPS = 10
NEEDED: dict[str, Any] = {
    "eps": 1e-4, "rho": 0.3, "kappa": 0.1, "threshold": 0.9, "sigma_r": 5.0, "strength": 0.1, "eta": 1.1,
}  # fmt: skip
WINDOW = SigmaWindow(0.3, 8)  # of every sampler that has one: there the mixture is curved
ACTING: dict[str, Any] = {"window": WINDOW, "deviations": 0.5}
"""In place of defaults with which little would happen on images as small as the mixture's."""
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "edm, churn": ("edm", {"S_churn": 5.0}),
    "ablation, euler": ("ablation", {"solver": "euler", "discretization": "vp", "schedule": "vp", "scaling": "vp"}),
    "rods-cas, all": ("rods-cas", {"eps": 0.0, "ascent_steps": 2}),
    "rods-cas, blind": ("rods-cas", {"eps": 0.0, "detect": False}),
    "rods-cas, probes": ("rods-cas", {"probe_every": 2, "gradient": "difference"}),
    "rods-cas, heun, churn": ("rods-cas", {"solver": "heun", "S_churn": 5.0}),
    "rods-sas, probes": ("rods-sas", {"probe_every": 2, "sas_sign": "downhill"}),
    "restart, heun": ("restart", {"solver": "heun", "rounds": 1}),
    "restart, in flight": ("restart", {"score_at": 0.5, "margin": 0.1}),
    "restart, ratio": ("restart", {"acceptance": "ratio"}),
    "restart, inside": ("restart", {"inside": registry.from_text(Corrector, "cas:rho=.3", option="inside")}),
}
"""Forms of samplers whose steps differ from those of the defaults."""


def complete(owner: str, known: dict[str, Option], given: dict[str, Any]) -> dict[str, Any]:
    """`given` and a value for each option without a default. Fails for one that this table does not know."""
    given = {**{name: value for name, value in ACTING.items() if name in known}, **given}
    missing = [name for name, o in known.items() if o.default is REQUIRED and name not in given]
    for name in missing:
        if name not in NEEDED:
            pytest.fail(f"{owner}: give its option {name} a value to test by, in NEEDED of tests/registries.py")
    return {**{name: NEEDED[name] for name in missing}, **given}


def a_sampler(name: str, **given: Any) -> Sampler:
    """A registered sampler, or one of `VARIANTS`, in few steps."""
    kind, options = VARIANTS.get(name, (name, {}))
    known = registry.options(kind)
    return registry.build(kind, complete(kind, known, {"num_steps": STEPS, **options, **given}))


def options_of(name: str) -> dict[str, Option]:
    """The options of a detector or corrector."""
    return of_class(DETECTORS.get(name) or CORRECTORS[name])


def a_detector(name: str, **given: Any) -> Detector:
    return DETECTORS[name](**complete(name, options_of(name), given))


def a_corrector(name: str, **given: Any) -> Corrector:
    return CORRECTORS[name](**complete(name, options_of(name), given))


def draws_behind_gates(name: str) -> bool:
    kind = CORRECTORS[name]
    return issubclass(kind, NamedCorrector) and kind.random


def sampled(
    sampler: Sampler, seeds: list[int] = SEEDS, *detectors: Detector, net: Any = None, observers: Any = ()
) -> ChunkResult:
    """One chunk of the mixture, its random numbers those of the seeds."""
    chunk = Chunk(0, tuple(seeds))
    return sample_chunk(
        net or Counting(), chunk, sampler, device=CPU, detectors=list(detectors), observers=list(observers)
    )


# -- random options ---------------------------------------------------------------------------------------------------

NUMBERS = st.one_of(st.floats(0.001, 0.999), st.integers(1, 60))
MAY_BE_INFINITE = ("eps", "threshold", "S_max")
WINDOWS = st.one_of(
    st.tuples(st.floats(0, 1), st.floats(0, 1)).map(lambda w: (min(w), max(w))),
    st.tuples(st.floats(0, 100), st.one_of(st.floats(0, 100), st.just(math.inf))).map(
        lambda w: SigmaWindow(min(w), max(w))
    ),
)


def values(option: Option) -> st.SearchStrategy[Any]:
    """Values of an option's kind; not each of them goes with each value of another."""
    kind = option.kind
    if isinstance(kind, tuple):
        found: st.SearchStrategy[Any] = st.sampled_from(kind)
    elif kind == Window:
        found = WINDOWS
    elif kind is Detector:
        found = st.sampled_from([*DETECTORS]).flatmap(lambda name: instances(DETECTORS[name]))
    elif kind is Corrector:
        found = st.sampled_from([*CORRECTORS]).flatmap(lambda name: instances(CORRECTORS[name]))
    elif kind is bool:
        found = st.booleans()
    elif kind is int:
        found = st.integers(option.least or 2, min(option.most or 60, 60))
    else:
        assert kind is float, f"{option.name}: there is no strategy for {kind}"
        found = st.one_of(NUMBERS, st.just(math.inf)) if option.name in MAY_BE_INFINITE else NUMBERS
    return st.one_of(st.none(), found) if option.optional else found


def filled(known: dict[str, Option]) -> st.SearchStrategy[dict[str, Any]]:
    """Values for the options without a default, and for some of the others."""
    needed = {name: values(o) for name, o in known.items() if o.default is REQUIRED}
    return st.fixed_dictionaries(needed, optional={name: values(o) for name, o in known.items() if name not in needed})


@st.composite
def instances(draw: st.DrawFn, kind: type[Any]) -> Any:
    """A detector or a corrector with random options."""
    given = draw(filled(of_class(kind)))
    if "lo" in given and "hi" in given:
        given["lo"], given["hi"] = sorted((given["lo"], given["hi"]))
    elif "hi" in given:
        given["lo"] = 0.0
    try:
        return kind(**given)
    except ValueError:
        reject()


@st.composite
def samplers(draw: st.DrawFn, name: str) -> Sampler:
    """A sampler with random options; those of a churn that is off stay as they are, for they do not act."""
    given = draw(filled(registry.options(name)))
    if not given.get("S_churn"):
        given = {key: value for key, value in given.items() if not key.startswith("S_")}
    try:
        return registry.build(name, given)
    except ValueError:
        reject()
