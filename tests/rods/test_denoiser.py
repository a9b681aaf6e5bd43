"""The bound denoiser, states and their gradients, and batches that do not fit in memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from exact import Axes, Counting, broken_row, close, golden, isotropic, latents, mixture, normal, state
from torch import Tensor

import rods.state as core
from rods import Ablation, Euler, Lid, State, bind, euler_sampler, rods_sampler
from rods.denoiser import norms
from rods.detectors import curvature
from rods.micro_batches import MicroBatches, is_out_of_memory
from rods.wrappers import FunctionDenoiser

EPS2 = float(golden("rods/mixture")["eps_gate2"])
LEVELS = [0.05, 0.3, 2.0, 30.0]


def by(gradient: Any, denoiser: Any, sigma: float) -> State:
    """A state whose gradient is evaluated that way, at a typical length of x."""
    x = (0.25 + sigma**2) ** 0.5 * latents().double()
    return state(denoiser, sigma, x=x, gradient=gradient)


# -- states -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["gd", "dg", "uDg", "Hg", "gH"])
def test_what_a_state_knows_it_does_not_evaluate_again(order: str) -> None:
    """`g` first brings D with it: F + B for both, and F + B once more for H."""
    count = Counting()
    cur = state(count)
    for name in order:
        _ = curvature(cur, 0.3) if name == "H" else getattr(cur, name)
    after_d = order.index("g") > 0 and order[0] == "d"
    probe = "H" in order
    assert (count.forward, count.backward) == (6 * (1 + after_d + probe), 6 * (1 + probe))


def test_states_made_of_a_state_keep_its_gradient_and_its_step() -> None:
    cur = state(mixture(), gradient="difference", i=3, num_steps=7)
    index = torch.tensor([3, 1])
    for other in (cur.moved(cur.x), cur.uphill(0.1), cur.with_d(2 * cur.d), cur.with_u(cur.d), cur.with_D(cur.x),
                  cur.select(index)):  # fmt: skip
        assert (other.gradient, other.i, other.num_steps) == ("difference", 3, 7)
    assert torch.equal(cur.with_d(2 * cur.d).d, 2 * cur.d)
    assert torch.equal(cur.with_D(0 * cur.x).d, cur.x / cur.sigma)
    torch.testing.assert_close(cur.select(index).g, cur.g[index], rtol=0, atol=1e-12)


def test_rows_get_the_draws_of_their_places() -> None:
    denoise = bind(mixture(), 6, randn_like=lambda x: normal(*x.shape, seed=4))
    rows = denoise.rows(torch.tensor([4, 1, 4]))
    assert torch.equal(rows.draw(latents()[[4, 1, 4]]), denoise.draw(latents())[[4, 1, 4]])
    rows(latents()[[4, 1, 4]].double(), torch.tensor(1.0))
    assert denoise.forward.tolist() == [0, 1, 0, 0, 2, 0]


# -- the gradient by a finite difference ------------------------------------------------------------------------------


@pytest.mark.parametrize("sigma", LEVELS)
def test_on_gaussians_the_difference_is_the_gradient(sigma: float) -> None:
    """v = A x is linear: the difference has no error but rounding."""
    axes = Axes(torch.linspace(0.1, 4, 18, dtype=torch.float64).reshape(2, 3, 3))
    for density in (axes, isotropic()):
        difference, backward = by("difference", density, sigma), by("backward", density, sigma)
        assert close(difference.g, backward.g, tol=1e-9)
        H, known = curvature(difference, 0.5), curvature(backward, 0.5)
        assert ((H - known).abs() <= 1e-9 * norms(backward.g)).all()
    assert close(by("difference", axes, sigma).g, axes.g(by("difference", axes, sigma).x, sigma), tol=1e-9)


@pytest.mark.parametrize("sigma", LEVELS)
def test_on_mixtures_the_difference_is_of_first_order_in_its_length(
    sigma: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    g = by("backward", mixture(), sigma).g
    errors = []
    for h in (0.002, 0.001):
        monkeypatch.setattr(core, "DIFFERENCE", h)
        errors.append(norms(by("difference", mixture(), sigma).g - g).max())
    assert errors[0] < 0.01 * norms(g).max()
    assert errors[1] < 0.6 * errors[0] or errors[0] < 1e-9 * norms(g).max()


def test_where_the_jacobian_is_not_symmetric_they_differ() -> None:
    """v = M x: the backward gives M^T v / ||v||, the difference M v / ||v||."""
    M = torch.randn(18, 18, dtype=torch.float64, generator=torch.Generator().manual_seed(7))

    def crooked(x: Tensor, sigma: Tensor) -> Tensor:
        return x - sigma**2 * (x.flatten(1) @ M.T).reshape(x.shape)

    v = (by("difference", crooked, 2.0).x.flatten(1) @ M.T) / norms(by("difference", crooked, 2.0).d / 2)[:, None]
    assert close(by("difference", crooked, 2.0).g.flatten(1), v @ M.T, tol=1e-9)
    assert close(by("backward", crooked, 2.0).g.flatten(1), v @ M, tol=1e-9)


def test_the_difference_leaves_out_what_has_no_direction_or_is_no_number() -> None:
    still = by("difference", lambda x, sigma: x * 1.0, 2.0)
    assert torch.equal(still.g, torch.zeros_like(still.x))
    assert curvature(still, 3.0).tolist() == [0.0] * 6
    options: dict[str, Any] = {"eps": float("inf"), "rho": 0.1, "gradient": "difference", "probe_every": 2}
    whole, result = (rods_sampler(D, latents(), **options) for D in (mixture(), broken_row))
    assert result.images[1].isnan().all()
    assert set(result.records[1].H) == {0.0}
    assert torch.equal(result.images[2:], whole.images[2:])
    assert result.records[2:] == whole.records[2:]


@pytest.mark.parametrize("method", ["cas", "sas"])
def test_images_are_near_those_of_the_backward(method: Any) -> None:
    options: dict[str, Any] = {"eps": 0, "rho": 0.1, "method": method}
    full, cheap = (rods_sampler(mixture(), latents(), gradient=g, **options) for g in ("backward", "difference"))
    assert close(cheap.images, full.images, tol=1e-2)
    for a, b in zip(cheap.records, full.records, strict=True):
        assert all(abs(h - known) <= 0.1 * known for h, known in zip(a.H, b.H, strict=True))


# -- batches that do not fit ------------------------------------------------------------------------------------------

ERRORS: dict[str, Callable[[], Exception]] = {
    "cuda": lambda: torch.cuda.OutOfMemoryError("CUDA out of memory."),
    "cpu": lambda: RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9"),
    "python": lambda: MemoryError(),
}


class Cramped:
    """The exact denoiser, out of memory above `fits` rows, and above `fits_backward` where a gradient is wanted."""

    def __init__(self, fits: int, fits_backward: int, error: Callable[[], Exception] = ERRORS["cpu"]) -> None:
        self.fits, self.fits_backward, self.error = fits, fits_backward, error
        self.rows: list[int] = []

    def __call__(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        self.rows.append(len(x))
        if len(x) > (self.fits_backward if x.requires_grad else self.fits):
            raise self.error()
        denoised: Tensor = mixture()(x, sigma)
        return denoised if labels is None else denoised + 0.1 * labels.sum(1)[:, None, None, None]


class BackwardCramped(torch.autograd.Function):
    """The identity, whose backward pass is out of memory above 2 rows."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        if len(grad) > 2:
            raise ERRORS["cuda"]()
        return grad


