"""Guided denoisers: labels, gates, guides that need no second network, what is refused, EDM2's reference numbers."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from commands import LABELLED, PLAIN
from exact import CPU, Counting, isotropic, latents, mixture, normal, state
from torch import Tensor, nn
from vectors import relative_error, tensors, vector_file

from rods import Readout, bind, euler_sampler, guided, rods_sampler
from rods.base_samplers import Edm, Euler
from rods.denoiser import norms, unit
from rods.dropout import Dropout
from rods.gate import activations, fingerprint
from rods.guidance import Guidance, Noisier, guide_to_text, interval_from_text
from rods.micro_batches import MicroBatches
from rods.runs.chunk import Chunk, sample_chunk
from rods.schedules import SigmaWindow
from rods.wrappers import FunctionDenoiser
from torch_utils.rng import SeedStreams
from training.checkpoint import load_denoiser
from training.networks import EDMPrecond

BLOCK = "model.dec.8x8_block0"
SIGMA = torch.tensor(0.5, dtype=torch.float64)


class Labelled(nn.Module):
    """D = x (1 + the class) / 4, and half of x without labels; remembers which labels it got."""

    img_channels, img_resolution, label_dim, sigma_min, sigma_max = 2, 3, 3, 0.01, 50.0

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Identity()
        self.got: list[bool] = []

    def forward(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        self.got.append(labels is not None)
        share = x.new_tensor(0.5) if labels is None else (1 + labels.argmax(1).reshape(-1, 1, 1, 1)) / 4
        return self.block(share * x)


LABELS = torch.eye(3)[[0, 1, 2, 0, 1, 2]]


def a_network(*, dropout: float = 0.3, seed: int = 0, label_dim: int = 0) -> EDMPrecond:
    """A small network with random weights, 8x8."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = EDMPrecond(
            img_resolution=8, img_channels=1, model_type="SongUNet", model_channels=4, channel_mult=[1], num_blocks=1,
            attn_resolutions=[], dropout=dropout, label_dim=label_dim,
        )  # fmt: skip
        for weight in net.parameters():
            nn.init.normal_(weight, std=0.3)
    return net.eval().requires_grad_(False)


def images(n: int = 6) -> Tensor:
    return normal(n, 1, 8, 8, seed=1)


# -- labels -----------------------------------------------------------------------------------------------------------


def test_without_labels_the_network_guides_itself() -> None:
    net, x = Labelled(), latents().double()
    D = guided(net, None, 3)
    share = (1 + LABELS.argmax(1)).reshape(-1, 1, 1, 1) / 4
    torch.testing.assert_close(D(x, SIGMA, LABELS), (0.5 + 3 * (share - 0.5)) * x)
    assert net.got == [True, False]
    assert (D.label_dim, D.sigma_min, D.sigma_max) == (3, 0.01, 50)


@pytest.mark.parametrize("rows", [None, [0, 0, 0, 0, 0, 1], [1] * 5 + [0]])
def test_an_image_without_a_class_is_not_led_away_from_itself_in_silence(rows: list[int] | None) -> None:
    """Nor where zeros stand in the place of its label, as in EDM's networks."""
    labels = None if rows is None else LABELS * torch.tensor(rows).reshape(-1, 1)
    x, D = latents().double(), guided(Labelled(), None, 3, (5.0, 10.0))
    with pytest.raises(ValueError, match=r"^class_labels: guidance leads away from an image without a class"):
        D(x, SIGMA, labels)
    assert torch.equal(guided(Labelled(), None, 1)(x, SIGMA, labels), Labelled()(x, SIGMA, labels)), "no guidance"
    assert torch.equal(guided(Labelled(), None, 0)(x, SIGMA, labels), Labelled()(x, SIGMA)), "the guide alone"


