"""train.py --arch=edm2: its loss, learning rate and averages, forced normalisation, and that runs go on bit for bit."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from overridden import last_of_each
from torch import Tensor, nn
from training_runs import config_for, newest

import train as command
from scripts.posthoc_ema import main as posthoc_ema
from training.checkpoint import load_snapshot
from training.config import TrainConfig, averages
from training.dataset import ImageDataset
from training.ema import HalfLife, PowerFunction
from training.feed import draw_batch
from training.loss import EDM2Loss, EDMLoss, build_loss
from training.networks import EDM2Precond
from training.networks.mp_layers import MPConv
from training.trainer import Trainer
from training.transfer import start_from_state

TINY = ["--arch=edm2", "--cbase=4", "--cres=1", "--blocks=1", "--batch=4", "--lr-rampup=2e-5", "--lr-decay=2e-5",
        "--tick=.008", "--cond=1", "--xflip=1", "--dropout=.2", "--snap=1", "--threads=1", "--nosubdir"]  # fmt: skip
NETWORK = {"img_resolution": 16, "img_channels": 1, "model_type": "EDM2UNet", "model_channels": 4, "channel_mult": [1],
           "num_blocks": 1, "logvar_channels": 8}  # fmt: skip


def run(*args: object) -> tuple[int, str]:
    result = CliRunner().invoke(command.main, last_of_each(args))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


def trained(data: Path, run_dir: Path, *args: str) -> Path:
    code, output = run(f"--data={data}", f"--outdir={run_dir}", *TINY, "--duration=32e-6", *args)
    assert (code, "Finished: " in output) == (0, True), output
    return run_dir


def dry(data: Path, *args: str) -> dict[str, Any]:
    """The configuration that a command stands for."""
    code, output = run(f"--data={data}", "--outdir=nowhere", *args, "-n")
    assert code == 0, output
    found: dict[str, Any] = json.loads(output[output.index("{") : output.index("\n}") + 2])
    return found


def edm2_config(data: Path, **changes: Any) -> TrainConfig:
    network = {"class_name": "EDM2Precond", "init_kwargs": NETWORK}
    return replace(config_for(data, ema_halflives=()), **{"network": network, "ema_stds": (0.05, 0.1), **changes})


# --- runs ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 8 steps in one piece."""
    return trained(data, tmp_path_factory.mktemp("whole") / "run")


def content(run_dir: Path) -> dict[str, bytes]:
    """All tensors of the last state, and the snapshots' bytes."""
    saved = newest(run_dir)
    moments = {f"{i}.{k}": v for i, s in saved.optimizer["state"].items() for k, v in s.items()}
    found = {f"{i}.{k}": v for i, net in enumerate((saved.net, *saved.emas)) for k, v in net.items()} | moments
    return {k: v.numpy().tobytes() for k, v in found.items()} | {
        p.name: p.read_bytes() for p in run_dir.glob("*.safetensors")
    }


def test_a_run_writes_an_average_of_each_width(whole: Path) -> None:
    files = sorted(p.name for p in whole.glob("*.safetensors"))
    assert files == ["network-snapshot-000000-std0.1.safetensors", "network-snapshot-000000.safetensors"]
    narrow, wide = (load_snapshot(whole / name) for name in reversed(files))
    assert (narrow.header.extra["ema_std"], wide.header.extra["ema_std"]) == (0.05, 0.1)
    assert isinstance(narrow.net, EDM2Precond)
    assert narrow.net.label_dim == 2
    lines = [json.loads(line) for line in (whole / "stats.jsonl").read_text().splitlines()]
    assert [line["lr"] for line in lines] == pytest.approx([0.004, 0.008, 0.01 / 1.2**0.5, 0.01 / 1.6**0.5])
    a, b, net = narrow.net.state_dict(), wide.net.state_dict(), newest(whole).net
    assert any(not torch.equal(a[k], b[k]) for k in a)
    distance = [sum(float((e[k] - net[k]).square().sum()) for k in net) for e in (a, b)]
    assert 0 < distance[0] < distance[1]  # the narrower one is nearer to the last weights


def test_a_run_in_two_parts_is_the_same_to_the_bit(data: Path, whole: Path, tmp_path: Path) -> None:
    trained(data, tmp_path / "parts", "--duration=16e-6")
    trained(data, tmp_path / "parts")
    assert content(tmp_path / "parts") == content(whole)


