"""From seeds to images and per-image risk records: sampler configs by name, chunks of seeds, one call per chunk."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import inf
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import torch
from torch import Tensor

from rods.correctors import SigmaWindow, Window
from rods.evaluation import bind
from rods.iq import iq_sampler
from rods.laplacian import laplacian_sampler
from rods.restart import restart_sampler
from rods.room import Room
from rods.samplers import (
    ablation_sampler,
    edm_sampler,
    euler_sampler,
    overshoot_sampler,
    random_sampler,
    rods_sampler,
    sigma_offset_sampler,
    tag_sampler,
)
from rods.scoring import Limit, Scored
from rods.trajectory import Solver
from rods.types import AnyDenoiser, RodsResult, SampleRecord, Step
from torch_utils.rng import SeedStreams

SAMPLERS: dict[str, Callable[..., Any]] = {
    "edm": edm_sampler,
    "euler": euler_sampler,
    "ablation": ablation_sampler,
    "rods-cas": partial(rods_sampler, method="cas"),
    "rods-sas": partial(rods_sampler, method="sas"),
    "overshoot": overshoot_sampler,
    "sigma-offset": sigma_offset_sampler,
    "restart": restart_sampler,
    "iq": iq_sampler,
    "tag": tag_sampler,
    "random": random_sampler,
    "laplacian": laplacian_sampler,
}
SECOND_STREAM = ("restart", "iq", "random", "laplacian")
"""The samplers whose random numbers are RODS's own, from the second stream of each seed."""
REQUIRED = inspect.Parameter.empty
MAX_STEPS = 100_000
_NOT_OPTIONS = {"randn_like", "method"}
_OF_THE_OTHER_METHOD = {"rods-cas": {"sas_sign"}, "rods-sas": {"ascent_steps"}}


def sampler_options(sampler: str) -> dict[str, Any]:
    """The options of a sampler and their defaults, `REQUIRED` where there is none: its keyword-only arguments."""
    left_out = _NOT_OPTIONS | _OF_THE_OTHER_METHOD.get(sampler, set())
    parameters = inspect.signature(SAMPLERS[sampler]).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY and p.name not in left_out}


def _fits(value: Any, kind: Any) -> bool:
    """Whether a value is of an option's type; an int is a float too, a bool is no number."""
    if get_origin(kind) in (Union, UnionType):
        return any(_fits(value, k) for k in get_args(kind))
    if get_origin(kind) is Literal:
        return isinstance(value, str) and value in get_args(kind)
    if get_origin(kind) is tuple:
        kinds = get_args(kind)
        return isinstance(value, tuple) and len(value) == len(kinds) and all(map(_fits, value, kinds))
    if kind is float and isinstance(value, int):
        return not isinstance(value, bool) and abs(value) < 2**1000  # as much as a float can hold
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, kind)


def _described(kind: Any) -> str:
    """What `_fits` accepts, in words."""
    if get_origin(kind) is Literal:
        return " or ".join(get_args(kind))
    if kind == Window:
        return "lo,hi such as .1,.5 or sigma:1,5"
    if get_origin(kind) in (Union, UnionType):
        return _described(get_args(kind)[0])
    return {int: "a whole number", bool: "true or false", str: "a text"}.get(kind, "a number")


