"""A command as several ranks, forked from one process that has imported it: what torchrun does, but for the start.

    python tests/tools/forked_ranks.py RANKS SCRIPT [OPTION ...]

Each rank of torchrun imports torch by itself, which takes longer than the tiny runs of the tests. One test of
generate.py and one of train.py start by torchrun all the same.
"""

from __future__ import annotations

import os
import runpy
import socket
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

import torch


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port: int = s.getsockname()[1]
        return port


def environment(rank: int, ranks: int, port: int) -> dict[str, str]:
    """What torchrun sets for a rank."""
    known = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks}
    return {**{k: str(v) for k, v in known.items()}, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}


def run_and_exit(script: Path, args: list[str], variables: Mapping[str, str], before: Callable[[], None]) -> NoReturn:
    """The script in a forked process, which never returns."""
    status: Any = 1
    os.environ.update(variables)
    try:
        before()
        sys.argv = [str(script), *args]
        runpy.run_path(str(script), run_name="__main__")
        status = 0
    except SystemExit as e:
        status = e.code
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status if isinstance(status, int) else int(status is not None))


def main(ranks: int, script: Path, args: list[str]) -> int:
    torch.set_num_threads(1)  # before a fork there must be no threads
    sys.path.insert(0, str(script.parent))
    runpy.run_path(str(script), run_name="imported")  # what it imports, which the ranks then share
    port, children = free_port(), []
    for rank in range(ranks):
        if not (pid := os.fork()):
            run_and_exit(script, args, environment(rank, ranks, port), lambda: None)
        children.append(pid)
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
    return max(map(abs, codes))


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]))
