"""Samplers with k-diffusion's signature: the same numbers as ours, called as a host calls them."""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from typing import Any

import pytest
import torch
from exact import isotropic, latents, mixture
from torch import Tensor

from rods import Cas, Euler, Lid, Restart, RodsCas, RodsSas, bind
from rods.integrations.host import run_by, sample_by, score_by
from rods.integrations.k_diffusion import sample_restart_gated, sample_rods_cas, sample_rods_sas
from rods.variance import Tvf

N = 10
GRID = Euler(num_steps=N, sigma_max=20)
SIGMAS = torch.tensor([*GRID.levels(mixture()), 0.0], dtype=torch.float64)
ALL = {
    "cas": partial(sample_rods_cas, eps=1e-4, rho=0.3, window=(0.2, 0.9)),
    "cas, difference": partial(sample_rods_cas, eps=0, rho=0.3, gradient="difference"),
    "sas": partial(sample_rods_sas, eps=1e-4, rho=0.3, window=(0.2, 0.9)),
    "sas, blind": partial(sample_rods_sas, eps=0, rho=0.3, detect=False),
    "restart": partial(sample_restart_gated, threshold=0.9, sigma_r=5.0),
    "restart, in flight": partial(sample_restart_gated, threshold=0.9, sigma_r=5.0, score_at=0.5, inside=Cas(0.3)),
}
OURS: dict[str, Any] = {
    "cas": RodsCas(num_steps=N, sigma_max=20, eps=1e-4, rho=0.3, window=(0.2, 0.9)),
    "cas, difference": RodsCas(num_steps=N, sigma_max=20, eps=0, rho=0.3, gradient="difference"),
    "sas": RodsSas(num_steps=N, sigma_max=20, eps=1e-4, rho=0.3, window=(0.2, 0.9)),
    "sas, blind": RodsSas(num_steps=N, sigma_max=20, eps=0, rho=0.3, detect=False),
    "restart": Restart(num_steps=N, sigma_max=20, threshold=0.9, sigma_r=5.0),
    "restart, in flight": Restart(num_steps=N, sigma_max=20, threshold=0.9, sigma_r=5.0, score_at=0.5, inside=Cas(0.3)),
}


class Host:
    """A model of the mixture as hosts hold it: something for each image, other arguments, always whole batches."""

    def __init__(self) -> None:
        self.shift = 0.01 * torch.arange(6, dtype=torch.float64).reshape(6, 1, 1, 1)
        self.calls: list[tuple[torch.Size, bool]] = []

    def __call__(self, x: Tensor, sigma: Tensor, cond: Tensor, scale: float = 0) -> Tensor:
        assert sigma.shape == (6,)
        assert (sigma == sigma[0]).all()
        self.calls.append((x.shape, torch.is_grad_enabled()))
        return mixture()(x, sigma[0].double()).to(x.dtype) + scale * cond


def start() -> Tensor:
    return SIGMAS[0] * latents().double()


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_it_is_our_sampler_on_the_hosts_state_and_levels(name: str, mode: Any) -> None:
    host = Host()
    with mode():
        torch.manual_seed(0)
        args = {"cond": host.shift, "scale": 1.0}
        found = ALL[name](host, start(), SIGMAS.clone(), args, None, True)

    def known_model(x: Tensor, sigma: Tensor) -> Tensor:
        return mixture()(x, sigma)

    class PerImage:
        """The same for some rows, by the labels' way."""

        def __call__(self, x: Tensor, sigma: Tensor, shift: Tensor) -> Tensor:
            return known_model(x, sigma) + shift

    torch.manual_seed(0)
    known = OURS[name].sample(bind(PerImage(), 6, host.shift), latents().double()).images
    torch.testing.assert_close(found, known, rtol=0, atol=1e-12)
    assert not found.requires_grad
    assert {shape for shape, _ in host.calls} == {start().shape}
    assert any(with_grad for _, with_grad in host.calls) == (name in ("cas", "sas", "restart, in flight"))
    if not name.endswith("difference"):
        plain = GRID.sample(bind(PerImage(), 6, host.shift), latents().double()).images
        assert not torch.allclose(found, plain, atol=1e-4)


def test_some_images_are_corrected_and_the_others_are_not() -> None:
    """The gate flags a part of the batch, whose model must still see its own conditioning."""
    host = Host()
    args = {"cond": host.shift, "scale": 1.0}
    torch.manual_seed(0)
    flags = OURS["restart"].sample(bind(lambda x, s, c: mixture()(x, s) + c, 6, host.shift), latents().double())
    went = [len(record.restart.scores) > 1 for record in flags.records if record.restart]
    assert 0 < sum(went) < 6
    torch.manual_seed(0)
    found = ALL["restart"](host, start(), SIGMAS, args)
    plain = GRID.sample(bind(lambda x, s, c: mixture()(x, s) + c, 6, host.shift), latents().double()).images
    for b in range(6):
        if not went[b]:
            torch.testing.assert_close(found[b], plain[b], rtol=0, atol=1e-12)


