"""What training costs: counts against independent ones and closed forms, and the page that shows them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, nn
from vectors import ROOT

from dnnlib.errors import UserError
from scripts import scaling
from training.cost import (
    UPDATE_BYTES,
    Activations,
    Assumptions,
    Gpu,
    NetworkCost,
    all_reduce_bytes,
    largest_batch_gpu,
    memory,
    network_cost,
    step_time,
)
from training.layers import Conv2d, Linear
from training.loss import EDMLoss
from training.networks import NETWORKS
from training.presets import PRESETS

torch.set_num_threads(1)
PAGE = ROOT / "docs" / "scaling.md"
TINY: dict[str, Any] = {
    "img_resolution": 16,
    "img_channels": 1,
    "model_type": "SongUNet",
    "model_channels": 8,
    "channel_mult": [1],
    "num_blocks": 1,
    "attn_resolutions": [],
    "augment_dim": 9,
}


@pytest.fixture(scope="module")
def tiny() -> NetworkCost:
    return network_cost("EDMPrecond", TINY)


def by_hand(P: int = 1_000_000, *, flops: float = 1e9, kept: int = 10**6) -> NetworkCost:
    forward = round(flops / 3)
    kept_fp32, kept_half = Activations(0, kept), Activations(2 * P, kept // 2)
    return NetworkCost(P, forward, round(flops) - forward, 1000, kept_fp32, kept_half)


GPU = Gpu("a GPU", half_flops=1e12, memory=2**30, memory_bytes=1e11, node_bytes=1e10, network_bytes=1e9)
IDEAL = Assumptions(achieved=1, launch=0, link=1)

# --- counting -------------------------------------------------------------------------------------------------------


def test_flops_are_those_of_the_layers_and_the_attention(tiny: NetworkCost) -> None:
    """Counted layer by layer in a real forward pass: 2 multiply-adds for each weight and each position it meets."""
    torch.manual_seed(0)
    net, flops = NETWORKS["EDMPrecond"](**TINY), 0

    def count(layer: nn.Module, inputs: Any, output: Tensor) -> None:
        nonlocal flops
        positions = output[0, 0].numel() if output.ndim == 4 else 1
        flops += 2 * layer.weight.numel() * positions

    for layer in net.modules():
        if isinstance(layer, Conv2d | Linear) and layer.weight is not None:
            layer.register_forward_hook(count)
    net(torch.zeros(1, 1, 16, 16), torch.ones(1), augment_labels=torch.ones(1, 9))
    attention = 2 * 2 * (16 * 16) ** 2 * 8  # q k and a v, once, at the coarsest level
    assert tiny.forward == flops + attention
    assert tiny.parameters == sum(p.numel() for p in net.parameters())


def test_a_backward_pass_is_about_two_forward_passes(tiny: NetworkCost) -> None:
    """One to the inputs and one to the weights; the first layer needs none to its input."""
    assert 1.9 < tiny.backward / tiny.forward < 2


def kept_in_earnest(batch: int) -> int:
    """Bytes of all storages that a real forward pass saves, weights left out."""
    net = NETWORKS["EDMPrecond"](**TINY).train()
    own = {t.data_ptr() for t in (*net.parameters(), *net.buffers())}
    kept: dict[int, Tensor] = {}

    def keep(t: Tensor) -> Tensor:
        kept[t.untyped_storage().data_ptr()] = t
        return t

    draws = {"n": torch.zeros(batch), "noise": torch.zeros(batch, 1, 16, 16)}
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        loss = EDMLoss()(net, torch.zeros(batch, 1, 16, 16), None, **draws, augment_labels=torch.zeros(batch, 9))
    assert loss.shape == (batch, 1, 16, 16)
    return sum(t.untyped_storage().nbytes() for pointer, t in kept.items() if pointer not in own)


def test_activations_are_what_a_real_pass_keeps(tiny: NetworkCost) -> None:
    for batch in (1, 3):
        assert tiny.activations("fp32", batch) == pytest.approx(kept_in_earnest(batch), rel=0.01)


def test_sixteen_bits_keep_the_cast_weights_and_less_per_image(tiny: NetworkCost) -> None:
    assert 1.5 * tiny.parameters < tiny.half.fixed < 2.5 * tiny.parameters
    assert 0.5 < tiny.half.per_image / tiny.fp32.per_image < 1
    assert tiny.operations > 150


# --- the model ------------------------------------------------------------------------------------------------------


def test_memory_is_five_copies_of_the_weights_and_the_activations() -> None:
    used = memory(by_hand(), precision="fp32", batch_gpu=3, num_emas=2)
    assert used == {
        "weights": 4_000_000,
        "gradients": 4_000_000,
        "Adam": 8_000_000,
        "EMA": 8_000_000,
        "activations": 3_000_000,
    }
    assert memory(by_hand(), precision="bf16", batch_gpu=3)["activations"] == 2_000_000 + 1_500_000


def test_the_largest_batch_fits_and_twice_as_much_does_not() -> None:
    cost = by_hand()
    for precision in ("fp32", "bf16"):
        fits = largest_batch_gpu(cost, GPU, precision=precision)
        room = GPU.memory * 0.85
        used, twice = (sum(memory(cost, precision=precision, batch_gpu=b).values()) for b in (fits, 2 * fits))
        assert used <= room < twice
    assert largest_batch_gpu(by_hand(P=10**9), GPU, precision="fp32") == 0


def test_a_ring_sends_twice_the_gradients_less_one_part() -> None:
    assert all_reduce_bytes(10, 1) == 0
    assert all_reduce_bytes(10, 2) == 40
    assert all_reduce_bytes(10, 8) == 70
    assert all_reduce_bytes(1_000_000, 10_000) == pytest.approx(8_000_000, rel=1e-3)


def test_a_step_is_its_flops_update_and_traffic() -> None:
    t = step_time(by_hand(), GPU, batch=64, batch_gpu=4, ranks=8, assumed=IDEAL)
    assert t.passes == pytest.approx(8 * 1e9 / 1e12)
    assert t.update == pytest.approx(UPDATE_BYTES * 1e6 / 1e11)
    assert t.all_reduce == pytest.approx(7e6 / 1e10)
    assert t.total == t.passes + t.update + t.all_reduce
    slower = step_time(by_hand(), GPU, batch=64, batch_gpu=4, ranks=8, assumed=Assumptions(0.25, 0, 0.5))
    assert (slower.passes, slower.all_reduce) == pytest.approx((4 * t.passes, 2 * t.all_reduce))


def test_kernels_bound_small_rounds_and_the_network_many_machines() -> None:
    slow_start = Assumptions(achieved=1, launch=1e-5, link=1)
    assert step_time(by_hand(), GPU, batch=8, batch_gpu=1, ranks=4, assumed=slow_start).passes == pytest.approx(0.02)
    within, beyond = (
        step_time(by_hand(), GPU, batch=16, batch_gpu=1, ranks=ranks, assumed=IDEAL).all_reduce for ranks in (8, 16)
    )
    assert beyond / within == pytest.approx(10 * (15 / 16) / (7 / 8))


# --- the page -------------------------------------------------------------------------------------------------------


def test_the_tables_show_the_costs() -> None:
    tables = scaling.tables({"ffhq-64-ve": by_hand(62_800_000, flops=255e9)}, Assumptions())
    assert list(tables) == ["networks", "traffic", "memory ffhq-64-ve", "throughput ffhq-64-ve"]
    assert "| `ffhq-64-ve` | 62.8 M | 85.0 | 255.0 |" in tables["networks"]
    assert "| `ffhq-64-ve` | 8 | 440 |" in tables["traffic"]
    rows = tables["throughput ffhq-64-ve"].splitlines()
    assert len(rows) == 2 + 4 * len(scaling.GPUS)
    assert len({row.count("|") for row in rows}) == 1


def test_tables_find_their_places_in_a_page(tmp_path: Path) -> None:
    text = "a\n<!-- table: x -->\n<!-- end -->\nb\n<!-- table: y -->\nold\n\n<!-- end -->\n"
    new = scaling.with_tables(text, {"x": r"\1", "y": "2"}, tmp_path)
    assert new == "a\n<!-- table: x -->\n\\1\n<!-- end -->\nb\n<!-- table: y -->\n2\n<!-- end -->\n"
    assert scaling.with_tables(new, {"x": r"\1", "y": "2"}, tmp_path) == new
    with pytest.raises(UserError, match=r"has 0 places <!-- table: z -->; it needs one"):
        scaling.with_tables(text, {"z": ""}, tmp_path)
    result = CliRunner().invoke(scaling.main, ["--preset=hands-32", "--channels=1", f"--page={tmp_path / 'none.md'}"])
    assert result.exit_code == 2
    assert "there is no such page; name docs/scaling.md" in result.output


def test_the_page_has_a_place_for_every_table() -> None:
    tables = scaling.tables({name: by_hand() for name in scaling.LARGE}, Assumptions())
    assert set(re.findall(r"<!-- table: (.*?) -->", PAGE.read_text())) == set(tables)
    assert set(scaling.LARGE) <= set(PRESETS)


@pytest.mark.slow
def test_the_page_is_what_the_script_writes_and_meets_the_published_network() -> None:
    costs = {name: scaling.preset_cost(name, 3) for name in scaling.LARGE}
    assert costs["ffhq-64-ve"].parameters / 1e6 == pytest.approx(62.8, abs=0.05)
    assert costs["ffhq-64-ve"].forward / 1e9 == pytest.approx(85, abs=0.5)
    page = PAGE.read_text()
    assert scaling.with_tables(page, scaling.tables(costs, Assumptions()), PAGE) == page, (
        "run: python scripts/scaling.py --page=docs/scaling.md"
    )