def test_it_learns_in_bf16_too_and_is_validated(data: Path, tmp_path: Path) -> None:
    options = ["--duration=800e-6", "--tick=.2", "--precision=bf16", "--lr-decay=1", "--dropout=0", f"--val={data}"]
    run_dir = trained(data, tmp_path / "run", *options)
    lines = [json.loads(line) for line in (run_dir / "stats.jsonl").read_text().splitlines()]
    assert lines[-1]["loss"] < lines[0]["loss"] - 0.3
    assert lines[-1]["val_loss"] < lines[0]["val_loss"]
    assert math.isfinite(lines[-1]["val_loss"])


def test_micro_batches_give_the_same_step_up_to_rounding(data: Path, whole: Path, tmp_path: Path) -> None:
    """The weights are normalised once a step, and not in each round."""
    options = ["--dropout=0", "--duration=4e-6"]
    a, b = (newest(trained(data, tmp_path / n, *options, f"--batch-gpu={n}")).net for n in ("4", "1"))
    assert all(torch.allclose(a[k], b[k], rtol=1e-4, atol=1e-5) for k in a)


def test_a_snapshot_is_fine_tuned(data: Path, whole: Path, tmp_path: Path) -> None:
    snapshot = whole / "network-snapshot-000000.safetensors"
    code, output = run(
        f"--data={data}", f"--outdir={tmp_path / 'tuned'}", *TINY, "--duration=4e-6", f"--transfer={snapshot}"
    )
    assert code == 0, output
    tensors = len(load_snapshot(snapshot).net.state_dict())
    assert f"{tensors} of {tensors} tensors loaded" in output


def test_other_widths_are_made_of_a_run(whole: Path, tmp_path: Path) -> None:
    dest = tmp_path / "net.safetensors"
    result = CliRunner().invoke(posthoc_ema, [str(whole), "--std=.1", f"--dest={dest}"])
    assert result.exit_code == 0, result.output
    made, kept = (
        load_snapshot(p).net.state_dict() for p in (dest, whole / "network-snapshot-000000-std0.1.safetensors")
    )
    assert all(torch.allclose(made[k], kept[k], atol=1e-5) for k in kept)


def test_a_state_with_other_averages_gives_those_that_it_has(data: Path, whole: Path) -> None:
    state = sorted(whole.glob("training-state-*.pt"))[-1]
    saved = newest(whole)
    config = edm2_config(data, ema_stds=(0.1, 0.2), network=saved.options["network"])
    trainer = Trainer(config, torch.device("cpu"))
    start_from_state(trainer, str(state))
    for ema, wanted in zip(trainer.emas, (saved.emas[1], saved.emas[0]), strict=True):  # the first one, for a new width
        assert all(torch.equal(t, wanted[k]) for k, t in ema.state_dict().items())


# --- the step --------------------------------------------------------------------------------------------------------


def test_weights_are_normalised_before_a_step(data: Path) -> None:
    config = edm2_config(data, lr=1e-12)
    trainer, dataset = Trainer(config, torch.device("cpu")), ImageDataset(str(data))
    before = [m.weight.detach().clone() for m in trainer.net.modules() if isinstance(m, MPConv)]
    trainer.step([draw_batch(dataset, config, range(4), [0, 1, 2, 3])])
    weights = [m.weight for m in trainer.net.modules() if isinstance(m, MPConv)]
    for w, old in zip(weights, before, strict=True):
        assert w.detach().square().flatten(1).mean(1).sqrt() == pytest.approx(1, abs=1e-3)
        cosine = nn.functional.cosine_similarity(w.detach().flatten(1), old.flatten(1))
        assert cosine == pytest.approx(1, abs=1e-5)


def test_the_first_average_is_the_network_itself(data: Path) -> None:
    config = edm2_config(data, lr=0.01)
    trainer, dataset = Trainer(config, torch.device("cpu")), ImageDataset(str(data))
    trainer.step([draw_batch(dataset, config, range(4), [0, 1, 2, 3])])
    for ema in trainer.emas:
        assert all(torch.equal(t, trainer.net.state_dict()[k]) for k, t in ema.state_dict().items())