def test_the_callback_sees_every_step_in_the_hosts_type() -> None:
    seen: list[dict[str, Any]] = []
    x = start().float()
    found = sample_rods_cas(lambda x, sigma: mixture()(x, sigma[0].double()), x, SIGMAS.float(), None, seen.append,
                            eps=float("inf"), rho=0.3)  # fmt: skip
    assert found.dtype == torch.float32
    assert [told["i"] for told in seen] == list(range(N))
    assert set(seen[0]) == {"x", "i", "sigma", "sigma_hat", "denoised"}
    torch.testing.assert_close(seen[0]["x"], x)
    assert all(told[key].dtype == torch.float32 for told in seen for key in ("x", "denoised", "sigma", "sigma_hat"))
    for told in seen:
        assert float(told["sigma"]) == pytest.approx(float(SIGMAS[told["i"]]), rel=1e-6)
        torch.testing.assert_close(
            told["denoised"], mixture()(told["x"], told["sigma"].double()).float(), atol=1e-4, rtol=0
        )


def test_in_a_restart_the_callback_sees_the_whole_batch_and_earlier_steps_again() -> None:
    seen: list[dict[str, Any]] = []
    torch.manual_seed(0)
    sample_restart_gated(lambda x, sigma: mixture()(x, sigma[0]), start(), SIGMAS, None, seen.append, threshold=0.9,
                         sigma_r=5.0, rounds=1)  # fmt: skip
    back = int((SIGMAS > 5).sum())
    assert [told["i"] for told in seen] == [*range(N), back, *range(back, N)]
    assert {told["x"].shape for told in seen} == {start().shape}
    moving = [b for b in range(6) if not torch.equal(seen[-1]["x"][b], seen[N]["x"][b])]
    assert 0 < len(moving) < 6
    assert float(seen[N]["sigma_hat"]) == 5


def test_a_host_may_stop_a_run_from_its_callback() -> None:
    def stop(told: dict[str, Any]) -> None:
        if told["i"] == 2:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        sample_rods_cas(lambda x, sigma: isotropic()(x, sigma[0]), start(), SIGMAS, {}, stop, eps=0, rho=0.3)


@pytest.mark.parametrize(
    ("sigmas", "said"),
    [
        (SIGMAS[:-1], r"the last is 0\.002"),
        (SIGMAS.flip(0), r"0 at 0, and then 0\.002"),
        (torch.tensor([3.0, 3.0, 0.0]), "3 at 0, and then 3"),
        (torch.tensor([float("inf"), 3.0, 0.0]), "inf at 0, and then 3"),
        (torch.tensor([float("nan"), 0.0]), "nan at 0, and then 0"),
        (SIGMAS[-1:], r"torch\.float64 \[1\]"),
        (SIGMAS[None], r"torch\.float64 \[1, 11\]"),
        (SIGMAS.tolist(), "a list"),
    ],
    ids=str,
)
def test_levels_that_are_none(sigmas: Any, said: str) -> None:
    with pytest.raises(ValueError, match=rf"^sigmas: {said}; give a tensor of finite, decreasing noise levels"):
        sample_rods_cas(lambda x, sigma: x, start(), sigmas, eps=0, rho=0.3)


@pytest.mark.parametrize(
    ("x", "said"),
    [
        (start().int(), r"torch\.int32 \[6, 2, 3, 3\]: must be the state, a floating-point"),
        (start().tolist(), "a list: must be the state"),
        (start()[0, 0, 0], r"torch\.float64 \[3\]: must be the state"),
    ],
    ids=["integers", "list", "no image"],
)
def test_a_state_that_is_none(x: Any, said: str) -> None:
    with pytest.raises(ValueError, match=rf"^x: {said}"):
        sample_rods_cas(lambda x, sigma: x, x, SIGMAS, eps=0, rho=0.3)
    with pytest.raises(ValueError, match=rf"^x: {said}"):
        score_by(Lid(), lambda x, sigma: x, x)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("flow", [False, True])
def test_an_empty_batch_gives_an_empty_batch_and_asks_no_model(name: str, flow: bool) -> None:
    def ask(x: Tensor, sigma: Tensor) -> Tensor:
        raise AssertionError

    levels = torch.cat([torch.ones(1).double(), SIGMAS / (1 + SIGMAS)]) if flow else SIGMAS
    found = ALL[name](ask, start()[:0].float(), levels, flow=flow)
    assert (found.shape, found.dtype) == (start()[:0].shape, torch.float32)
    assert score_by(Lid(), ask, start()[:0]).shape == (0,)


