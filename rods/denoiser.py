"""The network as a sampler sees it: labels and random numbers bound, evaluations counted.

`BoundDenoiser` calls the network for some rows of a batch and counts F (network evaluations) and B (vector-Jacobian
products to the input) for each sample. A denoiser that is made of others (`Combined`) has each of them called and
counted so; one that must know whose row it gets is `Keyed`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from math import inf

import torch
from torch import Tensor

from rods.micro_batches import MicroBatches
from rods.types import AnyDenoiser, form

TINY = 1e-12
"""Norms below this have no direction."""
NO_GRADIENT = (
    "denoiser: the model gives no gradient (it runs under torch.no_grad, or detaches); let it be differentiated, "
    'or use gradient="difference", which needs none'
)
INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
Noise = Callable[[Tensor], Tensor]
"""Unit normal draws in the shape and dtype of a whole batch, such as `torch.randn_like`."""


def norms(x: Tensor) -> Tensor:
    """Euclidean norm of each sample: [B, ...] -> [B]. Its gradient at 0 is 0, never NaN."""
    n: Tensor = torch.linalg.vector_norm(x.flatten(1), dim=1)
    return n


def per_sample(value: Tensor, like: Tensor) -> Tensor:
    """[B] -> [B, 1, 1, ...], to scale the samples of `like`."""
    return value.reshape(-1, *[1] * (like.ndim - 1))


def unit(x: Tensor) -> Tensor:
    """x / ||x|| per sample; 0 where ||x|| < 1e-12 or is not a number."""
    n = norms(x)
    sure = n >= TINY
    return torch.where(per_sample(sure, x), x / per_sample(torch.where(sure, n, 1.0), x), 0.0)


def no_rows(x: Tensor) -> Tensor:
    """No row flagged: [B] bool."""
    return torch.zeros(len(x), dtype=torch.bool, device=x.device)


# -- the network ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class BoundDenoiser:
    """D(x; sigma) with its labels, for some rows of a batch; counts F and B of every sample of that batch.

    The counts are measured where the network is called (B by a hook on its output), so that no corrector declares what
    it spends. `rows` narrows it to a part of the batch, and may repeat rows. `draw` gives these rows their own random
    numbers.
    """

    denoiser: AnyDenoiser
    class_labels: Tensor | None  # [b, label_dim]
    index: Tensor  # [b] int64 on the CPU: which sample of the batch each row is
    forward: Tensor  # [B] int64 on the CPU
    backward: Tensor  # [B] int64 on the CPU
    keys: Tensor  # [B] int64 on the CPU
    randn_like: Noise = torch.randn_like
    micro_batches: MicroBatches = field(default_factory=MicroBatches)

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        if not len(x):  # which few networks are made for
            return x
        if isinstance(self.denoiser, Combined):  # what it is made of is called, split and counted one by one
            return self.denoiser.evaluate(self, x, sigma)
        if torch.is_grad_enabled():  # whoever differentiates this splits it: see `with_gradient`
            denoised = self._evaluate(x, sigma, slice(None))
        else:
            (denoised,) = self.micro_batches.run(
                "forward", len(x), lambda part: (self._evaluate(x[part], sigma, part),)
            )
        if denoised.shape != x.shape:
            raise ValueError(f"denoiser: returned shape {list(denoised.shape)} for an input of {list(x.shape)}")
        self.forward.index_add_(0, self.index, torch.ones_like(self.index))
        denoised = denoised.to(x.dtype)
        if torch.is_grad_enabled() and x.requires_grad and not denoised.requires_grad:
            raise ValueError(NO_GRADIENT)
        if denoised.requires_grad:
            denoised.register_hook(self._count_backward)  # type: ignore[no-untyped-call]
        return denoised

    def _evaluate(self, x: Tensor, sigma: Tensor, part: slice) -> Tensor:
        """D of the rows `x`, which are a part of this one's."""
        labels = () if self.class_labels is None else (self.class_labels[part],)
        if isinstance(self.denoiser, Keyed):
            return self.denoiser.keyed(x, sigma, *labels, keys=self.keys[self.index[part]])
        return self.denoiser(x, sigma, *labels)

    def of(self, denoiser: AnyDenoiser, *, labelled: bool = True) -> BoundDenoiser:
        """Another denoiser for the same rows and counters, with their labels or without."""
        return replace(self, denoiser=denoiser, class_labels=self.class_labels if labelled else None)

    def with_gradient(
        self, x: Tensor, function: Callable[[BoundDenoiser, Tensor, slice], tuple[Tensor, Tensor]]
    ) -> tuple[Tensor, Tensor]:
        """What a function hands back, and its gradient: for `x` [B, ...], both [B, ...].

        `function(denoise, x, part)` gets rows of x that require a gradient, the network for these, and which they are;
        it returns values [b], whose sum is differentiated, and what to hand back [b, ...]. The rows go through at once,
        or in micro-batches. Cost: F + B; what is tried in vain for want of memory is not counted.
        """

        def evaluate(part: slice) -> tuple[Tensor, Tensor]:
            before = self.forward.clone(), self.backward.clone()
            try:
                with torch.enable_grad():
                    rows = x[part].detach().requires_grad_(True)
                    mine = self if len(rows) == len(x) else self.rows(torch.arange(len(x))[part])
                    value, extra = function(mine, rows, part)
                    # With respect to x alone: the gradients of the weights are neither computed nor accumulated.
                    (slope,) = torch.autograd.grad(value.sum(), rows)
            except (RuntimeError, MemoryError):
                self.forward.copy_(before[0])
                self.backward.copy_(before[1])
                raise
            return extra.detach(), slope

        extra, slope = self.micro_batches.run("probe", len(x), evaluate)
        return extra, slope

    def _count_backward(self, grad: Tensor) -> None:
        self.backward.index_add_(0, self.index, torch.ones_like(self.index))

    @property
    def sigma_min(self) -> float:
        return sigma_range(self.denoiser)[0]

    @property
    def sigma_max(self) -> float:
        return sigma_range(self.denoiser)[1]

    def round_sigma(self, sigma: Tensor) -> Tensor:
        """The level as the network knows it; the identity where it does not say."""
        return rounded_sigma(self.denoiser, sigma)

    def rows(self, index: Tensor) -> BoundDenoiser:
        """The same network for the rows `index` [b'] of this one."""
        labels = None if self.class_labels is None else self.class_labels[index.to(self.class_labels.device)]
        return replace(self, class_labels=labels, index=self.index[index.cpu()])

    def draw(self, x: Tensor) -> Tensor:
        """Unit normal draws for the rows `x` [b, ...], from a source that draws for the whole batch.

        A row gets the numbers of its place in the batch, whichever other rows are with it.
        """
        whole: Tensor = self.randn_like(x.new_empty(len(self.forward), *x.shape[1:]))
        return whole[self.index.to(x.device)]


