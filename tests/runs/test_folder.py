"""Output folders of generate.py over several runs: what is missing is completed, nothing else changes."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import PIL.Image
import pytest
from commands import LABELLED, RODS, SMALL, files, generate, generated, options_json, records, refused
from vectors import GOLDEN, ROOT

import rods.runs.folder as folder_module
import rods.runs.run as run_module
from dnnlib.errors import UserError
from rods.runs.folder import OutputFolder


def modified(outdir: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in outdir.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The files of a run that nothing interrupts."""
    outdir = tmp_path_factory.mktemp("whole") / "out"
    generated(outdir, *RUN)
    return files(outdir)


RUN = ("--seeds=0-4", "--batch=2", *RODS, "--grid")


def test_a_second_run_touches_nothing(whole: dict[str, str], tmp_path: Path) -> None:
    generated(tmp_path, *RUN)
    assert files(tmp_path) == whole
    before = modified(tmp_path)
    output = generated(tmp_path, *RUN)
    assert files(tmp_path) == whole
    assert {name for name, when in modified(tmp_path).items() if when != before[name]} <= {"grid.png"}
    assert "5 images in" in output


def test_interrupted_by_the_keyboard(whole: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = run_module.sample_chunk, []

    def interrupted(*args: Any, **options: Any) -> Any:
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*args, **options)

    monkeypatch.setattr(run_module, "sample_chunk", interrupted)
    code, output = generate(tmp_path, *RUN)
    assert code == 130
    assert output.strip().endswith("Interrupted.")
    finished = modified(tmp_path)
    assert {"000000.png", "000001.png"} == {name for name in finished if name.endswith(".png")}
    calls[:] = [()] * 2
    generated(tmp_path, *RUN)
    assert len(calls) == 2 + 2, "the first chunk is not sampled again"
    assert files(tmp_path) == whole
    assert all(modified(tmp_path)[name] == finished[name] for name in ("000000.png", "000001.png", "options.json"))


class Killed(BaseException):
    """Like SIGKILL, for the test of every moment at which it may come."""


