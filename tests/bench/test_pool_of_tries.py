"""The pool of tries: what it says of a limit is what generate.py does under that limit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from commands import generated, records, refusal, said
from vectors import ROOT

from rods.bench.early_stop import END, Pool, complete, row
from rods.bench.tasks import TASKS
from rods.runs.presets import read_preset
from scripts.early_stop import main

GATE = ROOT / "models" / "hands-32-gate.preset.json"
SEEDS = "0-3"


@pytest.mark.slow
def test_a_pool_tells_what_generate_does(tmp_path: Path) -> None:
    options = [f"--preset={GATE}", "--end-limit=12", "--tries=3", f"--seeds={SEEDS}", f"--out={tmp_path}",
               "--threads=1"]  # fmt: skip
    told = said(main, *options)
    assert told.splitlines()[2].startswith("| no limit | 4 | 1.00 | 4 | 40.0 |")
    about, *lines = (json.loads(line) for line in (tmp_path / "tries.jsonl").read_text().splitlines())
    assert list(about["gates"]) == ["0.131", "0.0"]
    assert said(main, *options) == told, "nothing is drawn twice"
    gate = read_preset(GATE).fitted["density-ratio"]
    gates = {0.131: gate, END: gate}
    for level, accept in ((0.131, "density-ratio<50%@.131"), (END, "density-ratio<12")):
        outdir = tmp_path / f"at-{level:g}"
        run = ("--sampler=euler", f"--seeds={SEEDS}", f"--preset={GATE}", f"--accept={accept}", "--max-tries=3")
        generated(outdir, *run, network=None, steps=None)
        known = {(line["seed"], line["try"]): line["scores"][str(level)] for line in lines}
        made = records(outdir)
        for line in made:
            scores = [known[line["seed"], k] for k in range(len(line["tries"]["scores"]))]
            assert line["tries"]["scores"] == pytest.approx(scores, rel=1e-3, abs=1e-3)
        limit = 12.0 if level == END else 12.654140524036238
        pool = Pool(tmp_path / "tries.jsonl", TASKS["hands-32"](), gates, {level: limit}, 3)
        assert all(complete(pool, seed) for seed in range(4))
        mine = row(pool, range(4), level, limit)
        assert mine.forward.tolist() == [line["forward"] for line in made]
        assert mine.accepted.tolist() == [line["tries"]["accepted"] for line in made]


def test_what_a_pool_cannot_do_is_one_line(tmp_path: Path) -> None:
    options = [f"--preset={GATE}", f"--out={tmp_path}", "--threads=1"]
    assert refusal(main, *options, "--end-limit=nan").startswith("Error: --end-limit: nan ")
    assert refusal(main, *options, "--end-limit=1", "--seeds=67108864").startswith("Error: --seeds: ")
    preset = ROOT / "models" / "hands-32-1-gate.preset.json"
    assert "of another network" in refusal(main, *options[1:], "--end-limit=1", f"--preset={preset}")
    preset = ROOT / "models" / "grid25-0.preset.json"
    assert "no restart that scores in flight" in refusal(main, *options[1:], "--end-limit=1", f"--preset={preset}")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "tries.jsonl").write_text('{"task": "hands-32", "gates": {}}\n')
    assert "scored by other gates" in refusal(main, *options, "--end-limit=1")


def test_what_a_limit_makes_of_a_pool() -> None:
    """Three seeds by hand: accepted at once, at the second try, never (the lower score is kept)."""
    pool = Pool(Path("nowhere"), TASKS["hands-32"](), {}, {0.131: 1.0}, 2)
    scores = {0: [0.5], 1: [3.0, 0.2], 2: [2.0, 4.0]}
    pool.tries = {
        (seed, k): {"label": seed % 2, "scores": {"0.131": score}}
        for seed, mine in scores.items()
        for k, score in enumerate(mine)
    }
    assert all(complete(pool, seed) for seed in scores)
    found = row(pool, [0, 1, 2], 0.131, 1.0)
    assert found.accepted.tolist() == [True, True, False]
    assert found.forward.tolist() == [41, 32 + 41, 32 + 41]
    assert found.drawn == 5
    del pool.tries[1, 1]
    assert not complete(pool, 1)
