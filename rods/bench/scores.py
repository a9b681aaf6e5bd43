"""A run's scores against its labels: what its records hold, and what detectors say of its finished images.

A score is of the image that lies in the folder: after a restart or another try, of the one that was kept. Nothing is
sampled again. Detectors of images read the PNGs, with the draws that sampling would have given them; a detector of
steps or of a trajectory has to be recorded while the run is made.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf
from shlex import quote

import numpy as np
import PIL.Image
import torch

from dnnlib.errors import UserError, counted
from rods.bench.compare import FALSE_ALARMS, Detection, detection_of
from rods.bench.labelled import F64, LabelledRun, is_finite
from rods.bench.pooled import values_of
from rods.bench.qualitative import GREEN
from rods.bench.tables import Table, estimate
from rods.config import to_text
from rods.denoiser import bind
from rods.detectors import Detector
from rods.eval.labels import Label
from rods.labels.labels import VERDICTS, ImageLabel
from rods.presets import Preset
from rods.restart import Restart, draws_of
from rods.runs.images import RED, U8, Colour, contact_sheet, stacked
from rods.runs.scores import image_scores
from rods.types import Denoiser, state_dtype
from torch_utils.rng import SeedStreams

GREY: Colour = (170, 170, 170)  # around images without a label, or with an uncertain one
FRAMES: Mapping[int, Colour] = {Label.HALLUCINATED: RED, Label.VALID: GREEN, Label.UNCERTAIN: GREY}
SHARES = (0.05, 0.1, 0.2, 0.3, 0.5)  # of the images, for the table of thresholds
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99)
BATCH = 64


@dataclass(frozen=True, eq=False)
class Score:
    """A number for each image of a run; higher says hallucinated."""

    name: str
    values: F64  # [N]; inf for what JSON could not hold
    chose: bool = False  # the run kept images by it, so that it says nothing of these with an open mind


# -- where scores come from -------------------------------------------------------------------------------------------


def recorded_scores(run: LabelledRun) -> list[Score]:
    """The scores that a run's records hold, none where it measured none."""
    found = []
    for name, by_image in image_scores(run.path).items():
        values = np.array([by_image.get(line["name"], inf) for line in run.samples])
        found.append(Score(name, values, _chose(run, name)))
    if not found and run.own_scores is not None:  # records of before these were kept step by step
        found.append(Score(run.name, run.own_scores))
    return found


def _chose(run: LabelledRun, name: str) -> bool:
    """Whether a run has kept images for their score of this name."""
    for option, key in (("detector", "restart"), ("accept", "tries")):
        again = any(len(line.get(key, {}).get("scores", ())) > 1 for line in run.samples)
        text = str(run.options.get(option))
        if again and name.startswith(text.rpartition("<")[0] or text):
            return True
    return False


def check_readable(run: LabelledRun, detectors: Sequence[Detector], net: Denoiser) -> None:
    """UserError where one of the detectors cannot read the finished images of a run."""
    if run.is_points:
        raise UserError(f"--detector: the samples of {run.path} are points; give a run of images")
    for detector in detectors:
        if detector.needs != "image":
            raise UserError(
                f"--detector={to_text(detector)} reads a run's {detector.needs}s, which {run.path} does not keep; "
                f"record it while sampling: generate.py --filter='{to_text(detector)}' --filter-threshold=inf "
                "--outdir=DIR"
            )
        try:
            detector.check(net, [])
        except ValueError as e:
            raise UserError(f"--detector: {str(e).removeprefix('detector: ')}") from None


def images_of(run: LabelledRun, option: str) -> U8:
    """The images [N, C, H, W] of a run whose samples are all finite. UserError where a PNG is missing."""
    found = []
    for i in range(len(run)):
        if (image := run.image(i)) is None:
            raise UserError(
                f"{option}: {run.path}/{run.file(i)} is missing; sample the run again by the command that made it"
            )
        found.append(image)
    return stacked(found, of=run.path)


def name_of_finished(detector: Detector) -> str:
    """What the score of finished images by a detector is called."""
    return f"{to_text(detector)}, of the finished image"


def measured_score(
    run: LabelledRun,
    images: U8,
    detector: Detector,
    net: Denoiser,
    *,
    device: torch.device,
    batch: int = BATCH,
    report: Callable[[int], None] = lambda n: None,
) -> Score:
    """What a detector of images says of a run's finished images [N, C, H, W]. Cost: its draws, in F an image.

    An image has the draws of its seed's third stream, as in a run that is filtered.
    """
    parts = []
    for start in range(0, len(images), batch):
        x = torch.from_numpy(values_of(images[start : start + batch])).to(device, state_dtype(device))
        lines = run.samples[start : start + len(x)]
        streams = SeedStreams([line["seed"] for line in lines], device).third()
        classes = [line.get("class") for line in lines]
        labels = torch.eye(net.label_dim, device=device)[classes] if net.label_dim else None
        denoise = bind(net, len(x), labels, randn_like=streams.randn_like)
        with torch.no_grad():
            noise = draws_of(denoise, x, detector.num_draws)
            parts.append(detector.score(denoise, x, noise=noise).cpu().double().numpy())
        report(len(x))
    return Score(name_of_finished(detector), np.concatenate(parts))


# -- what is said of them ---------------------------------------------------------------------------------------------


def judged(run: LabelledRun, score: Score) -> Detection | None:
    """How a score ranks hallucinated images above valid ones; None where there are none of either kind."""
    certain = run.labels != Label.UNCERTAIN
    found = detection_of(score.values[certain], run.labels[certain] == Label.HALLUCINATED)
    return found if found and found.hallucinated and found.valid else None


