"""train.py on a tiny network: what it writes, and that no stop, kill or mistake costs a run its weights."""

from __future__ import annotations

import copy
import json
import os
import re
import signal
import sys
import types
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from click.testing import CliRunner
from overridden import last_of_each
from safetensors.torch import load_file
from training_runs import NETWORK, config_for, newest

import generate
import train as command
from dnnlib.errors import UserError
from training import logging, loop, state
from training.checkpoint import load_denoiser, load_snapshot, save_snapshot
from training.config import Execution, RunSettings, TrainConfig, learning_rate
from training.dataset import ImageDataset
from training.ema import HalfLife
from training.estimate import estimate
from training.feed import Batch, draw_batch
from training.folder import find_run_dir, open_run_dir
from training.logging import append_stats, trim_stats
from training.loop import StopRequest
from training.networks import PRECONDS, VEPrecond, VPPrecond
from training.trainer import StepResult, Trainer
from training.transfer import start_from_state, start_from_weights

TINY = [
    "--cbase=4", "--cres=1", "--blocks=1", "--batch=4", "--lr=1e-3", "--lr-rampup=0", "--ema=1e-5", "--augment=0",
    "--threads=1",
]  # fmt: skip
STEPS_8 = "--duration=32e-6"
TICK_2 = "--tick=0.008"  # two steps


@pytest.fixture(autouse=True)
def _restore_torch() -> Iterator[None]:
    """The command sets these for its process, which here is that of all tests."""
    torch.set_num_threads(1)
    handlers = [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)]
    yield
    assert [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)] == handlers


def run(*args: object) -> tuple[int, str]:
    result = CliRunner().invoke(command.main, last_of_each(args))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


def refused(*args: object) -> str:
    """The last line of a run that is refused."""
    code, output = run(*args)
    last = output.splitlines()[-1]
    assert (code, last.startswith("Error: ")) == (2, True), output
    return last


def trained(data: Path, outdir: Path, *args: str) -> Path:
    """Runs the command to its end; its only run folder."""
    code, output = run(f"--data={data}", f"--outdir={outdir}", *TINY, TICK_2, *args)
    assert (code, "Finished: " in output, "%|" in output) == (0, True, False), output  # a bar is for terminals
    folders = [p for p in outdir.iterdir() if p.is_dir()]
    return folders[0] if folders else outdir


def content(run_dir: Path) -> dict[str, Any]:
    """Everything that has to be equal: all tensors of the state, the snapshots' bytes, what was logged."""
    saved = newest(run_dir)
    lines = [json.loads(line) for line in (run_dir / "stats.jsonl").read_text().splitlines()]
    moments = {f"{i}.{k}": v for i, s in saved.optimizer["state"].items() for k, v in s.items()}
    return {
        "tensors": {f"{i}.{k}": v for i, net in enumerate((saved.net, *saved.emas)) for k, v in net.items()} | moments,
        "images_seen": saved.images_seen,
        "groups": saved.optimizer["param_groups"],
        "snapshots": {p.name: p.read_bytes() for p in run_dir.glob("*.safetensors")},
        "stats": [(line["images_seen"], line["loss"], line["lr"], line["grad_norm"]) for line in lines],
    }


def assert_same(a: Path, b: Path, *, but: tuple[str, ...] = ()) -> None:
    first, second = content(a), content(b)
    x, y = first.pop("tensors"), second.pop("tensors")
    assert x.keys() == y.keys()
    assert [k for k in x if not torch.equal(x[k], y[k])] == []
    assert {k: v for k, v in first.items() if k not in but} == {k: v for k, v in second.items() if k not in but}


# --- what it writes -------------------------------------------------------------------------------------------------


def test_a_run_learns_and_its_snapshot_samples(data: Path, tmp_path: Path) -> None:
    run_dir = trained(data, tmp_path, "--duration=320e-6", "--tick=.04", "--snap=4", "--lr=1e-2")
    assert run_dir.name == "00000-shades"
    assert sorted(p.name for p in run_dir.iterdir()) == [
        ".lock",
        "network-snapshot-000000.safetensors",
        "stats.jsonl",
        "training-options.json",
        "training-state-000000.280.pt",
        "training-state-000000.320.pt",
    ]
    stats = [json.loads(line) for line in (run_dir / "stats.jsonl").read_text().splitlines()]
    assert [line["images_seen"] for line in stats] == list(range(40, 321, 40))
    assert stats[-1]["loss"] < 0.8 * stats[0]["loss"]
    snapshot = load_snapshot(run_dir / "network-snapshot-000000.safetensors")
    assert (snapshot.header.kimg, snapshot.header.dataset) == (0.32, "shades")
    options = json.loads((run_dir / "training-options.json").read_text())
    assert snapshot.header.extra["training"] == {**options, "data": data.name}
    (ema,) = newest(run_dir).emas
    assert all(torch.equal(t, ema[k]) for k, t in snapshot.net.state_dict().items())

    args = [f"--network={run_dir / 'network-snapshot-000000.safetensors'}", f"--outdir={tmp_path / 'out'}"]
    result = CliRunner().invoke(generate.main, [*args, "--seeds=0-1", "--sampler=edm", "--steps=2", "--threads=1"])
    assert result.exit_code == 0, result.output
    with PIL.Image.open(tmp_path / "out" / "000001.png") as image:
        assert image.size == (16, 16)


