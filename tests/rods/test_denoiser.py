"""A batch that does not fit: the network gets fewer rows at a time, and the images are the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from exact import latents, mixture
from torch import Tensor

from rods import bind, euler_sampler, rods_sampler
from rods.evaluation import Point
from rods.room import Room, is_out_of_memory
from rods.scores import lid_gradient

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


def rods(denoiser: Any, room: Room, labels: Tensor | None = None, method: Any = "cas") -> Any:
    bound = bind(denoiser, 6, labels, room=room)
    return rods_sampler(bound, latents(), method=method, eps=0.0, rho=0.3, num_steps=6, window=(0, 1))


@pytest.mark.parametrize("kind", ERRORS)
@pytest.mark.parametrize("method", ["cas", "sas"])
def test_a_cramped_run_gives_the_same_images_and_counts(kind: str, method: str) -> None:
    labels = torch.arange(12.0, dtype=torch.float64).reshape(6, 2)
    roomy, room = rods(Cramped(6, 6), Room(), labels, method), Room()
    cramped = rods(Cramped(4, 2, ERRORS[kind]), room, labels, method)
    assert torch.allclose(roomy.images, cramped.images, rtol=0, atol=1e-10)
    assert [(r.forward, r.backward) for r in roomy.records] == [(r.forward, r.backward) for r in cramped.records]
    assert [r.flagged for r in roomy.records] == [r.flagged for r in cramped.records]
    assert room.limits == {"forward": None if method == "cas" else 3, "probe": 2}  # cas has d from its gradients


def test_the_wall_is_met_once() -> None:
    denoiser, room = Cramped(2, 2), Room()
    for _ in range(2):
        euler_sampler(bind(denoiser, 6, room=room), latents(), num_steps=3)
    assert denoiser.rows == [6, 3, *[2, 2, 2] * 6]
    assert room.describe() == "out of memory; going on with the same images, 2 at a time"


def test_memory_that_runs_out_in_the_backward_pass() -> None:
    def denoiser(x: Tensor, sigma: Tensor) -> Tensor:
        denoised: Tensor = mixture()(BackwardCramped.apply(x), sigma)  # type: ignore[no-untyped-call]
        return denoised

    room = Room()
    cramped, roomy = rods(denoiser, room), rods(mixture(), Room())
    assert torch.allclose(roomy.images, cramped.images, rtol=0, atol=1e-10)
    assert [(r.forward, r.backward) for r in roomy.records] == [(r.forward, r.backward) for r in cramped.records]
    assert room.limits == {"forward": None, "probe": 2}
    assert "backward passes 2 at a time (--probe-batch=2" in room.describe()


@pytest.mark.parametrize("probe_batch", [1, 4, 6, 9])
def test_probe_batch_bounds_the_probes_alone(probe_batch: int) -> None:
    denoiser = Cramped(6, probe_batch)
    x, sigma = latents().double(), torch.tensor(0.7, dtype=torch.float64)
    split = Point(bind(denoiser, 6, room=Room(probe_batch=probe_batch)), x, sigma)
    whole = Point(bind(mixture(), 6), x, sigma)
    assert torch.allclose(split.g, whole.g, rtol=0, atol=1e-12)
    assert torch.allclose(split.d, whole.d, rtol=0, atol=1e-12)
    assert max(denoiser.rows) == min(probe_batch, 6)
    assert sum(denoiser.rows) == 6
    noise = torch.ones(2, *x.shape, dtype=torch.float64)
    for a, b in zip(
        lid_gradient(split.denoise, x, 0.7, noise=noise), lid_gradient(mixture(), x, 0.7, noise=noise), strict=True
    ):
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
        Room(probe_batch=0)