def ranked(run: LabelledRun, scores: Sequence[Score]) -> list[tuple[Score, Detection]]:
    """The scores that can be judged, the highest AUROC first."""
    found = [(score, d) for score in scores if (d := judged(run, score))]
    return sorted(found, key=lambda one: -one[1].auroc.value)


def auroc_table(found: Sequence[tuple[Score, Detection]]) -> Table:
    """Each score against the labels."""
    rows = [
        (
            score.name + (" *" if score.chose else ""),
            estimate(d.auroc),
            estimate(d.average_precision),
            f"{100 * d.at_false_alarms:.0f} %",
        )
        for score, d in found
    ]
    false_alarms = f"recall ↑ at {100 * FALSE_ALARMS:.0f} % false alarms"
    return Table(("score", "AUROC ↑ (95 %)", "average precision ↑ (95 %)", false_alarms), tuple(rows))


def threshold_table(run: LabelledRun, score: Score) -> Table:
    """What thresholds of a score would flag: of all images, of the hallucinated and of the valid ones."""
    bad, good = run.labels == Label.HALLUCINATED, run.labels == Label.VALID
    rows = []
    for share in SHARES:
        threshold = float(np.quantile(score.values, 1 - share))
        flagged = score.values > threshold
        precise = f"{100 * (flagged & bad).sum() / n:.0f} %" if (n := int((flagged & (bad | good)).sum())) else ""
        rows.append(
            (
                f"{threshold:.5g}",
                f"{100 * flagged.mean():.0f} %",
                f"{int((flagged & bad).sum())}/{int(bad.sum())}",
                f"{int((flagged & good).sum())}/{int(good.sum())}",
                precise,
            )
        )
    headings = ("score above", "flags of all", "of the hallucinated ↑", "of the valid ↓", "hallucinated among labelled")
    return Table(headings, tuple(rows))


def quantile_table(scores: Sequence[Score]) -> Table:
    """Where the scores lie."""
    rows = [(s.name, *(f"{q:.4g}" for q in np.quantile(s.values, QUANTILES))) for s in scores]
    return Table(("score", *(f"{q:.0%}" for q in QUANTILES)), tuple(rows))


def score_sheet(run: LabelledRun, score: Score, *, most: int) -> tuple[PIL.Image.Image, int]:
    """Images in the order of a score, the highest first, framed by label; and of how many images one is shown.

    UserError where a PNG is missing.
    """
    order = np.argsort(-score.values, kind="stable")
    every = -(-len(order) // most)
    shown = order[::every].tolist()
    images = images_of(run.at(shown), "--sheet")
    captions = [f"{run.seeds[i]}  {score.values[i]:.3g}" for i in shown]
    frames = [FRAMES[int(run.labels[i])] for i in shown]
    heading = f"{score.name}: highest first" + (f", one of {every}" if every > 1 else "")
    return contact_sheet(list(images), captions, frames=frames, heading=heading, gap=8), every


def with_labels(run: LabelledRun, labels: Mapping[str, ImageLabel]) -> LabelledRun:
    """The run with these labels by image name, uncertain where it has none. UserError: none is of its images."""
    if not any(line["name"] in labels for line in run.samples):
        raise UserError(f"--labels: none is of an image of {run.path}; give the labels of this run")
    verdicts = [labels[line["name"]].label if line["name"] in labels else VERDICTS[0] for line in run.samples]
    return replace(run, labels=np.array([VERDICTS.index(verdict) for verdict in verdicts], dtype=np.int8))


def label_counts(run: LabelledRun, labels: Mapping[str, ImageLabel]) -> str:
    """How many labels of each kind there are, in words."""
    own = [line["name"] for line in run.samples if line["name"] in labels]
    bad, good = (int((run.labels == code).sum()) for code in (Label.HALLUCINATED, Label.VALID))
    sources = ", ".join(dict.fromkeys(labels[name].source for name in own))
    said = f"{counted(len(run), 'image')}, labelled by {sources}: {bad} hallucinated, {good} valid"
    left_out = [
        f"{n} {what}"
        for n, what in ((len(own) - bad - good, "uncertain"), (len(run) - len(own), "without a label"))
        if n
    ]
    return said + (f"; left out: {' and '.join(left_out)}" if left_out else "")


def finite_only(run: LabelledRun) -> LabelledRun:
    """The samples that have an image: one that a filter dropped and did not keep, or that is not finite, has none."""
    gone = [bool(line.get("dropped")) and "file" not in line for line in run.samples]
    kept = [i for i, line in enumerate(run.samples) if is_finite(line) and not gone[i]]
    if not kept:
        raise UserError(f"{run.path} has no image; sample it again")
    return run.at(kept)


def gate_in_flight(preset: Preset | None, detectors: Sequence[Detector], *, network: str) -> str | None:
    """What to say where a preset's restart asks one of these detectors in flight, and here it reads finished images."""
    restart = preset.samplers.get("restart") if preset else None
    if preset is None or not isinstance(restart, Restart) or not restart.score_at or restart.detector not in detectors:
        return None
    return (
        f"Note: the restart of preset {preset.name} reads {to_text(restart.detector)} in flight, at noise level "
        f"{restart.score_at:g}, where it was fitted; for these scores record them while sampling: generate.py "
        f"--network={quote(network)} --preset={preset.name} --sampler=restart --threshold=inf --outdir=DIR"
    )
