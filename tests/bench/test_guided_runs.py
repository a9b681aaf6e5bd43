"""Guidance as options of a run of the benchmark."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from commands import options_json
from small_tasks import PICTURES

from dnnlib.errors import UserError
from rods import guided
from rods.bench.compare import compare
from rods.bench.labelled import read_run
from rods.bench.methods import read_experiments, resolve
from rods.bench.run import Place, label_run, run_methods
from rods.bench.tables import outcome_table
from rods.eval.labels import Label
from rods.guidance import Guidance, Noisier
from rods.labels.labels import LABELS_NAME, read_labels
from rods.presets import Preset
from rods.runs.chunk import Chunk, sample_chunk
from rods.runs.images import to_uint8

EXPERIMENT = """
[[table]]
task = "bars"
run = [
  { method = "euler" },
  { method = "euler", name = "guided", guidance = 1.5, guide = "noisier:ratio=1.3", guidance_interval = "0.01,10" },
]
"""


def test_an_experiment_guides_a_run_and_counts_both_networks(tmp_path: Path) -> None:
    (tmp_path / "e.toml").write_text(EXPERIMENT)
    (table,) = read_experiments(tmp_path / "e.toml")
    network = PICTURES.networks["exact"]()
    methods = [resolve(method, PICTURES, given=given, name=name) for name, method, given, _ in table.methods]
    run_methods(PICTURES, network, methods, list(range(8)), out=tmp_path, batch=4)
    folders = [Place(tmp_path, "bars", "exact").run(method) for method in methods]
    inside = sum(0.01 <= t <= 10 for t in methods[0].sampler.levels(network.denoiser))
    assert 0 < inside < 6
    for folder, F in zip(folders, (6, 6 + inside), strict=True):
        assert {line["forward"] for line in read_run(folder).samples} == {F}
    identity = options_json(folders[1])["identity"]
    assert (identity["guidance"], identity["guide"]) == (1.5, "noisier:ratio=1.3")
    assert identity["guidance_interval"] == "0.01,10"
    denoiser = guided(network.denoiser, Noisier(network.denoiser, 1.3), 1.5, (0.01, 10))
    known = sample_chunk(denoiser, Chunk(0, (0, 1, 2, 3)), methods[1].sampler, device=torch.device("cpu"))
    with PIL.Image.open(folders[1] / "000002.png") as image:
        assert np.array_equal(np.asarray(image), to_uint8(known.images.numpy())[2, 0])


def test_a_presets_guidance_is_every_methods_but_for_those_that_say_otherwise() -> None:
    preset = Preset("mine", "exact", "here", {}, guidance=Guidance(2, "noisier"))
    assert resolve("euler", PICTURES, preset).guidance == preset.guidance
    assert resolve("euler", PICTURES, preset, given={"guidance": 1}).guidance is None
    assert resolve("euler", PICTURES, preset, given={"guidance": "3"}).guidance == Guidance(3, "noisier")
    assert resolve("euler", PICTURES).guidance is None


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"guidance": "x", "guide": "none"}, "guidance: 'x': must be a number"),
        ({"guidance": 2}, "--guidance=2 needs a guide"),
        ({"guidance": 2, "guide": 3}, "must be texts"),
        ({"guidance": 2, "guide": "none", "guidance_interval": "2,1"}, "--guidance-interval: 2,1 is empty"),
    ],
)
def test_options_that_are_wrong(given: dict[str, object], named: str) -> None:
    with pytest.raises(UserError, match=named):
        resolve("euler", PICTURES, given=given)


def test_a_valid_image_of_another_class_than_was_asked_for_is_hallucinated(tmp_path: Path) -> None:
    network = PICTURES.networks["exact"]()
    euler = resolve("euler", PICTURES)
    run_methods(PICTURES, network, [euler], list(range(16)), out=tmp_path, batch=16)
    run = Place(tmp_path, "bars", "exact").run(euler)
    plain = read_run(run)
    assert plain.modes is not None
    assert "of them of another class ↓" not in outcome_table([compare(plain, plain)]).headings
    lines = [json.loads(text) for text in (run / "samples.jsonl").read_text().splitlines()]
    for line in lines:
        line["class"] = 0  # as a class-conditional network's records say what was asked for
    (run / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (run / LABELS_NAME).unlink()
    label_run(replace(PICTURES, kinds_are_classes=True), run)
    found, labels = read_run(run), read_labels(run)
    wrong = (plain.labels == Label.VALID) & (plain.modes == 1)
    assert 0 < wrong.sum() < (plain.labels == Label.VALID).sum()
    assert np.array_equal(found.another_class, wrong)
    assert np.array_equal(found.labels, np.where(wrong, Label.HALLUCINATED, plain.labels))
    assert {labels[found.samples[i]["name"]].fault for i in np.flatnonzero(wrong)} == {"another class: 1"}
    row = compare(found, found)
    assert row.another_class is not None
    assert row.another_class.k == wrong.sum()
    assert "of them of another class ↓" in outcome_table([row]).headings
