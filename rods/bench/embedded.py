"""The networks of the benchmark's tasks: files in models/, loaded when asked for, with their checksums."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import cast

from dnnlib.errors import UserError
from rods.bench.task import LoadedNetwork
from rods.densities import Mixture
from rods.types import Denoiser
from training.checkpoint import load_snapshot

MODELS = Path(__file__).resolve().parents[2] / "models"


def embedded_network(name: str, *, made_by: str, folder: Path = MODELS) -> LoadedNetwork:
    """The network NAME.safetensors of `folder`.

    Raises UserError where there is no such file, with `made_by`, the command that makes it, or where it is damaged.
    """
    path = folder / f"{name}.safetensors"
    if not path.is_file():
        raise UserError(f"{path} is missing: fetch it from the project's repository, or train it with `{made_by}`")
    snapshot = load_snapshot(path)  # a Module has the attributes of a Denoiser, which mypy cannot see: hence the cast
    return LoadedNetwork(cast(Denoiser, snapshot.net), snapshot.name, snapshot.sha256)


def exact_network(name: str, density: Mixture) -> LoadedNetwork:
    """A density's own denoiser; the checksum is that of its parameters (mu, weights, s0 in float64)."""
    digest = hashlib.sha256()
    for array in (density.mu.numpy(), density.weights.numpy()):
        digest.update(array.astype("<f8").tobytes())
    digest.update(float(density.s0).hex().encode())
    return LoadedNetwork(cast(Denoiser, density), name, digest.hexdigest())
