"""The paper's sampling runs of one network: an output folder per method, in generate.py's form, and their times.

A seed draws a whole batch, as in the paper, unless `per_image` asks for a seed per image. A folder is completed where
a run was interrupted, and used as it is where it is complete.
"""

from __future__ import annotations

import hashlib
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dnnlib.errors import UserError
from dnnlib.util import atomic_write
from rods.bench import paper
from rods.pipeline import SamplerConfig, cut_chunks
from rods.presets import Preset
from rods.runs.options import respell
from rods.runs.outputs import OutputFolder
from rods.runs.sampling import CHANNELS, Job, run_chunks, sample_job
from torch_utils.machine import cpu_name
from training.checkpoint import Snapshot
from training.header import tool_version

TIMES = "times.json"
Say = Callable[[str], object]


@dataclass(frozen=True)
class Protocol:
    """Which images are made: seeds, images per seed, and the machine they are made on."""

    seeds: tuple[int, ...]
    batch: int
    device: torch.device
    per_image: bool = False

    @property
    def num(self) -> int:
        """How many images a method makes."""
        return len(self.seeds) * (1 if self.per_image else self.batch)


@dataclass(frozen=True)
class Runs:
    """The runs of a network, a folder per method below `folder`."""

    folder: Path
    snapshot: Snapshot
    preset: Preset | None
    protocol: Protocol

    def path(self, method: str) -> Path:
        return self.folder / method

    def config(self, method: str) -> SamplerConfig:
        """Raises UserError: an unknown method, settings that are missing or do not suit the network."""
        try:
            config = paper.method_config(method, self.preset)
            config.rehearse(self.snapshot.net)  # type: ignore[arg-type]
            return config
        except ValueError as e:
            raise UserError(respell(str(e))) from None

    def job(self, method: str) -> Job:
        config, p = self.config(method), self.protocol
        return Job(
            self.snapshot.net, self.snapshot.sha256, config,
            cut_chunks(p.seeds, batch=p.batch, per_batch=not p.per_image), p.batch, p.device, None, "float32", "device",
            threads=torch.get_num_threads() if p.device.type == "cpu" else None, subdirs=False,
            detect_eps=self.preset.risk_threshold(config) if self.preset else None,
        )  # fmt: skip

    def check(self, methods: Sequence[str]) -> None:
        """Raises UserError now for whatever would be wrong with these methods later."""
        if (channels := self.snapshot.header.init_kwargs["img_channels"]) not in CHANNELS:
            raise UserError(f"--network makes images of {channels} channels; a PNG has 1 or 3")
        for method in methods:
            job = self.job(method)
            OutputFolder(self.path(method), identity=job.identity())

    def sample(self, methods: Sequence[str], *, say: Say) -> None:
        """Makes what is missing of every method's images."""
        for method in methods:
            job = self.job(method)
            folder = OutputFolder(self.path(method), identity=job.identity())
            about = {"network": self.snapshot.describe(), "torch": torch.__version__, "version": tool_version()}
            with folder.open(about):
                missing = [c for c in job.chunks if not folder.is_done(job.names(c))]
                if missing:
                    say(f"{method}: {len(missing)} of {len(job.chunks)} batches to sample")
                run_chunks(job, folder, show_progress=True)
                folder.finish()

    def records(self, method: str) -> list[dict[str, Any]]:
        """One record per image of this protocol, by name. Raises UserError where some were never made."""
        wanted = [name for chunk in self.job(method).chunks for name in self.job(method).names(chunk)]
        path = self.path(method) / "samples.jsonl"
        lines = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
        found = {line["name"]: line for line in lines if line["sha256"] is not None}
        if missing := [name for name in wanted if name not in found]:
            raise UserError(f"{path} lacks {missing[0]}; if sampling failed on it, leave its seed out of --seeds")
        return [found[name] for name in wanted]

    def times(self, methods: Sequence[str], *, repeats: int = 3, say: Say) -> dict[str, float]:
        """Median seconds of a batch by method: methods take turns, after one round that is not timed.

        Kept in `times.json`, and measured once for a machine, these methods and their settings.
        """
        jobs = {method: self.job(method) for method in methods}
        described = {method: {**job.identity(), "repeats": repeats} for method, job in jobs.items()}
        recipe = {"machine": machine(self.protocol.device), "torch": torch.__version__, "methods": described}
        path = self.folder / TIMES
        old = json.loads(path.read_text()) if path.is_file() else {}
        if old.get("recipe") == recipe:
            return dict(old["seconds"])
        say(f"Timing a batch of {self.protocol.batch}: {', '.join(methods)}")
        spent: dict[str, list[float]] = {method: [] for method in methods}
        for k in range(repeats + 1):
            for method, job in jobs.items():
                start = time.perf_counter()
                sample_job(job, job.chunks[0]).images.cpu()
                if k:
                    spent[method].append(time.perf_counter() - start)
        seconds = {method: round(statistics.median(values), 4) for method, values in spent.items()}
        with atomic_write(path) as temporary:
            temporary.write_text(json.dumps({"recipe": recipe, "seconds": seconds}, indent=2) + "\n")
        return seconds


def machine(device: torch.device) -> str:
    """The GPU's or the processor's name, and how many threads are used of the latter."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{cpu_name()}, {torch.get_num_threads()} threads" if device.type == "cpu" else device.type


def images_sha256(records: Sequence[dict[str, Any]]) -> str:
    """One checksum for all images of a run: of their names and checksums, in order."""
    return hashlib.sha256("".join(f"{r['name']} {r['sha256']}\n" for r in records).encode()).hexdigest()
