"""Presets: the published settings, what is none, risk thresholds, and presets and folders of before version 0.2."""

from __future__ import annotations

import base64
import json
import math
import struct
from typing import Any

import pytest
from exact import latents, mixture
from vectors import GOLDEN, ROOT

from rods import Cas, CurvatureIndex, Edm, LambdaMax, Lid, Overshoot, Readout, Restart, RodsCas, Sas, Tvf, legacy
from rods.config import build, to_json
from rods.presets import PAPER_PRESETS, Preset, parse_preset
from rods.runs.presets import read_preset

GOOD: dict[str, Any] = {
    "name": "mine", "network": "my-net", "source": "seeds 0-99", "samplers": {"rods-cas": {"eps": 0.1, "rho": 2}},
}  # fmt: skip
READOUT = Readout(("a.b", "c"), 0.5, 2, "0123456789ab", 0.25, (0.0, 1.0), (1.0, 2.0), (0.5, -0.5), (1.5,))


def as_text(readout: Readout) -> str:
    """A readout as presets held it before version 0.2."""
    numbers = [*readout.mean, *readout.scale, *readout.linear, *readout.quadratic]
    data = base64.b64encode(struct.pack(f"<{len(numbers)}f", *numbers)).decode()
    known = ["+".join(readout.blocks), readout.sigma, readout.draws, readout.network, readout.bias, len(readout.mean)]
    return f"readout({';'.join(map(str, known))};{data})"


# -- published and written by people ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "eps", "rho", "window", "network"),
    [
        ("edm-afhqv2-64x64-uncond-ve", 0.1, 1, (0, 1), "edm-afhqv2-64x64-uncond-ve"),
        ("edm-ffhq-64x64-uncond-ve", 0.09, 8, (0, 1), "edm-ffhq-64x64-uncond-ve"),
        ("hands-128-ve", 0, 30, (0.1, 0.5), None),
    ],
)
def test_the_published_settings(name: str, eps: float, rho: float, window: Any, network: str | None) -> None:
    assert len(PAPER_PRESETS) == 3
    preset = PAPER_PRESETS[name]
    assert preset.network == network
    for sampler in ("rods-cas", "rods-sas"):
        found: Any = preset.sampler(sampler, {})
        assert (found.eps, found.rho, found.window) == (eps, rho, window)
        assert (found.num_steps, found.solver, found.detect) == (40, "euler", True)
    assert preset.sampler("rods-sas", {}).sas_sign == "uphill"  # type: ignore[attr-defined]
    assert preset.sampler("rods-cas", {"eps": 5.0}).eps == 5  # type: ignore[attr-defined]
    assert preset.sampler("edm", {}) == Edm()


ALL: dict[str, Any] = {
    "rods-cas": {"eps": 0, "rho": 4, "detect": False, "probe_every": 2},
    "rods-sas": {"eps": 0, "rho": 8, "detect": False},
}


@pytest.mark.parametrize(
    ("sampler", "given", "detect", "probe_every"),
    [
        ("rods-cas", {}, False, 2),
        ("rods-cas", {"eps": 0.0, "rho": 2.0}, False, 2),
        ("rods-cas", {"probe_every": 4}, False, 4),
        ("rods-cas", {"detect": True}, True, 1),  # the paper's form
        ("rods-cas", {"detect": False}, False, 1),
        ("rods-cas", {"eps": 0.1}, True, 1),
        ("rods-cas", {"eps": math.inf, "probe_every": 3}, True, 3),
        ("rods-cas", {"eps": 0.1, "detector": CurvatureIndex(2)}, True, 1),
        ("rods-sas", {}, False, 1),
        ("rods-sas", {"gradient": "difference"}, True, 1),  # which needs something to measure
    ],
)
def test_a_preset_measures_where_detection_is_asked_for(
    sampler: str, given: dict[str, Any], detect: bool, probe_every: int
) -> None:
    preset = parse_preset({**GOOD, "samplers": ALL, "detect_eps": {"rods-cas": 0.5}}, where="here")
    found: Any = preset.sampler(sampler, given)
    assert (found.detect, found.probe_every) == (detect, probe_every)
    assert {name: getattr(found, name) for name in given} == given
    if given in ({}, {"detect": True}):
        assert preset.risk_threshold(found) == (0.5 if sampler == "rods-cas" else None)


@pytest.mark.parametrize(("network", "most"), [("hands-32", 1.4), ("hands-32-1", 1.4), ("grid25-0", 1.8)])
def test_what_the_plain_sampler_of_our_networks_costs(network: str, most: float) -> None:
    """Beside Euler's evaluations, on an exact density: the count is that of any network."""
    preset = read_preset(ROOT / "models" / f"{network}.preset.json")
    for given, price in (({}, most), ({"detect": True}, 2.2)):
        record = preset.sampler("rods-cas", given).sample(mixture(), latents()).records[0]
        assert (record.forward + record.backward) / 40 == pytest.approx(price)


