"""Precisions of sampling: float32 where gradients and layers are read, and the choice of the fastest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import RODS, SMALL, generated, options_json, records, refused
from torch import nn

from rods.denoiser import bind
from rods.state import State
from torch_utils import distributed
from training import precision
from training.checkpoint import load_denoiser
from training.execution import Mixed, compiled
from training.precision import Choice, fastest

CPU = torch.device("cpu")


def state(net: nn.Module) -> State:
    x = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return State(bind(net, 3), x, torch.tensor(0.7, dtype=torch.float64))


def test_mixed_is_bf16_but_where_a_gradient_or_a_layer_is_read() -> None:
    net = load_denoiser(SMALL)
    plain, mixed = state(net), state(Mixed(net))
    assert 1e-5 < (plain.D - mixed.D).norm() / plain.D.norm() < 0.1
    assert torch.equal(state(net).g, state(Mixed(net)).g)
    seen: list[torch.dtype] = []
    hook = next(iter(net.model.dec.values())).register_forward_hook(lambda m, args, out: seen.append(out.dtype))
    assert torch.equal(state(Mixed(net)).D, plain.D)
    hook.remove()
    assert seen == [torch.float32]
    assert Mixed(net).img_resolution == 8


def test_mixed_goes_around_a_compiled_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda forward: forward)
    net = load_denoiser(SMALL)
    assert torch.equal(state(Mixed(compiled(net, batch=3))).D, state(Mixed(net)).D)


@pytest.fixture
def seconds(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[tuple[bool, bool], float]:
    """What an evaluation takes, by (mixed, channels last), on a machine that multiplies bf16."""
    found = {(False, False): 1.0, (False, True): 0.97, (True, False): 0.8, (True, True): 0.5}

    def spent(net: Any, x: torch.Tensor, labels: torch.Tensor | None) -> float:
        weight = next(p for p in net.parameters() if p.ndim == 4 and min(p.shape[1:]) > 1)
        last = weight.is_contiguous(memory_format=torch.channels_last)
        found["calls"] = found.get("calls", 0) + 1  # type: ignore[index, call-overload]
        return found[isinstance(net, Mixed), last]

    monkeypatch.setattr(precision, "spent", spent)
    monkeypatch.setattr(precision, "has_bf16_units", lambda: True)
    monkeypatch.setenv("DNNLIB_CACHE_DIR", str(tmp_path / "cache"))
    return found


def choose(*, channels_last: bool = False, batch: int = 4) -> Choice:
    return fastest(load_denoiser(SMALL), batch=batch, channels_last=channels_last, device=CPU)


def test_the_fastest_is_chosen_and_kept_by_machine_and_shape(seconds: Any, tmp_path: Path) -> None:
    assert choose() == Choice("mixed", True, 0.5)
    calls = seconds["calls"]
    seconds[True, True] = 2.0
    assert choose() == Choice("mixed", True, 0.5, kept=True)
    assert seconds["calls"] == calls
    assert choose(batch=5) == Choice("mixed", False, 0.8), "another number of images is another trial"
    (tmp_path / "cache" / "precision.json").write_text("{")
    assert choose() == Choice("mixed", False, 0.8)


def test_float32_stays_unless_something_gains(seconds: Any) -> None:
    seconds[True, False] = seconds[True, True] = 0.96
    assert choose() == Choice()
    assert "nothing faster was found" in choose().describe()


def test_a_layout_that_was_given_is_settled(seconds: Any) -> None:
    seconds[True, True], seconds[True, False] = 0.9, 0.1
    assert choose(channels_last=True) == Choice("mixed", True, round(0.9 / 0.97, 3))


def test_nothing_is_tried_without_units_for_bf16(seconds: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "has_bf16_units", lambda: False)
    assert choose() == Choice()
    assert choose(channels_last=True) == Choice("float32", True)
    assert "calls" not in seconds


# -- the command ------------------------------------------------------------------------------------------------------

RUN = [*RODS, "--seeds=0-3"]


def test_auto_says_what_it_chose_and_keeps_to_it(seconds: Any, tmp_path: Path) -> None:
    said = generated(tmp_path / "auto", *RUN, "--dtype=auto")
    assert "--dtype=auto: mixed, channels last (0.50x the time of float32)" in said
    assert " --dtype=mixed --device=cpu --channels-last " in said
    identity = options_json(tmp_path / "auto")["identity"]
    assert (identity["dtype"], identity["channels_last"]) == ("mixed", True)
    generated(tmp_path / "given", *RUN, "--dtype=mixed", "--channels-last")
    assert options_json(tmp_path / "given")["identity"] == identity
    assert [r["sha256"] for r in records(tmp_path / "given")] == [r["sha256"] for r in records(tmp_path / "auto")]


def test_where_float32_stays_auto_changes_nothing(seconds: Any, tmp_path: Path) -> None:
    seconds.update(dict.fromkeys(seconds, 1.0))
    generated(tmp_path / "auto", *RUN, "--dtype=auto")
    generated(tmp_path / "plain", *RUN)
    assert options_json(tmp_path / "auto")["identity"] == options_json(tmp_path / "plain")["identity"]
    assert records(tmp_path / "auto") == records(tmp_path / "plain")


def test_ranks_must_choose_alike(seconds: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "gather", lambda mine: [mine, ("float32", False)])
    assert "give --dtype=float32 or mixed" in refused(tmp_path, *RUN, "--dtype=auto")
    generated(tmp_path, *RUN)  # nothing that was given is compared


def test_the_first_index_of_a_mixed_run_is_that_of_float32(tmp_path: Path) -> None:
    H = {}
    for dtype in ("float32", "mixed", "bf16"):
        generated(tmp_path / dtype, *RUN, "--eps=inf", "--rho=.5", f"--dtype={dtype}")
        H[dtype] = np.array([record["H"][0] for record in records(tmp_path / dtype)])
    assert np.array_equal(H["mixed"], H["float32"])
    assert not np.array_equal(H["bf16"], H["float32"])