class Uncertain(nn.Module):
    """D = 0, with the same u at every noise level."""

    def __init__(self, u: float) -> None:
        super().__init__()
        self.u = nn.Parameter(torch.tensor(u))

    def forward(self, x: Tensor, sigma: Tensor, labels: Tensor | None, augment_labels: Tensor | None = None) -> Tensor:
        return torch.zeros_like(x)

    def logvar(self, sigma: Tensor) -> Tensor:
        return self.u.expand(sigma.shape)


def test_the_loss_weighs_by_its_own_uncertainty() -> None:
    g = torch.Generator().manual_seed(0)
    y, n = torch.randn(64, 1, 4, 4, generator=g), torch.randn(64, generator=g)
    given: dict[str, Any] = {"n": n, "noise": torch.randn(64, 1, 4, 4, generator=g)}
    loss = build_loss(EDM2Loss, {"sigma_data": 0.6}, P_mean=-0.4, P_std=1.0)
    assert loss == EDM2Loss(-0.4, 1.0, 0.6)
    plain = EDMLoss(-0.4, 1.0, 0.6)(Uncertain(0.0), y, None, **given)
    assert torch.equal(loss(Uncertain(0.0), y, None, **given), plain)
    best = Uncertain(math.log(float(plain.mean())))
    loss(best, y, None, **given).mean().backward()
    assert best.u.grad == pytest.approx(0, abs=1e-6)
    least = loss(best, y, None, **given).mean()
    assert least.item() == pytest.approx(1 + best.u.item(), rel=1e-5)


# --- options ---------------------------------------------------------------------------------------------------------


def test_an_architecture_brings_its_defaults_and_the_command_line_replaces_them(data: Path) -> None:
    small = "--cbase=4", "--cres=1"  # the dry run measures some steps
    config = dry(data, "--arch=edm2", *small)
    assert config["network"]["class_name"] == "EDM2Precond"
    assert (config["lr"], config["lr_decay"], config["adam_beta2"]) == (0.01, 143_360_000, 0.99)
    assert (config["ema_stds"], config["ema_halflives"], config["augment"]) == ([0.05, 0.1], [], 0)
    assert (config["P_mean"], config["P_std"]) == (-0.4, 1)
    kwargs = config["network"]["init_kwargs"]
    assert (kwargs["dropout"], kwargs["sigma_data"], kwargs["use_fp16"]) == (0, 0.5, False)
    config = dry(data, "--lr=.1", "--ema=.5", "--arch=edm2", "--p-mean=-1", "--lr-decay=0", "--precond=edm", *small)
    assert config["network"]["class_name"] == "EDMPrecond"
    assert (config["lr"], config["P_mean"], config["ema_halflives"]) == (0.1, -1, [500_000])
    assert {"ema_stds", "lr_decay"}.isdisjoint(config)
    recipe = dry(data, "--preset=mnist-32-edm2")
    assert (recipe["batch"], recipe["lr_decay"], recipe["ema_stds"]) == (64, 20_000, [0.05, 0.1])


def test_runs_of_edm_have_the_options_that_they_had(data: Path) -> None:
    """So that older runs are found again, and their files stay as they are."""
    config = dry(data, "--augment=0", "--cbase=4", "--cres=1")
    assert list(config) == [
        "data", "num_images", "network", "cond", "batch", "lr", "lr_rampup", "ema_halflives", "ema_rampup_ratio",
        "P_mean", "P_std", "augment", "xflip", "seed", "precision", "loss_scale", "grad_clip", "transfer", "resume",
    ]  # fmt: skip
    assert averages(config) == (HalfLife(500_000, 0.05),)
    assert averages({**config, "ema_stds": [0.1]})[1:] == (PowerFunction(0.1),)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--ema=.5", "--ema-std=.1"], "give one of them"),
        (["--augment=.1"], "--augment=0.1: --arch=edm2"),
        (["--ema-std=.5"], "not a list of different widths"),
        (["--ema-std=.1,.1"], "not a list of different widths"),
        (["--precond=vp", "--p-mean=-1"], "--precond=vp has no such setting"),
        (["--cbase=192", "--attn=32"], "no layers at 32 pixels"),
    ],
)
def test_mistakes_are_one_line(data: Path, tmp_path: Path, options: list[str], says: str) -> None:
    code, output = run(
        f"--data={data}", f"--outdir={tmp_path / 'new'}", "--arch=edm2", "--cres=1", "--cbase=4", *options
    )
    assert code == 2
    assert says in output.splitlines()[-1]
    assert not (tmp_path / "new").exists()
