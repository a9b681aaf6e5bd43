"""Models of diffusers, tiny and with random weights, against what its own schedulers compute of them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rods import Euler, bind, euler_sampler, guided
from rods.wrappers import from_edm_diffusers, from_flow, from_vp_steps

diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")
SHAPE = {"img_channels": 3, "img_resolution": 8}


def unet(*, classes: int | None = None) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = diffusers.UNet2DModel(
            block_out_channels=(4, 8), layers_per_block=1, norm_num_groups=4, sample_size=8, num_class_embeds=classes,
            down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2,
        )  # fmt: skip
    return net.eval().requires_grad_(False)


def latents(seed: int = 1) -> Tensor:
    return torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def close(a: Tensor, b: Tensor, *, tol: float = 1e-5) -> None:
    assert float((a - b).abs().max()) <= tol * float(b.abs().max())


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_an_edm_model_is_what_its_scheduler_makes_of_it(prediction: Any) -> None:
    net = unet()
    scheduler = diffusers.EDMEulerScheduler(prediction_type=prediction, sigma_data=0.7)
    scheduler.set_timesteps(6)
    D = from_edm_diffusers(net, prediction=prediction, sigma_data=0.7, **SHAPE)
    x = latents() * scheduler.init_noise_sigma
    start = x
    with torch.no_grad():
        for t, sigma in zip(scheduler.timesteps, scheduler.sigmas, strict=False):
            out = net(scheduler.scale_model_input(x, t), t).sample
            done = scheduler.step(out, t, x)
            close(D(x.double(), sigma.double()).float(), done.pred_original_sample)
            x = done.prev_sample
    sigmas = scheduler.sigmas.double()
    steps = list(Euler().along(bind(D, 2), start.double(), sigmas))
    close(steps[-1].x_next.float(), x, tol=1e-4)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_a_flow_model_is_what_its_scheduler_makes_of_it(shift: float) -> None:
    """Its own steps in z = (1 - t) x0 + t n, against Euler steps in x and sigma."""
    net = unet()
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(sigmas=[0.99, 0.8, 0.6, 0.4, 0.2, 0.05])
    ts = scheduler.sigmas.double()
    D = from_flow(net, time_scale=1000, **SHAPE)
    z = latents()
    start = z.double() / (1 - ts[0])
    with torch.no_grad():
        for t in scheduler.timesteps:
            z = scheduler.step(net(z, t).sample, t, z).prev_sample
    steps = list(Euler().along(bind(D, 2), start, ts / (1 - ts)))
    close(steps[-1].x_next.float(), z, tol=1e-4)
    unshifted = torch.tensor(0.8, dtype=torch.float64)
    assert float(ts[1] / (1 - ts[1])) == pytest.approx(shift * float(unshifted / (1 - unshifted)), rel=1e-6)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_a_vp_model_is_what_its_scheduler_makes_of_it(prediction: Any) -> None:
    net = unet()
    scheduler = diffusers.DDIMScheduler(prediction_type=prediction, clip_sample=False)
    scheduler.set_timesteps(5)
    table = scheduler.alphas_cumprod
    D = from_vp_steps(net, table, prediction=prediction, **SHAPE)
    for t in (0, 250, 999):
        x_vp = latents(t)
        with torch.no_grad():
            known = scheduler.step(net(x_vp, t).sample, t, x_vp).pred_original_sample
            sigma = (1 / table[t].double() - 1).sqrt()
            close(D(x_vp.double() * (1 + sigma**2).sqrt(), sigma).float(), known, tol=1e-4)


class Classes(nn.Module):
    """The model with one-hot labels, and its last class for those without."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.net, self.null = unet(classes=classes + 1), classes

    def forward(self, x: Tensor, t: Tensor, labels: Tensor | None = None) -> Any:
        which = torch.full((len(x),), self.null) if labels is None else labels.argmax(1)
        return self.net(x, t, class_labels=which)


def test_a_model_with_a_null_class_is_guided_as_a_pipeline_guides_it() -> None:
    """noise = noise_null + w (noise_class - noise_null), as diffusers' pipelines write it."""
    net = Classes(4)
    table = diffusers.DDIMScheduler().alphas_cumprod
    D = guided(from_vp_steps(net, table, label_dim=4, **SHAPE), None, 3)
    t, x_vp, labels = 400, latents(), torch.eye(4)[[1, 3]]
    sigma = (1 / table[t].double() - 1).sqrt()
    with torch.no_grad():
        null, own = net(x_vp, t).sample, net(x_vp, t, labels).sample
        assert not torch.allclose(null, own, atol=1e-4)
        x = x_vp.double() * (1 + sigma**2).sqrt()
        expected = x - sigma * (null + 3 * (own - null))
        close(D(x, sigma, labels), expected, tol=1e-4)
    done = euler_sampler(D, latents(), labels, num_steps=4)
    assert done.isfinite().all()
