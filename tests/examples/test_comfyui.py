"""examples/comfyui, with objects that stand for ComfyUI's: its node interface, its sampler object, its guider."""

from __future__ import annotations

import importlib.util
import inspect
import re
import sys
from collections.abc import Callable
from functools import partial
from math import inf
from types import ModuleType
from typing import Any

import pytest
import torch
from exact import isotropic, latents, mixture
from torch import Tensor
from vectors import ROOT

from rods import Euler, Lid, Restart, RodsCas, RodsSas
from rods.base_samplers import Sampler
from rods.integrations.host import sample_by, score_by

N = 10
SIGMAS = torch.tensor([*Euler(num_steps=N, sigma_max=20).levels(mixture()), 0.0])
TYPES = {"FLOAT", "INT", "LATENT", "GUIDER", "SAMPLER", "STRING"}


class Eps:
    """model_sampling of a model whose state is image + sigma n."""

    def noise_scaling(self, sigma: Tensor, noise: Tensor, image: Tensor) -> Tensor:
        return image + sigma * noise


class CONST(Eps):
    """model_sampling of a flow."""

    def noise_scaling(self, sigma: Tensor, noise: Tensor, image: Tensor) -> Tensor:
        return (1 - sigma) * image + sigma * noise


class KSAMPLER:
    def __init__(self, sampler_function: Callable[..., Tensor], extra_options: Any = None, inpaint_options: Any = None):
        self.sampler_function, self.extra_options = sampler_function, extra_options or {}

    def sample(
        self, model_wrap: Any, sigmas: Tensor, extra_args: Any, callback: Any, noise: Tensor, latent_image: Tensor
    ) -> Tensor:
        x = model_wrap.inner_model.model_sampling.noise_scaling(sigmas[0], noise, latent_image)
        told = callback and (lambda d: callback(d["i"], d["denoised"], d["x"], len(sigmas) - 1))
        extra_args = {**extra_args, "denoise_mask": None}
        return self.sampler_function(
            Wrapped(model_wrap), x, sigmas, extra_args=extra_args, callback=told, disable=False, **self.extra_options
        )


class Wrapped:
    """What the host puts around a guider for samplers."""

    def __init__(self, inner_model: Any) -> None:
        self.inner_model = inner_model

    def __call__(self, x: Tensor, sigma: Tensor, denoise_mask: Any, model_options: Any = None, seed: Any = None) -> Any:
        return self.inner_model(x, sigma, model_options=model_options, seed=seed)


class Guider:
    """A guider of the exact mixture, without gradients, under inference mode."""

    def __init__(self, model_sampling: Eps) -> None:
        self.inner_model = ModuleType("BaseModel")
        self.inner_model.model_sampling = model_sampling  # type: ignore[attr-defined]
        self.flow = isinstance(model_sampling, CONST)

    def __call__(self, x: Tensor, sigma: Tensor, model_options: Any = None, seed: Any = None) -> Tensor:
        level = sigma[0].double()
        scale = 1 / (1 - level) if self.flow else torch.ones_like(level)
        with torch.no_grad():
            return mixture()(x.double() * scale, level * scale).to(x.dtype)

    def sample(
        self, noise: Tensor, latent_image: Tensor, sampler: KSAMPLER, sigmas: Tensor, denoise_mask: Any = None,
        callback: Any = None, disable_pbar: bool = False, seed: int | None = None,
    ) -> Tensor:  # fmt: skip
        with torch.inference_mode():
            return sampler.sample(self, sigmas, {"model_options": {}, "seed": seed}, callback, noise, latent_image)


class ExecutionBlocker:
    def __init__(self, message: str | None) -> None:
        self.message = message


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The package, loaded as the host loads a folder of custom_nodes."""
    objects = {
        "comfy.samplers": [KSAMPLER],
        "comfy.model_sampling": [CONST],
        "comfy_execution.graph": [ExecutionBlocker],
    }
    for name, classes in objects.items():
        module = ModuleType(name)
        for c in classes:
            setattr(module, c.__name__, c)
        monkeypatch.setitem(sys.modules, name.partition(".")[0], ModuleType(name.partition(".")[0]))
        monkeypatch.setitem(sys.modules, name, module)
    folder = ROOT / "examples" / "comfyui"
    spec = importlib.util.spec_from_file_location("custom_nodes_rods", folder / "__init__.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "custom_nodes_rods", module)
    spec.loader.exec_module(module)
    return module


def test_the_nodes_have_what_the_host_asks_for(nodes: Any) -> None:
    assert set(nodes.NODE_CLASS_MAPPINGS) == set(nodes.NODE_DISPLAY_NAME_MAPPINGS)
    assert len(nodes.NODE_CLASS_MAPPINGS) == 4
    for node in nodes.NODE_CLASS_MAPPINGS.values():
        inputs = node.INPUT_TYPES()["required"]
        takes = list(inspect.signature(getattr(node(), node.FUNCTION)).parameters)
        assert set(takes) == set(inputs)
        for kind, *options in inputs.values():
            assert len(kind) > 0 if isinstance(kind, list) else kind in TYPES
            if kind in ("FLOAT", "INT"):
                assert options[0]["min"] <= options[0]["default"] <= options[0]["max"]
        assert set(node.RETURN_TYPES) <= TYPES
        assert len(getattr(node, "RETURN_NAMES", node.RETURN_TYPES)) == len(node.RETURN_TYPES)
        assert re.fullmatch(r"sampling/[\w/]+", node.CATEGORY)


def defaults(node: Any) -> dict[str, Any]:
    """What the host's widgets stand at."""
    inputs = node.INPUT_TYPES()["required"]
    return {
        name: kind[0] if isinstance(kind, list) else options[0]["default"]
        for name, (kind, *options) in inputs.items()
        if isinstance(kind, list) or kind in ("FLOAT", "INT")
    }