@pytest.fixture
def idle(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps that count images and compute nothing: for tests of what happens between them."""

    def step(self: Trainer, rounds: list[Batch], *, stop: bool = False) -> StepResult:
        self.images_seen += self.config.batch
        return StepResult(1.0, 1.0, good=True, stop=stop)

    monkeypatch.setattr(Trainer, "step", step)


@pytest.mark.usefixtures("idle")
def test_snapshots_come_at_multiples_of_ticks(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = []
    monkeypatch.setattr(loop, "write_snapshots", lambda run, dataset, run_dir, draw: written.append(run.images_seen))
    trained(data, tmp_path, "--duration=44e-6", "--snap=2")
    assert written == [16, 32, 44]
    written.clear()
    trained(data, tmp_path / "end", "--duration=44e-6", "--snap=0")
    assert written == [44]


def test_classes_and_bf16(data: Path, tmp_path: Path) -> None:
    run_dir = trained(data, tmp_path, STEPS_8, "--cond=1", "--precision=bf16", "--xflip=1")
    net = load_denoiser(run_dir / "network-snapshot-000000.safetensors")
    assert net.label_dim == 2
    assert all(p.dtype == torch.float32 for p in net.parameters())
    fp32 = trained(data, tmp_path / "fp32", STEPS_8, "--cond=1", "--xflip=1")
    a, b = (load_file(d / "network-snapshot-000000.safetensors") for d in (run_dir, fp32))
    assert any(not torch.equal(a[k], b[k]) for k in a)


def test_dry_run_prints_the_preset_and_creates_nothing(data: Path, tmp_path: Path) -> None:
    code, output = run(
        f"--data={data}", f"--outdir={tmp_path / 'new'}", "--preset=hands-32", "--cres=1,2", "-n", "--lr=.1"
    )
    assert code == 0
    assert (
        "Recipe hands-32 (ours: drawn hands at 32x32 on two CPU cores): --arch=ddpmpp --precond=edm --cbase=16 "
        in output
    )
    config = json.loads(output[output.index("{") : output.index("\n}") + 2])
    assert (config["lr"], config["batch"], config["lr_rampup"], config["P_mean"]) == (0.1, 64, 10_000, -0.6)
    assert config["network"]["init_kwargs"]["channel_mult"] == [1, 2]
    assert "attention at 8 pixels" in output
    assert re.search(r"\nTime: about \d+[dhm]\d\d[hms] for 300,000 images on each rank \([\d.e-]+ s an image, ", output)
    assert re.search(r"\nMemory: about [\d.]+ [MG]iB and what Python .* activations of 64 images at once ", output)
    assert f"Would train in {tmp_path / 'new' / '00000-shades'}" in output
    assert not (tmp_path / "new").exists()


def test_an_estimate_is_of_a_rank_and_of_what_is_kept(data: Path) -> None:
    dataset = ImageDataset(data)
    trainer = Trainer(config_for(data, batch=8), torch.device("cpu"), Execution(batch_gpu=2))
    before = copy.deepcopy(trainer.net.state_dict())
    settings = RunSettings(data, total_images=1001, tick_images=1, snapshot_ticks=0)
    found = estimate(trainer, settings, dataset, ranks=2)
    assert (found.images, found.at_once, found.decoded) == (501, 2, 16 * 16 * len(dataset))
    assert found.weights == 5 * 4 * sum(p.numel() for p in trainer.net.parameters())
    assert 1 <= found.measured <= 2
    assert found.seconds > 0
    assert found.activations > 2 * 4 * 16 * 16 * NETWORK["model_channels"], "the output of one layer is kept"
    assert all(torch.equal(before[name], value) for name, value in trainer.net.state_dict().items())
    assert not trainer.gradients.buffer.any()
    four = estimate(Trainer(config_for(data, batch=8), torch.device("cpu"), Execution(4)), settings, dataset)
    assert four.activations == 2 * found.activations


def test_memory_that_runs_out_names_the_option(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def loss(*_: object, **__: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")

    monkeypatch.setattr("training.loss.Loss.__call__", loss)
    for dry in ((), ("-n",)):
        code, output = run(f"--data={data}", f"--outdir={tmp_path}", *TINY, *dry)
        assert code == 2
        assert re.search(
            r"\nError: \d images? at once do not fit in the memory of cpu; give a smaller --batch-gpu\n$", output
        )


def test_a_recipe_for_other_pixels_is_said(data: Path, tmp_path: Path) -> None:
    dry = (f"--data={data}", f"--outdir={tmp_path}", "-n")
    _, output = run(*dry, "--preset=hands-32")
    assert "Note: recipe hands-32 is for images 32 pixels across, and those of --data are 16; its network" in output


def test_no_attention_but_in_the_middle(data: Path, tmp_path: Path) -> None:
    code, output = run(f"--data={data}", f"--outdir={tmp_path}", "--attn=none", "--cres=1,1", "-n")
    assert code == 0
    assert '"attn_resolutions": [],' in output
    assert "attention at 8 pixels" in output
    for option in ("--attn=nones", "--cres=none"):
        code, output = run(f"--data={data}", f"--outdir={tmp_path}", option, "-n")
        assert (code, output.count("\n")) == (2, 1)


def test_dry_runs_look_at_what_they_would_start_from(data: Path, tmp_path: Path) -> None:
    dry = (f"--data={data}", f"--outdir={tmp_path / 'new'}", "-n")
    state = tmp_path / "training-state-1.pt"
    state.write_bytes(b"no state")
    for option, says in (
        ("--resume=nowhere.pt", "--resume=nowhere.pt: there is no such file"),
        (f"--resume={state}", f"--resume={state}: not a training state, or damaged; name a"),
        ("--transfer=nowhere.pt", "--transfer: nowhere.pt: there is no such file"),
        (f"--transfer={state}", "that is a training state; give a network-snapshot, or --resume="),
    ):
        assert says in refused(*dry, option)
    assert not (tmp_path / "new").exists()


# --- stopping and going on ------------------------------------------------------------------------------------------

HARD = ["--cond=1", "--xflip=1", "--dropout=.2", "--lr-rampup=2e-5", "--snap=1", STEPS_8]  # whatever draws or counts


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 8 steps in one piece."""
    return trained(data, tmp_path_factory.mktemp("whole"), *HARD)


def stop_after(steps: int, monkeypatch: pytest.MonkeyPatch, *, by: signal.Signals = signal.SIGTERM) -> None:
    original, count = Trainer.step, iter(range(1, 1000))

    def step(self: Trainer, rounds: list[Batch], *, stop: bool) -> StepResult:
        result = original(self, rounds, stop=stop)
        if next(count) == steps - 1:
            os.kill(os.getpid(), by)  # seen before the next step, which is the last
        return result

    monkeypatch.setattr(Trainer, "step", step)


@pytest.mark.parametrize("by", [signal.SIGTERM, signal.SIGINT])
def test_stopped_and_run_again_is_the_same_bit_for_bit(
    data: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by: signal.Signals
) -> None:
    args = [f"--data={data}", f"--outdir={tmp_path / 'parts'}", *TINY, TICK_2, *HARD]
    with monkeypatch.context() as patch:
        stop_after(3, patch, by=by)
        code, output = run(*args)
    assert (code, "Stopped at 0.0 kimg; the same command goes on from here" in output) == (0, True)
    parts = tmp_path / "parts" / "00000-shades"
    assert newest(parts).images_seen == 12
    torch.manual_seed(99)  # the caller's random numbers are no part of it
    code, output = run(*args)
    assert (code, f"Going on in {parts} at 0.0 kimg" in output) == (0, True)
    assert_same(whole, parts, but=("stats",))  # the tick that was cut has two lines
    seen = [json.loads(line)["images_seen"] for line in (parts / "stats.jsonl").read_text().splitlines()]
    assert seen == [8, 12, 16, 24, 32]


def test_a_longer_duration_goes_on_with_the_run(data: Path, whole: Path, tmp_path: Path) -> None:
    trained(data, tmp_path / "parts", *HARD[:-1], "--duration=16e-6")
    parts = trained(data, tmp_path / "parts", *HARD)
    assert_same(whole, parts)
    before = content(parts)["snapshots"]
    trained(data, tmp_path / "parts", *HARD)  # finished: nothing to do
    trained(data, tmp_path / "parts", *HARD[:-1], "--duration=8e-6")  # shorter than it is
    assert content(parts)["snapshots"] == before
    assert_same(whole, parts)
    assert [p.name for p in (tmp_path / "parts").iterdir()] == ["00000-shades"]


class Killed(BaseException):
    """Stands for SIGKILL inside of a write."""


STATE = "training-state-"
SNAPSHOT = "network-snapshot-000000.safetensors"


@pytest.mark.parametrize(("victim", "nth"), [(STATE, 0), (STATE, 2), (SNAPSHOT, 0), (SNAPSHOT, 4), ("stats.jsonl", 1)])
def test_killed_while_writing(
    data: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, victim: str, nth: int
) -> None:
    args = [f"--data={data}", f"--outdir={tmp_path / 'parts'}", *TINY, TICK_2, *HARD]
    parts, replace, count = tmp_path / "parts" / "00000-shades", os.replace, iter(range(100))

    def cut_rename(source: Path, target: Path) -> None:
        if Path(target).name.startswith(victim) and next(count) == nth:
            (parts / ".tmp-0123456789ab.pt").write_bytes(Path(source).read_bytes()[:1000])
            raise Killed
        replace(source, target)

    def cut_line(path: Path, line: dict[str, Any]) -> None:
        append_stats(path, line)
        if next(count) == nth:
            path.write_text(path.read_text()[:-10])
            raise Killed

    with monkeypatch.context() as patch:
        if victim == "stats.jsonl":
            patch.setattr(logging, "append_stats", cut_line)
        else:
            patch.setattr("dnnlib.util.os.replace", cut_rename)
        with pytest.raises(Killed):
            run(*args)
    assert run(*args)[0] == 0
    assert_same(whole, parts)
    assert not list(parts.glob(".tmp-*"))


def test_a_folder_is_used_by_one_process_at_a_time(data: Path, tmp_path: Path) -> None:
    run_dir = trained(data, tmp_path, "--duration=4e-6")
    options = json.loads((run_dir / "training-options.json").read_text())
    with open_run_dir(run_dir, options):
        said = refused(f"--data={data}", f"--outdir={tmp_path}", *TINY, TICK_2, "--duration=8e-6")
    assert f"Error: another process is training in {run_dir}" in said


def test_stats_follow_the_state(tmp_path: Path) -> None:
    path = tmp_path / "stats.jsonl"
    trim_stats(path, 0)
    assert not path.exists()
    for images in (8, 16, 24):
        append_stats(path, {"images_seen": images})
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines) + '{"images_se')
    trim_stats(path, 24)
    assert path.read_text() == "".join(lines)
    path.write_text(lines[0] + "\x00\x00\n[]\n{}\n" + lines[1] + lines[2])
    trim_stats(path, 16)
    assert path.read_text() == lines[0] + lines[1]


