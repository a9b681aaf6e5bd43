"""Task grid25: the data, its labels, the exact and the learnt denoisers, and the command that trains them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dnnlib.errors import UserError
from rods.bench.task import embedded_network, exact_network
from rods.bench.tasks.grid25 import task as grid25
from rods.bench.tasks.grid25.training import PointTraining, measured_sigma_data, save_points, train_points
from rods.config import build
from rods.densities import Mixture
from rods.eval.labels import Label
from training.checkpoint import load_snapshot
from training.networks import MLP

TINY = PointTraining(seed=3, steps=40, batch=64, hidden=16, num_layers=2)


def at(*points: tuple[float, float]) -> np.ndarray:
    return np.array(points, dtype=float)[:, :, None, None]


def test_data_has_the_stated_scale():
    points = grid25.real_points(200_000, 0)[:, :, 0, 0]
    np.testing.assert_allclose(grid25.SPACING, 0.70696, atol=1e-5)
    np.testing.assert_allclose(grid25.SD, 0.017674, atol=1e-6)
    np.testing.assert_allclose(points.std(axis=0), 1, atol=0.005)
    assert measured_sigma_data() == pytest.approx(1, abs=0.002)


def test_nearest_mode_is_the_nearest_of_all():
    points = np.random.default_rng(0).uniform(-3, 3, (5000, 2))
    distances = np.linalg.norm(points[:, None] - grid25.modes()[None], axis=2) / grid25.SD
    distance, mode = grid25.nearest_mode(points[:, :, None, None])
    np.testing.assert_allclose(distance, distances.min(axis=1), rtol=1e-9)
    np.testing.assert_array_equal(mode, distances.argmin(axis=1))


@pytest.mark.parametrize(
    ("sds", "label"), [(4.4, Label.VALID), (4.6, 0), (5.4, 0), (5.6, Label.HALLUCINATED), (100, Label.HALLUCINATED)]
)
def test_labels_follow_the_distance(sds, label):
    x, y = grid25.modes()[24]  # a corner, from where every direction outwards is free
    points = at((x + sds * grid25.SD, y), (x, y + sds * grid25.SD))
    assert grid25.label_points(points).tolist() == [label] * 2


def test_faults_name_the_place():
    s, sd = grid25.SPACING, grid25.SD
    places = {(0.0, 0.0): "", (0.5 * s, s): "between two modes", (s, -0.5 * s + 4 * sd): "between two modes",
              (0.5 * s, 0.5 * s): "elsewhere", (2.5 * s, 0.0): "elsewhere", (9.0, 9.0): "elsewhere",
              (2 * s + 6 * sd, 0.5 * s): "elsewhere"}  # fmt: skip
    assert dict(zip(places, grid25.faults(at(*places)), strict=True)) == places


def test_modes_are_counted_within_five_sd():
    off = np.array([[0, 0], [4.9 * grid25.SD, 0], [0.3, 0.3]])
    points = (grid25.modes() + off[:, None]).reshape(-1, 2)
    assert grid25.mode_of(points[:, :, None, None]).tolist() == [*range(25), *range(25), *[-1] * 25]


def test_audit_meets_its_bars():
    lines = grid25.audit(num=200_000, num_planted=2_000)
    assert all(line.passes for line in lines), [line for line in lines if not line.passes]
    assert lines[0].share.n == 200_000
    assert lines[2].share.rate == 1.0


@pytest.mark.parametrize("points", [np.zeros((3, 2)), np.zeros((3, 1, 2, 1)), np.full((1, 2, 1, 1), np.nan)])
def test_labels_refuse_what_is_no_point(points):
    with pytest.raises(ValueError, match="points"):
        grid25.label_points(points)
    with pytest.raises(ValueError, match="n=-1"):
        grid25.real_points(-1, 0)


def sampled(denoiser, sampler: str, n: int = 4000) -> np.ndarray:
    latents = torch.randn(n, 2, 1, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return build(sampler, {"num_steps": 40}).sample(denoiser, latents).images.numpy()


def bad_share(points: np.ndarray) -> float:
    return float((grid25.label_points(points) == Label.HALLUCINATED).mean())


def test_the_exact_denoiser_leaves_the_error_of_integration_alone():
    net = grid25.grid25_exact().networks["grid25-exact"]()
    assert 0 < bad_share(sampled(net.denoiser, "euler")) < 0.005
    healthy = sampled(net.denoiser, "edm")
    assert bad_share(healthy) == 0
    assert set(grid25.mode_of(healthy)) >= set(range(25))


def test_the_checksum_of_a_density_is_that_of_its_parameters():
    a = exact_network("a", grid25.density()).sha256
    assert a == exact_network("b", grid25.density()).sha256
    d = grid25.density()
    assert a != exact_network("a", Mixture(d.mu, d.weights, d.s0 * 2)).sha256
    assert a != exact_network("a", Mixture(d.mu + 1, d.weights, d.s0)).sha256


@pytest.mark.parametrize("name", list(grid25.grid25().networks))
def test_embedded_networks_hallucinate_about_as_published_in_the_card(name):
    """Euler about 7 %, Heun about 2 % (models/grid25.md)."""
    net = grid25.grid25().networks[name]()
    assert (net.name, len(net.sha256)) == (name, 64)
    assert (net.denoiser.img_channels, net.denoiser.img_resolution) == (2, 1)
    euler, heun = bad_share(sampled(net.denoiser, "euler")), bad_share(sampled(net.denoiser, "edm"))
    assert 0.05 < euler < 0.10
    assert 0.01 < heun < 0.04


def test_a_missing_network_is_named_with_its_command(tmp_path):
    with pytest.raises(UserError, match=r"nine\.safetensors is missing.*`make nine`"):
        embedded_network("nine", made_by="make nine", folder=tmp_path)


def test_training_is_a_function_of_its_config(tmp_path):
    first, second = train_points(TINY), train_points(TINY)
    for name, trained in (("a", first), ("b", second)):
        save_points(tmp_path / f"{name}.safetensors", trained, TINY)
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    snapshot = load_snapshot(tmp_path / "a.safetensors")
    assert snapshot.header.extra["training"]["seed"] == 3
    assert snapshot.header.extra["learning_curve"][-1][0] == TINY.steps * TINY.batch
    x = torch.randn(5, 2, 1, 1)
    torch.testing.assert_close(snapshot.net(x, torch.tensor(0.3)), first[0](x, torch.tensor(0.3)))


def test_training_learns():
    _, _, curve = train_points(PointTraining(steps=200, batch=128, hidden=32))
    assert curve[-1][1] < 0.95 * curve[0][1]


def test_the_network_takes_one_noise_level_or_one_for_each_point():
    net = MLP(1, 2, 2, hidden=8)
    x, c = torch.randn(4, 2, 1, 1), torch.tensor([0.1])
    assert net(x, c).shape == (4, 2, 1, 1)
    torch.testing.assert_close(net(x, c), net(x, c.expand(4)))
    assert not torch.equal(net(x, c), net(x, c + 1))
    with pytest.raises(ValueError, match="label_dim=3"):
        MLP(1, 2, 2, label_dim=3)