def test_another_network_gets_the_labels_if_it_has_classes() -> None:
    main, weak, x = Labelled(), Labelled(), latents().double()
    guided(main, weak, 3)(x, SIGMA, LABELS)
    assert (main.got, weak.got) == ([True], [True])
    narrow = FunctionDenoiser(lambda x, sigma: x / 8, 2, 3, sigma_min=0.5, sigma_max=80)
    D = guided(main, narrow, 2)
    assert torch.equal(D(x, SIGMA, LABELS), x / 8 + 2 * (main(x, SIGMA, LABELS) - x / 8))
    assert (D.sigma_min, D.sigma_max) == (0.5, 50), "the levels that both know"


# -- both networks are counted and differentiated ---------------------------------------------------------------------


def test_the_gradient_is_that_of_the_combination() -> None:
    def combination(x: Tensor, sigma: Tensor) -> Tensor:
        return isotropic()(x, sigma) + 1.7 * (mixture()(x, sigma) - isotropic()(x, sigma))

    net = guided(mixture(), isotropic(), 1.7)
    here, there = state(net), state(combination)
    torch.testing.assert_close(here.g, there.g, rtol=0, atol=1e-14)
    assert not torch.allclose(here.g, state(mixture()).g, rtol=1e-2)
    assert (here.denoise.forward.tolist(), here.denoise.backward.tolist()) == ([2] * 6, [2] * 6)


@pytest.mark.parametrize("which", ["main", "guide"])
def test_a_network_without_gradients_is_refused_whichever_it_is(which: str) -> None:
    cut = torch.no_grad()(lambda x, sigma: mixture()(x, sigma))
    net = guided(cut, mixture(), 2) if which == "main" else guided(mixture(), cut, 2)
    with pytest.raises(ValueError, match=r"^denoiser: the model gives no gradient"):
        rods_sampler(net, latents(), eps=0, rho=0.5, num_steps=8)
    euler_sampler(net, latents(), num_steps=8)


def test_networks_that_do_not_fit_in_memory_go_through_in_parts_and_are_counted_once() -> None:
    class Tight(Counting):
        def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
            if len(x) > 2:
                raise MemoryError
            return super().__call__(x, sigma)

    main, guide = Tight(), Tight(isotropic())
    denoise = bind(guided(main, guide, 2), 6, micro_batches=MicroBatches())
    with torch.no_grad():
        D = denoise(latents().double(), SIGMA)
    torch.testing.assert_close(D, guided(mixture(), isotropic(), 2)(latents().double(), SIGMA), rtol=0, atol=1e-14)
    assert denoise.forward.tolist() == [2] * 6
    assert (main.forward, guide.forward) == (6, 6)


# -- gates ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("guide", [None, "other", "dropout"])
def test_a_gate_reads_the_layers_of_the_main_network_with_its_labels(guide: str | None) -> None:
    net, x, noise = Labelled(), latents().double(), normal(2, 6, 2, 3, 3)
    other = {"other": Labelled(), "dropout": Noisier(net)}.get(guide or "")
    denoise, plain = bind(guided(net, other, 2), 6, LABELS), bind(net, 6, LABELS)
    (found,), (known,) = (activations(d, x, SIGMA, noise, ("block",)) for d in (denoise, plain))
    assert torch.equal(found, known)
    assert denoise.forward.tolist() == [2] * 6, "an F for each draw: no guide is evaluated"
    assert all(net.got)


def test_a_readout_belongs_to_the_main_network() -> None:
    net, other = a_network(), a_network(seed=1)
    own = fingerprint(net, (BLOCK,))
    gate = Readout((BLOCK,), 0.5, 1, own, 0.25, (0.0,) * 8, (1.0,) * 8, (0.1,) * 8)
    gate.check(guided(net, other, 2), [1.0])
    with pytest.raises(ValueError, match="is of another network"):
        gate.check(guided(other, net, 2), [1.0])


# -- the network with its dropout on ----------------------------------------------------------------------------------