# --- which folder ---------------------------------------------------------------------------------------------------


def test_other_options_are_another_run(data: Path, tmp_path: Path) -> None:
    for args in ([], ["--seed=1"], ["--seed=1", "--desc=again"], ["--lr=2e-3", "--desc=fast"], []):
        trained(data, tmp_path, "--duration=4e-6", *args)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["00000-shades", "00001-shades", "00002-fast"]


def test_nosubdir_refuses_other_options(data: Path, tmp_path: Path) -> None:
    trained(data, tmp_path, "--duration=4e-6", "--nosubdir")
    trained(data, tmp_path, "--duration=8e-6", "--nosubdir")
    before = content(tmp_path)
    args = (f"--data={data}", f"--outdir={tmp_path}", *TINY, "--nosubdir")
    assert refused(*args, "--seed=1") == (
        f"Error: {tmp_path} holds a run with other options (seed=0 instead of 1); "
        "give its options to go on with it, or choose another --outdir"
    )
    assert "(dropout=0.13 instead of 0.0)" in refused(*args, "--dropout=0")
    (tmp_path / "training-options.json").unlink()  # the state knows them too
    assert "(seed=0 instead of 1)" in refused(*args, "--seed=1")
    np.testing.assert_equal(content(tmp_path)["images_seen"], before["images_seen"])


