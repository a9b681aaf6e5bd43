"""The machine, its ceilings, memory that runs out, NCCL, and the tests that need a GPU."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import torch

from tools.gpu_sections.common import ROOT, Section, arithmetic, psnr
from tools.gpu_sections.options import generate, images_of

CORE = ("torch", "numpy", "click", "pillow", "scipy", "requests", "psutil", "safetensors", "tqdm")


def environment(section: Section) -> None:
    from torch_utils.machine import facts

    section.record("facts", facts())
    known = {d.metadata["Name"].lower(): d.version for d in importlib.metadata.distributions() if d.metadata["Name"]}
    section.record("packages", {name: known.get(name, "missing") for name in (*CORE, "triton", "pytest")})
    if section.cuda:
        p = torch.cuda.get_device_properties(section.device)
        gpu = {
            "name": p.name,
            "memory_gib": p.total_memory / 2**30,
            "processors": p.multi_processor_count,
            "capability": f"{p.major}.{p.minor}",
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            "nccl": str(torch.cuda.nccl.version()),
        }
        section.record("gpu", gpu)
        if shutil.which("nvidia-smi"):
            query = "--query-gpu=name,driver_version,clocks.sm,clocks.max.sm,power.limit,temperature.gpu"
            said = subprocess.run(["nvidia-smi", query, "--format=csv,noheader"], capture_output=True, text=True)
            section.record("nvidia-smi", said.stdout.strip())


def ceilings(section: Section) -> None:
    """The largest matrix product's rate in TFLOP/s, and a copy's in GB/s (read and written)."""
    n = 8192 if section.cuda else 512
    for name in ("fp32", "tf32", "bf16", "fp16"):
        if name == "fp16" and not section.cuda:
            continue
        dtype: Any = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(name, torch.float32)
        a, b = (torch.randn(n, n, device=section.device).to(dtype) for _ in range(2))
        with arithmetic(section.device, "tf32" if name == "tf32" else "fp32"):
            section.record(
                f"matmul {name}, TFLOP/s", 2 * n**3 / section.seconds(partial(torch.matmul, a, b), least=0.1) / 1e12
            )
    size = 2**32 if section.cuda else 2**26
    x = torch.empty(size, dtype=torch.uint8, device=section.device).random_()
    y = torch.empty_like(x)
    section.record("copy, GB/s", 2 * size / section.seconds(lambda: y.copy_(x), least=0.1) / 1e9)


def memory(section: Section) -> None:
    """A GPU that is made to look small: the run goes on with fewer rows at a time, and with the same images."""
    if not section.cuda:
        section.record("skipped", "needs a GPU")
        return
    options = ["--sampler=rods-cas", "--eps=0", "--window=0,1", "--seeds=0-255", "--batch=256", "--rng=cpu"]
    with tempfile.TemporaryDirectory() as folder:
        roomy, cramped = Path(folder) / "roomy", Path(folder) / "cramped"
        torch.cuda.reset_peak_memory_stats()
        generate(roomy, "cuda", *options, steps=3)
        peak, total = torch.cuda.max_memory_reserved(), torch.cuda.get_device_properties(0).total_memory
        torch.cuda.empty_cache()
        torch.cuda.set_per_process_memory_fraction(0.4 * peak / total)
        said = generate(cramped, "cuda", *options, steps=3)
        torch.cuda.set_per_process_memory_fraction(1.0)
        section.record("needs, MiB", peak / 2**20)
        section.record("said", next((line for line in said.splitlines() if "out of memory" in line), ""))
        section.check("probes were halved", float("out of memory" in said), 1, least=True)
        near = psnr(images_of(cramped), images_of(roomy))
        section.check("images as with enough memory, dB", near, 45.0, least=True)


def nccl(section: Section) -> None:
    """The process group of one rank (gloo on the CPU), its sums and broadcasts; then generate.py under torchrun."""
    import torch.distributed as dist

    from torch_utils import distributed

    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(29500 + os.getpid() % 2000))
    if section.cuda:
        torch.cuda.set_device(0)
    dist.init_process_group("nccl" if section.cuda else "gloo", rank=0, world_size=1)
    x = torch.arange(1 << 20, dtype=torch.float32, device=section.device)
    distributed.all_sum(x)
    section.check("sum of one rank differs", float((x.cpu() != torch.arange(1 << 20)).sum()), 0)
    data = os.urandom(1 << 20)
    section.check("broadcast differs", float(distributed.from_rank0(data, section.device) != data), 0)
    distributed.barrier()
    distributed.close()
    if section.quick:
        return
    with tempfile.TemporaryDirectory() as folder:
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=1", "generate.py"]
        options = [f"--outdir={folder}/out", "--seeds=0-3", "--batch=2", "--sampler=euler", "--steps=4"]
        options.append(f"--device={section.device.type}")
        said = subprocess.run([*launch, *options], cwd=ROOT, capture_output=True, text=True, timeout=120)
        section.record("torchrun", (said.stdout + said.stderr)[-300:] if said.returncode else said.stdout[-120:])
        section.check("torchrun, exit code", float(said.returncode), 0)


def tests(section: Section) -> None:
    """The tests that are marked gpu."""
    if not section.cuda or importlib.util.find_spec("pytest") is None or not (ROOT / "tests").is_dir():
        section.record("skipped", "needs a GPU, pytest and the folder tests")
        return
    chosen = [str(path) for path in sorted((ROOT / "tests").rglob("test_*.py")) if "mark.gpu" in path.read_text()]
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", *chosen]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200)
    section.record("pytest -m gpu", said.stdout[-1500:])
    section.check("pytest, exit code", float(said.returncode), 0)