def rods_run(denoiser: Any, batches: MicroBatches, labels: Tensor | None = None, method: Any = "cas") -> Any:
    bound = bind(denoiser, 6, labels, micro_batches=batches)
    return rods_sampler(bound, latents(), method=method, eps=0.0, rho=0.3, num_steps=6, window=(0, 1))


@pytest.mark.parametrize("kind", ERRORS)
@pytest.mark.parametrize("method", ["cas", "sas"])
def test_a_cramped_run_gives_the_same_images_and_counts(kind: str, method: str) -> None:
    labels = torch.arange(12.0, dtype=torch.float64).reshape(6, 2)
    whole, batches = rods_run(Cramped(6, 6), MicroBatches(), labels, method), MicroBatches()
    cramped = rods_run(Cramped(4, 2, ERRORS[kind]), batches, labels, method)
    assert torch.allclose(whole.images, cramped.images, rtol=0, atol=1e-10)
    assert [(r.forward, r.backward) for r in whole.records] == [(r.forward, r.backward) for r in cramped.records]
    assert [r.flagged for r in whole.records] == [r.flagged for r in cramped.records]
    forward = None if method == "cas" else 3  # cas has d from its gradients
    assert batches.limits == {"forward": forward, "probe": 2, "decode": 8}


def test_the_limit_is_found_once() -> None:
    denoiser, batches = Cramped(2, 2), MicroBatches()
    for _ in range(2):
        euler_sampler(bind(denoiser, 6, micro_batches=batches), latents(), num_steps=3)
    assert denoiser.rows == [6, 3, *[2, 2, 2] * 6]
    assert batches.describe() == "out of memory; going on with the same images, 2 at a time"