def test_foreign_folders_are_passed_over(tmp_path: Path) -> None:
    for name, text in [("00003-x", "{"), ("00004-y", "[]"), ("7-z", '{"a": 1}'), ("notes", '{"a": 1}')]:
        (tmp_path / name).mkdir()
        (tmp_path / name / "training-options.json").write_text(text)
    (tmp_path / "00009-file").touch()
    assert find_run_dir(tmp_path, {"a": 1}, desc="d") == tmp_path / "7-z"
    assert find_run_dir(tmp_path, {"a": 2}, desc="d") == tmp_path / "00010-d"
    assert find_run_dir(tmp_path, {"a": 2}, desc="d", nosubdir=True) == tmp_path
    assert find_run_dir(tmp_path / "new", {"a": 2}, desc="d") == tmp_path / "new" / "00000-d"


# --- the arithmetic -------------------------------------------------------------------------------------------------


def test_learning_rate_and_ema(data: Path) -> None:
    config = config_for(data, lr=0.1, lr_rampup=100, ema_halflives=(50,), batch=10)
    assert [learning_rate(config, n) for n in (0, 50, 100, 1000)] == [0, 0.05, 0.1, 0.1]
    assert learning_rate(config_for(data, lr=0.1), 0) == 0.1
    decaying = config_for(data, lr=0.1, lr_rampup=100, lr_decay=200)
    assert [learning_rate(decaying, n) for n in (0, 50, 200, 800)] == pytest.approx([0, 0.05, 0.1, 0.05])
    (average,) = config.averages
    assert average.beta(10**6, 10) == pytest.approx(0.5 ** (10 / 50))
    assert average.beta(200, 10) == pytest.approx(0.5 ** (10 / (0.05 * 200)))  # half-life: 5 % of what was seen
    assert average.beta(10, 10) < 1e-6
    assert HalfLife(0, 0.05).beta(10**6, 10) == 0


def step(run: Trainer, dataset: ImageDataset, indices: list[int]) -> StepResult:
    counters = range(run.images_seen, run.images_seen + len(indices))
    return run.step([draw_batch(dataset, run.config, counters, indices)])


def test_each_ema_is_the_weighted_sum_of_the_weights(data: Path) -> None:
    dataset, config = ImageDataset(data), config_for(data, ema_halflives=(6, 3), ema_rampup_ratio=0.5)
    run = Trainer(config, torch.device("cpu"))
    expected = [{k: p.detach().clone() for k, p in run.net.named_parameters()} for _ in range(2)]
    for i in range(4):
        step(run, dataset, list(range(4)))
        for e, halflife in zip(expected, (6, 3), strict=True):
            beta = 0.5 ** (4 / min(halflife, 0.5 * 4 * (i + 1)))
            e.update({k: beta * e[k] + (1 - beta) * p.detach() for k, p in run.net.named_parameters()})
    for ema, e in zip(run.emas, expected, strict=True):
        for k, p in ema.named_parameters():
            torch.testing.assert_close(p, e[k])
    weights = [net.get_parameter("model.map_layer0.weight") for net in (run.net, *run.emas)]
    assert not any(torch.equal(weights[i], weights[j]) for i, j in ((0, 1), (0, 2), (1, 2)))


