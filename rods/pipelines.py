"""Pipelines of diffusers as denoisers: their network, scheduler's table, embeddings and autoencoder, in our own loop.

    D = from_diffusers(DiTPipeline.from_pretrained(...), guidance=4)
    done = restart_sampler(D, latents, labels, ...)
    images = decoded(D, done.images)

A host's callback cannot take a step back, and a scheduler sees no network: so a pipeline's own loop is of no use here.
diffusers is not imported: what is read of a pipeline are its attributes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from math import isfinite
from typing import Any

import torch
from torch import Tensor, nn

from rods.denoiser import BoundDenoiser
from rods.gate import fingerprint
from rods.guidance import Guided, OfMain, guided
from rods.latents import Vae
from rods.pipeline_networks import KINDS, WITH_VARIANCE, Asked, Conditioned, kind_of
from rods.schedules import SigmaWindow
from rods.types import AnyDenoiser
from rods.wrappers import FunctionDenoiser, from_edm_diffusers, from_flow, from_vp_steps


@dataclass(frozen=True)
class Clipped(OfMain):
    """D of another denoiser, clipped to [-limit, limit]: what a scheduler with `clip_sample` makes of a prediction."""

    main: AnyDenoiser = field(repr=False)
    limit: float = 1.0

    def evaluate(self, denoise: BoundDenoiser, x: Tensor, sigma: Tensor) -> Tensor:
        return denoise.of(self.main)(x, sigma).clamp(-self.limit, self.limit)


def from_diffusers(
    pipeline: Any,
    *,
    prompts: str | Sequence[str] = (),
    negative_prompt: str | None = None,
    guidance: float = 1,
    interval: SigmaWindow | tuple[float, float] | None = None,
    null_class: int | None = None,
    latent_resolution: int | None = None,
) -> FunctionDenoiser | Guided | Clipped:
    """The denoiser that a pipeline of diffusers samples from, guided, with its autoencoder as the `codec`.

    Classes are labels as everywhere, their numbers [B] or one-hot rows [B, label_dim]. So are prompts, of which several
    can be given: class k is prompts[k]. A single prompt is that of every image, without labels. Without a label an
    unguided network with a null class draws of that; else, and with guidance, a label is asked for.

    D is what the pipeline's scheduler computes as its `pred_original_sample`, at any noise level between the first and
    the last of its table, for latents of any two sides that the network takes.

    Args:
        pipeline: with a network of `pipeline_networks.KINDS` (UNet2DModel, DiT, Stable Diffusion and SDXL, SD3,
            PixArt) in eval mode, and a scheduler of discrete steps, of flow matching or of EDM.
        prompts: what `pipeline.encode_prompt` is given, for networks that read text.
        negative_prompt: what guidance leads away from; None: what the pipeline takes then.
        guidance: w of D = D_null + w (D - D_null), which pipelines call guidance_scale; 1: none.
        interval: the noise levels at which it is guided; None: all of them.
        null_class: the class that a UNet2DModel was trained with for images without one, where there is such a class.
        latent_resolution: what `img_resolution` of the denoiser is, where the network's configuration has no side.
    Returns:
        A denoiser with `label_dim`, `sigma_min`, `sigma_max`. Cost of D: 1 F, guided 2 F.
    Raises:
        ValueError: a network, scheduler or option of another kind, named in one line.
    """
    network = _network(pipeline)
    kind, config = kind_of(network), network.config
    size = config.sample_size if latent_resolution is None else latent_resolution
    if not isinstance(size, int) or isinstance(size, bool) or size < 1:
        raise ValueError(
            f"latent_resolution: {size} is no side of a latent; give a whole number, such as the usual height (latents "
            "of other sides can be sampled all the same)"
        )
    codec = _codec(pipeline, size)
    asked = Asked(_texts(prompts), negative_prompt, null_class,
                  codec.img_resolution // size if codec else 1)  # fmt: skip
    _check_guidance(guidance, interval, negative_prompt)
    told = KINDS[kind](pipeline, network, asked)
    learned = _has_learned_variance(pipeline, network, kind)
    is_guided, has_labels = guidance != 1, told.num > 1

    def denoiser(row: int | None, label_dim: int) -> FunctionDenoiser:
        model = Conditioned(network, told, config.in_channels, row, learned)
        D = _by_scheduler(pipeline.scheduler, model, label_dim, size, config.in_channels, network.dtype)
        return replace(D, network=network, codec=codec)

    null = told.num if told.has_null and (is_guided or not asked.prompts) else None
    D: FunctionDenoiser | Guided = denoiser(null if has_labels else 0, told.num if has_labels else 0)
    if is_guided:
        if not told.has_null:
            raise ValueError(
                f"guidance: {guidance:g}, and this pipeline has neither prompts nor a null class to lead away from; "
                "give null_class, or guide its denoiser by another one (rods.guided)"
            )
        D = guided(D, None if has_labels else denoiser(told.num, 0), guidance, interval)
    scheduler = pipeline.scheduler.config
    return Clipped(D, float(scheduler.get("clip_sample_range", 1.0))) if scheduler.get("clip_sample") else D


def _texts(prompts: object) -> list[str]:
    """One prompt or several as a list. Raises ValueError: anything but texts."""
    found: list[str] = []
    for text in [prompts] if isinstance(prompts, str) or not isinstance(prompts, Iterable) else prompts:
        if not isinstance(text, str):
            raise ValueError(f"prompts: a {type(text).__name__} is no text; give one prompt, or a list of them")
        found.append(text)
    return found


def _check_guidance(guidance: float, interval: object, negative_prompt: object) -> None:
    """ValueError: no weight, or options of guidance without any."""
    if not isinstance(guidance, int | float) or not isfinite(guidance):
        raise ValueError(f"guidance: {guidance!r} is not a weight; give a finite number (1: none)")
    for name, given in (("interval", interval), ("negative_prompt", negative_prompt)):
        if given is not None and guidance == 1:
            raise ValueError(
                f"{name}: it belongs to guidance, of which there is none; give guidance=W, or leave it out"
            )
    if negative_prompt is not None and not isinstance(negative_prompt, str):
        raise ValueError(f"negative_prompt: a {type(negative_prompt).__name__}; give one text for all images")


# -- parts of a pipeline ----------------------------------------------------------------------------------------------

READ = ("unet", "transformer", "scheduler", "vae")  # other parts of a pipeline, such as a controlnet, are not followed
PASSED_OVER = ("tokenizer", "text_encoder", "safety_checker", "feature_extractor", "image_encoder")


def _network(pipeline: Any) -> Any:
    """The network of a pipeline. Raises ValueError: parts that take part otherwise, or training mode."""
    parts = getattr(pipeline, "components", {})
    if odd := [k for k, v in parts.items() if v is not None and k not in READ and not k.startswith(PASSED_OVER)]:
        raise ValueError(
            f"pipeline: {type(pipeline).__name__} has a {odd[0]}, whose part in sampling is not known here"
        )
    network = getattr(pipeline, "unet", None) or getattr(pipeline, "transformer", None)
    if not isinstance(network, nn.Module):
        raise ValueError(f"pipeline: {type(pipeline).__name__} has no network as its unet or transformer")
    if getattr(pipeline, "scheduler", None) is None:
        raise ValueError(f"pipeline: {type(pipeline).__name__} has no scheduler, which says what its network predicts")
    for name, part in (("network", network), ("vae", getattr(pipeline, "vae", None))):
        if part is not None and part.training:
            raise ValueError(
                f"pipeline: its {name} is in training mode, where images depend on chance; call its eval()"
            )
    return network


def _has_learned_variance(pipeline: Any, network: Any, kind: str) -> bool:
    """Whether a variance stands behind the prediction, so that the pipeline, too, cuts it off."""
    says_so = "variance_type" in pipeline.scheduler.config and "learned" in str(pipeline.scheduler.config.variance_type)
    is_double = network.config.out_channels == 2 * network.config.in_channels
    return bool(is_double and (says_so or kind in WITH_VARIANCE))


def _by_scheduler(
    scheduler: Any, model: Conditioned, label_dim: int, size: int, channels: int, dtype: torch.dtype
) -> FunctionDenoiser:
    """The model as D(x; sigma), by what its scheduler takes its output for. Raises ValueError: an unknown one."""
    name, config = type(scheduler).__name__, scheduler.config
    for option in ("thresholding", "invert_sigmas", "use_flow_sigmas"):
        if config.get(option):
            raise ValueError(f"pipeline: its {name} has {option}, which is not known here; use another scheduler")
    prediction = config.get("prediction_type", "epsilon")
    shape = {"img_channels": channels, "img_resolution": size, "label_dim": label_dim}
    if name.startswith("FlowMatch"):
        return from_flow(model, time_scale=config.num_train_timesteps, dtype=dtype, **shape)
    if name.startswith("EDM"):
        return from_edm_diffusers(model, prediction=prediction, sigma_data=config.sigma_data, dtype=dtype, **shape)
    if getattr(scheduler, "alphas_cumprod", None) is None or config.get("timestep_type", "discrete") != "discrete":
        raise ValueError(
            f"pipeline: its {name} is not known here; use one of discrete steps (DDIMScheduler), of flow matching "
            "(FlowMatchEulerDiscreteScheduler) or of EDM (EDMEulerScheduler)"
        )
    return from_vp_steps(model, scheduler.alphas_cumprod, prediction=prediction, dtype=dtype, **shape)


def _codec(pipeline: Any, size: int) -> Vae | None:
    """The pipeline's autoencoder, as it decodes at its end; None: it draws images."""
    vae = getattr(pipeline, "vae", None)
    if vae is None:
        return None
    config = vae.config
    factor = config.get("scaling_factor")
    if not factor:
        raise ValueError(f"pipeline: its {type(vae).__name__} has no scaling_factor: it is not an AutoencoderKL")
    if vae.dtype == torch.float16 and config.get("force_upcast"):
        raise ValueError("pipeline: its vae overflows in float16 (force_upcast); call pipeline.vae.to(torch.float32)")
    C = config.latent_channels
    mean, std = config.get("latents_mean"), config.get("latents_std")
    shift = config.get("shift_factor") or 0.0
    if mean is None or std is None:
        mean, std = [shift] * C, [1.0] * C
    scale = tuple(float(factor) / s for s in std)
    bias = tuple(-m * s for m, s in zip(mean, scale, strict=True))
    side = size * 2 ** (len(config.block_out_channels) - 1)
    return Vae(vae, scale, bias, config.out_channels, side, identity=fingerprint(vae, ("decoder",)))