def test_memory_that_runs_out_in_the_backward_pass() -> None:
    def denoiser(x: Tensor, sigma: Tensor) -> Tensor:
        denoised: Tensor = mixture()(BackwardCramped.apply(x), sigma)  # type: ignore[no-untyped-call]
        return denoised

    batches = MicroBatches()
    cramped, whole = rods_run(denoiser, batches), rods_run(mixture(), MicroBatches())
    assert torch.allclose(whole.images, cramped.images, rtol=0, atol=1e-10)
    assert [(r.forward, r.backward) for r in whole.records] == [(r.forward, r.backward) for r in cramped.records]
    assert batches.limits == {"forward": None, "probe": 2, "decode": 8}
    assert "backward passes 2 at a time (--probe-batch=2" in batches.describe()


@pytest.mark.parametrize("probe_batch", [1, 4, 6, 9])
def test_probe_batch_bounds_the_probes_alone(probe_batch: int) -> None:
    denoiser = Cramped(6, probe_batch)
    x, sigma = latents().double(), torch.tensor(0.7, dtype=torch.float64)
    split = State(bind(denoiser, 6, micro_batches=MicroBatches(probe_batch=probe_batch)), x, sigma)
    whole = State(bind(mixture(), 6), x, sigma)
    assert torch.allclose(split.g, whole.g, rtol=0, atol=1e-12)
    assert torch.allclose(split.d, whole.d, rtol=0, atol=1e-12)
    assert max(denoiser.rows) == min(probe_batch, 6)
    assert sum(denoiser.rows) == 6
    noise = torch.ones(2, *x.shape, dtype=torch.float64)
    ends = [Lid(0.7, 2).score_and_gradient(s.denoise, x, noise=noise) for s in (split, whole)]
    for a, b in zip(*ends, strict=True):
        assert torch.allclose(a, b, rtol=0, atol=1e-12)


def test_one_image_that_does_not_fit_and_other_errors_come_through() -> None:
    with pytest.raises(MemoryError):
        euler_sampler(Cramped(0, 0, ERRORS["python"]), latents(), num_steps=2)
    denoiser = Cramped(0, 0, lambda: RuntimeError("shapes do not match"))
    with pytest.raises(RuntimeError, match="shapes"):
        euler_sampler(denoiser, latents(), num_steps=2)
    assert denoiser.rows == [6]
    assert not is_out_of_memory(RuntimeError("shapes do not match"))
    with pytest.raises(ValueError, match="probe_batch: 0 is too few"):
        MicroBatches(probe_batch=0)


# -- labels and latents of another form -------------------------------------------------------------------------------


def one_hot_sum(x: Tensor, sigma: Tensor, labels: Tensor) -> Tensor:
    return x * labels.float().argmax(1).reshape(-1, 1, 1, 1)


CLASSES = FunctionDenoiser(one_hot_sum, img_channels=2, img_resolution=3, label_dim=3)


def test_numbers_of_classes_become_one_hot_rows_and_rows_stay() -> None:
    rows = torch.eye(3)[[2, 0]]
    assert torch.equal(bind(CLASSES, 2, torch.tensor([2, 0])).class_labels, rows)  # type: ignore[arg-type]
    assert bind(CLASSES, 2, rows).class_labels is rows
    soft = torch.full((2, 3), 1 / 3)
    assert bind(CLASSES, 2, soft).class_labels is soft, "what they mean is the network's affair"
    anything = torch.zeros(2, 1, 5)
    assert bind(lambda x, sigma, labels: x, 2, anything).class_labels is anything, "it does not say its label_dim"


@pytest.mark.parametrize(
    ("labels", "named"),
    [
        (torch.tensor([0, 3]), "class_labels: 3 is out of range; this denoiser has classes 0 to 2"),
        (torch.tensor([0]), r"class_labels: \[1\] for 2 latents"),
        (torch.eye(4)[[0, 1]], r"class_labels: torch\.float32 \[2, 4\]; give the numbers of classes, integers \[2\]"),
    ],
)
def test_labels_that_the_denoiser_does_not_take(labels: Tensor, named: str) -> None:
    with pytest.raises(ValueError, match=f"^{named}"):
        bind(CLASSES, 2, labels)


def test_a_denoiser_without_classes_takes_no_labels_and_latents_have_its_channels() -> None:
    plain = FunctionDenoiser(lambda x, sigma: x, img_channels=2, img_resolution=3)
    with pytest.raises(ValueError, match=r"^class_labels: this denoiser has no classes to choose from; leave them out"):
        bind(plain, 2, torch.tensor([0, 1]))
    for sampler in (Euler(num_steps=2), Ablation(num_steps=2)):
        for run in (sampler.sample, lambda D, z, sampler=sampler: list(sampler.steps(D, z))):
            with pytest.raises(ValueError, match=r"^latents: \[2, 3, 3, 3\]: must be \[B, 2, H, W\] for this denoiser"):
                run(plain, torch.zeros(2, 3, 3, 3))
            with pytest.raises(ValueError, match=r"^latents: a list: must be a floating-point tensor \[B, C, H, W\]"):
                run(plain, [[0.0]])
