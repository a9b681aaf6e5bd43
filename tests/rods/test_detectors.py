"""Scores of images: closed forms, laws, what they cost, their text, and that they know no mates."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from exact import Counting, latents, mixture
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from rods import SigmaWindow, bind, curvature_index, gaussian, lid, trajectory, tvf
from rods.combined_scores import Learned, Screened, Term, logistic
from rods.evaluation import norms
from rods.image_scores import HIndex, LambdaMax, Lid, Lmi, Score, Tvf
from rods.pipeline import SAMPLERS, SamplerConfig, cut_chunks, sample_chunk
from rods.schedules import edm_grid
from rods.score_text import format_score, learned_as_json, learned_of_json, parse_score
from rods.scoring import Limit, whole_draws
from rods.types import Step
from torch_utils.rng import SeedStreams

CPU = torch.device("cpu")
SEEDS = [11, 3, 7, 29, 5, 2]
S0 = 0.5
LEVELS = torch.cat([edm_grid(10, sigma_min=0.002, sigma_max=80, time_rho=7), torch.zeros(1, dtype=torch.float64)])


def isotropic() -> Any:
    return gaussian(torch.zeros(2, 3, 3), S0)


def run(denoiser: Any) -> list[Step]:
    return list(trajectory(denoiser, 80 * latents().double(), LEVELS))


def draws(k: int) -> Tensor:
    draw = SeedStreams(SEEDS, CPU).third().randn_like
    return whole_draws(bind(mixture(), 6), latents().double(), draw, k)


def measured(score: Score, denoiser: Any = None, *, limit: float = math.inf) -> tuple[Tensor, Any]:
    """The score of the run's images, and the denoiser that was asked for it."""
    denoiser = denoiser or mixture()
    steps, denoise = run(denoiser), bind(denoiser, 6)
    watch = score.watch(denoise, draws(score.draws), limit=limit, solver="euler")
    for step in steps:
        watch.add(step)
    return watch.score(steps[-1].x_next), denoise


# -- what each of them is ---------------------------------------------------------------------------------------------


def test_lid_and_tvf_are_those_of_the_library() -> None:
    steps = run(mixture())
    score, denoise = measured(Lid(sigma=0.7, draws=3))
    assert torch.equal(score, lid(mixture(), steps[-1].x_next, 0.7, noise=draws(3)))
    assert denoise.forward.tolist() == [3] * 6
    score, denoise = measured(Tvf(sigma=1.5))
    assert torch.equal(score, tvf(steps, window=SigmaWindow(0, 1.5)))
    assert denoise.forward.tolist() == [0] * 6


def test_few_draws_decide_where_they_leave_no_doubt() -> None:
    few, all_ = measured(Lid(sigma=0.7, draws=2))[0], measured(Lid(sigma=0.7, draws=5))[0]
    limit = float(few.sort().values[2]) * 1.01
    near = (few - limit).abs() <= 0.05 * limit
    assert near.any()
    assert not near.all()
    score, denoise = measured(Lid(sigma=0.7, draws=5, first=2, near=0.05), limit=limit)
    torch.testing.assert_close(score, torch.where(near, all_, few), rtol=1e-12, atol=0)
    assert denoise.forward.tolist() == torch.where(near, 5, 2).tolist()
    for certain in (Lid(sigma=0.7, draws=5, first=2, near=1e9), Lid(sigma=0.7, draws=5, first=2)):
        everywhere = measured(certain, limit=limit if certain.near > 1 else math.inf)
        torch.testing.assert_close(everywhere[0], all_, rtol=1e-12, atol=0)
        assert everywhere[1].forward.tolist() == [5] * 6


@pytest.mark.parametrize("scaled", [True, False])
@pytest.mark.parametrize("mean", [True, False])
def test_h_index_is_the_largest_or_mean_over_the_steps_of_its_range(scaled: bool, mean: bool) -> None:
    inside = [step for step in run(mixture()) if 0.2 <= float(step.sigma) <= 3]
    assert len(inside) > 1
    H = torch.stack([curvature_index(mixture(), step.x, step.sigma, rho=0.3) for step in inside])
    if scaled:
        H = H * torch.tensor([float(step.sigma) ** 3 / 0.3 for step in inside])[:, None]
    score, denoise = measured(HIndex(rho=0.3, lo=0.2, hi=3, scaled=scaled, mean=mean))
    torch.testing.assert_close(score, H.mean(dim=0) if mean else H.amax(dim=0))
    assert denoise.forward.tolist() == denoise.backward.tolist() == [2 * len(inside)] * 6
    assert measured(HIndex(rho=0.3, lo=0.2, hi=3), isotropic())[0].abs().max() < 1e-9