def test_a_step_depends_on_seed_and_images_seen_alone(data: Path) -> None:
    dataset, config = ImageDataset(data), config_for(data)
    losses = []
    for noise in (1, 2):
        run = Trainer(config, torch.device("cpu"))
        torch.manual_seed(noise)
        losses.append([step(run, dataset, [0, 1, 2, 3]).loss for _ in range(2)])
    assert losses[0] == losses[1]
    assert losses[0][0] != losses[0][1]
    other = Trainer(config_for(data, seed=1), torch.device("cpu"))
    assert step(other, dataset, [0, 1, 2, 3]).loss != losses[0][0]


# --- transfer -------------------------------------------------------------------------------------------------------


def test_transfer_starts_from_a_snapshot(data: Path, tmp_path: Path) -> None:
    torch.manual_seed(5)
    config = config_for(data)
    run_dir = trained(data, tmp_path / "source", STEPS_8)
    source = tmp_path / "source.safetensors"
    (run_dir / "network-snapshot-000000.safetensors").rename(source)
    one_step = ["--duration=4e-6", "--lr-rampup=1", f"--transfer={source}"]  # at learning rate 0
    there = trained(data, tmp_path / "there", *one_step)
    weights = load_file(source)
    saved = newest(there)
    assert all(torch.equal(saved.net[k], t) and torch.allclose(saved.emas[0][k], t) for k, t in weights.items())
    assert not all(torch.equal(t, weights[k]) for k, t in Trainer(config, torch.device("cpu")).net.state_dict().items())
    source.unlink()  # going on needs the state alone
    assert trained(data, tmp_path / "there", *one_step, "--duration=8e-6") == there


def test_transfer_takes_what_fits_and_says_what_does_not(data: Path, tmp_path: Path) -> None:
    kwargs = {**NETWORK, "model_channels": 4, "channel_mult": [1, 1], "img_channels": 3}
    source = tmp_path / "other.safetensors"
    there = PRECONDS["VEPrecond"](**kwargs)
    save_snapshot(source, there, init_kwargs=kwargs)
    run = Trainer(config_for(data), torch.device("cpu"))
    initial = {k: t.clone() for k, t in run.net.state_dict().items()}
    lines = start_from_weights(run, str(source))
    found = there.state_dict()
    first, last = "model.enc.16x16_conv.weight", "model.dec.16x16_aux_conv.weight"
    missing = [k for k in initial if k not in found]
    assert missing == [k for k in initial if ".16x16_in" in k]  # there, the coarsest level has 8 pixels
    assert f": {len(initial) - len(missing) - 3} of {len(initial)} tensors loaded" in lines[0]
    assert lines[1].startswith(
        f"  3 mismatched, left at their initial values: {first} [4, 3, 3, 3] there, [4, 1, 3, 3] "
    )
    assert lines[2].startswith(f"  {len(missing)} missing there, left at their initial values: {missing[0]}; ")
    assert lines[3].startswith(f"  {len(set(found) - set(initial))} not used: model.enc.8x8_down.norm0.weight; ")
    assert lines[4].startswith("  it was trained as VEPrecond, and this run is EDMPrecond")
    for net in (run.net, *run.emas):
        for k, t in net.state_dict().items():
            left = k in missing or k in (first, last, last.replace("weight", "bias"))
            assert torch.equal(t, initial[k] if left else found[k]), k


def test_transfer_refuses_a_network_of_which_nothing_fits(data: Path, tmp_path: Path) -> None:
    kwargs = {"img_resolution": 8, "img_channels": 1, "model_type": "DhariwalUNet", "model_channels": 8,
              "channel_mult": [1], "num_blocks": 1}  # fmt: skip
    source = tmp_path / "foreign.safetensors"
    save_snapshot(source, PRECONDS["EDMPrecond"](**kwargs), init_kwargs=kwargs)
    said = refused(f"--data={data}", f"--outdir={tmp_path / 'new'}", *TINY, f"--transfer={source}")
    expected = f"Error: --transfer={source}: none of its tensors fits this network; give the options of that network"
    assert said == expected
    assert not (tmp_path / "new").exists()


def test_resume_starts_another_run_from_a_whole_state(data: Path, whole: Path, tmp_path: Path) -> None:
    half = trained(data, tmp_path / "a", *HARD[:-1], "--duration=16e-6")
    source = state.saved_states(half)[0]
    args = [f"--data={data}", f"--outdir={tmp_path / 'b'}", *TINY, TICK_2, *HARD, f"--resume={source}"]
    code, output = run(*args)
    assert (code, f"State of {source} at 0.0 kimg" in output) == (0, True)
    same = tmp_path / "b" / "00000-shades"
    first, second = content(whole), content(same)
    assert all(torch.equal(first["tensors"][k], second["tensors"][k]) for k in first["tensors"])
    source.unlink()  # going on needs its own state alone
    assert f"Going on in {same}" in run(*args)[1]

    source = state.saved_states(half)[0]
    code, output = run(*args[:-1], f"--resume={source}", "--lr=5e-4", "--ema=1e-5,2e-5")
    assert code == 0
    assert "options differ from there: lr=0.0005 instead of 0.001; ema_halflives=[10, 20] instead of [10]" in output
    expected = f"Error: --resume={source} is the state of another network; --transfer takes the weights that fit"
    assert refused(*args[:-1], f"--resume={source}", "--cbase=8") == expected