def test_a_preset_that_corrects_all_says_who_is_at_risk_for_its_own_settings_alone() -> None:
    preset = PAPER_PRESETS["hands-128-ve"]
    assert preset.risk_threshold(preset.sampler("rods-cas", {})) == 0.014
    assert preset.risk_threshold(preset.sampler("rods-cas", {"rho": 3})) is None, "H depends on rho"
    assert preset.risk_threshold(Edm()) is None
    assert PAPER_PRESETS["edm-ffhq-64x64-uncond-ve"].risk_threshold(preset.sampler("rods-cas", {})) is None


def test_a_preset_names_its_fitted_detectors() -> None:
    samplers = {"restart": {"detector": "readout", "threshold": 0.5, "sigma_r": 2}}
    preset = parse_preset({**GOOD, "samplers": samplers, "readout": "x"}, where="F", fitted={"readout": READOUT})
    assert preset.samplers == {"restart": Restart(detector=READOUT, threshold=0.5, sigma_r=2)}
    with pytest.raises(ValueError, match=r"^F, restart: detector: "):
        parse_preset({**GOOD, "samplers": samplers}, where="F")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"extra": 1}, "F is not a preset"),
        ({"samplers": [1]}, "F is not a preset"),
        ({"detect_eps": {"rods-cas": -1}}, "F: detect_eps "),
        ({"detect_eps": 0.1}, "F: detect_eps "),
        ({"name": 3}, "F: name "),
        ({"network": ["x"]}, "F: network "),
        ({"source": None}, "F: source "),
        ({"samplers": {"ddim": {}}}, "F: unknown sampler 'ddim'"),
        ({"samplers": {"rods-cas": 5}}, "F: rods-cas "),
        ({"samplers": {"rods-cas": {"eps": 1}}}, "F, rods-cas: rho: "),
        ({"samplers": {"rods-cas": {"eps": 1, "rho": 1, "radius": 2}}}, "F, rods-cas: radius: "),
        ({"samplers": {"rods-cas": {"eps": "1", "rho": 1}}}, "F, rods-cas: eps: "),
        ({"samplers": {"rods-cas": {"eps": 1, "rho": 1, "window": "0-1"}}}, "F, rods-cas: window: "),
    ],
)
def test_what_is_no_preset_is_one_line_that_names_the_entry(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=f"^{says}") as error:
        parse_preset({**GOOD, **changes}, where="F")
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match=r"^F is not a preset"):
        parse_preset([GOOD], where="F")


def test_the_presets_beside_the_embedded_networks_are_whole() -> None:
    paths = sorted((ROOT / "models").glob("*.preset.json"))
    assert paths
    for path in paths:
        preset = read_preset(path)
        own = {f"{preset.network}{kind}.preset.json" for kind in ("", "-gate", "-labels")}
        assert path.name in own, "NAME-gate: scripts/fit_gate.py's, without labels; NAME-labels: with some"
        assert preset.samplers
        assert (ROOT / "models" / f"{preset.network}.safetensors").is_file()


# -- of before version 0.2 --------------------------------------------------------------------------------------------

OLD_RESTART = {
    "threshold": 0.2, "sigma_r": 5.38, "rounds": 3, "margin": 0, "detector": "readout", "lid_sigma": 1.38, "draws": 2,
    "tvf_sigma": 0.134, "score_at": 0.131, "rho": 0, "window": "0,1", "inside": "cas", "ascent_steps": 1,
    "sas_sign": "uphill", "inside_solver": None, "num_steps": 40, "solver": "euler",
}  # fmt: skip


def old_preset(**restart: Any) -> Preset:
    weights = {"bias": 1.0, "terms": [{"score": "lid", "weight": 2.0}]}
    data = {**GOOD, "samplers": {"restart": {**OLD_RESTART, **restart}}, "readout": as_text(READOUT),
            "learned": weights, "retention": [{}]}  # fmt: skip
    found, fitted = legacy.preset(data)
    found["readout"] = "x"
    return parse_preset(found, where="F", fitted=fitted)


