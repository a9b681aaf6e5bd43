"""Reference statistics in a file: EDM's .npz with `mu` and `sigma`, and ours, which say what they were made of.

Nothing in a file is unpickled, and no array is read before its size is known.
"""

from __future__ import annotations

import math
import os
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from dnnlib.errors import UserError, shown
from dnnlib.util import atomic_write, looks_like_html, open_url
from rods.eval.extraction import FeatureSet
from rods.eval.features import F32, Extractor
from rods.eval.statistics import feature_statistics

F64 = NDArray[np.float64]
_MAX_DIM = 10_000
_MAX_BYTES = 1 << 30  # of one array
_TEXTS = ("detector", "detector_sha256", "resize", "data_sha256", "version")


@dataclass(frozen=True)
class Reference:
    """Mean and covariance of a data set's features; the rest is unknown in files of other programs."""

    mu: F64  # [d]
    sigma: F64  # [d, d], a covariance; EDM's name
    n: int | None = None
    detector: str | None = None
    detector_sha256: str | None = None
    resize: str | None = None
    data_sha256: str | None = None
    version: str | None = None
    features: F32 | None = None  # [k, d], a random sample for the kernel distance

    def mismatch(self, extractor: Extractor) -> str | None:
        """What makes these statistics incomparable with an extractor's features, in words."""
        if len(self.mu) != extractor.dim:
            return f"has {len(self.mu)} features, and {extractor.name} makes {extractor.dim}"
        ours = {"detector": extractor.name, "detector_sha256": extractor.sha256, "resize": extractor.resize}
        for name, value in ours.items():
            found = getattr(self, name)
            if found is not None and found != value:
                return f"was made with {name} {shown(found)}, not {shown(value)}"
        return None


def reference_of(found: FeatureSet, extractor: Extractor, *, keep: int, seed: int, version: str | None) -> Reference:
    """The statistics of a set's first features, with `keep` of these, drawn at random, for what needs more."""
    statistics, x = feature_statistics(found.features[0]), found.features[0]
    if keep < len(x):
        x = x[np.sort(np.random.default_rng(seed).choice(len(x), keep, replace=False))]
    return Reference(
        statistics.mean, statistics.cov, found.n, extractor.name, extractor.sha256, extractor.resize,
        found.data_sha256, version, x if keep else None,
    )  # fmt: skip


def write_reference(path: str | os.PathLike[str], reference: Reference) -> None:
    """Writes an .npz, atomically: equal statistics give equal bytes. EDM's programs read it too."""
    arrays: dict[str, Any] = {k: getattr(reference, k) for k in ("mu", "sigma", "n", *_TEXTS, "features")}
    known: dict[str, Any] = {name: np.asarray(value) for name, value in arrays.items() if value is not None}
    with atomic_write(path) as temporary:
        np.savez(temporary, **known)


def read_reference(source: str | os.PathLike[str], *, option: str = "--ref") -> Reference:
    """The statistics in an .npz file or at an address. Raises UserError, in one line, for anything else."""
    text = os.fspath(source)
    path = open_url(text) if "://" in text else Path(text)
    where = f"{option}={text}"
    if not path.is_file():
        raise UserError(f"{where}: there is no such file; make one with fid.py ref")
    with open(path, "rb") as f:
        if looks_like_html(f.read(1024)):
            raise UserError(f"{where} is a web page, not statistics; open its address in a browser to see why")
    try:
        with zipfile.ZipFile(path) as archive:
            return _parse(archive)
    except UserError as e:
        raise UserError(f"{where} {e}; make one with fid.py ref") from None
    except Exception as e:  # damaged zips and arrays raise nearly anything: BadZipFile, zlib.error, EOFError, ...
        raise UserError(f"{where} is not a readable .npz ({shown(str(e))}); make one with fid.py ref") from None


def _parse(archive: zipfile.ZipFile) -> Reference:
    names = set(archive.namelist())
    if missing := [name for name in ("mu", "sigma") if f"{name}.npy" not in names]:
        raise UserError(f"has no array {missing[0]}, so it holds no statistics")
    mu = _floats(archive, "mu", ndim=1)
    d = len(mu)
    sigma = _floats(archive, "sigma", ndim=2)
    if not 0 < d <= _MAX_DIM or sigma.shape != (d, d):
        raise UserError(f"has mu {list(mu.shape)} and sigma {list(sigma.shape)}, not [d] and [d, d]")
    if np.abs(sigma - sigma.T).max() > 1e-6 * np.abs(sigma).max() or (np.diag(sigma) < 0).any():
        raise UserError("has a sigma that is not a covariance")
    features = _floats(archive, "features", ndim=2) if "features.npy" in names else None
    if features is not None and features.shape[1] != d:
        raise UserError(f"has features {list(features.shape)} beside mu [{d}]")
    texts = {name: _text(archive, name) for name in _TEXTS if f"{name}.npy" in names}
    n = int(_floats(archive, "n", ndim=0)) if "n.npy" in names else None
    return Reference(mu, sigma, n, features=None if features is None else features.astype(np.float32), **texts)


def _floats(archive: zipfile.ZipFile, name: str, *, ndim: int) -> F64:
    array = _array(archive, name)
    if array.ndim != ndim or array.dtype.kind not in "fiu" or not np.isfinite(array).all():
        raise UserError(f"has an array {name} that is not {ndim}-dimensional finite numbers")
    return array.astype(np.float64)


def _text(archive: zipfile.ZipFile, name: str) -> str:
    array = _array(archive, name)
    if array.ndim or array.dtype.kind != "U":
        raise UserError(f"has an array {name} that is not a text")
    return str(array)


def _array(archive: zipfile.ZipFile, name: str) -> NDArray[Any]:
    """One array, whose declared size is checked before it is read."""
    with archive.open(f"{name}.npy") as f:
        if npy.read_magic(f) == (1, 0):
            shape, _, dtype = npy.read_array_header_1_0(f)
        else:
            shape, _, dtype = npy.read_array_header_2_0(f)
    size = math.prod(shape) * dtype.itemsize
    if dtype.hasobject or size > _MAX_BYTES or archive.getinfo(f"{name}.npy").file_size > size + (1 << 16):
        raise UserError(f"has an array {name} that is too large, or not made of numbers")
    with archive.open(f"{name}.npy") as f:
        found: NDArray[Any] = npy.read_array(f, allow_pickle=False)
    return found