# --- more than the defaults -----------------------------------------------------------------------------------------


def test_dropped_labels_change_the_training_and_guide_by_none(data: Path, tmp_path: Path) -> None:
    plain, dropped = (
        trained(data, tmp_path / name, STEPS_8, "--cond=1", *more)
        for name, more in {"plain": (), "dropped": ("--label-dropout=.9",)}.items()
    )
    assert newest(dropped).options["network"]["init_kwargs"]["label_dropout"] == 0.9
    assert "label_dropout" not in newest(plain).options["network"]["init_kwargs"]  # runs of before go on
    weights = [load_file(run_dir / SNAPSHOT) for run_dir in (plain, dropped)]
    assert any(not torch.equal(weights[0][name], weights[1][name]) for name in weights[0])

    net = load_denoiser(dropped / SNAPSHOT)
    x, label = torch.randn(2, 1, 16, 16), torch.eye(net.label_dim)[[0, 0]]
    assert torch.equal(net(x, 1.0, label), net(x, 1.0, label))  # nothing is dropped while sampling
    args = [f"--network={dropped / SNAPSHOT}", "--seeds=0-1", "--steps=3", "--guidance=2", "--guide=none"]
    result = CliRunner().invoke(generate.main, [*args, f"--outdir={tmp_path / 'images'}"])
    assert (result.exit_code, len(list((tmp_path / "images").rglob("*.png")))) == (0, 2), result.output


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((), "Error: --label-dropout=0.1: there are no classes to drop; give --cond=1, or use --label-dropout=0"),
        (
            ("--cond=1", "--arch=edm2"),
            "Error: --label-dropout=0.1: --arch=edm2 has no such setting; use --label-dropout=0",
        ),
    ],
)
def test_labels_that_cannot_be_dropped_are_refused(
    data: Path, tmp_path: Path, args: tuple[str, ...], message: str
) -> None:
    assert refused(f"--data={data}", f"--outdir={tmp_path / 'out'}", "--label-dropout=.1", *args) == message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("precond", ["vp", "ve"])
def test_the_other_preconditionings_train_and_sample(data: Path, tmp_path: Path, precond: str) -> None:
    run_dir = trained(data, tmp_path, "--duration=8e-6", f"--precond={precond}", "--augment=.5")
    net = load_denoiser(run_dir / SNAPSHOT)
    assert type(net) is {"vp": VPPrecond, "ve": VEPrecond}[precond]
    assert newest(run_dir).options["network"]["init_kwargs"]["augment_dim"] == 9
    assert net(torch.zeros(1, 1, 16, 16), 1.0).isfinite().all()


def test_several_averages_a_held_out_loss_and_a_picture(data: Path, tmp_path: Path) -> None:
    args = ["--ema=1e-5,2.5", "--sigma-data=auto", f"--val={data}", "--grid", "--snap=2", "--cond=1"]
    run_dir = trained(data, tmp_path, "--duration=12e-6", "--lr=.05", *args)
    names = sorted(p.name for p in run_dir.glob("*.safetensors"))
    assert names == ["network-snapshot-000000-ema2.5.safetensors", SNAPSHOT]
    first, second = (load_snapshot(run_dir / name) for name in reversed(names))
    assert (first.header.extra["ema_halflife"], second.header.extra["ema_halflife"]) == (10, 2_500_000)
    emas = newest(run_dir).emas
    for snapshot, ema in zip((first, second), emas, strict=True):
        assert all(torch.equal(t, ema[k]) for k, t in snapshot.net.state_dict().items())
    with PIL.Image.open(run_dir / "grid-000000.png") as image:
        assert image.size[0] > 4 * 96
    pixels = np.stack([np.asarray(PIL.Image.open(p)) for p in sorted(data.glob("*.png"))]) / 127.5 - 1
    assert first.header.init_kwargs["sigma_data"] == pytest.approx(pixels.std(), rel=1e-3)
    line = json.loads((run_dir / "stats.jsonl").read_text().splitlines()[-1])
    assert line["val_images"] == 10
    assert line["val_loss"] == pytest.approx(np.mean(line["val_loss_by_sigma"]))