def test_lambda_max_of_a_gaussian_is_known_and_bounds_h() -> None:
    """There it is 1 / ((s0^2 + t^2) ||x||)."""
    inside = [step for step in run(isotropic()) if 0.5 <= float(step.sigma) <= 3]
    known = [float(s.sigma) ** 3 / ((S0**2 + float(s.sigma) ** 2) * norms(s.x)) for s in inside]
    score, denoise = measured(LambdaMax(iterations=3), isotropic())
    torch.testing.assert_close(score, torch.stack(known).amax(dim=0), rtol=0.02, atol=0)
    assert denoise.forward.tolist() == denoise.backward.tolist() == [4 * len(inside)] * 6
    H = measured(HIndex(rho=1e-4, lo=0.2, hi=3))[0]
    assert (measured(LambdaMax(iterations=18, lo=0.2, hi=3))[0] > 0.999 * H).all()


def test_lmi_of_a_linear_sampler_is_known() -> None:
    """On a Gaussian each Euler step scales the state: the images' covariance is that of the noise, scaled."""
    scale = 80.0
    for t, t_next in pairwise(LEVELS.tolist()):
        scale *= 1 + (t_next - t) * t / (S0**2 + t**2)
    e = draws(5)
    known = scale**2 * e.var(dim=0, unbiased=True).flatten(1).sum(dim=1)
    score, denoise = measured(Lmi(eps=0.01, runs=5), isotropic())
    torch.testing.assert_close(score, known, rtol=1e-9, atol=0)
    assert denoise.forward.tolist() == [5 * 10] * 6
    halved = measured(Lmi(eps=1e-4, runs=5))[0]
    torch.testing.assert_close(measured(Lmi(eps=1e-5, runs=5))[0], halved, rtol=1e-2, atol=0)


def test_a_learned_combination_is_a_logistic_of_its_terms() -> None:
    a, b = measured(Lid(sigma=0.7, draws=2))[0], measured(Tvf(sigma=1.5))[0]
    learned = Learned(-1.5, (Term(0.2, Lid(sigma=0.7, draws=2)), Term(-0.7, Tvf(sigma=1.5), log=True)))
    score, denoise = measured(learned)
    torch.testing.assert_close(score, 1 / (1 + torch.exp(1.5 - 0.2 * a + 0.7 * b.log())))
    assert denoise.forward.tolist() == [2] * 6
    assert float(logistic(0.0, [], [])) == 0.5
    assert measured(Learned(0, (Term(1.0, HIndex(rho=0.3), log=True),)), isotropic())[0].isfinite().all()


def test_a_screen_decides_who_gets_the_full_score() -> None:
    cheap, full = measured(Tvf(sigma=1.5))[0], measured(Lid(sigma=0.7, draws=3))[0]
    above = float(cheap.sort().values[3])
    score, denoise = measured(Screened(Tvf(sigma=1.5), above, Lid(sigma=0.7, draws=3)))
    torch.testing.assert_close(score, torch.where(cheap > above, full, 0.0), rtol=1e-12, atol=0)
    assert denoise.forward.tolist() == torch.where(cheap > above, 3, 0).tolist()
    nobody, denoise = measured(Screened(Tvf(sigma=1.5), math.inf, Lid(sigma=0.7, draws=3)))
    assert not nobody.any()
    assert not denoise.forward.any()


# -- beside a sampler -------------------------------------------------------------------------------------------------

EACH: list[Score] = [
    Lid(sigma=0.7, draws=3),
    Lid(sigma=0.7, draws=4, first=1, near=0.05),
    Tvf(sigma=1.5),
    HIndex(rho=0.3, lo=0.2, hi=3),
    LambdaMax(iterations=3, lo=0.2, hi=3),
    Lmi(runs=2),
    Learned(-1.5, (Term(0.2, Lid(sigma=0.7, draws=2)), Term(0.7, Tvf(sigma=1.5), log=True))),
    Screened(Tvf(sigma=1.5), 4e-4, Lid(sigma=0.7, draws=3)),
]
NEEDED: dict[str, dict[str, Any]] = {
    "rods-cas": {"eps": 0.1, "rho": 0.3}, "rods-sas": {"eps": 0.1, "rho": 0.3}, "overshoot": {"rho": 0.3},
    "sigma-offset": {"kappa": 0.1}, "restart": {"threshold": 0.18, "sigma_r": 2.0, "lid_sigma": 0.7},
    "iq": {"strength": 0.1, "threshold": 0.0, "window": SigmaWindow(0.3, 8)}, "tag": {"eta": 1.1},
    "random": {"rho": 0.3}, "laplacian": {"strength": 0.1},
}  # fmt: skip


