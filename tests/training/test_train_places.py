"""train.py and the places it is given: equal however they are spelt, read first, and the state before all else."""

from __future__ import annotations

import errno
import json
import os
import re
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from commands import said
from safetensors import safe_open
from vectors import ROOT

import train as command
from training import loop
from training.checkpoint import load_snapshot
from training.config import different_options, same_options, same_place
from training.header import Header, format_header
from training.state import saved_states

TINY = ("--batch=4", "--cbase=4", "--cres=1", "--blocks=1", "--attn=8", "--threads=1", "--tick=.004")


def run(*args: object, code: int = 0) -> str:
    return said(command.main, *TINY, *args, code=code)


def pictures(folder: Path, n: int = 8) -> Path:
    folder.mkdir()
    for i in range(n):
        array = np.random.default_rng(i).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        PIL.Image.fromarray(array).save(folder / f"{i:04d}.png")
    return folder


def test_one_data_set_however_it_is_spelt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = pictures(tmp_path / "im")
    (tmp_path / "link").symlink_to(folder)
    run("--data=im", "--outdir=t", "--duration=4e-6", "--desc=x")
    for i, spelled in enumerate(("im/", "./im", folder, "link", "t/../im"), 2):
        assert "Going on in t/00000-x" in run(f"--data={spelled}", "--outdir=t", f"--duration={4 * i}e-6", "--desc=x")
    (tmp_path / "im").rename(tmp_path / "scratch")
    output = run("--data=scratch", "--outdir=t", "--duration=4e-6", "--desc=x")
    assert "Starting in t/00001-x" in output
    assert "Note: t/00000-x differs in --data alone; to go on with it, say --data=" in output


def test_a_data_set_that_has_grown_is_another_run_and_that_is_said(tmp_path: Path) -> None:
    """Weights of other images are not gone on with; that the training begins anew is not left to be found out."""
    folder, options = pictures(tmp_path / "im"), (f"--outdir={tmp_path / 't'}", "--duration=4e-6", "--desc=x")
    assert "Note" not in run(f"--data={folder}", *options)
    (folder / "more.png").write_bytes((folder / "0000.png").read_bytes())
    output = run(f"--data={folder}", *options)
    assert f"Note: {tmp_path / 't' / '00000-x'} was trained on 8 images, not 9, and is not gone on with; " in output
    assert "00001-x" in output


def test_places_are_compared_as_files(tmp_path: Path) -> None:
    one = {"data": str(tmp_path / "a"), "transfer": None, "lr": 1}
    assert same_options(one, {**one, "data": f"{tmp_path}/b/../a/"})
    assert different_options(one, {**one, "data": str(tmp_path / "b"), "lr": 2}) == ["data", "lr"]
    assert not same_options(one, {**one, "transfer": "a"})
    assert not same_options({}, one)
    assert not same_place("https://a/b/../c", "https://a/c")


def test_what_is_handed_on_names_no_folder_of_this_machine(tmp_path: Path) -> None:
    extra = {"training": {"data": "/home/me/im.zip", "old": [r"C:\me\im.zip"], "transfer": "https://a/b.pkl", "lr": 1}}
    written = json.loads(format_header(Header("EDMPrecond", {}, extra=extra)))["extra"]["training"]
    assert written == {"data": "im.zip", "old": ["im.zip"], "transfer": "https://a/b.pkl", "lr": 1}
    run(f"--data={pictures(tmp_path / 'im')}", f"--outdir={tmp_path / 't'}", "--duration=4e-6")
    (snapshot,) = (tmp_path / "t").glob("*/network-*")
    assert str(tmp_path) not in json.dumps(load_snapshot(snapshot).header.extra)


@pytest.mark.parametrize("file", sorted((ROOT / "models").glob("*.safetensors")), ids=lambda p: p.name)
def test_no_shipped_file_carries_a_path(file: Path) -> None:
    with safe_open(file, framework="pt") as f:
        text = json.dumps(f.metadata())
    assert not re.findall(r"[\"' ](/[^\"\\]*/[^\"\\]*)", text)


def test_held_out_images_are_read_before_the_training(tmp_path: Path) -> None:
    options = f"--data={pictures(tmp_path / 'im')}", f"--val={pictures(tmp_path / 'v')}", f"--outdir={tmp_path / 't'}"
    for spoil in (lambda p: p.write_bytes(b"junk"), lambda p: PIL.Image.new("RGB", (16, 16)).save(p)):
        spoil(tmp_path / "v" / "0005.png")
        for dry in ((), ("-n",)):
            says = run(*options, "--duration=4e-6", *dry, code=2).splitlines()[-1]
            assert says.startswith(f"Error: --val={tmp_path / 'v'}: the image '0005.png'")
        assert not (tmp_path / "t").exists()


def test_images_are_read_before_a_folder_is_made(tmp_path: Path) -> None:
    (pictures(tmp_path / "im") / "0005.png").write_bytes(b"junk")
    for dry in ((), ("-n",)):
        output = run(f"--data={tmp_path / 'im'}", f"--outdir={tmp_path / 't'}", "--duration=4e-6", *dry, code=2)
        assert "the image '0005.png' cannot be decoded" in output.splitlines()[-1]
    assert not (tmp_path / "t").exists()


@pytest.mark.parametrize("what", ["write_snapshots", "append"])
def test_a_full_disk_costs_no_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    """A tick's state is saved before its snapshot, and though the log cannot be written."""

    def full(*arguments: object, **options: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(tmp_path / "network"))

    options = f"--data={pictures(tmp_path / 'im')}", f"--outdir={tmp_path / 't'}", "--duration=4e-6", "--snap=1"
    with monkeypatch.context() as patch:
        if what == "append":
            patch.setattr("training.logging.append_stats", full)
        else:
            patch.setattr(loop, what, full)
        assert "network: No space left on device; make room" in run(*options, code=2).splitlines()[-1]
    (run_dir,) = (tmp_path / "t").iterdir()
    assert [state.name for state in saved_states(run_dir)] == ["training-state-000000.004.pt"]
    assert "Going on" in run(*options)
    assert (run_dir / "network-snapshot-000000.safetensors").is_file()


def test_only_our_own_leftovers_are_removed(tmp_path: Path) -> None:
    (tmp_path / "t").mkdir()
    (tmp_path / "t" / ".tmp-notes").write_text("mine")
    (tmp_path / "t" / ".tmp-0123456789ab.pt").write_text("a torn state")
    run(f"--data={pictures(tmp_path / 'im')}", f"--outdir={tmp_path / 't'}", "--duration=4e-6", "--nosubdir")
    assert [p.name for p in (tmp_path / "t").glob(".tmp-*")] == [".tmp-notes"]
