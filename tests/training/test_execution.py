"""How a network is executed: layouts, checkpoints, padding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from commands import files, generated
from rods.evaluation import Point, bind
from torch import Tensor, nn

from training.execution import ExecutionConfig, Padded, apply_execution, checkpoint_blocks, set_layout
from training.networks import EDMPrecond


def tiny(model: str = "SongUNet", labels: int = 0) -> nn.Module:
    torch.manual_seed(0)
    kwargs: dict[str, Any] = {"model_channels": 8, "channel_mult": [1, 2], "num_blocks": 1, "attn_resolutions": [4]}
    net = EDMPrecond(8, 1, labels, model_type=model, **kwargs).eval().requires_grad_(False)
    for p in net.parameters():
        p.data += 0.05 * torch.randn_like(p)  # so that no layer begins at zero
    return net


def point(net: nn.Module) -> Point:
    x = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return Point(bind(net, 3), x, torch.tensor(0.7, dtype=torch.float64))


@pytest.mark.parametrize("model", ["SongUNet", "DhariwalUNet"])
def test_checkpoints_change_no_bit_and_keep_less(model: str) -> None:
    plain, checked = tiny(model), tiny(model)
    assert checkpoint_blocks(checked) == sum(type(m).__name__ == "UNetBlock" for m in plain.modules()) > 3
    kept = []
    for net in (plain, checked):
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, s=sizes: (s.append(t.numel()), t)[1], lambda t: t):
            x = torch.ones(1, 1, 8, 8, requires_grad=True)
            net(x, 1.0).sum()
        kept.append(sum(sizes))
    assert kept[1] < kept[0] / 2
    assert torch.equal(point(plain).g, point(checked).g)


@pytest.mark.parametrize("model", ["SongUNet", "DhariwalUNet"])
def test_layouts_agree(model: str) -> None:
    plain, last = tiny(model), set_layout(tiny(model), channels_last=True)
    assert torch.allclose(point(plain).g, point(last).g, rtol=1e-4, atol=1e-6)
    assert torch.allclose(point(plain).d, point(last).d, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("rows", [1, 4, 5, 9])
def test_a_padded_network_sees_one_batch_size_alone(rows: int) -> None:
    net, seen = tiny(labels=3), []

    def call(x: Tensor, sigma: Tensor, labels: Tensor) -> Tensor:
        seen.append((len(x), len(labels)))
        denoised: Tensor = net(x, sigma, labels)
        return denoised

    padded = Padded(net, 4, call)
    x = torch.randn(rows, 1, 8, 8).requires_grad_(True)
    labels = torch.eye(3)[torch.arange(rows) % 3]
    out = padded(x, torch.tensor(0.7), labels)
    expected = net(x, torch.tensor(0.7), labels)
    assert torch.allclose(out, expected, atol=1e-6)
    (a,), (b,) = torch.autograd.grad(out.sum(), x), torch.autograd.grad(expected.sum(), x)
    assert torch.allclose(a, b, atol=1e-5)
    assert set(seen) == {(4, 4)}
    assert (padded.label_dim, padded.sigma_max) == (3, float("inf"))


def test_an_execution_ends_with_its_block() -> None:
    net, threads = tiny(), torch.get_num_threads()
    with apply_execution(net, ExecutionConfig(1, True, "bf16")):
        assert net.model.enc["8x8_block0"].conv0.weight.is_contiguous(memory_format=torch.channels_last)
        assert torch.is_autocast_enabled("cpu")
    assert net.model.enc["8x8_block0"].conv0.weight.is_contiguous()
    assert not torch.is_autocast_enabled("cpu")
    assert torch.get_num_threads() == threads


# -- the command ------------------------------------------------------------------------------------------------------

RUN = ["--sampler=rods-cas", "--eps=0", "--rho=1", "--steps=3", "--seeds=0-4", "--batch=4"]


def test_memory_options_change_no_image(tmp_path: Path) -> None:
    generated(tmp_path / "plain", *RUN, network=None, steps=None)
    generated(tmp_path / "checked", *RUN, "--checkpoint-blocks", network=None, steps=None)
    assert files(tmp_path / "plain") == files(tmp_path / "checked")