def test_a_model_that_gives_no_gradient_or_another_shape() -> None:
    cut = torch.no_grad()(lambda x, sigma: mixture()(x, sigma[0]))
    with pytest.raises(ValueError, match=r"gives no gradient .* gradient=\"difference\""):
        sample_rods_cas(cut, start(), SIGMAS, eps=0, rho=0.3)
    sample_rods_cas(cut, start(), SIGMAS, eps=0, rho=0.3, gradient="difference")
    with pytest.raises(ValueError, match=r"^model: it returned \[6, 1, 3, 3\]"):
        sample_rods_cas(lambda x, sigma: x[:, :1], start(), SIGMAS, eps=0, rho=0.3)
    with pytest.raises(ValueError, match=r"^model: it returned a tuple; let it return the denoised images alone"):
        sample_rods_cas(lambda x, sigma: (x,), start(), SIGMAS, eps=0, rho=0.3)  # type: ignore[arg-type, return-value]
    assert Lid() == Restart(threshold=1, sigma_r=2).detector, "what sample_restart_gated takes without one"


# -- flows ------------------------------------------------------------------------------------------------------------


def flow_host(z: Tensor, t: Tensor) -> Tensor:
    """The mixture as a flow's host has it: z = (1 - t) x0 + t n, and t in sigma's place."""
    return mixture()(z.double() / (1 - t[0].double()), t[0].double() / (1 - t[0].double())).to(z.dtype)


T = SIGMAS / (1 + SIGMAS)


@pytest.mark.parametrize("name", ALL)
def test_a_flow_is_sampled_in_our_coordinates(name: str) -> None:
    torch.manual_seed(0)
    found = ALL[name](flow_host, start() / (1 + SIGMAS[0]), T, flow=True)
    torch.manual_seed(0)
    known = OURS[name].sample(bind(lambda x, sigma: mixture()(x, sigma), 6), latents().double()).images
    torch.testing.assert_close(found, known, rtol=0, atol=1e-9)
    if not name.startswith("restart"):
        told_wrongly = ALL[name](flow_host, start() / (1 + SIGMAS[0]), T)
        assert not torch.allclose(found, told_wrongly, atol=1e-3), "what it would be without `flow`"


def test_from_pure_noise_the_first_step_is_the_flows_own() -> None:
    def host(z: Tensor, t: Tensor) -> Tensor:
        return z.new_full(z.shape, 0.25) if t[0] == 1 else flow_host(z, t)

    T1 = torch.cat([torch.ones(1, dtype=torch.float64), T])
    z, seen = latents().double(), []
    found = sample_by(Euler(), host, z, T1, None, seen.append, flow=True)
    known = z
    for i, (t, t_next) in enumerate(pairwise(T1)):
        denoised = host(known, t.expand(6))
        assert seen[i]["i"] == i
        for key, value in {"x": known, "sigma": t, "sigma_hat": t, "denoised": denoised}.items():
            torch.testing.assert_close(seen[i][key], value, rtol=0, atol=1e-9)
        known = known + (t_next - t) * (known - denoised) / t
    torch.testing.assert_close(found, known, rtol=0, atol=1e-9)
    assert len(seen) == N + 1
    assert {record.forward for record in run_by(Euler(), host, z, T1, flow=True).records} == {N + 1}
    with pytest.raises(ValueError, match=r"^sigmas: one step from pure noise"):
        sample_by(Euler(), host, z, torch.tensor([1.0, 0.0]), flow=True)


def test_levels_that_are_of_no_flow() -> None:
    with pytest.raises(ValueError, match=r"^sigmas: they begin at 20, .* is it a flow\?"):
        sample_by(Euler(), flow_host, start(), SIGMAS, flow=True)


# -- scores -----------------------------------------------------------------------------------------------------------


def test_scores_are_those_of_the_detector() -> None:
    images, detector = latents().double(), Lid(sigma=0.7, draws=3)
    torch.manual_seed(0)
    noise = torch.stack([torch.randn_like(images) for _ in range(3)])
    known = detector.score(bind(mixture(), 6), images, noise=noise)
    for host, flow in ((lambda x, sigma: mixture()(x, sigma[0]), False), (flow_host, True)):
        torch.manual_seed(0)
        torch.testing.assert_close(score_by(detector, host, images, flow=flow), known, rtol=1e-9, atol=0)
    assert known.std() > 0.01
    with pytest.raises(ValueError, match=r"^detector: Tvf needs a trajectory"):
        score_by(Tvf(), flow_host, images)
