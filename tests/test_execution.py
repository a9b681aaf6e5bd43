"""How a network is carried out: layouts, checkpoints, torch.compile, and the choice by measurement."""

from __future__ import annotations

from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import files, generated
from torch import Tensor, nn

import generate as command
import training.execution
from rods import euler_sampler, rods_sampler
from rods.evaluation import Point, bind
from torch_utils import machine
from training.execution import Manner, Timed, carried_out, checkpoint_blocks, compiled, fastest, psnr, set_layout
from training.precond import EDMPrecond


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


def test_the_fastest_faithful_manner_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    net = tiny()
    took = {Manner(2): 1.0, Manner(1): 0.5, Manner(1, True): 0.48, Manner(1, False, "bf16"): 0.1}
    monkeypatch.setattr(training.execution, "has_bf16_units", lambda: True)
    monkeypatch.setattr(training.execution, "_seconds", lambda net, manner, *rest: took[manner])
    monkeypatch.setattr(training.execution, "_denoised", lambda *_: torch.zeros(1))
    best, tried = fastest(net, batch=2, cores=2)
    assert best == Manner(1, False, "bf16")  # channels last gained less than 5 %
    assert {t.manner: t.seconds for t in tried} == took
    monkeypatch.setattr(
        training.execution, "_denoised", lambda *_: torch.full([4], float(torch.is_autocast_enabled("cpu")))
    )
    assert fastest(net, batch=2, cores=2)[0] == Manner(1)  # bf16 is far off the float32 images
    monkeypatch.setattr(training.execution, "has_bf16_units", lambda: False)
    assert Manner(1, False, "bf16") not in [t.manner for t in fastest(net, batch=2, cores=2)[1]]


def test_times_are_the_least_of_the_rounds_after_the_first() -> None:
    ticks = count()
    best, tried = fastest(tiny(), batch=1, cores=1, rounds=2, clock=lambda: float(next(ticks)))
    assert best == Manner(1)
    assert [t.seconds for t in tried][:2] == [1.0, 1.0]
    assert tried[0].describe()["psnr"] == 999.0
    assert tried[1].psnr > 80  # float32 rounding


def test_a_manner_ends_with_its_block() -> None:
    net, threads = tiny(), torch.get_num_threads()
    with carried_out(net, Manner(1, True, "bf16")):
        assert net.model.enc["8x8_block0"].conv0.weight.is_contiguous(memory_format=torch.channels_last)
        assert torch.is_autocast_enabled("cpu")
    assert net.model.enc["8x8_block0"].conv0.weight.is_contiguous()
    assert not torch.is_autocast_enabled("cpu")
    assert torch.get_num_threads() == threads
    assert psnr(torch.zeros(3), torch.full([3], 0.02)) == pytest.approx(40)


# -- the command ------------------------------------------------------------------------------------------------------

RUN = ["--sampler=rods-cas", "--eps=0", "--rho=1", "--steps=3", "--seeds=0-4", "--batch=4"]


def test_memory_options_change_no_image(tmp_path: Path) -> None:
    generated(tmp_path / "plain", *RUN, network=None, steps=None)
    generated(tmp_path / "checked", *RUN, "--checkpoint-blocks", network=None, steps=None)
    assert files(tmp_path / "plain") == files(tmp_path / "checked")


def test_fast_says_what_it_picked_and_keeps_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pick = Manner(1, True)
    monkeypatch.setattr(command, "fastest", lambda net, batch, cores: (pick, [Timed(pick, 0.5, 90.0)]))
    said = generated(tmp_path / "out", *RUN[:-2], "--seeds=0-1", "--fast", network=None, steps=None)
    assert "--fast: 0.5000 s, 90 dB with --threads=1 --channels-last=true --dtype=float32" in said
    monkeypatch.setattr(command, "fastest", lambda *args, **options: 1 / 0)
    said = generated(tmp_path / "out", *RUN[:-2], "--seeds=0-1", "--fast", network=None, steps=None)
    assert "--channels-last=true --dtype=float32, as before in this folder" in said


# -- the machine ------------------------------------------------------------------------------------------------------


def test_facts_are_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    facts = machine.facts()
    assert facts["torch"] == torch.__version__
    assert facts["threads"] == torch.get_num_threads()
    monkeypatch.setattr(machine, "_cpuinfo", lambda key: iter(["fpu avx2 amx_bf16"] if key == "flags" else []))
    assert machine.has_bf16_units()
    assert machine.cpu_name() == "unknown processor"
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "1")
    assert not machine.keep_freed_memory()  # the user has settled it
