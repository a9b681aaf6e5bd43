"""How a network is executed: layouts, checkpoints, torch.compile."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import files, generated
from torch import Tensor, nn

from rods import euler_sampler, rods_sampler
from rods.denoiser import bind
from rods.state import State
from training.execution import ExecutionConfig, apply_execution, checkpoint_blocks, compiled, set_layout
from training.networks import EDMPrecond
from training.networks.blocks import CheckpointedBlock


def tiny(model: str = "SongUNet", labels: int = 0) -> nn.Module:
    torch.manual_seed(0)
    kwargs: dict[str, Any] = {"model_channels": 8, "channel_mult": [1, 2], "num_blocks": 1, "attn_resolutions": [4]}
    net = EDMPrecond(8, 1, labels, model_type=model, **kwargs).eval().requires_grad_(False)
    for p in net.parameters():
        p.data += 0.05 * torch.randn_like(p)  # so that no layer begins at zero
    return net


def point(net: nn.Module) -> State:
    x = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return State(bind(net, 3), x, torch.tensor(0.7, dtype=torch.float64))


@pytest.mark.parametrize("model", ["SongUNet", "DhariwalUNet", "EDM2UNet"])
def test_checkpoints_change_no_bit_and_keep_less(model: str) -> None:
    plain, checked = tiny(model), tiny(model)
    assert checkpoint_blocks(checked) == sum(isinstance(m, CheckpointedBlock) for m in plain.modules()) > 3
    kept = []
    for net in (plain, checked):
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, s=sizes: (s.append(t.numel()), t)[1], lambda t: t):
            x = torch.ones(1, 1, 8, 8, requires_grad=True)
            net(x, 1.0).sum()
        kept.append(sum(sizes))
    assert kept[1] < kept[0] / 2
    assert torch.equal(point(plain).g, point(checked).g)


@pytest.mark.parametrize("model", ["SongUNet", "DhariwalUNet", "EDM2UNet"])
def test_layouts_agree(model: str) -> None:
    plain, last = tiny(model), set_layout(tiny(model), channels_last=True)
    assert torch.allclose(point(plain).g, point(last).g, rtol=1e-4, atol=1e-6)
    assert torch.allclose(point(plain).d, point(last).d, rtol=1e-4, atol=1e-6)


class Graphs:
    """In place of torch.compile: calls the network, and notes the batch sizes that a graph gets to see."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.rows: list[int] = []
        monkeypatch.setattr(torch, "compile", self.wrap)

    def wrap(self, forward: Any) -> Any:
        def graph(x: Tensor, sigma: Tensor, labels: Tensor | None) -> Tensor:
            self.rows.append(len(x))
            assert labels is None or len(labels) == len(x)
            denoised: Tensor = forward(x, sigma, labels)
            return denoised

        return graph


@pytest.mark.parametrize(("rows", "batch", "seen"), [(1, 4, 2), (4, 4, 4), (3, 4, 3), (9, 4, 9), (1, 1, 1)])
def test_a_graph_sees_two_rows_or_more(monkeypatch: pytest.MonkeyPatch, rows: int, batch: int, seen: int) -> None:
    graphs, net = Graphs(monkeypatch), tiny(labels=3)
    own = compiled(net, batch=batch)
    x = torch.randn(rows, 1, 8, 8).requires_grad_(True)
    labels = torch.eye(3)[torch.arange(rows) % 3]
    out, expected = own(x, torch.tensor(0.7), labels), net(x, torch.tensor(0.7), labels)
    assert torch.allclose(out, expected, atol=1e-6)
    (a,), (b,) = torch.autograd.grad(out.sum(), x), torch.autograd.grad(expected.sum(), x)
    assert torch.allclose(a, b, atol=1e-5)
    assert graphs.rows == [seen]
    assert (own.label_dim, own.sigma_max) == (3, float("inf"))
    assert set(own.state_dict()) == {f"net.{name}" for name in net.state_dict()}


def test_a_network_whose_layers_are_watched_runs_uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    graphs, net = Graphs(monkeypatch), tiny()
    own, seen = compiled(net, batch=4), []
    x = torch.randn(2, 1, 8, 8)
    hook = own.get_submodule("model.dec.8x8_block0").register_forward_hook(lambda *_: seen.append(1))
    own(x, torch.tensor(0.7))
    hook.remove()
    assert (graphs.rows, seen) == ([], [1])
    own(x, torch.tensor(0.7))
    assert (graphs.rows, seen) == ([2], [1])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of torch's compiler
def test_torch_compile_takes_any_batch_by_one_graph_of_each_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    # Without code generation, which needs a C++ compiler and minutes: tools/gpu_check.py --full has it.
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()  # of tests before this one
    net = tiny(labels=3)
    own = compiled(net, batch=8)
    x, labels = torch.randn(8, 1, 8, 8), torch.eye(3)[torch.arange(8) % 3]
    options: dict[str, Any] = {"eps": 0.0, "rho": 1.0, "window": (0, 1), "num_steps": 3}
    for rows in (8, 3, 1, 5):  # as gates and restarts leave them
        a, b = (rods_sampler(n, x[:rows], labels[:rows], **options).images for n in (own, net))
        assert torch.allclose(a, b, atol=1e-4)
        a, b = (euler_sampler(n, x[:rows], labels[:rows], num_steps=3) for n in (own, net))
        assert torch.allclose(a, b, atol=1e-4)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 4  # with gradient and without; two sizes, then any


def test_an_execution_ends_with_its_block() -> None:
    net, threads = tiny(), torch.get_num_threads()
    with apply_execution(net, ExecutionConfig(1, True, "bf16")):
        assert net.model.enc["8x8_block0"].conv0.weight.is_contiguous(memory_format=torch.channels_last)
        assert torch.is_autocast_enabled("cpu")
    assert net.model.enc["8x8_block0"].conv0.weight.is_contiguous()
    assert not torch.is_autocast_enabled("cpu")
    assert torch.get_num_threads() == threads


# -- the command ------------------------------------------------------------------------------------------------------

RUN = ["--sampler=rods-cas", "--eps=0", "--detect=true", "--rho=1", "--steps=3", "--seeds=0-4", "--batch=4"]


def test_memory_options_change_no_image(tmp_path: Path) -> None:
    generated(tmp_path / "plain", *RUN, network=None, steps=None)
    generated(tmp_path / "checked", *RUN, "--checkpoint-blocks", network=None, steps=None)
    assert files(tmp_path / "plain") == files(tmp_path / "checked")
