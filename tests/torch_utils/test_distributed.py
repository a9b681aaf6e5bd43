"""Ranks: without processes nothing is needed, chunks are shared out, and devices are picked."""

from __future__ import annotations

import pytest
import torch

from dnnlib.errors import UserError
from torch_utils import distributed


def test_alone_nothing_is_needed() -> None:
    distributed.init(torch.device("cpu"))
    assert not torch.distributed.is_initialized()
    distributed.barrier()
    with distributed.rank0_first():
        pass
    distributed.close()
    assert (distributed.rank(), distributed.world_size()) == (0, 1)
    assert distributed.shard([1, 2, 3]) == [1, 2, 3]
    assert distributed.oversubscription(1000) is None


def test_rank_0_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank, order in (("0", ["block", "barrier"]), ("1", ["barrier", "block"])):
        happened: list[str] = []
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setattr(distributed, "barrier", lambda happened=happened: happened.append("barrier"))
        with distributed.rank0_first():
            happened.append("block")
        assert happened == order


def test_ranks_share_out_the_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    shares = []
    monkeypatch.setenv("WORLD_SIZE", "3")
    for rank in "012":
        monkeypatch.setenv("RANK", rank)
        shares.append(list(distributed.shard(range(8))))
    assert shares == [[0, 3, 6], [1, 4, 7], [2, 5]]


def test_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert distributed.pick_device("auto") == distributed.pick_device("cpu") == torch.device("cpu")
    for name in ("cuda", "mps"):
        with pytest.raises(UserError, match=f"^--device={name}: torch finds no {name.upper()} device here"):
            distributed.pick_device(name)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert distributed.pick_device("auto") == torch.device("cuda", 0)
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert distributed.pick_device("cuda") == torch.device("cuda", 1)
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(UserError, match="local rank 2 has no GPU, for there are 2; use --nproc_per_node=2"):
        distributed.pick_device("cuda")


def test_too_many_threads_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "usable_cores", lambda: 4)
    assert distributed.own_cores() == 4
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert distributed.oversubscription(2) is None
    assert distributed.oversubscription(3) == (
        "Slow: 2 ranks with 3 threads each share 4 cores; leave --threads out, or give --threads=2"
    )


@pytest.mark.parametrize(("ranks", "threads", "says"), [(1, 4, False), (2, 2, False), (3, 1, False), (6, 1, True)])
def test_ranks_of_a_machine_divide_its_cores(
    ranks: int, threads: int, says: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distributed, "usable_cores", lambda: 4)
    for name, value in (("RANK", 0), ("WORLD_SIZE", 12), ("LOCAL_WORLD_SIZE", ranks)):
        monkeypatch.setenv(name, str(value))
    assert distributed.own_cores() == threads
    assert (distributed.oversubscription(threads) is not None) == says
    before = torch.get_num_threads()
    monkeypatch.setattr(distributed, "init", lambda device: None)
    distributed.begin("cpu", None)
    assert torch.get_num_threads() == threads
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    "left", [{"RANK": "1"}, {"RANK": "", "WORLD_SIZE": ""}, {"RANK": "3", "WORLD_SIZE": "1", "LOCAL_RANK": "3"}]
)
def test_what_another_program_left_in_the_environment_is_no_rank(
    left: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in left.items():
        monkeypatch.setenv(name, value)
    assert (distributed.rank(), distributed.world_size()) == (0, 1)
    assert distributed.shard([1, 2, 3]) == [1, 2, 3]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert distributed.pick_device("cuda") == torch.device("cuda", 0)


@pytest.mark.parametrize(
    ("left", "says"),
    [
        ({"WORLD_SIZE": "4"}, "WORLD_SIZE=4 is set without RANK; start the ranks with torchrun, or unset WORLD_SIZE"),
        ({"WORLD_SIZE": "4", "RANK": ""}, "WORLD_SIZE=4 is set without RANK"),
        ({"WORLD_SIZE": "4", "RANK": "4"}, "WORLD_SIZE=4 has no rank 4"),
        ({"WORLD_SIZE": "4", "RANK": "0"}, "WORLD_SIZE=4 is set without MASTER_ADDR"),
        ({"WORLD_SIZE": "four"}, "WORLD_SIZE='four' in the environment is no number from 1 on"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE='0' in the environment is no number from 1 on"),
        ({"WORLD_SIZE": "2", "RANK": "-1"}, "RANK='-1' in the environment is no number from 0 on"),
    ],
)
def test_half_of_an_announcement_is_one_clear_line(
    left: dict[str, str], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in left.items():
        monkeypatch.setenv(name, value)

    def join() -> None:
        distributed.rank()
        distributed.init(torch.device("cpu"))

    with pytest.raises(UserError) as error:
        join()
    assert str(error.value).startswith(says)


def test_a_lost_rank_is_one_line_in_every_collective(monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(*arguments: object, **options: object) -> None:
        raise RuntimeError("Connection closed by peer")

    monkeypatch.setenv("RANK", "2")
    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    for name in ("barrier", "all_reduce", "broadcast", "all_gather_object"):
        monkeypatch.setattr(torch.distributed, name, lost)
    for collective in (
        distributed.barrier,
        lambda: distributed.gather(1),
        lambda: distributed.all_sum(torch.zeros(1)),
        lambda: distributed.from_rank0(b"1", torch.device("cpu")),
    ):
        with pytest.raises(UserError, match=r"^rank 2 stops because another rank has failed; its message says why$"):
            collective()