def sigma_range(denoiser: AnyDenoiser) -> tuple[float, float]:
    """The noise levels that a denoiser says it knows; 0 and inf where it does not say."""
    return float(getattr(denoiser, "sigma_min", 0.0)), float(getattr(denoiser, "sigma_max", inf))


def rounded_sigma(denoiser: AnyDenoiser, sigma: Tensor) -> Tensor:
    """A level as a denoiser knows it; the identity where it does not say."""
    known = getattr(denoiser, "round_sigma", None)
    return sigma if known is None else torch.as_tensor(known(sigma)).to(sigma)


class Combined:
    """A denoiser made of others; a wrapper that extends it has `evaluate`. Cost: the evaluations of all of them."""

    main: AnyDenoiser  # whose layers are read; see `main_of`

    def evaluate(self, denoise: BoundDenoiser, x: Tensor, sigma: Tensor) -> Tensor:
        """D(x; sigma) of the rows that `denoise` is bound to; `denoise.of(part)` calls and counts each part."""
        raise NotImplementedError

    def __call__(self, x: Tensor, sigma: Tensor, class_labels: Tensor | None = None) -> Tensor:
        return bind(self, len(x), class_labels)(x, sigma)


class Keyed:
    """A denoiser that treats every image in its own way, whichever rows it gets beside it."""

    def keyed(self, x: Tensor, sigma: Tensor, class_labels: Tensor | None = None, *, keys: Tensor) -> Tensor:
        """D(x; sigma) of the images `keys` [b] int64."""
        raise NotImplementedError

    def __call__(self, x: Tensor, sigma: Tensor, class_labels: Tensor | None = None) -> Tensor:
        return bind(self, len(x), class_labels)(x, sigma)