class Known:
    """The mixture as a network that says what it is."""

    img_channels, img_resolution, label_dim = 2, 3, 0
    sigma_min, sigma_max = 0.0, math.inf

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        return mixture()(x, sigma)

    def round_sigma(self, sigma: Tensor) -> Tensor:
        return sigma


def sampled(sampler: str, seeds: list[int], *scores: Score, net: Any = None) -> Any:
    (chunk,) = cut_chunks(seeds, batch=len(seeds))
    config = SamplerConfig(sampler, {**NEEDED.get(sampler, {}), "num_steps": 10})
    limits = [Limit(score, 0.19) for score in scores]
    return sample_chunk(net or Known(), chunk, config, device=CPU, limits=limits)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_score_changes_no_image_and_its_passes_are_counted(sampler: str) -> None:
    scores = [score for score in EACH if sampler != "restart" or score.sees == 0]
    counting = Counting(Known())
    for name in ("img_channels", "img_resolution", "label_dim"):
        setattr(counting, name, getattr(Known, name))
    plain, scored = sampled(sampler, SEEDS), sampled(sampler, SEEDS, *scores, net=counting)
    assert torch.equal(scored.images, plain.images)
    assert len(scored.risks) == len(scores)
    assert all(math.isfinite(risk) for risks in scored.risks for risk in risks)
    assert sum(r.forward for r in scored.records) == counting.forward > sum(r.forward for r in plain.records)
    assert sum(r.backward for r in scored.records) == counting.backward


@pytest.mark.parametrize("score", EACH, ids=format_score)
def test_a_score_knows_no_mates(score: Score) -> None:
    (together,) = sampled("euler", SEEDS, score).risks
    assert len(set(together)) > 1
    for order in ([5, 0, 3, 1, 4, 2], [2, 4], [1]):
        (part,) = sampled("euler", [SEEDS[b] for b in order], score).risks
        assert part == pytest.approx([together[b] for b in order], rel=1e-6)


def test_restart_takes_steps_again_so_that_scores_of_steps_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"tvf:sigma=1\.5 looks at a run's steps, and restart takes some of them again"
    ):
        sampled("restart", SEEDS, Tvf(sigma=1.5))


def test_scores_draw_from_the_third_stream() -> None:
    done = sampled("random", SEEDS, Lid(sigma=0.7, draws=3))
    assert done.risks[0] == tuple(lid(mixture(), done.images, 0.7, noise=draws(3)).tolist())


# -- as text ----------------------------------------------------------------------------------------------------------

numbers = st.floats(-1e9, 1e9, allow_nan=False)
levels = st.floats(1e-3, 1e3)
ranges = st.tuples(levels, levels).map(sorted)
simple: st.SearchStrategy[Score] = st.one_of(
    st.builds(lambda s, k, f, n: Lid(s, k + f, f, n), levels, st.integers(1, 9), st.integers(0, 9), levels),
    st.builds(Tvf, levels),
    st.builds(lambda rho, r, a, b: HIndex(rho, *r, a, b), levels, ranges, st.booleans(), st.booleans()),
    st.builds(lambda k, r, b: LambdaMax(k, *r, b), st.integers(1, 9), ranges, st.booleans()),
    st.builds(Lmi, levels, st.integers(2, 9)),
)
terms = st.lists(st.builds(Term, numbers, simple, st.booleans()), min_size=1, max_size=3).map(tuple)
learned_ones = st.builds(Learned, numbers, terms)
screens = st.builds(Screened, simple, numbers, st.builds(Lid, levels, st.integers(1, 9)))


@given(st.one_of(simple, learned_ones, screens))
def test_a_score_survives_being_written(score: Score) -> None:
    assert parse_score(format_score(score)) == score


@given(learned_ones)
def test_a_learned_combination_survives_being_json(learned: Learned) -> None:
    assert learned_of_json(learned_as_json(learned)) == learned


