"""Text and JSON as values: what people may write, what is refused, and detectors whose weights a preset has."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from exact import latents, mixture

from rods import (
    Cas,
    Corrected,
    Corrector,
    CurvatureIndex,
    Detector,
    Edm,
    Euler,
    Lid,
    Readout,
    Restart,
    RodsCas,
    RodsSas,
    SigmaWindow,
    Tag,
    Tvf,
    euler_sampler,
    rods_sampler,
)
from rods.base_samplers import MAX_STEPS
from rods.config import (
    SAMPLERS,
    build,
    changed,
    detector_from_text,
    from_json,
    from_text,
    name_of,
    options,
    to_json,
    to_text,
    values_of,
)
from rods.schema import REQUIRED, window_from_text, window_to_text

READOUT = Readout(("model.dec.8x8_block0",), 0.5, 2, "0123456789ab", 0.25, (0.0, 1.0), (1.0, 2.0), (0.5, -0.5))


# -- samplers ---------------------------------------------------------------------------------------------------------


def test_a_name_with_options_is_its_sampler() -> None:
    D, x = mixture(), latents()
    given: dict[str, Any] = {"eps": 0.05, "rho": 0.5, "window": (0.0, 1.0), "num_steps": 6}
    cas, sas = (build("rods-cas", {**given, "ascent_steps": 2}), build("rods-sas", {**given, "sas_sign": "downhill"}))
    assert cas == RodsCas(**given, ascent_steps=2)
    assert sas == RodsSas(**given, sas_sign="downhill")
    assert torch.equal(cas.sample(D, x).images, rods_sampler(D, x, method="cas", ascent_steps=2, **given).images)
    assert torch.equal(sas.sample(D, x).images, rods_sampler(D, x, method="sas", sas_sign="downhill", **given).images)
    assert torch.equal(build("euler", {}).sample(D, x).images, euler_sampler(D, x))
    assert build("tag", {"eta": 1.1}) == Corrected(correct=Tag(1.1), window=(0, 1))
    assert changed(cas, {"num_steps": 9, "ascent_steps": 1}) == RodsCas(**{**given, "num_steps": 9})


def test_options_are_the_fields_and_the_grids_come_last() -> None:
    assert list(options("tag")) == ["eta", "window", "num_steps", "sigma_min", "sigma_max", "time_rho"]
    assert "sas_sign" not in options("rods-cas")
    assert "ascent_steps" not in options("rods-sas")
    required = {name: [o.name for o in options(name).values() if o.default is REQUIRED] for name in SAMPLERS}
    assert required["iq"] == ["strength", "threshold", "window"]
    assert required["edm"] == required["euler"] == required["ablation"] == []


@pytest.mark.parametrize(
    ("sampler", "given", "option"),
    [
        ("ddim", {}, "sampler"),
        ("edm", {"rho": 1}, "rho"),
        ("rods-cas", {"rho": 1}, "eps"),
        ("rods-cas", {"eps": "0.1", "rho": 1}, "eps"),
        ("rods-cas", {"eps": True, "rho": 1}, "eps"),
        ("rods-cas", {"eps": 10**400, "rho": 1}, "eps"),
        ("rods-cas", {"eps": math.nan, "rho": 1}, "eps"),
        ("rods-cas", {"eps": None, "rho": 1}, "eps"),
        ("rods-cas", {"eps": 1, "rho": 1, "window": [0.1, 0.5]}, "window"),
        ("rods-cas", {"eps": 1, "rho": 1, "window": ".5,.1"}, "window"),
        ("rods-cas", {"eps": 1, "rho": 1, "detect": 1}, "detect"),
        ("rods-sas", {"eps": 1, "rho": 1, "sas_sign": "up"}, "sas_sign"),
        ("ablation", {"solver": ["heun"]}, "solver"),
        ("edm", {"num_steps": 18.0}, "num_steps"),
        ("edm", {"num_steps": MAX_STEPS + 1}, "num_steps"),
        ("restart", {"threshold": 1, "sigma_r": 2, "detector": 3}, "detector"),
        ("restart", {"threshold": 1, "sigma_r": 2, "inside": "iq:strength=.1,threshold=1"}, "inside"),
    ],
)
def test_wrong_json_is_one_line_that_names_the_option(sampler: str, given: dict[str, Any], option: str) -> None:
    with pytest.raises(ValueError, match=rf"^{option}: ") as error:
        from_json({"sampler": sampler, **given})
    assert "\n" not in str(error.value)


def test_json_without_a_sampler_is_refused() -> None:
    for data in ({}, {"sampler": 3}, {"sampler": ["edm"]}):
        with pytest.raises(ValueError, match=r"^sampler: "):
            from_json(data)


def test_json_writes_what_acts() -> None:
    assert to_json(Euler()) == {
        "sampler": "euler", "num_steps": 40, "sigma_min": 0.002, "sigma_max": 80, "time_rho": 7,
    }  # fmt: skip
    assert to_json(Edm(S_churn=5))["S_max"] == "inf"
    written = to_json(RodsCas(eps=math.inf, rho=1, window=SigmaWindow(1, 5)))
    assert (written["eps"], written["window"]) == ("inf", "sigma:1,5")
    assert "detector" not in written
    restart = to_json(Restart(threshold=1, sigma_r=2, inside=Cas(4)))
    assert restart["detector"] == "lid:sigma=1.2,draws=4"
    assert restart["inside"] == "cas:rho=4,ascent_steps=1"


def test_what_is_not_registered_has_no_name() -> None:
    class Own(Euler):
        pass

    with pytest.raises(ValueError, match=r"^sampler: Own is not registered"):
        name_of(Own())
    with pytest.raises(ValueError, match="is not registered"):
        to_text(type("Own", (Lid,), {})())


# -- windows ----------------------------------------------------------------------------------------------------------


def test_windows_are_written_short() -> None:
    assert window_to_text((0.1, 0.5)) == "0.1,0.5"
    assert window_to_text((0, 1)) == "0,1"
    assert window_to_text(SigmaWindow(1.5, math.inf)) == "sigma:1.5,inf"
    assert window_from_text(" .1, .5") == (0.1, 0.5)
    for text in ("", "1", "1,2,3", "a,b", "sigma:", "sigma:5", "steps:1,2", "sigma:5,1"):
        with pytest.raises(ValueError, match=r"^window: "):
            window_from_text(text)


# -- detectors and correctors -----------------------------------------------------------------------------------------


def test_detectors_and_correctors_are_written_as_people_would() -> None:
    assert detector_from_text(" lid ") == Lid()
    assert detector_from_text("h-index: rho=4, scaled=false") == CurvatureIndex(rho=4, scaled=False)
    assert detector_from_text("tvf:sigma=1e-1") == Tvf(0.1)
    assert from_text(Corrector, "cas:rho=4", option="inside") == Cas(4)
    assert to_text(Lid(1.2, 4)) == "lid:sigma=1.2,draws=4"
    assert to_text(CurvatureIndex(4)) == "h-index:lo=0.5,hi=3,mean=false,rho=4,scaled=true"


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (Detector, ""),
        (Detector, "iq"),
        (Detector, "cas:rho=1"),
        (Detector, "readout"),
        (Detector, "readout:draws=2"),
        (Detector, "lid:"),
        (Detector, "lid:t=3"),
        (Detector, "lid:draws=1.5"),
        (Detector, "lid:sigma"),
        (Detector, "lid:sigma=1,sigma=2"),
        (Detector, "lid:sigma=nan"),
        (Detector, "h-index:scaled=1"),
        (Detector, "h-index:lo=3,hi=1"),
        (Detector, "lmi:runs=1"),
        (Corrector, "cas"),
        (Corrector, "cas:ascent_steps=2"),
        (Corrector, "sas:rho=1,sas_sign=up"),
        (Corrector, "lid"),
    ],
)
def test_what_is_none_is_one_line_that_names_the_option(kind: Any, text: str) -> None:
    with pytest.raises(ValueError, match=r"^--filter: ") as error:
        from_text(kind, text, option="--filter")
    assert "\n" not in str(error.value)


def test_a_fitted_detector_is_named_and_identified_by_its_checksum() -> None:
    fitted = {"readout": READOUT}
    assert detector_from_text("readout", fitted=fitted) is READOUT
    assert to_text(READOUT) == "readout"
    sampler = Restart(threshold=0.5, sigma_r=2, detector=READOUT)
    written = to_json(sampler)
    assert (written["detector"], written["detector_sha256"]) == ("readout", READOUT.digest)
    assert from_json(written, fitted=fitted) == sampler
    with pytest.raises(ValueError, match=r"^detector: the preset in use has no weights of readout"):
        from_json(written)
    assert "0.5, -0.5" not in repr(sampler), "weights are not for people to read"


def test_values_are_those_of_the_corrector_and_the_grid() -> None:
    sampler = build("laplacian", {"strength": 0.1, "num_steps": 7})
    assert values_of(sampler) == {
        "strength": 0.1, "probes": 1, "probe_radius": 0.1, "window": (0.1, 0.5), "num_steps": 7, "sigma_min": 0.002,
        "sigma_max": 80, "time_rho": 7,
    }  # fmt: skip