@dataclass(frozen=True)
class SamplerConfig:
    """A sampler and all of its options. Raises ValueError: unknown sampler; unknown, missing or mistyped option."""

    sampler: str
    options: Mapping[str, Any]

    def __post_init__(self) -> None:
        if self.sampler not in SAMPLERS:
            raise ValueError(f"sampler: unknown sampler {self.sampler!r}; use one of {', '.join(SAMPLERS)}")
        known = sampler_options(self.sampler)
        for name in self.options:
            if name not in known:
                raise ValueError(f"{name}: {self.sampler} has no such option; it has {', '.join(known)}")
        merged = {**known, **self.options}
        if missing := [name for name, value in merged.items() if value is REQUIRED]:
            raise ValueError(f"{missing[0]}: {self.sampler} needs a value for it; calibrate one or use a preset")
        sample = SAMPLERS[self.sampler]
        kinds = get_type_hints(sample.func if isinstance(sample, partial) else sample)
        for name, value in merged.items():
            if not _fits(value, kinds[name]):
                raise ValueError(f"{name}: {value!r:.80} will not do; give {_described(kinds[name])}")
        if merged["num_steps"] > MAX_STEPS:
            raise ValueError(f"num_steps: {merged['num_steps']} is too many; give {MAX_STEPS} or fewer")
        object.__setattr__(self, "options", merged)

    def describe(self) -> dict[str, Any]:
        """The config as JSON can hold it; `SamplerConfig.parse` reads it back."""
        return {"sampler": self.sampler, **{k: _plain(v) for k, v in self.options.items()}}

    @staticmethod
    def parse(description: Mapping[str, Any]) -> SamplerConfig:
        options: dict[str, Any] = {
            k: float(v) if v in ("inf", "-inf") else v for k, v in description.items() if k != "sampler"
        }
        if isinstance(options.get("window"), str):
            options["window"] = parse_window(options["window"])
        return SamplerConfig(description["sampler"], options)

    def base_solver(self) -> Solver:
        """What integrates where nothing is corrected."""
        solver: Solver = self.options.get("solver", "heun" if self.sampler == "edm" else "euler")
        return solver

    def run(
        self,
        denoiser: AnyDenoiser,
        latents: Tensor,
        class_labels: Tensor | None = None,
        *,
        randn_like: Callable[[Tensor], Tensor] = torch.randn_like,
    ) -> RodsResult:
        """Sample; every sampler returns records, with measured passes, and H where it measures it."""
        sampler = SAMPLERS[self.sampler]
        denoise = bind(denoiser, len(latents), class_labels)
        draws = {"randn_like": randn_like} if "randn_like" in inspect.signature(sampler).parameters else {}
        result = sampler(denoise, latents, **self.options, **draws)
        if isinstance(result, RodsResult):
            return result
        passes = zip(denoise.forward.tolist(), denoise.backward.tolist(), strict=True)
        return RodsResult(result, tuple(SampleRecord((), (), (), (), (), F, B) for F, B in passes))

    def rehearse(self, denoiser: AnyDenoiser, *, limits: Sequence[Limit] = ()) -> None:
        """Run on one pixel with a network that costs nothing: raises now whatever the options would raise later.

        A few steps are enough, for which values will do does not depend on the number of steps; but for scores, where
        it decides whether there are steps to look at.
        """
        steps = 1000 if limits or self.sampler == "restart" else 8
        enough = {"num_steps": steps, "ascent_steps": 2, "rounds": 1, "draws": 1, "probes": 1}
        few = SamplerConfig(self.sampler, {k: min(v, enough[k]) if k in enough else v for k, v in self.options.items()})
        denoise, pixel = bind(_Blank(denoiser), 1), torch.zeros(1, 1, 1, 1)
        try:
            scored = Scored(denoise, pixel, limits, self.sampler, self.base_solver(), SeedStreams([0], pixel.device))
            images = few.run(denoise.watched(scored.add), pixel).images
            scored.risks(images)
        except ArithmeticError:
            raise ValueError(f"time_rho: {self.options['time_rho']} gives no noise levels; use 7 or so") from None


class _Blank:
    """D = 0, with the noise levels of another denoiser, whose layers it has none of: see readout.py."""

    def __init__(self, like: AnyDenoiser) -> None:
        self.stands_for = like
        for name in ("sigma_min", "sigma_max", "round_sigma"):
            if hasattr(like, name):
                setattr(self, name, getattr(like, name))

    def __call__(self, x: Tensor, sigma: Tensor, class_labels: Tensor | None = None) -> Tensor:
        return 0 * x


def parse_window(text: str) -> Window:
    """`.1,.5` -> fractions of the steps; `sigma:1.2,5` -> noise levels. Raises ValueError for anything else."""
    body = text.removeprefix("sigma:")
    try:
        lo, hi = (float(part) for part in body.split(","))
    except ValueError:
        raise ValueError(f"window: {text!r} is no window; give lo,hi such as .1,.5 or sigma:1,5") from None
    return SigmaWindow(lo, hi) if text.startswith("sigma:") else (lo, hi)


def format_window(window: Window) -> str:
    """The inverse of `parse_window`."""
    if isinstance(window, SigmaWindow):
        return f"sigma:{_digits(window.lo)},{_digits(window.hi)}"
    return f"{_digits(window[0])},{_digits(window[1])}"


def _digits(value: float) -> str:
    """All the digits that a number has, and no more."""
    return repr(float(value)).removesuffix(".0")


def _plain(value: Any) -> Any:
    if isinstance(value, SigmaWindow | tuple):
        return format_window(value)
    return str(value) if value in (inf, -inf) else value


# -- seeds ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Chunk:
    """What is sampled in one batch. Chunks are cut before ranks are considered: equal chunks give equal bytes."""

    index: int
    seeds: tuple[int, ...]
    rows_per_seed: int = 1  # more than 1: a seed feeds a whole batch, as in the RODS paper

    def row_seeds(self) -> list[tuple[int, int]]:
        """(seed, row of that seed) for every row of the batch."""
        return [(seed, row) for seed in self.seeds for row in range(self.rows_per_seed)]