@contextmanager
def killed_at_write(number: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Path]]:
    """The process dies while it writes its `number`-th file, and leaves half of it under a temporary name."""
    written: list[Path] = []

    def replace(path: Path, content: bytes) -> None:
        written.append(path)
        if len(written) == number:
            (path.parent / f".tmp-0123456789ab{path.suffix}").write_bytes(content[: len(content) // 2])
            raise Killed
        real(path, content)

    real = folder_module._replace
    with monkeypatch.context() as patch:
        patch.setattr(folder_module, "_replace", replace)
        yield written


def test_killed_at_any_write(whole: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with killed_at_write(0, monkeypatch) as written:
        generated(tmp_path / "0", *RUN)
    # options.json, five images, the lines of three chunks, samples.jsonl
    assert len(written) == 10
    for moment in range(1, len(written) + 1):
        outdir = tmp_path / str(moment)
        with killed_at_write(moment, monkeypatch), pytest.raises(Killed):
            generate(outdir, *RUN)
        assert any(path.name.startswith(".tmp-") for path in outdir.rglob("*"))
        generated(outdir, *RUN)
        assert files(outdir) == whole, f"killed at write {moment}"


GENTLE = [pytest.param(number, marks=pytest.mark.slow) for number in (signal.SIGTERM, signal.SIGINT)]


@pytest.mark.parametrize("number", [signal.SIGKILL, *GENTLE])
def test_killed_by_a_signal(number: signal.Signals, tmp_path: Path) -> None:
    options = ["--seeds=0-999", "--batch=2", *RODS, "--steps=8", "--threads=1", f"--network={SMALL}"]
    command = [sys.executable, str(ROOT / "generate.py"), f"--outdir={tmp_path / 'killed'}", *options]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=tmp_path,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a suite in the background ignores it
    )
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not list((tmp_path / "killed").glob("00001*.png")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    process.send_signal(number)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == (130 if number == signal.SIGINT else -number)
    assert errors.endswith(b"Interrupted.\n" if number == signal.SIGINT else b"")
    done = [path.name for path in (tmp_path / "killed").glob("*.png")]
    assert 10 <= len(done) < 1000

    # The same command for fewer seeds, so that the test ends: those that are done are kept, and these few completed.
    rest = [*options, f"--seeds=0-{len(done) + 3}"]
    generated(tmp_path / "killed", *rest, network=None, steps=None)
    generated(tmp_path / "whole", *rest, network=None, steps=None)
    assert files(tmp_path / "killed") == files(tmp_path / "whole")


def test_what_is_missing_is_made_again(whole: dict[str, str], tmp_path: Path) -> None:
    generated(tmp_path, *RUN)
    before = modified(tmp_path)
    (tmp_path / "000002.png").unlink()
    (tmp_path / "000004.png").unlink()
    generated(tmp_path, *RUN)
    assert files(tmp_path) == whole
    assert all(modified(tmp_path)[f"00000{i}.png"] == before[f"00000{i}.png"] for i in (0, 1, 3))

    (tmp_path / "samples.jsonl").unlink()
    generated(tmp_path, *RUN)
    assert files(tmp_path) == whole


def test_more_seeds_are_added_and_the_old_ones_stay(tmp_path: Path) -> None:
    """Seed 2 is in another chunk then; its picture and its record stay the pair that they are."""
    generated(tmp_path, "--seeds=0-2", "--batch=4", *RODS)
    before, lines = modified(tmp_path), records(tmp_path)
    generated(tmp_path, "--seeds=2-7", "--batch=4", *RODS)
    assert [line["seed"] for line in records(tmp_path)] == list(range(8))
    assert records(tmp_path)[:3] == lines
    assert all(modified(tmp_path)[line["name"]] == before[line["name"]] for line in lines)
    assert all(line["sha256"] == files(tmp_path)[line["name"]] for line in records(tmp_path))
    assert options_json(tmp_path)["seeds"] == "6 seeds, 2 to 7"


def test_records_that_an_interrupted_run_left_are_not_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second run's first chunk has the name of the first run's, and other seeds."""
    with killed_at_write(5, monkeypatch), pytest.raises(Killed):
        generate(tmp_path, "--seeds=0,5,6,7", "--batch=2")
    generated(tmp_path, "--seeds=0,1", "--batch=2")
    assert [line["seed"] for line in records(tmp_path)] == [0, 1, 5]
    assert not (tmp_path / ".parts").exists()


def test_an_image_without_a_record_is_replaced(whole: dict[str, str], tmp_path: Path) -> None:
    generated(tmp_path, *RUN)
    content = (tmp_path / "samples.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "samples.jsonl").write_text("".join(content[:-1]))
    (tmp_path / "000004.png").write_bytes((tmp_path / "000000.png").read_bytes())
    generated(tmp_path, *RUN)
    assert files(tmp_path) == whole


# -- what a folder refuses --------------------------------------------------------------------------------------------

OTHER = {
    "--network sha256=": [f"--network={LABELLED}"],
    "--sampler=rods-cas, not rods-sas": ["--sampler=rods-sas"],
    "--eps=0.1, not 0.2": ["--eps=.2"],
    "--rho=1.0, not 2.0": ["--rho=2"],
    "--window=0,1, not 0,0.5": ["--window=0,.5"],
    "--steps=2, not 3": ["--steps=3"],
    "--batch=64, not 32": ["--batch=32"],
    "--dtype=float32, not bf16": ["--dtype=bf16"],
    "--rng=device, not cpu": ["--rng=cpu"],
    "--threads=1, not 2": ["--threads=2"],
    "--seeding rows=1, not 64": ["--seeding=per-batch"],
    "--subdirs=False, not True": ["--subdirs"],
    "--trajectory=None, not 0,1": ["--trajectory=0-1"],
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    outdir = tmp_path_factory.mktemp("finished") / "out"
    generated(outdir, "--seeds=0", *RODS)
    return outdir


@pytest.mark.parametrize("says", OTHER)
def test_other_settings_are_refused(says: str, finished: Path) -> None:
    before = files(finished)
    output = refused(finished, "--seeds=0-1", *RODS, *OTHER[says])
    assert output.startswith(f"Error: --outdir={finished} holds images made with {says}")
    assert output.endswith("; repeat what made them, or name another --outdir\n")
    assert files(finished) == before


def test_another_class_is_refused(tmp_path: Path) -> None:
    generated(tmp_path, "--seeds=0", "--class=1", network=LABELLED)
    assert "made with --class=1, not None" in refused(tmp_path, "--seeds=0", network=LABELLED)


@pytest.mark.parametrize("name", ["000003.png", "000003_001.png", "1234567.png", "samples.jsonl", "001000/x"])
def test_images_of_unknown_origin_are_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("{}")
    shown = name.partition("/")[0]
    assert f"Error: --outdir={tmp_path} holds {shown} and no options.json" in refused(tmp_path, "--seeds=0")
    assert [path.name for path in tmp_path.iterdir()] == [shown]


def test_a_folder_with_other_things_may_be_used(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("keep me")
    (tmp_path / "picture.png").write_text("keep me")
    generated(tmp_path, "--seeds=0")
    assert (tmp_path / "notes.txt").read_text() == (tmp_path / "picture.png").read_text() == "keep me"


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("options.json", "{", "options.json was not written by generate.py"),
        ("options.json", "[1]", "options.json was not written by generate.py"),
        ("options.json", '{"identity": 3}', "options.json was not written by generate.py"),
        ("options.json", "[" * 100_000, "options.json was not written by generate.py"),
        ("samples.jsonl", "{", "samples.jsonl does not hold generate.py's records"),
        ("samples.jsonl", '{"seed": 1}\n', "samples.jsonl does not hold generate.py's records"),
        ("samples.jsonl", "[1]\n", "samples.jsonl does not hold generate.py's records"),
    ],
)
def test_files_that_are_not_ours_are_named(name: str, content: str, says: str, tmp_path: Path) -> None:
    generated(tmp_path, "--seeds=0")
    (tmp_path / name).write_text(content)
    assert says in refused(tmp_path, "--seeds=0-1")


def test_two_runs_do_not_share_a_folder(tmp_path: Path) -> None:
    generated(tmp_path, "--seeds=0")
    folder = OutputFolder(tmp_path, identity=options_json(tmp_path)["identity"])
    with folder.open({}):
        output = refused(tmp_path, "--seeds=0-1")
        assert output == f"Error: --outdir={tmp_path}: another run is writing to it; wait, or name another --outdir\n"
    folder.finish()
    generated(tmp_path, "--seeds=0-1")


def test_a_full_disk_is_one_line_and_the_run_can_go_on(
    whole: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, content: bytes) -> None:
        if path.name == "000003.png":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(path, content)

    real = folder_module._replace
    monkeypatch.setattr(folder_module, "_replace", full)
    code, output = generate(tmp_path, *RUN)
    assert code == 2
    assert output.endswith(
        f"Error: --outdir={tmp_path} cannot be written: No space left on device; "
        "when that is mended, run the same command again\n"
    )
    monkeypatch.undo()
    generated(tmp_path, *RUN)
    assert files(tmp_path) == whole


# -- folders of version 0.1 -------------------------------------------------------------------------------------------

OLD = json.loads((GOLDEN / "identities.json").read_text())


@pytest.mark.parametrize("old", OLD, ids=lambda old: " ".join(old["options"]))
def test_a_folder_of_version_0_1_is_taken_up(old: dict[str, Any], tmp_path: Path) -> None:
    """What generate.py wrote then into options.json, and the same command as it is written now."""
    options = {
        "--detector=tvf --tvf-sigma=1.5": "--detector=tvf:sigma=1.5",
        "--rho=.5 --score-at=.5": "--inside=cas:rho=.5 --score-at=.5",
        "--rho=.5 --inside=sas --sas-sign=downhill": "--inside=sas:rho=.5,sas_sign=downhill",
        "--rho=.5 --inside=overshoot": "--inside=overshoot:rho=.5",
    }
    line = " ".join(old["options"])
    for then, now in options.items():
        line = line.replace(then, now)
    generated(tmp_path, "--seeds=0", *line.split())
    before, now_options = files(tmp_path), options_json(tmp_path)
    identity = {"network_sha256": now_options["identity"]["network_sha256"], **old["identity"]}
    (tmp_path / "options.json").write_text(json.dumps({**now_options, "identity": identity}))
    generated(tmp_path, "--seeds=0", *line.split())
    assert files(tmp_path) == before


# -- OutputFolder by itself -------------------------------------------------------------------------------------------


def test_a_folder_is_made_with_its_parents_and_holds_what_it_is_told(tmp_path: Path) -> None:
    outdir = tmp_path / "a" / "b"
    folder = OutputFolder(outdir, identity={"x": 1})
    assert not outdir.exists()
    with folder.open({"note": "hello"}):
        assert not folder.is_done(["p.png"])
        own = {"seed": 0, "forward": 2, "backward": 0}
        records = [{"name": "p.png", "k": 1} | own, {"name": "q.png", "k": 2} | own]
        folder.write("0", [PIL.Image.new("L", (2, 2)), None], records)
        lines = folder.finish()
    assert json.loads((outdir / "options.json").read_text()) == {"identity": {"x": 1}, "note": "hello"}
    assert [(line["name"], line["k"], line["sha256"] is None) for line in lines] == [
        ("p.png", 1, False),
        ("q.png", 2, True),
    ]
    again = OutputFolder(outdir, identity={"x": 1})
    assert again.is_done(["p.png"])
    assert not again.is_done(["p.png", "q.png"])
    with pytest.raises(UserError, match="made with --x=1, not 2"):
        OutputFolder(outdir, identity={"x": 2})