def test_held_out_images_must_be_like_the_others(data: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    PIL.Image.new("L", (8, 8)).save(other / "a.png")
    said = refused(f"--data={data}", f"--outdir={tmp_path / 'new'}", *TINY, STEPS_8, f"--val={other}")
    assert said == f"Error: --val={other} has 8 pixels, and --data={data} 16; prepare it alike"


@pytest.mark.usefixtures("idle")
def test_tensorboard_gets_the_numbers_where_it_is_installed(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = []

    class SummaryWriter:
        def __init__(self, folder: str, *, purge_step: int) -> None:
            written.append((Path(folder).name, purge_step))

        def add_scalar(self, name: str, value: float, step: int) -> None:
            written.append((name, step))

        def flush(self) -> None: ...

        def close(self) -> None:
            written.append(("closed",))

    module = types.ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = SummaryWriter  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    trained(data, tmp_path, "--duration=8e-6")
    assert written[0] == ("tensorboard", 0)
    assert {("loss", 8), ("lr", 8), ("images_per_s", 8), ("grad_norm", 8)} <= set(written)
    assert written[-1] == ("closed",)


def test_the_time_to_go_is_readable() -> None:
    assert [logging.duration(s) for s in (0, 89.6, 3600, 7384, 90_000)] == ["0m00s", "1m30s", "1h00m", "2h03m", "1d01h"]


# --- mistakes and accidents -----------------------------------------------------------------------------------------


def test_gradients_that_are_not_finite_are_skipped_and_stop_the_run(data: Path, tmp_path: Path) -> None:
    args = [f"--data={data}", f"--outdir={tmp_path}", *TINY, "--tick=.004", "--duration=80e-6", "--max-bad-steps=3"]
    last = refused(*args, "--lr=1e18")
    found = re.match(
        r"Error: gradients are not finite in 3 steps in a row, up to image (\d+); the last good state", last
    )
    assert found is not None, last
    saved = newest(tmp_path / "00000-shades")
    assert saved.images_seen == int(found[1]) - 12  # the three steps are not in it
    assert (saved.bad_in_a_row, saved.bad_steps) == (0, 0)
    assert all(t.isfinite().all() for t in saved.net.values())
    stats = [json.loads(line) for line in (tmp_path / "00000-shades" / "stats.jsonl").read_text().splitlines()]
    assert [line["bad_steps"] for line in stats[-4:]] == [0, 1, 2, 3]
    assert stats[-1]["loss"] is None


def test_a_bad_step_leaves_no_trace_in_the_weights(data: Path) -> None:
    dataset = ImageDataset(data)
    run = Trainer(config_for(data), torch.device("cpu"))
    step(run, dataset, [0, 1, 2, 3])
    before = copy.deepcopy(run.state())
    batch = draw_batch(dataset, run.config, range(4, 8), [0, 1, 2, 3])
    batch.noise[0, 0, 0, 0] = torch.inf
    result = run.step([batch])
    assert (result.good, run.images_seen, run.bad_steps, run.bad_in_a_row) == (False, 8, 1, 1)
    after = run.state()
    for x, y in zip((before.net, *before.emas), (after.net, *after.emas), strict=True):
        assert all(torch.equal(x[k], y[k]) for k in x)
    moments = zip(before.optimizer["state"].values(), after.optimizer["state"].values(), strict=True)
    assert all(torch.equal(x[k], y[k]) for x, y in moments for k in x)
    assert step(run, dataset, [0, 1, 2, 3]).good
    assert (run.bad_steps, run.bad_in_a_row) == (1, 0)


def test_damaged_images_are_found_before_training(data: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad"
    bad.mkdir()
    for path in data.glob("*.png"):
        (bad / path.name).write_bytes(path.read_bytes())
    (bad / "9.png").write_bytes(b"")
    said = refused(f"--data={bad}", f"--outdir={tmp_path / 'runs'}", *TINY, STEPS_8)
    assert said == f"Error: --data={bad}: the image '9.png' cannot be decoded ('unknown format'); remove or replace it"
    assert not (tmp_path / "runs" / "00000-bad" / "stats.jsonl").exists()


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--duration=inf"], "Invalid value for '--duration': inf is not a finite number"),
        (["--dropout=1"], "Invalid value for '--dropout'"),
        (["--lrate=1"], "No such option"),
        (["--cres=1,2,2,2,2,2"], "images of 16 pixels cannot be halved 5 times"),
        (["--blocks=17"], "--blocks=17 is not allowed: it must be a whole number from 1 to 16"),
        (["--attn=16,32"], "--attn=16,32: the network has no layers at 32 pixels, only at 16; give some of these"),
        (["--desc=a/b"], "--desc=a/b does not fit in a folder's name"),
        (["--data=nowhere"], "--data=nowhere does not exist; name a folder or a zip of images"),
        (["--transfer=nowhere.pkl"], "nowhere.pkl: there is no such file"),
        (["--resume=nowhere.pt"], "--resume=nowhere.pt: there is no such file; name a training-state-*.pt"),
        (["--resume=a", "--transfer=b"], "--transfer and --resume both say where to start from; give one of them"),
        (["--precision=fp16"], "--precision=fp16 needs a CUDA device, and this is cpu; use bf16 or fp32"),
        (["--fp16=1"], "--precision=fp16 needs a CUDA device, and this is cpu; use bf16 or fp32"),
        (["--fp16=1", "--precision=bf16"], "--fp16=1 and --precision=bf16 contradict each other; give one of them"),
        (["--precond=vp", "--p-mean=0"], "--p-mean=0.0: --precond=vp has no such setting; leave it out"),
        (["--precond=ve", "--sigma-data=auto"], "--sigma-data=auto: --precond=ve has no such setting; leave it out"),
        (["--sigma-data=automatic"], "Invalid value for '--sigma-data'"),
        (["--ema=.1,.1"], "Invalid value for '--ema': '.1,.1' is not a list of different half-lives"),
        (["--ema=-1"], "Invalid value for '--ema'"),
        (["--grad-clip=0"], "Invalid value for '--grad-clip'"),
        (["--val=nowhere"], "--val=nowhere does not exist"),
    ],
)
def test_mistakes_are_one_line_and_write_nothing(data: Path, tmp_path: Path, args: list[str], says: str) -> None:
    assert says in refused(f"--data={data}", f"--outdir={tmp_path / 'new'}", *TINY, STEPS_8, *args)
    assert not (tmp_path / "new").exists()


def test_damaged_states_are_refused(data: Path, whole: Path, tmp_path: Path) -> None:
    path, intact = tmp_path / "state.pt", state.saved_states(whole)[0].read_bytes()
    for damaged in (b"", b"text", intact[:5000], intact[: len(intact) // 2]):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"state.pt is not a training state \(.*\); remove it to go on"):
            state.load_state(path)
    torch.save({"schema": 99, "net": {}}, path)
    with pytest.raises(UserError, match="is not a training state \\('schema 99 instead of 3'\\)"):
        state.load_state(path)


def test_a_network_is_no_training_state(tmp_path: Path) -> None:
    """It is not called damaged, and nobody is told to remove it."""
    path = tmp_path / "network-snapshot-000001.safetensors"
    path.write_bytes(b"a network")
    with pytest.raises(UserError, match="that is a network; give a training-state") as e:
        start_from_state(None, str(path))  # type: ignore[arg-type]  # refused before the run is looked at
    assert "remove" not in str(e.value)


def test_a_damaged_state_is_passed_over_for_the_one_before(data: Path, whole: Path, tmp_path: Path) -> None:
    parts = trained(data, tmp_path, *HARD[:-1], "--duration=24e-6")
    new = state.saved_states(parts)[0]
    new.write_bytes(new.read_bytes()[:9000])
    code, output = run(f"--data={data}", f"--outdir={tmp_path}", *TINY, TICK_2, *HARD)
    assert code == 0
    assert f"Passed over: {new} is not a training state" in output
    assert_same(whole, parts)
    for path in state.saved_states(parts):
        path.write_bytes(b"")
    assert "is not a training state" in refused(f"--data={data}", f"--outdir={tmp_path}", *TINY, TICK_2, *HARD)


@pytest.mark.usefixtures("idle")
def test_states_are_rolled_and_some_kept_for_good(data: Path, tmp_path: Path) -> None:
    args = ["--tick=.4", "--duration=3e-3", "--batch=100", "--dump=2"]
    run_dir = trained(data, tmp_path, *args, "--keep-states=3")
    names = ["training-state-000000.pt", "training-state-000001.pt", "training-state-000002.pt"]
    assert sorted(p.name for p in run_dir.glob("*.pt") if p not in state.saved_states(run_dir)) == names
    assert [state.load_state(run_dir / name).images_seen for name in names] == [800, 1600, 2400]
    assert [p.name[15:-3] for p in state.saved_states(run_dir)] == ["000003.000", "000002.800", "000002.400"]


def test_states_never_run_code(tmp_path: Path) -> None:
    class Payload:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "ran"),)

    torch.save({"schema": state.SCHEMA, "net": Payload()}, tmp_path / "state.pt")
    with pytest.raises(UserError, match="is not a training state"):
        state.load_state(tmp_path / "state.pt")
    assert not (tmp_path / "ran").exists()


def test_a_full_disk_keeps_the_last_state(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_dir = trained(data, tmp_path, "--duration=8e-6")
    before = state.saved_states(run_dir)[0].read_bytes()

    def full(content: Any, path: Path) -> None:
        path.write_bytes(b"half")
        raise RuntimeError("PytorchStreamWriter failed writing file data/1: file write failed")

    monkeypatch.setattr(torch, "save", full)
    said = refused(f"--data={data}", f"--outdir={tmp_path}", *TINY, TICK_2, "--duration=16e-6")
    assert "cannot be saved ('PytorchStreamWriter failed" in said
    assert state.saved_states(run_dir)[0].read_bytes() == before
    assert not list(run_dir.glob(".tmp-*"))


def test_a_second_interrupt_is_immediate_and_handlers_come_back() -> None:
    before = signal.getsignal(signal.SIGINT)
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.received
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_the_options_are_these() -> None:
    """Scripts and run folders rely on them: a change belongs in the CHANGELOG."""
    given = " ".join(sorted(option for p in command.main.params for option in p.opts))
    assert given == (
        "--adam-beta2 --arch --attn --augment --batch --batch-gpu --bench --blocks --cache --cbase --channels-last "
        "--compile --cond --cres --data --desc --device --dropout --dry-run --dump --duration --ema --ema-std --fp16 "
        "--grad-clip --grid --keep-states --label-dropout --lr --lr-decay --lr-rampup --ls --max-bad-steps --nosubdir "
        "--outdir --p-mean --p-std --precision --precond --preset --resume --seed --sigma-data --snap --threads --tick "
        "--transfer --val --workers --xflip -n"
    )
    defaults = {p.name: p.default for p in command.main.params}
    expected = {"cond": False, "arch": "ddpmpp", "precond": "edm", "duration": 200, "batch": 512, "lr": 1e-3}
    expected |= {"ema": "0.5", "dropout": 0.13, "augment": 0.12, "xflip": False, "fp16": False, "ls": 1, "bench": True}
    expected |= {"cache": True, "workers": 1, "tick": 50, "snap": 50, "dump": 500, "seed": 0}
    expected |= {"lr_rampup": 10, "p_mean": -1.2, "p_std": 1.2, "sigma_data": 0.5}
    assert {k: defaults[k] for k in expected} == expected
    assert asdict(TrainConfig("", 1, {}))["batch"] == 512
