"""What is known of the machine."""

from __future__ import annotations

import pytest
import torch

from dnnlib.errors import UserError
from torch_utils import machine


def test_facts_are_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    facts = machine.facts()
    assert facts["torch"] == torch.__version__
    assert facts["threads"] == torch.get_num_threads()
    monkeypatch.setattr(machine, "_cpuinfo", lambda key: iter(["fpu avx2 amx_bf16"] if key == "flags" else []))
    assert machine.cpu_name() == "unknown processor"
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "1")
    assert not machine.keep_freed_memory()  # the user has settled it


def test_memory_that_runs_out_is_the_users_to_mend() -> None:
    for error in (
        MemoryError(),
        torch.cuda.OutOfMemoryError(),
        RuntimeError("can't allocate memory"),
    ):
        with pytest.raises(UserError, match=r"^use less$"), machine.must_fit("use less"):
            raise error
    with pytest.raises(RuntimeError, match="shapes do not match"), machine.must_fit("use less"):
        raise RuntimeError("shapes do not match")


def test_what_a_backward_pass_needs_is_counted_once_and_without_weights() -> None:
    weight, x = torch.ones(1000, requires_grad=True), torch.ones(1000)
    with machine.kept_for_backward([weight]) as kept:
        y = (weight * x) * x  # keeps x, twice, and the weights
    assert kept() == 4000
    assert y.requires_grad


def test_a_measurement_ends_at_the_most_or_when_it_is_long_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[int] = []
    assert machine.largest_measured(tried.append, 6, torch.device("cpu"))[0] == 6
    assert tried == [1, 1, 2, 4, 6]
    monkeypatch.setattr(machine, "ENOUGH_SECONDS", 0.0)
    assert machine.largest_measured(tried.append, 6, torch.device("cpu"))[0] == 1
    assert machine.peak_memory(torch.device("cpu")) > 2**26
    assert (machine.size_text(2**30), machine.size_text(2**20)) == ("1 GiB", "1 MiB")


@pytest.mark.parametrize(
    ("took", "expected"),
    [((0.1, 0.2, 5.0, 0.4, 0.8), (8, 0.8)), ((0.1, 0.2, 5.0, 4.0), (4, 4.0)), ((0.1, 0.3, 1.1), (4, 1.1))],
)
def test_a_measurement_that_stalled_is_made_again(
    monkeypatch: pytest.MonkeyPatch, took: tuple[float, ...], expected: tuple[int, float]
) -> None:
    """A process that lost its core for some seconds once said that a fit of five minutes takes five hours."""
    seconds = iter(took)
    monkeypatch.setattr(machine, "timed", lambda work, device: next(seconds))
    assert machine.largest_measured(lambda rows: None, 8, torch.device("cpu")) == expected
    assert next(seconds, None) is None