def cut_chunks(seeds: Sequence[int], *, batch: int, per_batch: bool = False) -> list[Chunk]:
    """Cut the seed list into chunks of `batch` rows; with `per_batch` every seed makes a chunk of its own."""
    if batch < 1:
        raise ValueError(f"batch: {batch} is too small; give 1 or more")
    if per_batch:
        return [Chunk(i, (seed,), batch) for i, seed in enumerate(seeds)]
    return [Chunk(i, tuple(seeds[start : start + batch])) for i, start in enumerate(range(0, len(seeds), batch))]


@dataclass(frozen=True, eq=False)
class ChunkResult:
    """Images of a chunk and what is known about each."""

    chunk: Chunk
    images: Tensor  # [B, C, H, W] float64, nominally in [-1, 1]
    classes: list[int | None]  # [B]
    records: tuple[SampleRecord, ...]  # [B]
    risks: tuple[tuple[float, ...], ...] = ()  # [scores][B], of the scores that were asked for


def sample_chunk(
    denoiser: AnyDenoiser,
    chunk: Chunk,
    config: SamplerConfig,
    *,
    device: torch.device,
    class_index: int | Sequence[int | None] | None = None,
    rng_on_cpu: bool = False,
    dtype: torch.dtype = torch.float32,
    limits: Sequence[Limit] = (),
    watch: Callable[[Step], None] | None = None,
    room: Room | None = None,
) -> ChunkResult:
    """Sample one chunk of seeds.

    The denoiser needs `img_channels`, `img_resolution` and `label_dim`. Per seed, draws come in the original's order:
    latent, class (drawn even when `class_index` gives one for all or for each), then the noise of the steps; the
    samplers of `SECOND_STREAM` draw theirs from that stream. `dtype` other than float32 runs the network under
    autocast; the state stays float64. The scores of `limits` come back as `risks`; their draws are from the third
    stream, so that no image depends on them. `watch` is shown every finished step of the whole batch. `room`, which
    chunks may share, says how many rows the network gets at once where not all fit in memory. Cost: that of the
    sampler and of the scores.
    Raises ValueError: `class_index` outside the network's classes; a score that needs what the sampler does not show.
    """
    shape = (denoiser.img_channels, denoiser.img_resolution, denoiser.img_resolution)  # type: ignore[attr-defined]
    label_dim: int = denoiser.label_dim  # type: ignore[attr-defined]
    given = class_index if isinstance(class_index, Sequence) else [class_index] * len(chunk.row_seeds())
    for wanted in set(given):
        check_class(wanted, label_dim)
    streams = SeedStreams(chunk.seeds, device, rows_per_seed=chunk.rows_per_seed, on_cpu=rng_on_cpu)
    latents = streams.randn(shape)
    labels: Tensor | None = None
    classes: list[int | None] = [None] * len(latents)
    if label_dim:
        chosen = [c if w is None else w for c, w in zip(streams.randint(label_dim).tolist(), given, strict=True)]
        labels, classes = torch.eye(label_dim, device=device)[chosen], chosen
    noise = streams.second() if config.sampler in SECOND_STREAM else streams
    with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
        denoise = bind(denoiser, len(latents), labels, room=room)
        scored = Scored(denoise, latents, limits, config.sampler, config.base_solver(), streams)
        watched = denoise.watched(_all(([scored.add] if limits else []) + ([watch] if watch else [])))
        result = config.run(watched, latents, randn_like=noise.randn_like)
        risks = scored.risks(result.images)
    records = [
        replace(record, forward=F, backward=B)
        for record, F, B in zip(result.records, denoise.forward.tolist(), denoise.backward.tolist(), strict=True)
    ]
    return ChunkResult(chunk, result.images, classes, tuple(records), risks)


def _all(watches: Sequence[Callable[[Step], None]]) -> Callable[[Step], None] | None:
    """One watch for several; None for none."""

    def show(step: Step) -> None:
        for watch in watches:
            watch(step)

    return show if watches else None


def check_class(class_index: int | None, label_dim: int) -> None:
    """ValueError unless `class_index` is None or a class of the network."""
    if class_index is None:
        return
    if not label_dim:
        raise ValueError(f"class: {class_index} given, but the network is unconditional; leave --class out")
    if not 0 <= class_index < label_dim:
        raise ValueError(f"class: {class_index} is out of range; this network has classes 0 to {label_dim - 1}")
