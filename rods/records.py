"""Images and records from the steps of a run: what was measured, corrected and spent for each sample."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from rods.denoiser import BoundDenoiser
from rods.types import RestartRecord, RodsResult, SampleRecord, Step


class Recorder:
    """Sees the steps of a run of a whole batch, one by one through `add`; `result` are its images and records.

    `values` says what the steps' scores are: curvature indices of radius `rho`, another detector's, or nothing that
    is kept (then the flags are not kept either).
    """

    def __init__(self, values: Literal["H", "scores", "nothing"] = "nothing", *, rho: float = 0) -> None:
        self.values, self.rho = values, rho
        self._image: Tensor | None = None
        self._probed: list[tuple[int, float, list[float]]] = []  # step, noise level, and the score [B] there
        self._flags: list[Tensor] = []  # [B] of each step
        self._scores: list[list[float]] = []  # of each sample, of a restart: the image's, then those of its rounds
        self._kept: list[int] = []

    def add(self, step: Step) -> None:
        """Take a finished step into account."""
        if step.rows is None:
            self._image = step.x_next
            if self.values != "nothing":
                self._flags.append(step.flagged)
                if step.score is not None:
                    self._probed.append((step.i, float(step.sigma), step.score.tolist()))
            if step.verdict is not None:
                self._scores = [[s] for s in step.verdict.scores.tolist()]
                self._kept = [0] * len(self._scores)
        elif step.verdict is not None:
            self._restarted(step.rows, step)

    def _restarted(self, rows: Tensor, step: Step) -> None:
        assert step.verdict is not None, "only a scored run is a restart"
        assert self._image is not None, "a restart follows the run of the whole batch"
        kept = step.verdict.kept
        self._image = self._image.index_copy(0, rows[kept], step.x_next[kept])
        for b, score, is_kept in zip(rows.tolist(), step.verdict.scores.tolist(), kept.tolist(), strict=True):
            self._scores[b].append(score)
            if is_kept:
                self._kept[b] = len(self._scores[b]) - 1

    def select(self, index: Tensor) -> Recorder:
        """What it has seen of the rows `index` [b], which are those that go on."""
        part, rows = Recorder(self.values, rho=self.rho), index.tolist()
        part._image = None if self._image is None else self._image[index]
        part._probed = [(i, sigma, [scores[b] for b in rows]) for i, sigma, scores in self._probed]
        part._flags = [flagged[index] for flagged in self._flags]
        part._scores = [list(self._scores[b]) for b in rows] if self._scores else []
        part._kept = [self._kept[b] for b in rows] if self._kept else []
        return part

    @property
    def images(self) -> Tensor:
        """The images so far [B, C, H, W]."""
        assert self._image is not None, "a run has steps"
        return self._image

    def result(self, denoise: BoundDenoiser) -> RodsResult:
        """Images [b, C, H, W] and the record of each, with what the counters of `denoise`, bound to them, tell."""
        probed, sigmas = tuple(i for i, _, _ in self._probed), tuple(sigma for _, sigma, _ in self._probed)
        flags = torch.stack(self._flags, dim=1).tolist() if self._flags else []  # [B, N]
        records = []
        for b, place in enumerate(denoise.index.tolist()):
            row = tuple(scores[b] for _, _, scores in self._probed)
            H = row if self.values == "H" else ()
            records.append(
                SampleRecord(
                    probed=probed,
                    sigma=sigmas,
                    H=H,
                    H_scaled=tuple(h * t**3 / self.rho if self.rho else 0.0 for h, t in zip(H, sigmas, strict=False)),
                    flagged=tuple(i for i, flag in enumerate(flags[b]) if flag) if flags else (),
                    forward=int(denoise.forward[place]),
                    backward=int(denoise.backward[place]),
                    scores=row if self.values == "scores" else (),
                    restart=RestartRecord(tuple(self._scores[b]), self._kept[b]) if self._scores else None,
                )
            )
        return RodsResult(images=self.images, records=tuple(records))
