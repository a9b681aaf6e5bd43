"""RODS in ComfyUI: three samplers for its custom sampling nodes, and a node that scores images. Untested in ComfyUI.

docs/how-to/comfyui.md says how to install it. It is written to ComfyUI's public node interface and tested with objects
that stand for it; nobody has yet run it in the host. All of the work is in rods.integrations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from rods.detectors import Lid
from rods.integrations.host import score_by
from rods.integrations.k_diffusion import sample_restart_gated, sample_rods_cas, sample_rods_sas

SAMPLERS, SCORES = "sampling/custom_sampling/samplers", "sampling/rods"
NOTHING_FLAGGED = 1e9
SCORED_AT = 1e-3  # the noise level at which the host hands over images that are to be scored


def number(default: float, tooltip: str, *, least: float = 0, most: float = NOTHING_FLAGGED) -> tuple[str, Any]:
    return "FLOAT", {"default": default, "min": least, "max": most, "step": 0.001, "round": False, "tooltip": tooltip}


def whole(default: int, tooltip: str, *, least: int = 1, most: int = 1000) -> tuple[str, Any]:
    return "INT", {"default": default, "min": least, "max": most, "tooltip": tooltip}


EPS = number(0, "The curvature index from which a step is corrected; 0: every step in the window.")
RHO = number(1, "The radius of the correction, as a length of the whole latent.")
WINDOW = {
    "window_start": number(0.1, "Where to act, as a fraction of the steps.", most=1),
    "window_end": number(0.5, "Where to stop.", most=1),
}
GRADIENT = (
    ["difference", "backward"],
    {"tooltip": "difference: one more evaluation. backward needs weights that the host lets be differentiated."},
)
LID = {
    "sigma": number(1.2, "The noise level at which LID is measured; of a flow t / (1 - t).", least=0.001, most=1000),
    "draws": whole(4, "How many draws of noise the score is the mean of; each is one evaluation."),
}


class CasSampler:
    """RODS with Curvature-Aware Sampling."""

    RETURN_TYPES, FUNCTION, CATEGORY = ("SAMPLER",), "sampler", SAMPLERS

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        return {"required": {"eps": EPS, "rho": RHO, **WINDOW, "gradient": GRADIENT}}

    def sampler(self, eps: float, rho: float, window_start: float, window_end: float, gradient: str) -> tuple[Any]:
        window = (window_start, window_end)
        return (of_host(partial(sample_rods_cas, eps=eps, rho=rho, window=window, gradient=gradient)),)


class SasSampler:
    """RODS with Sharpness-Aware Sampling at every step of the window, which needs no gradient."""

    RETURN_TYPES, FUNCTION, CATEGORY = ("SAMPLER",), "sampler", SAMPLERS

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        return {"required": {"rho": RHO, **WINDOW, "sign": (["uphill", "downhill"], {})}}

    def sampler(self, rho: float, window_start: float, window_end: float, sign: str) -> tuple[Any]:
        window = (window_start, window_end)
        return (of_host(partial(sample_rods_sas, eps=0, detect=False, rho=rho, window=window, sas_sign=sign)),)


class RestartSampler:
    """Gated restart: images whose LID is above the threshold are re-noised to sigma_r and denoised again."""

    RETURN_TYPES, FUNCTION, CATEGORY = ("SAMPLER",), "sampler", SAMPLERS

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        threshold = number(NOTHING_FLAGGED, "Images that score higher go back; RODS Score shows what images score.")
        sigma_r = number(2, "The noise level to go back to; of a flow t / (1 - t).", least=0.001, most=1000)
        rounds = whole(3, "How often an image may go back.")
        return {"required": {"threshold": threshold, "sigma_r": sigma_r, "rounds": rounds, **LID}}

    def sampler(self, threshold: float, sigma_r: float, rounds: int, sigma: float, draws: int) -> tuple[Any]:
        detector = Lid(sigma, draws)
        options = {"threshold": threshold, "sigma_r": sigma_r, "rounds": rounds, "detector": detector}
        return (of_host(partial(sample_restart_gated, **options)),)


class Score:
    """LID of finished latents, as the guider's model sees them: those up to the threshold, the others, all scores."""

    RETURN_TYPES, FUNCTION, CATEGORY = ("LATENT", "LATENT", "STRING"), "score", SCORES
    RETURN_NAMES = ("accepted", "rejected", "scores")

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        seed = whole(0, "What noise LID is measured with.", least=0, most=2**64 - 1)
        threshold = number(NOTHING_FLAGGED, "Latents that score higher are rejected.")
        return {"required": {"guider": ("GUIDER",), "latent": ("LATENT",), "noise_seed": seed, "threshold": threshold,
                             **LID}}  # fmt: skip

    def score(
        self, guider: Any, latent: dict[str, Any], noise_seed: int, threshold: float, sigma: float, draws: int
    ) -> tuple[Any, Any, str]:
        from comfy.samplers import KSAMPLER

        found: list[float] = []

        def measure(
            model: Any, x: Tensor, sigmas: Tensor, extra_args: Any = None, callback: Any = None, disable: Any = None
        ) -> Tensor:
            """A sampler that changes nothing: this is how a node comes to see the model as samplers do."""
            flow = is_flow(model)
            image = x / (1 - sigmas[0]) if flow else x  # the host has noised it, with zeros in the noise's place
            with seeded(x, extra_args):
                found.extend(score_by(Lid(sigma, draws), model, image, extra_args, flow=flow).tolist())
            return x

        samples = latent["samples"]
        levels = torch.tensor([SCORED_AT, 0])
        guider.sample(torch.zeros_like(samples), samples, KSAMPLER(measure), levels, seed=noise_seed)
        good = [i for i, score in enumerate(found) if score <= threshold]
        bad = [i for i in range(len(found)) if i not in good]
        return rows(latent, good), rows(latent, bad), "\n".join(f"{i}: {score:.5g}" for i, score in enumerate(found))


