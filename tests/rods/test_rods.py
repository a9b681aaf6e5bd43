"""RODS: reference vectors, detection and correction together, windows, passes of its options, records."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from exact import Counting, close, conditional, golden, latents, mixture
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rods import (
    Cas,
    CurvatureIndex,
    Gate,
    LambdaMax,
    RodsCas,
    SigmaWindow,
    Within,
    edm_sampler,
    euler_sampler,
    in_window,
    rods_sampler,
    trajectory,
)

FINALS = sorted(k for k in golden("rods/mixture") if k.startswith(("cas_", "sas_", "heun_cas_")))
EPS = float(golden("rods/mixture")["eps_gate"])
EPS2 = float(golden("rods/mixture")["eps_gate2"])


# -- reference vectors ------------------------------------------------------------------------------------------------


def test_every_reference_is_used() -> None:
    others = {"t_steps", "euler_40", "x", "norm_v", "grad_norm_v", "H_rho0.1", "H_rho0.5", "eps_gate", "eps_gate2"}
    assert set(golden("rods/mixture")) == others | set(FINALS)
    assert len(FINALS) == 13


@pytest.mark.parametrize("name", FINALS)
def test_final_images_are_the_reference(name: str) -> None:
    *solver, method = name.split("_rho")[0].replace("_uphill", "").replace("_downhill", "").split("_")
    rho, eps, lo, hi = name.split("_rho")[1].split("_")
    result = rods_sampler(
        mixture(),
        latents(),
        method=method,  # type: ignore[arg-type]
        eps={"all": 0, "gated": EPS, "gated2": EPS2}[eps],
        rho=float(rho),
        window=(int(lo) / 100, int(hi) / 100),
        solver="heun" if solver else "euler",
        sas_sign="downhill" if "downhill" in name else "uphill",
    )
    assert close(result.images, golden("rods/mixture")[name], tol=1e-7)


# -- bit for bit ------------------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(
    lo=st.floats(0, 1), hi=st.floats(0, 1), num_steps=st.integers(1, 12), method=st.sampled_from(["cas", "sas"]),
    rho=st.floats(0, 5), solver=st.sampled_from(["euler", "heun"]),
)  # fmt: skip
def test_nothing_is_corrected_at_eps_inf_or_rho_0(
    lo: float, hi: float, num_steps: int, method, rho: float, solver: str
) -> None:  # type: ignore[no-untyped-def]
    window = (min(lo, hi), max(lo, hi))
    plain = {"euler": euler_sampler, "heun": edm_sampler}[solver](mixture(), latents(), num_steps=num_steps)
    options = {"method": method, "window": window, "num_steps": num_steps, "solver": solver}
    detected = rods_sampler(mixture(), latents(), eps=math.inf, rho=rho, **options)  # type: ignore[arg-type]
    assert torch.equal(detected.images, plain)
    assert all(record.flagged == () for record in detected.records)
    assert torch.equal(rods_sampler(mixture(), latents(), eps=0, rho=0, **options).images, plain)  # type: ignore[arg-type]
    blind = rods_sampler(mixture(), latents(), eps=0, rho=0, detect=False, **options)  # type: ignore[arg-type]
    assert torch.equal(blind.images, plain)


def test_a_sample_never_flagged_is_eulers_image() -> None:
    result = rods_sampler(mixture(), latents(), eps=EPS, rho=0.1)
    plain = euler_sampler(mixture(), latents())
    quiet = [b for b, record in enumerate(result.records) if not record.flagged]
    assert 0 < len(quiet) < 6
    for b in range(6):
        assert torch.equal(result.images[b], plain[b]) == (b in quiet)


# -- cost -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "forward", "backward"),
    [
        ({"method": "cas", "eps": 0, "detect": False}, 56, 16),  # 2F + B in the window
        ({"method": "cas", "eps": 0}, 56, 32),  # detection: 2F + 2B
        ({"method": "cas", "eps": math.inf}, 56, 32),
        ({"method": "sas", "eps": 0, "detect": False}, 56, 0),  # 2F
        ({"method": "sas", "eps": 0}, 72, 32),  # one F more where flagged
        ({"method": "sas", "eps": math.inf}, 56, 32),
        ({"method": "cas", "eps": 0, "solver": "heun"}, 95, 32),
        ({"method": "cas", "eps": 0, "ascent_steps": 3, "detect": False}, 88, 48),
        ({"method": "cas", "eps": 0, "ascent_steps": 3}, 88, 48),  # H shares the first probe
        ({"gradient": "difference", "detect": False}, 72, 0),  # 16 steps in the window: 3F
        ({"gradient": "difference"}, 88, 0),  # 4F
        ({"gradient": "difference", "eps": math.inf}, 88, 0),
        ({"gradient": "difference", "method": "sas"}, 104, 0),  # the SAS point is one more
        ({"gradient": "difference", "ascent_steps": 3, "detect": False}, 136, 0),  # 7F
        ({"gradient": "difference", "solver": "heun"}, 127, 0),
        ({"probe_every": 4, "detect": False}, 44, 4),  # B at steps 4, 8, 12, 16 only, and one F between
        ({"probe_every": 4}, 44, 8),
        ({"probe_every": 4, "ascent_steps": 2, "detect": False}, 72, 20),  # g at x + rho u in all steps
        ({"probe_every": 4, "eps": math.inf}, 44, 8),  # none flagged: F between the probes
        ({"probe_every": 4, "method": "sas"}, 60, 8),
        ({"probe_every": 3, "detect": False, "gradient": "difference"}, 52, 0),  # 6 probes
        ({"probe_every": 100, "gradient": "difference"}, 43, 0),
    ],
)
def test_records_tell_the_passes_that_were_made(options: dict, forward: int, backward: int) -> None:  # type: ignore[type-arg]
    count = Counting(mixture())
    result = rods_sampler(count, latents(), **{"eps": 0, "rho": 0.1, **options})
    assert [(r.forward, r.backward) for r in result.records] == [(forward, backward)] * 6
    assert (count.forward, count.backward) == (6 * forward, 6 * backward)


@pytest.mark.parametrize("method", ["cas", "sas"])
@pytest.mark.parametrize("ascent_steps", [1, 3])
def test_only_flagged_samples_are_evaluated_again(method, ascent_steps: int) -> None:  # type: ignore[no-untyped-def]
    count = Counting(mixture())
    result = rods_sampler(count, latents(), method=method, eps=EPS2, rho=0.1, ascent_steps=ascent_steps)
    assert sum(r.forward for r in result.records) == count.forward
    assert sum(r.backward for r in result.records) == count.backward
    again = {("cas", 1): (0, 0), ("cas", 3): (2, 1), ("sas", 1): (1, 0), ("sas", 3): (1, 0)}[method, ascent_steps]
    flags = {len(record.flagged) for record in result.records}
    assert len(flags) > 1
    for record in result.records:
        assert record.forward == 56 + again[0] * len(record.flagged)
        assert record.backward == 32 + again[1] * len(record.flagged)


def test_records_are_plain_frozen_numbers() -> None:
    t = golden("rods/mixture")["t_steps"].tolist()
    result = rods_sampler(mixture(), latents(), eps=EPS, rho=0.1)
    assert result.images.dtype == torch.float64
    assert not result.images.requires_grad
    for record in result.records:
        assert record.probed == tuple(range(4, 20))
        assert record.sigma == pytest.approx(t[4:20], rel=1e-12)
        assert record.flagged == tuple(i for i, h in zip(record.probed, record.H, strict=True) if h >= EPS)
        assert record.H_scaled == pytest.approx([h * s**3 / 0.1 for h, s in zip(record.H, record.sigma, strict=True)])
        with pytest.raises(dataclasses.FrozenInstanceError):
            record.forward = 0  # type: ignore[misc]
    assert set(rods_sampler(mixture(), latents(), eps=0, rho=0).records[0].H_scaled) == {0.0}
    blind = rods_sampler(mixture(), latents(), eps=0, rho=0.1, detect=False).records[0]
    assert (blind.probed, blind.H, blind.flagged) == ((), (), tuple(range(4, 20)))


# -- windows and combinators ------------------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(num_steps=st.integers(1, 400), cut=st.integers(0, 400))
@example(num_steps=25, cut=7)  # .28 * 25 > 7 in floating point
def test_windows_that_meet_share_no_step_and_miss_none(num_steps: int, cut: int) -> None:
    middle = min(cut, num_steps) / num_steps
    for i in range(num_steps):
        where = [in_window(w, i=i, num_steps=num_steps, sigma=1.0) for w in ((0, middle), (middle, 1))]
        assert where == [i < min(cut, num_steps), i >= min(cut, num_steps)]


def test_the_published_window_is_steps_4_to_19() -> None:
    assert [i for i in range(40) if in_window((0.1, 0.5), i=i, num_steps=40, sigma=1)] == list(range(4, 20))


def test_a_window_in_noise_levels_is_that_of_its_steps() -> None:
    t = golden("rods/mixture")["t_steps"]
    by_sigma = rods_sampler(mixture(), latents(), eps=0, rho=0.1, window=SigmaWindow(float(t[19]) - 1e-9, 44.7))
    by_step = rods_sampler(mixture(), latents(), eps=0, rho=0.1)
    assert by_sigma.records == by_step.records
    assert torch.equal(by_sigma.images, by_step.images)


def test_rods_sampler_is_within_gate_cas() -> None:
    t = golden("rods/mixture")["t_steps"]
    correct = Within((0.1, 0.5), Gate(CurvatureIndex(0.1), EPS, Cas(0.1)))
    assert RodsCas(eps=EPS, rho=0.1).corrector == correct
    x = golden("rods/mixture")["cas_rho0.1_gated_10_50"]
    assert close(list(trajectory(mixture(), t[0] * latents(), t, correct=correct))[-1].x_next, x, tol=1e-7)


def test_another_detector_of_steps_decides_in_place_of_h() -> None:
    found = RodsCas(eps=math.inf, rho=0.1, detector=LambdaMax(iterations=2)).sample(mixture(), latents())
    assert all(not record.H and len(record.scores) == 16 for record in found.records)
    scores = sorted(score for record in found.records for score in record.scores)
    eps = scores[len(scores) // 2]
    gated = RodsCas(eps=eps, rho=0.1, detector=LambdaMax(iterations=2)).sample(mixture(), latents())
    assert {record.probed for record in gated.records} == {tuple(range(4, 20))}
    for record in gated.records:
        assert record.flagged == tuple(i for i, s in zip(record.probed, record.scores, strict=True) if s >= eps)
    same = RodsCas(eps=EPS, rho=0.1, detector=CurvatureIndex(0.1)).sample(mixture(), latents())
    assert torch.equal(same.images, rods_sampler(mixture(), latents(), eps=EPS, rho=0.1).images)


def test_labels_follow_the_flagged_rows() -> None:
    """Every row has a class that shifts its data; a gather that lost track would mix them up."""
    labels = torch.eye(6, dtype=torch.float64)
    for method in ("cas", "sas"):
        together = rods_sampler(conditional, latents(), labels, method=method, eps=EPS2, rho=0.1)  # type: ignore[arg-type]
        assert len({record.flagged for record in together.records}) > 1
        for b in range(6):
            alone = rods_sampler(conditional, latents()[b, None], labels[b, None], method=method, eps=EPS2, rho=0.1)  # type: ignore[arg-type]
            torch.testing.assert_close(alone.images[0], together.images[b], rtol=0, atol=1e-12)


# -- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "option"),
    [
        ({"rho": -1}, "rho"),
        ({"rho": math.nan}, "rho"),
        ({"eps": -0.1}, "eps"),
        ({"eps": math.nan}, "eps"),
        ({"eps": 0.1, "detect": False}, "detect"),
        ({"method": "iq"}, "method"),
        ({"method": "sas", "sas_sign": "up"}, "sas_sign"),
        ({"window": (0.5, 0.1)}, "window"),
        ({"window": (0.1,)}, "window"),
        ({"solver": "rk4"}, "solver"),
        ({"ascent_steps": 0}, "ascent_steps"),
        ({"gradient": "forward"}, "gradient"),
        ({"probe_every": 0}, "probe_every"),
        ({"method": "sas", "detect": False, "probe_every": 2}, "gradient, probe_every"),
        ({"num_steps": 0}, "num_steps"),
    ],
)
def test_bad_arguments_are_one_line_that_names_the_argument(options: dict[str, Any], option: str) -> None:
    with pytest.raises(ValueError, match=f"^{option}: ") as error:
        rods_sampler(mixture(), latents(), **{"eps": 0, "rho": 1, **options})
    assert "\n" not in str(error.value)
