"""Trains the labeller of task mnist: an ensemble of small classifiers, some minutes on one core."""

import sys
from pathlib import Path

import click
import torch
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works from a plain checkout, installed or not

from dnnlib.cli import Command
from dnnlib.util import file_sha256
from rods.bench.digit_labels import NUM_NETS, PATH, REACHED_BY, calibrated, save_labeller
from rods.bench.digit_training import DigitTraining, train_digit_net
from rods.bench.digits import TRAINING, audit_digits, threshold_digits, training_digits
from rods.bench.real_data import data_folder
from rods.eval.labels import Label


@click.command(cls=Command)
@click.option("--dest", type=click.Path(dir_okay=False, path_type=Path), default=PATH, help="The file to write.")
@click.option("--epochs", type=click.IntRange(1), default=DigitTraining.epochs, show_default=True)
@click.option("--seed", type=click.IntRange(0, 1000), default=0, show_default=True, help="Of the first network.")
def main(dest: Path, epochs: int, seed: int) -> None:
    """Train the ensemble on the digits in data/ (or $RODS_DATA), set its thresholds, and say how it does.

    Every fifth digit is held out of training; half of those set the thresholds, the other half only judge.
    """
    torch.set_num_threads(1)  # the layers are too small for two
    images, classes = training_digits()
    calibration, audit = threshold_digits(), audit_digits()
    dest.parent.mkdir(parents=True, exist_ok=True)
    nets, losses = [], []
    with tqdm(total=NUM_NETS * epochs, unit="epoch", desc=dest.name, disable=not sys.stderr.isatty()) as bar:
        for i in range(NUM_NETS):
            config = DigitTraining(seed=seed + i, epochs=epochs)
            nets.append(
                train_digit_net(images, classes, config, report=lambda _, loss: (losses.append(loss), bar.update()))
            )
    labeller = calibrated(nets, calibration[0])
    curve = [losses[i * epochs : (i + 1) * epochs] for i in range(NUM_NETS)]
    data = {"name": TRAINING, "digits": len(images), "sha256": file_sha256(data_folder() / TRAINING)}
    save_labeller(dest, labeller, facts={"data": data, "epochs": epochs, "seed": seed, "losses": curve})
    right = labeller.probabilities(audit[0]).argmax(axis=1) == audit[1]
    bad = labeller.label(audit[0]) == Label.BAD
    click.echo(f"{dest}: {NUM_NETS} networks, {epochs} epochs of {len(images)} digits, last losses "
               + ", ".join(f"{losses[-1]:.3f}" for losses in curve))  # fmt: skip
    click.echo("Confidence that " + ", ".join(
        f"{share:.2%} reach: {t:.4f}" for share, t in zip(REACHED_BY, labeller.calibration.thresholds, strict=True)
    ))  # fmt: skip
    click.echo(f"On {len(right)} other held-out digits: {right.mean():.2%} right, {bad.mean():.2%} surely bad")


if __name__ == "__main__":
    main()