NODE_CLASS_MAPPINGS: dict[str, type] = {
    "RodsCasSampler": CasSampler,
    "RodsSasSampler": SasSampler,
    "RodsRestartSampler": RestartSampler,
    "RodsScore": Score,
}
NODE_DISPLAY_NAME_MAPPINGS: dict[str, str] = {
    "RodsCasSampler": "RODS-CAS Sampler",
    "RodsSasSampler": "RODS-SAS Sampler",
    "RodsRestartSampler": "RODS Gated Restart Sampler",
    "RodsScore": "RODS Score",
}


# -- the host ---------------------------------------------------------------------------------------------------------


def of_host(sample: Callable[..., Tensor]) -> Any:
    """A sampler of ours as the host's object."""
    from comfy.samplers import KSAMPLER

    def run(
        model: Any, x: Tensor, sigmas: Tensor, extra_args: Any = None, callback: Any = None, disable: Any = None
    ) -> Tensor:
        with seeded(x, extra_args):
            return sample(model, x, sigmas, extra_args, callback, disable, flow=is_flow(model))

    return KSAMPLER(run)


def is_flow(model: Any) -> bool:
    """Whether the host's model is a flow, whose state and noise levels mean something else."""
    from comfy.model_sampling import CONST

    while not hasattr(model, "model_sampling"):
        if not hasattr(model, "inner_model"):
            raise ValueError("model: it does not say what it predicts (no model_sampling); use the host's own samplers")
        model = model.inner_model
    return isinstance(model.model_sampling, CONST)


@contextmanager
def seeded(x: Tensor, extra_args: Any) -> Iterator[None]:
    """The host's seed for what is drawn within, one further on, for the first noise is of the seed itself."""
    with torch.random.fork_rng([x.device] if x.device.type == "cuda" else []):
        seed = (extra_args or {}).get("seed")
        if seed is not None:
            torch.manual_seed((seed + 1) % 2**64)
        yield


def rows(latent: dict[str, Any], index: list[int]) -> Any:
    """Some images of a latent and what it holds for each; where there are none, what stops the nodes behind it."""
    from comfy_execution.graph import ExecutionBlocker

    if not index:
        return ExecutionBlocker(None)
    size = len(latent["samples"])
    found = dict(latent)
    for key, value in latent.items():
        if isinstance(value, Tensor) and len(value) == size:
            found[key] = value[index]
        elif isinstance(value, list) and len(value) == size:
            found[key] = [value[i] for i in index]
    return found
