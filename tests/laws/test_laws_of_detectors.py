"""What holds of every registered detector: it changes no image, costs what it states, and judges each row by itself."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import files, generated, options_json, records
from exact import SEEDS, Counting, mixture
from registries import STEPS, VARIANTS, a_detector, a_sampler, sampled

from rods import Detector, StepDetector, bind
from rods.config import DETECTORS, SAMPLERS, to_text
from rods.restart import draws_of

COST: dict[str, Callable[[Any, int], tuple[int, int]]] = {
    "lid": lambda d, inside: (d.draws, 0),
    "tvf": lambda d, inside: (0, 0),
    "h-index": lambda d, inside: (2 * inside, 2 * inside),
    "lambda-max": lambda d, inside: ((d.iterations + 1) * inside, (d.iterations + 1) * inside),
    "lmi": lambda d, inside: (d.runs * STEPS, 0),
    "jump": lambda d, inside: (0, 0),
}
"""F and B of an image's score beside Euler's steps, as each class states them; `inside`: steps in its range."""


def steps_in_range(detector: Detector) -> int:
    low = getattr(detector, "lo", 0.0)
    return sum(low <= t <= detector.max_sigma for t in a_sampler("euler").levels(mixture()))


@pytest.mark.parametrize("name", DETECTORS)
def test_the_cost_is_the_stated_one(name: str) -> None:
    assert name in COST, f"{name}: enter what it costs in COST"
    detector = a_detector(name)
    done = sampled(a_sampler("euler"), SEEDS, detector)
    forward, backward = COST[name](detector, steps_in_range(detector))
    assert {(r.forward, r.backward) for r in done.records} == {(STEPS + forward, backward)}


@pytest.mark.parametrize("sampler", [*SAMPLERS, *VARIANTS])
def test_no_image_changes_and_everything_is_counted(sampler: str) -> None:
    """All detectors at once that the sampler allows: of one that restarts, those of the image."""
    chosen = a_sampler(sampler)
    detectors = [d for d in map(a_detector, DETECTORS) if d.needs == "image" or not chosen.restarts]
    counting = Counting()
    plain, scored = sampled(chosen), sampled(chosen, SEEDS, *detectors, net=counting)
    assert torch.equal(scored.images, plain.images)
    assert len(scored.scores) == len(detectors) > 0
    assert all(math.isfinite(score) for scores in scored.scores for score in scores)
    assert sum(r.forward for r in scored.records) == counting.forward > sum(r.forward for r in plain.records)
    assert sum(r.backward for r in scored.records) == counting.backward
    for a, b in zip(scored.records, plain.records, strict=True):
        assert (a.H, a.flagged, a.scores, a.restart) == (b.H, b.flagged, b.scores, b.restart)


@pytest.mark.parametrize("name", DETECTORS)
def test_a_score_depends_on_its_image_alone(name: str) -> None:
    (together,) = sampled(a_sampler("euler"), SEEDS, a_detector(name)).scores
    assert len(set(together)) > 1
    for order in ([5, 0, 3, 1, 4, 2], [2, 4], [1]):
        (part,) = sampled(a_sampler("euler"), [SEEDS[b] for b in order], a_detector(name)).scores
        assert part == pytest.approx([together[b] for b in order], rel=1e-6)


@pytest.mark.parametrize("name", DETECTORS)
def test_a_score_for_some_rows_takes_their_draws(name: str) -> None:
    """A restart scores some rows of a batch: as it scores all."""
    detector = a_detector(name)
    denoise = bind(Counting(), 6)
    sampler = a_sampler("euler")
    steps = list(sampler.steps(mixture(), torch.randn(6, 2, 3, 3, generator=torch.Generator().manual_seed(1))))
    noise = draws_of(denoise, steps[0].x, detector.num_draws)
    index = torch.tensor([4, 1])
    whole, part = detector.follow(denoise, noise), detector.follow(denoise.rows(index), noise[:, index])
    for step in steps:
        whole.add(step)
        part.add(step.select(index))
    image = steps[-1].x_next
    torch.testing.assert_close(part.score(image[index]), whole.score(image)[index], rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("name", DETECTORS)
def test_a_sampler_that_takes_steps_again_is_scored_by_its_images_alone(name: str) -> None:
    detector = a_detector(name)
    if detector.needs == "image":
        assert sampled(a_sampler("restart"), SEEDS, detector).scores
        return
    with pytest.raises(ValueError, match=r"^detector: .* reads a run's steps"):
        sampled(a_sampler("restart"), SEEDS, detector)


# -- in a restart, and in RODS ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DETECTORS)
def test_it_decides_a_restart(name: str) -> None:
    """Nothing changes below the threshold, everything is counted, a kept score is the lowest; each row by itself."""
    detector = a_detector(name)
    base = sampled(a_sampler("euler")).images
    watched = sampled(a_sampler("restart", detector=detector, threshold=math.inf))
    assert torch.equal(watched.images, base)
    ordered = sorted(r.restart.scores[0] for r in watched.records if r.restart)
    sampler = a_sampler("restart", detector=detector, threshold=(ordered[2] + ordered[3]) / 2)
    counting = Counting()
    done = sampled(sampler, net=counting)
    assert counting.forward == sum(r.forward for r in done.records)
    assert counting.backward == sum(r.backward for r in done.records)
    for b, record in enumerate(done.records):
        assert record.restart is not None
        scores, kept = record.restart.scores, record.restart.kept
        assert (len(scores) > 1) == (scores[0] > sampler.threshold)  # type: ignore[attr-defined]
        assert torch.equal(done.images[b], base[b]) == (kept == 0)
        assert scores[kept] == min(scores)
    for order in ([5, 0, 3, 1, 4, 2], [1]):
        part = sampled(sampler, [SEEDS[b] for b in order])
        torch.testing.assert_close(part.images, done.images[order], rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", DETECTORS)
def test_a_detector_of_steps_decides_in_rods_and_no_other_does(name: str) -> None:
    detector = a_detector(name)
    if not isinstance(detector, StepDetector):
        with pytest.raises(ValueError, match=r"^detector: .* does not score a step"):
            a_sampler("rods-cas", detector=detector)
        return
    watched = sampled(a_sampler("rods-cas", detector=detector, eps=math.inf))
    assert torch.equal(watched.images, sampled(a_sampler("euler")).images)
    scores = sorted(score for record in watched.records for score in record.scores)
    done = sampled(a_sampler("rods-cas", detector=detector, eps=scores[len(scores) // 2]))
    assert len({record.flagged for record in done.records}) > 1


# -- on the command line ----------------------------------------------------------------------------------------------

RUN = ("--seeds=0-1", "--batch=2")


@pytest.mark.parametrize("name", DETECTORS)
def test_every_command_option_takes_it(name: str, tmp_path: Path) -> None:
    """As --filter, --accept, and --detector of restart, by its name and as it is recorded."""
    generated(tmp_path / "plain", "--sampler=euler", *RUN, steps=8)
    plain = {file: sha for file, sha in files(tmp_path / "plain").items() if file.endswith(".png")}
    text = to_text(DETECTORS[name]())
    for option, used in (
        ("filter", ("--sampler=euler", f"--filter={name}", "--filter-threshold=inf")),
        ("accept", ("--sampler=euler", f"--accept={name}<1e9")),
        ("detector", ("--sampler=restart", f"--detector={name}", "--threshold=inf", "--sigma-r=5")),
    ):
        outdir = tmp_path / option
        said = generated(outdir, *used, *RUN, steps=8)
        assert ("Nothing restarted. Scores, at their quantiles: " in said) == (option == "detector")
        assert {file: sha for file, sha in files(outdir).items() if file.endswith(".png")} == plain
        assert options_json(outdir)["identity"][option].startswith(text)
        for line in records(outdir):
            found = {"filter": lambda x: [x["filter_score"]], "accept": lambda x: x["tries"]["scores"],
                     "detector": lambda x: x["restart"]["scores"]}[option](line)  # fmt: skip
            assert len(found) == 1
            assert isinstance(found[0], float)
    if isinstance(DETECTORS[name](), StepDetector):
        rods = ("--sampler=rods-cas", f"--detector={name}", "--eps=inf", "--rho=1", "--window=0,1")
        generated(tmp_path / "rods", *rods, *RUN, steps=8)
        assert all(len(line["scores"]) == 8 for line in records(tmp_path / "rods"))