def made(nodes: Any, name: str, given: dict[str, Any]) -> KSAMPLER:
    node = nodes.NODE_CLASS_MAPPINGS[name]
    (sampler,) = getattr(node(), node.FUNCTION)(**{**defaults(node), **given})
    assert isinstance(sampler, KSAMPLER)
    return sampler


GIVEN: list[tuple[str, dict[str, Any], Sampler]] = [
    ("RodsCasSampler", {}, RodsCas(eps=0, rho=1, window=(0.1, 0.5), gradient="difference")),
    ("RodsCasSampler", {"eps": 1e-4, "rho": 0.3, "window_start": 0.2, "window_end": 0.9},
     RodsCas(eps=1e-4, rho=0.3, window=(0.2, 0.9), gradient="difference")),
    ("RodsSasSampler", {"rho": 0.3, "sign": "downhill"},
     RodsSas(eps=0, rho=0.3, detect=False, sas_sign="downhill", window=(0.1, 0.5))),
    ("RodsRestartSampler", {}, Restart(threshold=1e9, sigma_r=2)),
    ("RodsRestartSampler", {"threshold": 0.9, "sigma_r": 5.0, "rounds": 2, "sigma": 0.7, "draws": 2},
     Restart(threshold=0.9, sigma_r=5, rounds=2, detector=Lid(0.7, 2))),
]  # fmt: skip


@pytest.mark.parametrize("sampling", [Eps, CONST])
@pytest.mark.parametrize(("name", "given", "ours"), GIVEN)
def test_a_sampler_node_is_our_sampler(
    nodes: Any, name: str, given: dict[str, Any], ours: Sampler, sampling: type[Eps]
) -> None:
    guider, seen, noise = Guider(sampling()), [], latents()
    sigmas = SIGMAS / (1 + SIGMAS) if guider.flow else SIGMAS
    sampler = made(nodes, name, given)
    draw = partial(guider.sample, noise, torch.zeros_like(noise), sampler, sigmas)
    torch.manual_seed(5)
    found = draw(seed=3, callback=lambda i, denoised, x, total: seen.append((i, denoised.shape, x.shape, total)))
    state = torch.get_rng_state()
    torch.manual_seed(5)
    assert torch.equal(state, torch.get_rng_state()), "the host's random numbers are left as they were"

    torch.manual_seed(4)
    start = guider.inner_model.model_sampling.noise_scaling(sigmas[0], noise, torch.zeros_like(noise))
    known = sample_by(ours, guider, start, sigmas, flow=guider.flow)
    torch.testing.assert_close(found, known, rtol=0, atol=1e-6)
    assert {total for *_, total in seen} == {N}
    assert {shape for _, *shapes, _ in seen for shape in shapes} == {noise.shape}
    torch.manual_seed(77)
    assert torch.equal(draw(seed=3), found), "the seed decides"
    if given.get("threshold"):
        assert not torch.equal(draw(seed=4), found)
        assert len(seen) > N


def test_backward_says_what_is_missing(nodes: Any) -> None:
    sampler = made(nodes, "RodsCasSampler", {"gradient": "backward"})
    with pytest.raises(ValueError, match=r"gives no gradient"):
        Guider(Eps()).sample(latents(), torch.zeros_like(latents()), sampler, SIGMAS)


def test_a_part_of_a_grid_is_refused(nodes: Any) -> None:
    sampler = made(nodes, "RodsRestartSampler", {})
    with pytest.raises(ValueError, match=r"^sigmas: the last is .* decreasing noise levels .* that end with 0"):
        Guider(Eps()).sample(latents(), torch.zeros_like(latents()), sampler, SIGMAS[:5])


def test_a_model_that_does_not_say_what_it_is(nodes: Any) -> None:
    with pytest.raises(ValueError, match=r"^model: it does not say what it predicts"):
        nodes.is_flow(Wrapped(isotropic()))


@pytest.mark.parametrize("sampling", [Eps, CONST])
def test_the_score_node_parts_good_from_bad(nodes: Any, sampling: type[Eps]) -> None:
    guider, images = Guider(sampling()), latents()
    latent = {"samples": images, "noise_mask": torch.arange(6.0)[:, None], "batch_index": list("abcdef"), "note": "x"}
    torch.manual_seed(9)
    known = score_by(Lid(0.7, 2), lambda x, sigma: mixture()(x.double(), sigma[0].double()).to(x.dtype), images)
    threshold = float(known.median())
    node = nodes.NODE_CLASS_MAPPINGS["RodsScore"]()
    ask = partial(node.score, guider, latent, 8, sigma=0.7, draws=2)
    accepted, rejected, text = ask(threshold=threshold + 1e-4)
    good = [i for i in range(6) if known[i] <= threshold]
    bad = [i for i in range(6) if known[i] > threshold]
    assert 0 < len(good) < 6
    for part, index in ((accepted, good), (rejected, bad)):
        assert torch.equal(part["samples"], images[index])
        assert part["noise_mask"].flatten().tolist() == index
        assert part["batch_index"] == ["abcdef"[i] for i in index]
        assert part["note"] == "x"
    told = [float(line.split(": ")[1]) for line in text.splitlines()]
    assert told == pytest.approx(known.tolist(), rel=1e-3)

    everything, nothing, _ = ask(threshold=inf)
    assert torch.equal(everything["samples"], images)
    assert isinstance(nothing, ExecutionBlocker)
    assert nothing.message is None