def bind(
    denoiser: AnyDenoiser,
    batch: int,
    class_labels: Tensor | None = None,
    *,
    randn_like: Noise | None = None,
    micro_batches: MicroBatches | None = None,
    keys: Tensor | None = None,
) -> BoundDenoiser:
    """`denoiser` for a batch of `batch` samples, with counters at zero; one that is bound already keeps its counters.

    `keys` [batch] int64 says which image each sample is, for a denoiser that asks; without, its place in the batch.
    Any sampler takes the result as its denoiser, and its counters then tell what the run has cost.
    Labels as `labels_of` takes them. Raises ValueError: as it does; a bound denoiser of another batch or other labels.
    """
    if isinstance(denoiser, BoundDenoiser):
        if class_labels is not None:
            raise ValueError("class_labels: this denoiser is bound to its labels already; leave them out here")
        if len(denoiser.index) != batch:
            raise ValueError(f"denoiser: bound to {len(denoiser.index)} samples, called for {batch}; bind it anew")
        return denoiser if randn_like is None else replace(denoiser, randn_like=randn_like)
    zeros = torch.zeros(batch, dtype=torch.int64)
    return BoundDenoiser(
        denoiser,
        labels_of(denoiser, batch, class_labels),
        torch.arange(batch),
        zeros,
        zeros.clone(),
        torch.arange(batch) if keys is None else keys.cpu(),
        randn_like=randn_like or torch.randn_like,
        micro_batches=micro_batches or MicroBatches(),
    )


def labels_of(denoiser: AnyDenoiser, batch: int, class_labels: Tensor | None) -> Tensor | None:
    """Labels as a denoiser takes them, rows [batch, label_dim]; the numbers of classes [batch] become one-hot rows.

    One that does not say its `label_dim` gets what is given. Raises ValueError: a class that there is not, labels of
    another shape, or any for a denoiser without classes.
    """
    if class_labels is None:
        return None
    if not isinstance(class_labels, Tensor):
        raise ValueError(f"class_labels: {form(class_labels)}; give a tensor with one label per latent")
    if class_labels.ndim == 0 or len(class_labels) != batch:
        raise ValueError(f"class_labels: {list(class_labels.shape)} for {batch} latents; give one label per latent")
    classes = getattr(denoiser, "label_dim", None)
    if classes is None:
        return class_labels
    if not classes:
        raise ValueError("class_labels: this denoiser has no classes to choose from; leave them out")
    if class_labels.ndim == 1 and class_labels.dtype in INTEGERS:
        for number in class_labels.tolist():
            if not 0 <= number < classes:
                raise ValueError(
                    f"class_labels: {number} is out of range; this denoiser has classes 0 to {classes - 1}"
                )
        return torch.eye(classes, device=class_labels.device)[class_labels.long()]
    if class_labels.shape != (batch, classes):
        raise ValueError(
            f"class_labels: {form(class_labels)}; give the numbers of classes, integers "
            f"[{batch}] from 0 to {classes - 1}, or one-hot rows [{batch}, {classes}]"
        )
    return class_labels


def unbound(denoiser: AnyDenoiser) -> AnyDenoiser:
    """The denoiser itself, without its labels, its rows and its counters."""
    return denoiser.denoiser if isinstance(denoiser, BoundDenoiser) else denoiser


def main_of(denoiser: AnyDenoiser) -> AnyDenoiser:
    """The network whose layers are read, without labels, rows and counters: that of a guided one is what is guided."""
    found = unbound(denoiser)
    while isinstance(found, Combined):
        found = found.main
    return found