def test_masks_belong_to_the_image_and_the_level() -> None:
    net, x = a_network(), images()
    keys = SeedStreams([7, 3, 9, 1, 5, 2], CPU).keys()
    guide = Dropout(net)
    D = guide.keyed(x, SIGMA, keys=keys)
    assert torch.equal(guide.keyed(x, SIGMA, keys=keys), D)
    assert not torch.allclose(D, net(x, SIGMA), atol=1e-3)
    order = [4, 1, 0]
    torch.testing.assert_close(guide.keyed(x[order], SIGMA, keys=keys[order]), D[order], rtol=0, atol=1e-6)
    assert not torch.allclose(guide.keyed(x, SIGMA, keys=keys.flip(0)), D, atol=1e-3)
    same = x[:1].expand_as(x)
    at = [guide.keyed(same, level, keys=keys) for level in (SIGMA, SIGMA + 1e-9)]
    assert (at[0][0] - at[0][1]).abs().max() > 1e-3, "other images, other masks"
    assert (at[0] - at[1]).abs().max() > 1e-3, "other levels, other masks"
    assert not net.training


def test_the_mask_is_dropout() -> None:
    """A share p is zero and the rest scaled: the mean is kept. Where rate is given, it replaces the network's."""

    class One(nn.Module):
        def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
            return nn.functional.dropout(x, 0.25, self.training)

    x = torch.ones(8, 1, 64, 64)
    for guide, p in ((Dropout(One().eval()), 0.25), (Dropout(One().eval(), 0.6), 0.6)):
        D = guide(x, SIGMA)
        assert D.unique().tolist() == pytest.approx([0, 1 / (1 - p)])
        assert (D == 0).double().mean().item() == pytest.approx(p, abs=0.01)


def test_a_sample_guided_by_dropout_depends_on_its_seed_alone() -> None:
    net = a_network()
    denoiser = guided(net, Dropout(net), 2)
    seeds = [11, 3, 7, 29]

    def sampled(seeds: list[int]) -> Any:
        return sample_chunk(denoiser, Chunk(0, tuple(seeds)), Edm(num_steps=6), device=CPU)

    whole = sampled(seeds)
    assert torch.equal(sampled(seeds).images, whole.images)
    part = sampled([29, 3])
    torch.testing.assert_close(part.images, whole.images[[3, 1]], rtol=0, atol=1e-5)
    assert part.records[0].forward == 2 * 11
    plain = sample_chunk(net, Chunk(0, tuple(seeds)), Edm(num_steps=6), device=CPU)
    assert (plain.images - whole.images).abs().max() > 1e-2


def test_the_gradient_goes_through_the_masks() -> None:
    """The derivative of ||v|| along its gradient is the gradient's length: an image has one mask at a level."""
    net, x, t, h = Dropout(a_network()), images(), 0.5, 0.02
    here = state(net, t, x=x)
    ends = [norms(here.moved(side * h * unit(here.g)).d / t) for side in (1, -1)]
    torch.testing.assert_close((ends[0] - ends[1]) / (2 * h), norms(here.g), rtol=0.02, atol=0)
    assert not torch.allclose(here.g, state(a_network(), t, x=x).g, rtol=0.1)


def test_a_network_without_dropout_is_refused() -> None:
    net = a_network(dropout=0)
    with pytest.raises(ValueError, match=r"^guide: this network was made without dropout; give a rate"):
        Dropout(net)(images(), SIGMA)
    assert not torch.allclose(Dropout(net, 0.3)(images(), SIGMA), net(images(), SIGMA).double())


# -- a noisier level --------------------------------------------------------------------------------------------------


def test_noisier_is_the_network_at_a_higher_level_that_it_knows() -> None:
    x = latents().double()
    assert torch.equal(Noisier(mixture(), 1.5)(x, SIGMA), mixture()(x, 1.5 * SIGMA))
    short = FunctionDenoiser(mixture(), 2, 3, sigma_max=0.6)
    assert torch.equal(Noisier(short, 1.5)(x, SIGMA), mixture()(x, torch.tensor(0.6, dtype=torch.float64)))


