"""Our samplers in modular pipelines of diffusers: a loop block in the place of a pipeline's own denoise step.

The step of the pipeline's loop that evaluates the model and guides it stays as it is: prompts, guiders, attention
processors act as before. What it says of a state becomes D, and the sampler runs along the scheduler's noise levels.
The scheduler's own step is not made: it sees no network, and cannot go back.

diffusers' blocks run without gradients, so that samplers that read one take gradient="difference".
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from rods.base_samplers import Sampler
from rods.denoiser import NO_GRADIENT
from rods.integrations.host import run_by
from rods.types import RodsResult
from rods.wrappers import time_of

LOOPS = ("StableDiffusion3DenoiseStep", "StableDiffusionXLDenoiseStep")
"""The denoise steps whose loops hold nothing but the model's evaluation and the scheduler's step."""
FLOW, NOISY = "FlowMatchEulerDiscreteScheduler", "EulerDiscreteScheduler"
PREDICTIONS = ("epsilon", "v_prediction", "sample")


def use_sampler(blocks: Any, sampler: Sampler) -> list[str]:
    """Put `sampler` into the place of every denoise step in a tree of modular blocks, and say where: their paths.

    Call it before blocks.init_pipeline(). The pipeline's state then also has `rods_records`, a `SampleRecord` for each
    image. Cost: the sampler's, in evaluations of the guided model for the whole batch.
    Raises ValueError: a loop that does more than this one can take over, or none at all.
    """
    found = list(_loops(blocks))
    for path, _, _, step in found:
        if type(step).__name__ not in LOOPS:
            raise ValueError(
                f"blocks: {path} is a {type(step).__name__}, whose loop may do more than denoise; known are: "
                f"{', '.join(LOOPS)}. Choose a workflow (blocks.get_workflow) that has only these"
            )
    if not found:
        raise ValueError(f"blocks: {type(blocks).__name__} holds no denoise step; give the blocks of a whole pipeline")
    for _, parent, name, step in found:
        parent.sub_blocks[name] = loop_block(step, sampler)
    return [path for path, *_ in found]


def loop_block(step: Any, sampler: Sampler) -> Any:
    """The loop block that denoises by `sampler`, with the model's evaluation of a denoise step, one of `LOOPS`."""
    from diffusers.modular_pipelines import InputParam, LoopSequentialPipelineBlocks, OutputParam

    class RodsDenoiseStep(LoopSequentialPipelineBlocks):  # type: ignore[misc]
        model_name = step.model_name
        block_classes = (step.sub_blocks["denoiser"],)
        block_names = ("denoiser",)
        description = f"Denoises the latents by {sampler}."
        loop_expected_components = step.loop_expected_components
        loop_inputs = (*step.loop_inputs, InputParam("latents", required=True), InputParam("generator"))
        loop_intermediate_outputs = (OutputParam("latents"), OutputParam("rods_records"))
        outputs = loop_intermediate_outputs

        def __call__(self, components: Any, state: Any) -> tuple[Any, Any]:
            held = self.get_block_state(state)
            latents = held.latents
            done = _sampled(self, components, held, sampler)
            held.latents, held.rods_records = done.images.to(latents.dtype), list(done.records)
            self.set_block_state(state, held)
            return components, state

    return RodsDenoiseStep()


def _loops(block: Any, path: str = "") -> Iterator[tuple[str, Any, str, Any]]:
    """Every loop block below a block: its path, the block that holds it, its name there, and itself."""
    for name, child in block.sub_blocks.items():
        where = f"{path}.{name}" if path else name
        if hasattr(child, "loop_step"):
            yield where, block, name, child
        elif child.sub_blocks:
            yield from _loops(child, where)


def _sampled(loop: Any, components: Any, held: Any, sampler: Sampler) -> RodsResult:
    """The sampler's run from a block's latents, timesteps and generator."""
    from diffusers.utils.torch_utils import randn_tensor

    latents, timesteps, scheduler = held.latents, held.timesteps, components.scheduler
    _check_scheduler(scheduler)
    if getattr(components, "unet", None) is not None and components.unet.config.time_cond_proj_dim is not None:
        raise ValueError("unet: it is distilled for few steps (time_cond_proj_dim), and its D is no mean of images")
    sigmas = scheduler.sigmas[-len(timesteps) - 1 :].to(latents.device)  # an image to start from leaves a part of them
    model = _model(loop, components, held, sigmas)

    def randn_like(x: Tensor) -> Tensor:
        drawn: Tensor = randn_tensor(x.shape, generator=held.generator, device=x.device, dtype=x.dtype)
        return drawn

    with loop.progress_bar(total=len(timesteps)) as bar:
        return run_by(
            sampler, model, latents.float(), sigmas.float(), None, lambda told: bar.update(told["i"] + 1 - bar.n),
            flow=type(scheduler).__name__ == FLOW, randn_like=randn_like,
        )  # fmt: skip


def _model(loop: Any, components: Any, held: Any, sigmas: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    """(x, sigma [B]) -> D of the guided model, in the scheduler's coordinates, float32."""
    scheduler, dtype, timesteps = components.scheduler, held.latents.dtype, held.timesteps
    flow = type(scheduler).__name__ == FLOW
    prediction = "epsilon" if flow else scheduler.config.prediction_type
    log_sigmas = None if flow else (1 / scheduler.alphas_cumprod.double() - 1).log().to(sigmas.device) / 2

    def told(level: Tensor) -> tuple[int, Tensor]:
        """The step that a noise level belongs to, and the model's time: the scheduler's own at its own levels."""
        i = min(int((sigmas[:-1] > level).sum()), len(timesteps) - 1)
        if sigmas[i] == level:
            return i, timesteps[i]
        if log_sigmas is None:
            return i, (level * scheduler.config.num_train_timesteps).to(timesteps)
        return i, time_of(level.double(), log_sigmas).to(timesteps.device, torch.float32)

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        level = sigma[0]
        scale = 1.0 if flow else (1 + level**2).sqrt()
        held.latents, held.scaled_latents = x.to(dtype), (x / scale).to(dtype)
        i, t = told(level)
        loop.loop_step(components, held, i=i, t=t)
        out: Tensor = held.noise_pred.to(x.dtype)
        if torch.is_grad_enabled() and not out.requires_grad:  # D would have the gradient of x alone
            raise ValueError(NO_GRADIENT)
        if prediction == "epsilon":  # of a flow its velocity, by the same formula
            return x - level * out
        return out if prediction == "sample" else (x / scale - level * out) / scale

    return denoise


def _check_scheduler(scheduler: Any) -> None:
    """ValueError for a scheduler whose coordinates are not known here."""
    name, config = type(scheduler).__name__, scheduler.config
    if name not in (FLOW, NOISY):
        raise ValueError(f"scheduler: {name} keeps its latents in coordinates of its own; use {FLOW} or {NOISY}")
    if name == FLOW and config.get("invert_sigmas"):
        raise ValueError("scheduler: invert_sigmas runs from the image to noise; leave it out")
    if name == NOISY and config.prediction_type not in PREDICTIONS:
        raise ValueError(
            f"scheduler: prediction_type {config.prediction_type!r} is unknown; known are {', '.join(PREDICTIONS)}"
        )