def test_an_old_preset_is_read() -> None:
    """As hands-32's was: a readout as text, dead options of the restart, tables of removed features."""
    restart = old_preset().samplers["restart"]
    assert restart == Restart(threshold=0.2, sigma_r=5.38, detector=READOUT, score_at=0.131)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"detector": "lid"}, {"detector": Lid(1.38, 2)}),
        ({"detector": "tvf"}, {"detector": Tvf(0.134)}),
        ({"detector": "lid:sigma=.7,draws=3,first=0,near=0.2"}, {"detector": Lid(0.7, 3)}),
        ({"rho": 0.5}, {"inside": Cas(0.5)}),
        ({"rho": 0.5, "ascent_steps": 3}, {"inside": Cas(0.5, 3)}),
        ({"rho": 0.5, "inside": "sas", "sas_sign": "downhill"}, {"inside": Sas(0.5, "downhill")}),
        ({"rho": 0.5, "inside": "overshoot"}, {"inside": Overshoot(0.5)}),
    ],
)
def test_old_options_of_a_restart_are_read(changes: dict[str, Any], expected: dict[str, Any]) -> None:
    known = {"threshold": 0.2, "sigma_r": 5.38, "detector": READOUT, "score_at": 0.131}
    assert old_preset(**changes).samplers["restart"] == Restart(**{**known, **expected})


@pytest.mark.parametrize(
    "changes",
    [
        {"detector": "learned"},
        {"detector": "screen(tvf>.1;lid)"},
        {"detector": "lid:draws=4,first=2"},
        {"rho": 0.5, "window": "0,.5"},
        {"rho": 0.5, "inside_solver": "heun"},
    ],
)
def test_old_options_that_were_removed_and_act_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"^(F, restart: )?(detector|window, inside_solver): "):
        old_preset(**changes)


def test_a_readout_as_text_is_read_and_what_is_none_is_refused() -> None:
    assert legacy.readout_from_text(as_text(READOUT)) == READOUT
    for body in ("", "a;1;2;f;3;4", "a;1;2;f;3;4;!!", "a;1;2;f;3;4;AAAA", "a;x;2;f;3;4;AAAAAA=="):
        with pytest.raises(ValueError, match=r"^readout: "):
            legacy.readout_from_text(f"readout({body})")


OLD_IDENTITIES: list[dict[str, Any]] = json.loads((GOLDEN / "identities.json").read_text())


@pytest.mark.parametrize("old", OLD_IDENTITIES, ids=lambda old: " ".join(old["options"]))
def test_an_old_identity_reads_as_one_of_now(old: dict[str, Any]) -> None:
    """tests/runs/test_folder.py takes up the runs themselves."""
    new = legacy.identity(old["identity"])
    assert new == legacy.identity(new), "one of now stays as it is"
    assert new["sampler"] == "iq" or not {"lid_sigma", "draws"} & set(new)
    assert not {"tvf_sigma", "inside_solver", "epsilon_s"} & set(new)
    assert not any("first=" in str(value) for value in new.values())


def test_an_identity_that_is_none_of_now_stays_as_it_is() -> None:
    strange = {"sampler": "restart", "detector": "learned", "threshold": 1.0, "sigma_r": 2.0}
    for data in (strange, {"sampler": "ddim"}, {}, {"sampler": ["x"]}, {"sampler": "edm", "num_steps": "many"}):
        assert legacy.identity(data) == data
    now = {**to_json(Restart(threshold=0.5, sigma_r=2, detector=READOUT)), "batch": 4}
    assert legacy.identity(now) == now
    old = {**{k: v for k, v in now.items() if k != "detector_sha256"}, "detector": as_text(READOUT)}
    assert legacy.identity(old) == now
    chosen = {**to_json(Edm()), "filter": f"{as_text(READOUT)}<=0.5", "rejected": False}
    assert legacy.identity(chosen) == {**chosen, "filter": "readout<=0.5", "filter_sha256": READOUT.digest}
    plain = {**to_json(RodsCas(eps=0.1, rho=1)), "dtype": "float32"}
    assert legacy.identity(plain) == plain


def test_a_threshold_is_not_taken_for_another_detectors_scores() -> None:
    samplers = {
        "restart": build("restart", {"threshold": 0.2, "sigma_r": 5.38, "detector": Lid(1.2, 4)}),
        "rods-cas": build("rods-cas", {"eps": 0.1, "rho": 1}),
    }
    preset = Preset("mine", None, "a test", samplers)
    with pytest.raises(ValueError, match=r"^threshold: preset mine has one for another detector"):
        preset.sampler("restart", {"detector": Tvf()})
    with pytest.raises(ValueError, match=r"^eps: preset mine has one for another detector"):
        preset.sampler("rods-cas", {"detector": LambdaMax()})
    assert preset.sampler("restart", {"detector": Lid(1.2, 4)}) == samplers["restart"]
    given: Any = preset.sampler("restart", {"detector": Tvf(), "threshold": 0.01})
    assert (given.detector, given.threshold, given.sigma_r) == (Tvf(), 0.01, 5.38)