@pytest.mark.parametrize(("w", "ratio"), [(1, 1.5), (2, 1.2), (0, 1.5)])
def test_self_guidance_of_a_gaussian_is_known(w: float, ratio: float) -> None:
    """D = a(t) x, so that SG's is (a(r t) + w (a(t) - a(r t))) x; strength 1 is the plain sampler, at its cost."""
    sampler, s0 = Euler(num_steps=10), 0.5
    levels = [*sampler.levels(isotropic()), 0.0]
    scale = 80.0
    for t, t_next in pairwise(levels):
        a, a_noisier = (s0**2 / (s0**2 + sigma**2) for sigma in (t, ratio * t))
        D = (a_noisier + w * (a - a_noisier)) * scale
        scale = D + t_next / t * (scale - D)
    done = sampler.sample(guided(isotropic(), Noisier(isotropic(), ratio), w), latents())
    torch.testing.assert_close(done.images, scale * latents().double(), rtol=1e-11, atol=1e-13)
    assert {(r.forward, r.backward) for r in done.records} == {(10 if w == 1 else 20, 0)}
    if w == 1:
        assert torch.equal(done.images, sampler.sample(isotropic(), latents()).images)


def test_strength_1_evaluates_no_dropout() -> None:
    net = a_network()
    chunk, sampler = Chunk(0, (5, 2)), Euler(num_steps=4)
    plain, same, other = (sample_chunk(denoiser, chunk, sampler, device=CPU) for denoiser in
                          (net, guided(net, Dropout(net), 1), guided(net, Dropout(net), 2, (0.5, 90))))  # fmt: skip
    assert torch.equal(same.images, plain.images)
    assert {r.forward for r in same.records} == {4}
    inside = sum(0.5 <= t <= 90 for t in sampler.levels(net))
    assert {r.forward for r in other.records} == {4 + inside} == {6}


# -- what is refused, and how it is written ---------------------------------------------------------------------------


