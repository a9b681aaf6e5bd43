"""The pool of tries: what it says of a limit is what generate.py does under that limit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from commands import generated, records, said
from vectors import ROOT

from tools.early_stop import END, Pool, complete, main, row

GATE = ROOT / "models" / "hands-32-gate.preset.json"
SEEDS = "0-3"


@pytest.mark.slow
def test_a_pool_tells_what_generate_does(tmp_path: Path) -> None:
    options = [f"--preset={GATE}", "--end-limit=12", "--tries=2", f"--seeds={SEEDS}", f"--out={tmp_path}"]
    told = said(main, *options)
    assert told.splitlines()[2].startswith("| no limit | 4 | 1.00 | 4 | 40.0 |")
    lines = [json.loads(line) for line in (tmp_path / "pool.jsonl").read_text().splitlines()]
    assert said(main, *options) == told == said(main, *options, "--table"), "nothing is drawn twice"
    for level, accept in ((0.131, "density-ratio<50%@.131"), (END, "density-ratio<12")):
        outdir = tmp_path / f"at-{level:g}"
        run = ("--sampler=euler", f"--seeds={SEEDS}", f"--preset={GATE}", f"--accept={accept}", "--max-tries=2")
        generated(outdir, *run, network=None, steps=None)
        known = {(line["seed"], line["try"]): line["scores"][str(level)] for line in lines}
        made = records(outdir)
        for line in made:
            scores = [known[line["seed"], k] for k in range(len(line["tries"]["scores"]))]
            assert line["tries"]["scores"] == pytest.approx(scores, rel=1e-3, abs=1e-3)
        limit = 12.0 if level == END else 12.654140524036238
        pool = Pool(tmp_path / "pool.jsonl", "hands-32", {}, {level: limit}, 2)
        assert all(complete(pool, seed) for seed in range(4))
        mine = row(pool, range(4), level, limit)
        assert mine.forward.tolist() == [line["forward"] for line in made]
        assert mine.accepted.tolist() == [line["tries"]["accepted"] for line in made]
