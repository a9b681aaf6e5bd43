"""What a training run will take, measured by a short forward and backward pass: for train.py's dry run."""

from __future__ import annotations

from dataclasses import dataclass

from torch_utils.machine import kept_for_backward, largest_measured, size_text
from training.config import RunSettings
from training.dataset import ImageDataset
from training.feed import draw_batch
from training.logging import duration
from training.trainer import Trainer


@dataclass(frozen=True)
class Estimate:
    """Time and memory of one rank. What the optimiser, the reading of images and Python take is not in it."""

    measured: int  # images at once in the pass that was measured
    seconds: float  # an image
    images: int  # of the whole run on this rank
    at_once: int  # images of a micro-batch
    weights: int  # bytes of weights, averages, gradients and moments
    activations: int  # bytes that the backward pass of a micro-batch needs
    decoded: int  # bytes of all images in memory

    def describe(self) -> list[str]:
        """A line on time and one on memory."""
        how = f"{self.seconds:.3g} s an image, measured by a forward and backward pass of {self.measured} at once"
        parts = (
            f"weights, averages and moments {size_text(self.weights)}, activations of {self.at_once} images at once "
        )
        parts += f"{size_text(self.activations)}, decoded images {size_text(self.decoded)}"
        return [
            f"Time: about {duration(self.images * self.seconds)} for {self.images:,} images on each rank ({how})",
            f"Memory: about {size_text(self.weights + self.activations + self.decoded)} and what Python and torch take "
            f"({parts})",
        ]


def estimate(trainer: Trainer, settings: RunSettings, dataset: ImageDataset, *, ranks: int = 1) -> Estimate:
    """Measures forward and backward passes on the first images, about two seconds of them; no weight changes.

    A compiled network is measured uncompiled, for compiling it takes minutes.
    """
    share = -(-trainer.config.batch // ranks)
    at_once = min(trainer.execution.batch_gpu or share, share)

    def passes(rows: int) -> None:
        indices = [i % len(dataset) for i in range(rows)]
        with trainer.must_fit(rows):
            trainer.accumulate(draw_batch(dataset, trainer.config, range(rows), indices), trainer.net)

    measured, seconds = largest_measured(passes, at_once, trainer.device)
    with kept_for_backward(trainer.net.parameters()) as kept:
        passes(1)
    trainer.gradients.zero()
    parameters = sum(p.numel() * p.element_size() for p in trainer.net.parameters())
    image = dataset.num_channels * dataset.resolution**2
    return Estimate(
        measured=measured,
        seconds=seconds / measured,
        images=-(-settings.total_images // ranks),
        at_once=at_once,
        weights=parameters * (4 + len(trainer.emas)),  # weights, gradients and Adam's two moments; averages
        activations=kept() * at_once,
        decoded=image * len(dataset) if dataset.cached else 0,
    )