def test_scores_are_written_as_people_would() -> None:
    assert parse_score(" lid ") == Lid()
    assert parse_score("h-index: rho=4, scaled=false") == HIndex(4, scaled=False)
    mix = Learned(-3.2, (Term(0.5, Lid()), Term(1.0, Tvf(), log=True)))
    assert parse_score("learned(-3.2; .5*lid; 1*log(tvf))") == mix
    assert parse_score("learned", named={"learned": mix}) == mix
    assert parse_score("screen(tvf>.01;lid:draws=8)") == Screened(Tvf(), 0.01, Lid(draws=8))
    plain = Learned(1, (Term(2, Lid()),))
    assert parse_score("screen(tvf>.01;learned)", named={"learned": plain}) == Screened(Tvf(), 0.01, plain)
    assert format_score(Lid(1.2, 4)) == "lid:sigma=1.2,draws=4,first=0,near=0.2"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "unknown detector ''; give lid or tvf or h-index or lambda-max or lmi or learned or readout"),
        ("iq", "unknown detector 'iq'"),
        ("readout:draws=2", "readout: its options are the preset's; give readout alone"),
        ("lid:t=3", "lid has no option 't'; it has sigma, draws, first, near, as in lid:sigma=1.2"),
        ("lid:", "lid has no option ''"),
        ("lid:draws=1.5", "lid: draws: '1.5' will not do; give a whole number"),
        ("lid:sigma=x", "lid: sigma: 'x' will not do; give a number"),
        ("lid:sigma=1,sigma=2", "lid: sigma is given twice"),
        ("lid:sigma=0", "lid: sigma: 0.0 is not a noise level"),
        ("lid:sigma=nan", "lid: sigma: nan is not a noise level"),
        ("lid:draws=0", "lid: draws: 0 is too few"),
        ("lid:draws=4,first=4", "lid: first: 4 of 4 draws"),
        ("lid:near=inf", "lid: near: inf is not a part"),
        ("tvf:sigma=-1", "tvf: sigma: -1.0 is not a noise level"),
        ("h-index:scaled=1", "h-index: scaled: '1' will not do; give true or false"),
        ("h-index:lo=3,hi=1", "h-index: lo, hi: 3.0, 1.0 is no range"),
        ("h-index:rho=0", "h-index: rho: 0 leaves no neighbourhood"),
        ("h-index:rho=-1", "h-index: rho: -1.0 is not a radius"),
        ("lambda-max:iterations=0", "lambda-max: iterations: 0 is too few"),
        ("lmi:runs=1", "lmi: runs: 1 is too few; give a whole number >= 2"),
        ("lmi:eps=0", "lmi: eps: 0.0 is not a length"),
        ("learned", "learned: no preset gives its weights"),
        ("learned()", "learned: '' will not do; give a number"),
        ("learned(1)", "learned: no terms"),
        ("learned(1;lid)", "learned: 'lid' is no term; write weight"),
        ("learned(1;2*log(lid)", "learned: '2.log.lid' is no term"),
        ("learned(inf;2*lid)", "learned: a weight is not finite"),
        ("screen(lid)", r"'screen\(lid\)' is no screen"),
        ("screen(tvf>x;lid)", "screen: 'x' will not do; give a number"),
        ("screen(tvf>nan;lid)", "screen: nan is not a score"),
        ("screen(lid>3;tvf)", "screen: only a score of the image can be left out"),
    ],
)
def test_what_is_no_score_is_one_clear_line(text: str, says: str) -> None:
    with pytest.raises(ValueError, match=f"^{says}"):
        parse_score(text)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ([], "learned needs exactly the keys bias, terms"),
        ({"bias": 1}, "learned needs exactly"),
        ({"bias": "1", "terms": []}, "learned: '1' is not a weight"),
        ({"bias": True, "terms": []}, "learned: True is not a weight"),
        ({"bias": 1, "terms": []}, "learned: no terms"),
        ({"bias": 1, "terms": [{"score": "lid"}]}, "learned: a term needs the keys score, weight"),
        ({"bias": 1, "terms": [{"score": "lid", "weight": 1, "power": 2}]}, "learned: a term needs the keys"),
        ({"bias": 1, "terms": [{"score": 1, "weight": 1}]}, "learned: a term's score is a text"),
        ({"bias": 1, "terms": [{"score": "lid", "weight": math.inf}]}, "learned: inf is not a weight"),
        ({"bias": 1, "terms": [{"score": "iq", "weight": 1}]}, "unknown detector 'iq'"),
    ],
)
def test_what_is_no_combination_is_one_clear_line(data: Any, says: str) -> None:
    with pytest.raises(ValueError, match=f"^{says}"):
        learned_of_json(data)


def test_a_range_without_steps_is_refused() -> None:
    for score in (HIndex(lo=0.6, hi=0.61), Tvf(sigma=1e-4), LambdaMax(lo=0.6, hi=0.61)):
        with pytest.raises(ValueError, match="the score's range: no step lies at noise levels"):
            measured(score)


def test_the_noise_is_that_of_the_rows() -> None:
    """`whole_draws` draws for the whole batch, and nothing where nothing is needed."""
    calls: list[Tensor] = []

    def draw(x: Tensor) -> Tensor:
        calls.append(x)
        return torch.ones_like(x)

    rows = bind(mixture(), 6).rows(torch.tensor([4, 1]))
    assert whole_draws(rows, latents()[[4, 1]], draw, 2).shape == (2, 6, 2, 3, 3)
    assert whole_draws(rows, latents()[[4, 1]], draw, 0).shape == (0, 6, 2, 3, 3)
    assert len(calls) == 2
