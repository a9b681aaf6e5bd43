"""Network, EMAs and optimiser of one run on one rank, and the training step, whose gradients the ranks sum."""

from __future__ import annotations

import copy
import io
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dnnlib.errors import UserError
from torch_utils import distributed
from torch_utils.machine import must_fit
from training.augment import augment
from training.config import Execution, TrainConfig, learning_rate
from training.feed import Batch, as_signed
from training.loss import build_loss, stream_seed
from training.networks import PRECONDS
from training.networks.mp_layers import normalize_weights
from training.schema import check_init_kwargs
from training.state import TrainingState, read_state, write_state

AUTOCAST = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Gradients:
    """The gradients of all parameters as views into one buffer, which backward passes add to.

    Its last two values travel with the gradients: the loss, and how many ranks want to stop. One all-reduce a step
    then settles everything that the ranks must agree on, and a gradient that is not finite on one rank is so on all.
    A plain sum at the end of a step, and not DistributedDataParallel: a step of several rounds needs one anyway, the
    order of additions is fixed, and ranks may have shares of different sizes.
    """

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        parameters = list(parameters)
        sizes = [p.numel() for p in parameters]
        self.buffer = torch.zeros(sum(sizes) + 2, device=parameters[0].device)
        self.values, self.agreed = self.buffer[:-2], self.buffer[-2:]
        parts = self.values.split(sizes)  # type: ignore[no-untyped-call]
        for p, part in zip(parameters, parts, strict=True):
            p.grad = part.as_strided(p.shape, p.stride())  # the weights' own layout, channels last or not

    def zero(self) -> None:
        self.buffer.zero_()

    def reduce(self, loss: Tensor, *, stop: bool) -> tuple[float, bool]:
        """Sum over the ranks; (the loss [] summed, whether any rank wants to stop)."""
        self.agreed[0], self.agreed[1] = loss, float(stop)
        distributed.all_sum(self.buffer)
        total, stopping = self.agreed.tolist()
        return total, stopping > 0

    def norm(self) -> float:
        """Not finite if any gradient is not."""
        return float(torch.linalg.vector_norm(self.values))

    def clip(self, norm: float, largest: float | None) -> None:
        """Scales the gradients of norm `norm` down to `largest`, if they are above it."""
        if largest is not None and norm > largest:
            self.values.mul_(largest / norm)


@dataclass(frozen=True)
class StepResult:
    """What a step found out; the same on every rank."""

    loss: float  # mean per pixel
    grad_norm: float  # before clipping
    good: bool  # the gradient was finite, and the weights have moved
    stop: bool  # a rank was told to stop