def f(channels: int = 2, side: int = 3, classes: int = 0, lo: float = 0, hi: float = math.inf) -> FunctionDenoiser:
    return FunctionDenoiser(mixture(), channels, side, classes, lo, hi)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ((f(), f(side=4), 2), r"^guide: its img_resolution is 4, the network's 3"),
        ((f(), f(channels=1), 2), r"^guide: its img_channels is 1"),
        ((f(classes=3), f(classes=4), 2), r"^guide: it has 4 classes, the network 3"),
        ((f(), f(classes=4), 2), r"^guide: it has 4 classes, the network 0"),
        ((f(), None, 2), r"^guide: without labels the network is itself"),
        ((f(hi=1), f(lo=2), 2), r"^guide: it knows no noise level"),
        ((f(), f(), math.nan), r"^strength: nan"),
        ((f(), f(), 2, (3, 3)), r"^interval: 3,3 is empty"),
        ((f(), f(), 2, SigmaWindow(3, 3)), r"^interval: 3,3 is empty"),
        ((f(), f(), 2, (-1, 3)), r"^interval: -1,3 is empty"),
        ((f(), f(), 2, 3), r"^interval: 3: must be two noise levels \(lo, hi\)"),
        ((f(), f(), 2, "1,2"), r"^interval: '1,2': must be two noise levels"),
        ((f(), f(), 2, (1, 2, 3)), r"^interval: \(1, 2, 3\): must be two noise levels"),
    ],
)
def test_what_does_not_go_together_is_refused(arguments: Any, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        guided(*arguments)


def test_it_prints_what_it_is() -> None:
    net = Labelled()
    assert repr(guided(net, None, 2, (0.2, 5))) == (
        "Guided(Labelled, Unlabelled(), strength=2, interval=SigmaWindow(lo=0.2, hi=5))"
    )
    assert guided(net, None, 2) == guided(net, None, 2) != guided(net, None, 3)
    assert replace(guided(net, None, 2), strength=1.0).strength == 1


@pytest.mark.parametrize("text", ["none", "dropout", "dropout:rate=0.1", "noisier:ratio=1.3"])
def test_a_guide_is_read_back_from_its_text(text: str) -> None:
    net = a_network(label_dim=2)
    assert guide_to_text(Guidance(2, text).self_guide(net)) == text


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("noisier:sigma=2", r"^guide: noisier has no option 'sigma'; it has ratio"),
        ("none:rate=1", r"^guide: none has no option 'rate'; it has none"),
        ("dropout:rate=x", r"^guide: dropout: rate: 'x': must be a number"),
        ("dropout:rate=1", r"^guide: dropout: rate: 1.0 is not a probability"),
        ("noisier:ratio=1", r"^guide: noisier: ratio: 1.0 is no higher noise level"),
    ],
)
def test_a_guides_text_that_is_wrong(text: str, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        Guidance(2, text).self_guide(a_network())


@pytest.mark.parametrize("text", ["1", "a,b", "2,1", "1,1", "-1,2", "nan,2"])
def test_an_interval_that_is_none(text: str) -> None:
    with pytest.raises(ValueError, match=r"^guidance_interval: "):
        interval_from_text(text)


# -- with networks of files -------------------------------------------------------------------------------------------


def test_the_networks_of_edm_guide_each_other() -> None:
    """A conditional network with zeros for labels is its own guide; numbers made by hand."""
    net = load_denoiser(LABELLED)
    x, labels = normal(2, 1, 16, 16), torch.eye(4)[[1, 3]]
    with torch.no_grad():
        with_labels, without = (net(x, SIGMA, given).double() for given in (labels, torch.zeros(2, 4)))
        assert not torch.allclose(with_labels, without, atol=1e-3)
        D = guided(net, None, 1.5)(x, SIGMA, labels)
    torch.testing.assert_close(D, without + 1.5 * (with_labels - without), rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match=r"^guide: its img_channels is 3"):
        guided(net, load_denoiser(PLAIN), 2)


# EDM2's own numbers: eight Heun steps of a conditional network with each of two guides
CASES = {
    "unguided": (None, 1.0, {}),
    "guided_uncond_1.7": ("edm2-guide-uncond", 1.7, {}),
    "guided_auto_2.3": ("edm2-guide-auto", 2.3, {}),
    "guided_auto_0.5": ("edm2-guide-auto", 0.5, {}),
    "guided_uncond_1.7_churn_20_0.05_50_1.003": (
        "edm2-guide-uncond", 1.7, {"S_churn": 20.0, "S_min": 0.05, "S_max": 50.0, "S_noise": 1.003},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_it_is_the_guidance_of_edm2(name: str) -> None:
    pytest.importorskip("training.networks.edm2", reason="this version has no networks of EDM2")
    z = tensors("edm2/networks/edm2-guidance.npz")
    guide, strength, churn = CASES[name]
    net: Any = load_denoiser(vector_file("edm2/pickles/edm2-cond.pkl"))
    if guide is not None:
        net = guided(net, load_denoiser(vector_file(f"edm2/pickles/{guide}.pkl")), strength)
    sampler = Edm(num_steps=8, **churn)
    # EDM2 draws at the steps that churn, EDM at every step: noise[k] belongs to the k-th of the former.
    churned = [gamma > 0 for gamma in sampler.churn.gammas(sampler.levels(net))]
    draws = iter([z["noise"][sum(churned[:i])] if is_one else z["noise"][0] * 0 for i, is_one in enumerate(churned)])
    done = sampler.sample(net, z["latents"], z["labels"], randn_like=lambda x: next(draws))
    assert relative_error(done.images, z[name]) < 1e-4
    assert done.records[0].forward == 15 * (1 if guide is None else 2)
    assert sum(churned) == (5 if churn else 0)