class Trainer:
    """Network, EMAs and optimiser of one run, with their state."""

    def __init__(self, config: TrainConfig, device: torch.device, execution: Execution | None = None) -> None:
        execution = execution or Execution()
        class_name = config.network["class_name"]
        kwargs = check_init_kwargs(class_name, config.network["init_kwargs"])  # what no snapshot could hold
        torch.manual_seed(config.seed)
        self.config, self.device, self.execution = config, device, execution
        self.images_seen = self.bad_steps = self.bad_in_a_row = 0
        self.layout = torch.channels_last if execution.channels_last else torch.contiguous_format
        net = PRECONDS[class_name](**kwargs).train().requires_grad_(True)
        self.net = net.to(device, memory_format=self.layout)  # type: ignore[call-overload]
        self.emas = [copy.deepcopy(self.net).eval().requires_grad_(False) for _ in config.averages]
        self.forward: nn.Module = torch.compile(self.net) if execution.compiled else self.net  # type: ignore[assignment]
        self.gradients = Gradients(self.net.parameters())
        self.optimizer = torch.optim.Adam(self.net.parameters(), lr=config.lr, betas=(0.9, config.adam_beta2), eps=1e-8)
        self.scaler = torch.amp.GradScaler(device.type, enabled=config.precision == "fp16")
        assert net.loss is not None, f"{class_name} has no loss"
        self.loss = build_loss(net.loss, kwargs, P_mean=config.P_mean, P_std=config.P_std)

    def state(self) -> TrainingState:
        return TrainingState(
            self.net.state_dict(),
            [ema.state_dict() for ema in self.emas],
            self.optimizer.state_dict(),
            self.scaler.state_dict(),
            self.images_seen,
            self.bad_steps,
            self.bad_in_a_row,
            self.config.options(),
        )

    def restore(self, state: TrainingState) -> None:
        """Raises RuntimeError: the state of another network."""
        self.net.load_state_dict(state.net)
        for ema, weights in zip(self.emas, state.emas, strict=True):
            ema.load_state_dict(weights)
        self.optimizer.load_state_dict(state.optimizer)
        if self.scaler.is_enabled() and state.scaler:
            self.scaler.load_state_dict(state.scaler)
        self.images_seen, self.bad_steps, self.bad_in_a_row = state.images_seen, state.bad_steps, state.bad_in_a_row

    def share(self) -> None:
        """Rank 0's state on every rank; the others need no access to its files. Raises UserError: other options."""
        if distributed.world_size() == 1:
            return
        content = io.BytesIO()
        if distributed.rank() == 0:
            write_state(content, self.state())
        state = read_state(io.BytesIO(distributed.from_rank0(content.getvalue(), self.device)))
        if state.options != self.config.options():
            raise UserError(f"rank {distributed.rank()} has other options or data than rank 0; give all ranks the same")
        if distributed.rank() != 0:
            self.restore(state)

    def step(self, rounds: Sequence[Batch], *, stop: bool = False) -> StepResult:
        """One optimiser step on the micro-batches of all ranks, 1 F + 1 B to the weights for each image.

        A gradient that is not finite leaves weights, moments and EMAs as they were; its images count as seen.
        """
        start = self.images_seen
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.config, start)
        normalize_weights(self.net)  # once a step and not in each forward pass, so that all ranks have the same weights
        self.gradients.zero()
        loss = torch.zeros([], device=self.device)
        for batch in rounds:
            with self.must_fit(len(batch.counters)):
                loss += self.accumulate(batch, self.forward)
        total, stop = self.gradients.reduce(loss, stop=stop)
        good, norm = self._update()
        self.images_seen += self.config.batch
        if good:
            self.update_emas()
        self.bad_steps += not good
        self.bad_in_a_row = 0 if good else self.bad_in_a_row + 1
        return StepResult(total / self.values_per_image(), norm, good, stop)

    def must_fit(self, images: int) -> AbstractContextManager[None]:
        """UserError where a round of so many images needs more memory than there is."""
        return must_fit(
            f"{images} images at once do not fit in the memory of {self.device}; give a smaller --batch-gpu"
        )

    def accumulate(self, batch: Batch, net: nn.Module) -> Tensor:
        """Adds the gradients of one round, by `net` compiled or not; its part of the step's mean loss per image []."""
        y = as_signed(batch.images, self.device)  # [B, C, H, W]
        y = torch.where(batch.flipped.to(self.device)[:, None, None, None], y.flip(3), y)
        if batch.augment_labels is not None:
            y = augment(y, batch.augment_labels)
        y = y.contiguous(memory_format=self.layout)
        labels, changes = (None if t is None else t.to(self.device) for t in (batch.labels, batch.augment_labels))
        n, noise = batch.n.to(self.device), batch.noise.to(self.device)
        torch.manual_seed(stream_seed(self.config.seed, batch.counters.start, use=1))  # dropout masks
        dtype = AUTOCAST[self.config.precision]
        with torch.autocast(self.device.type, dtype, enabled=dtype != torch.float32):
            loss = self.loss(net, y, labels, n=n, noise=noise, augment_labels=changes)
        # The squared norm of eq. 8, not a mean over pixels, so that Adam's eps stays negligible.
        objective = loss.sum(dtype=torch.float32) / self.config.batch
        self.scaler.scale(objective * self.config.loss_scale).backward()  # type: ignore[no-untyped-call]
        return objective.detach()

    def _update(self) -> tuple[bool, float]:
        """Adam's step on the summed gradients, unless they are not finite: (whether it was made, their norm)."""
        self.scaler.unscale_(self.optimizer)
        if self.config.loss_scale != 1:
            self.gradients.values.div_(self.config.loss_scale)
        norm = self.gradients.norm()
        good = norm < float("inf")
        if good:
            self.gradients.clip(norm, self.config.grad_clip)
            self.scaler.step(self.optimizer)
        self.scaler.update()
        return good, norm

    def values_per_image(self) -> int:
        kwargs: dict[str, Any] = self.config.network["init_kwargs"]
        return kwargs["img_channels"] * kwargs["img_resolution"] ** 2

    @torch.no_grad()
    def update_emas(self) -> None:
        for ema, average in zip(self.emas, self.config.averages, strict=True):
            beta = average.beta(self.images_seen, self.config.batch)
            torch._foreach_lerp_(list(ema.parameters()), list(self.net.parameters()), 1 - beta)
            for b_ema, b in zip(ema.buffers(), self.net.buffers(), strict=True):
                b_ema.copy_(b)
