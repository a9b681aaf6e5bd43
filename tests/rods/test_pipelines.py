"""Pipelines of diffusers, tiny and with random weights: D is what the pipeline itself computes, step by step."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rods import Euler, bind, restart_sampler, rods_sampler
from rods.blocks import gate_blocks
from rods.gate import activations, density_ratio, fingerprint, network_of, pooled
from rods.latents import codec_of, decoded, encoded
from rods.pipelines import from_diffusers
from rods.types import AnyDenoiser

diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")
pytest.importorskip("transformers", reason="transformers is not installed")

import tiny_pipelines as tiny  # noqa: E402  (it imports both)

W = 3.0
CLASSES = [7, 2]


@dataclass
class Watched:
    """What a pipeline's own loop gave its scheduler and got: t, x, prediction, x0 and the next x of each step."""

    steps: list[tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor]] = field(default_factory=list)


@pytest.fixture(params=["dit", "dit-clipped", "sd", "sdxl", "sdxl-v", "sd3", "sd3-unshifted", "pixart", "pixart-told"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def pipeline(kind: str, folder: Path) -> Any:
    if kind.startswith("dit"):
        return tiny.dit_pipeline(clip_sample=kind == "dit-clipped")
    if kind == "sd":
        return tiny.sd_pipeline(folder)
    if kind.startswith("sdxl"):
        return tiny.sdxl_pipeline(folder, prediction_type="v_prediction" if kind == "sdxl-v" else "epsilon")
    if kind.startswith("pixart"):
        return tiny.pixart_pipeline(folder, told_size=kind == "pixart-told")
    return tiny.sd3_pipeline(folder, shift=3.0 if kind == "sd3" else 1.0)


def run(pipe: Any, kind: str, *, guidance: float, output: str, width: int = 16) -> tuple[Watched, Tensor]:
    """The pipeline's own run of two images 16 pixels high, watched, and its output."""
    watched, step = Watched(), pipe.scheduler.step

    def watch(prediction: Tensor, t: Tensor, x: Tensor, *args: Any, **options: Any) -> Any:
        done = step(prediction, t, x, *args, **{**options, "return_dict": True})
        x0 = getattr(done, "pred_original_sample", None)
        watched.steps.append((t, x[:2], prediction[:2], None if x0 is None else x0[:2], done.prev_sample[:2]))
        return done if options.get("return_dict", True) else (done.prev_sample,)

    pipe.scheduler.step = watch
    pipe.set_progress_bar_config(disable=True)
    options = {"guidance_scale": guidance, "num_inference_steps": 5, "generator": torch.manual_seed(3)}
    if kind.startswith("dit"):
        return watched, pipe(CLASSES, output_type=output, **options).images
    negative = {"negative_prompt": ["z"] * 2} if guidance > 1 else {}
    if kind.startswith("pixart"):
        options |= {"use_resolution_binning": False, "clean_caption": False}
    found = pipe(["ab", "c d"], height=16, width=width, output_type=output, **negative, **options)
    return watched, found.images


def adapted(pipe: Any, kind: str, *, guidance: float) -> tuple[AnyDenoiser, Tensor]:
    """Our denoiser of the same, and the labels of the two images."""
    if kind.startswith("dit"):
        return from_diffusers(pipe, guidance=guidance), torch.eye(1000)[CLASSES]
    negative = "z" if guidance > 1 else None
    return from_diffusers(pipe, prompts=["ab", "c d"], negative_prompt=negative, guidance=guidance), torch.eye(2)


def level(pipe: Any, t: Tensor, i: int) -> Tensor:
    """The noise level of a step, in float64."""
    if hasattr(pipe.scheduler, "alphas_cumprod"):
        return (1 / pipe.scheduler.alphas_cumprod[t].double() - 1).sqrt()
    time = pipe.scheduler.sigmas[i].double()
    return time / (1 - time)


def ours(pipe: Any, x: Tensor, sigma: Tensor) -> Tensor:
    """A pipeline's state in x = image + sigma noise."""
    return x.double() * ((1 + sigma**2).sqrt() if hasattr(pipe.scheduler, "alphas_cumprod") else 1 + sigma)


def close(a: Tensor, b: Tensor, *, tol: float) -> None:
    assert float((a - b).abs().max()) <= tol * float(b.abs().max())


@pytest.mark.parametrize("guidance", [1.0, W])
def test_every_step_has_the_pipelines_own_denoised_latents(kind: str, guidance: float, tmp_path: Path) -> None:
    check_steps(pipeline(kind, tmp_path), kind, guidance=guidance)


@pytest.mark.parametrize("kind", ["sd", "sdxl", "sd3", "pixart-told"])
def test_latents_need_not_be_square(kind: str, tmp_path: Path) -> None:
    check_steps(pipeline(kind, tmp_path), kind, guidance=W, width=24)


def check_steps(pipe: Any, kind: str, *, guidance: float, width: int = 16) -> None:
    watched, _ = run(pipe, kind, guidance=guidance, output="pt", width=width)
    D, labels = adapted(pipe, kind, guidance=guidance)
    is_flow = kind.startswith("sd3")
    assert len(watched.steps) == 5
    for i, (t, x, prediction, x0, _) in enumerate(watched.steps):
        if is_flow and i == 0:
            continue  # pure noise: sigma is infinite
        sigma = level(pipe, t, i)
        known = x - pipe.scheduler.sigmas[i] * prediction if x0 is None else x0
        is_clipped = kind == "dit-clipped"  # of a number as large as sigma, with its rounding
        close(D(ours(pipe, x, sigma), sigma, labels).float(), known, tol=2e-5 * (1 + is_clipped * float(sigma)))
        assert not is_clipped or float(known.abs().max()) == 1


@pytest.mark.parametrize(
    ("kind", "width"),
    [("dit", 16), ("sd", 16), ("sdxl", 16), ("sdxl", 24), ("sdxl-v", 16), ("sd3", 16), ("sd3", 24), ("pixart", 24)],
)
def test_our_euler_run_is_the_pipelines_with_its_images(kind: str, width: int, tmp_path: Path) -> None:
    """DDIM and the flow's scheduler take Euler steps, in other coordinates; the decoder is the pipeline's."""
    pipe = pipeline(kind, tmp_path)
    watched, images = run(pipe, kind, guidance=W, output="pt", width=width)
    D, labels = adapted(pipe, kind, guidance=W)
    first = int(kind.startswith("sd3"))
    steps = watched.steps[first:]
    sigmas = torch.stack([*(level(pipe, s[0], i) for i, s in enumerate(steps, first)), torch.zeros([]).double()])
    x = ours(pipe, steps[0][1], sigmas[0])
    *_, last = Euler().along(bind(D, 2, labels), x, sigmas)
    known = ours(pipe, steps[-1][4], sigmas[-1])
    close(last.x_next, known, tol=2e-5)
    shown = decoded(D, last.x_next / (ours(pipe, torch.ones([]), sigmas[-1])))
    assert shown.shape == images.shape
    close((shown / 2 + 0.5).float(), images, tol=2e-5)


# -- the other networks and what is refused ---------------------------------------------------------------------------


@pytest.mark.parametrize("scheduler", ["DDIMScheduler", "DDPMScheduler", "EulerDiscreteScheduler", "PNDMScheduler"])
def test_a_unet_with_a_null_class_is_guided(scheduler: str) -> None:
    """UNet2DModel in a pipeline of its own kind, which diffusers does not guide: its formula is written out here."""
    net = tiny.unet(classes=5)
    pipe = Parts(unet=net, scheduler=getattr(diffusers, scheduler)())
    D, labels = from_diffusers(pipe, guidance=W, null_class=2), torch.eye(4)[[1, 3]]
    assert (D.label_dim, codec_of(D)) == (4, None)
    t, x_vp = 400, normal(2, 3, 8, 8)
    sigma = level(pipe, torch.tensor(t), 0)
    with torch.no_grad():
        own, null = (net(x_vp, t, class_labels=torch.tensor(k)).sample for k in ([1, 4], [2, 2]))
    eps = null + W * (own - null)
    x = ours(pipe, x_vp, sigma)
    known = x - sigma * eps
    if pipe.scheduler.config.get("clip_sample"):
        known = known.clamp(-1, 1)
    close(D(x, sigma, labels), known, tol=2e-5)


def test_a_unet_without_classes_is_its_scheduler_s_pipeline() -> None:
    """A DDIMPipeline, whose images are drawn without an autoencoder."""
    pipe = diffusers.DDIMPipeline(tiny.unet(), diffusers.DDIMScheduler(clip_sample=False))
    pipe.set_progress_bar_config(disable=True)
    images = pipe(2, generator=torch.manual_seed(4), num_inference_steps=5, output_type="np").images
    D = from_diffusers(pipe)
    x_vp = torch.randn(2, 3, 8, 8, generator=torch.manual_seed(4))
    pipe.scheduler.set_timesteps(5)
    sigmas = torch.stack([*(level(pipe, t, 0) for t in pipe.scheduler.timesteps), torch.zeros([]).double()])
    *_, last = Euler().along(bind(D, 2), ours(pipe, x_vp, sigmas[0]), sigmas)
    close((decoded(D, last.x_next) / 2 + 0.5).clamp(0, 1), torch.from_numpy(images).permute(0, 3, 1, 2), tol=2e-5)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_an_edm_unet_is_its_schedulers(prediction: str) -> None:
    net, scheduler = tiny.unet(), diffusers.EDMEulerScheduler(prediction_type=prediction, sigma_data=0.7)
    D = from_diffusers(Parts(unet=net, scheduler=scheduler))
    scheduler.set_timesteps(4)
    x = normal(2, 3, 8, 8) * scheduler.init_noise_sigma
    t, sigma = scheduler.timesteps[0], scheduler.sigmas[0]
    with torch.no_grad():
        out = net(scheduler.scale_model_input(x, t), t).sample
    close(D(x.double(), sigma.double()).float(), scheduler.step(out, t, x).pred_original_sample, tol=2e-5)


def test_learned_variances_are_cut_off_where_the_scheduler_says_so() -> None:
    net, x, sigma = tiny.unet(learned=True), normal(2, 3, 8, 8).double(), torch.tensor(1.5).double()
    D = from_diffusers(Parts(unet=net, scheduler=diffusers.DDPMScheduler(variance_type="learned_range")))
    assert D(x, sigma).shape == x.shape
    unsaid = from_diffusers(Parts(unet=net, scheduler=diffusers.DDPMScheduler()))
    with pytest.raises(ValueError, match=r"^model: it returned .* the last 3 may be a learned variance"):
        unsaid(x, sigma)


def test_samplers_correct_and_restart_a_guided_latent_pipeline() -> None:
    D = from_diffusers(tiny.shared_dit(), guidance=W, interval=(0.3, 5))
    labels, x = torch.eye(1000)[CLASSES], normal(2, 4, 16, 16)
    done = rods_sampler(D, x, labels, eps=0, rho=1, num_steps=4, sigma_min=0.02, sigma_max=80)
    assert done.records[0].backward > 0
    again = restart_sampler(D, x, labels, threshold=0, sigma_r=1, num_steps=4, sigma_min=0.02, sigma_max=80)
    images = decoded(D, again.images)
    assert images.shape == (2, 3, 32, 32)
    assert images.isfinite().all()


def test_a_network_that_blocks_gradients_is_named() -> None:
    pipe = tiny.dit_pipeline()
    pipe.transformer.forward = torch.no_grad()(pipe.transformer.forward)
    D, x, labels = from_diffusers(pipe), normal(2, 4, 16, 16), torch.eye(1000)[CLASSES]
    with pytest.raises(ValueError, match=r"^denoiser: the model gives no gradient"):
        rods_sampler(D, x, labels, eps=0, rho=1, window=(0, 1), num_steps=2, sigma_max=80)


@pytest.mark.parametrize(
    ("change", "options", "said"),
    [
        ({}, {"guidance": 2}, "guidance: 2, and this pipeline has neither prompts nor a null class"),
        ({}, {"prompts": "a dog"}, "prompts: a UNet2DModel reads no text"),
        ({}, {"null_class": 1}, "null_class: 1, and the network has no classes"),
        ({}, {"interval": (1, 2)}, "interval: it belongs to guidance, of which there is none"),
        ({}, {"negative_prompt": "a dog"}, "negative_prompt: it belongs to guidance, of which there is none"),
        ({}, {"guidance": float("nan")}, "guidance: nan is not a weight"),
        ({}, {"guidance": "4"}, "guidance: '4' is not a weight"),
        ({}, {"prompts": None}, "prompts: a NoneType is no text"),
        ({}, {"prompts": ["a", 2]}, "prompts: a int is no text"),
        ({}, {"latent_resolution": 0}, "latent_resolution: 0 is no side of a latent"),
        ({"scheduler_is": None}, {}, "pipeline: Parts has no scheduler"),
        ({}, {"guidance": 2, "negative_prompt": ["a", "b"]}, "negative_prompt: a list; give one text for all images"),
        ({}, {"latent_resolution": -8}, "latent_resolution: -8 is no side of a latent"),
        ({"classes": 3}, {"null_class": 3}, "null_class: 3 is out of range; this network has classes 0 to 2"),
        ({"scheduler": "KarrasVeScheduler"}, {}, "pipeline: its KarrasVeScheduler is not known here"),
        ({"thresholding": True}, {}, "pipeline: its DDIMScheduler has thresholding"),
        ({"prediction_type": "flow"}, {}, "prediction: 'flow' is unknown"),
        ({"rescale_betas_zero_snr": True}, {}, "alphas_cumprod: give a decreasing table of numbers between 0 and 1"),
        ({"train": True}, {}, "pipeline: its network is in training mode"),
        ({"controlnet": object()}, {}, "pipeline: Parts has a controlnet, whose part in sampling is not known"),
        ({"unet": None}, {}, "pipeline: Parts has no network"),
        ({"unet": torch.nn.Identity().eval()}, {}, "pipeline: its Identity is not known; known are UNet2DModel, "),
        ({"vqvae": object()}, {}, "pipeline: Parts has a vqvae"),
    ],
)
def test_what_is_not_known_is_one_line(change: dict[str, Any], options: dict[str, Any], said: str) -> None:
    net = tiny.unet(classes=change.pop("classes", None)).train(change.pop("train", False))
    scheduler = getattr(diffusers, change.pop("scheduler", "DDIMScheduler"))
    config = {
        k: change.pop(k) for k in list(change) if k in ("thresholding", "prediction_type", "rescale_betas_zero_snr")
    }
    step_by = change.pop("scheduler_is", scheduler)
    build = partial(Parts, **{"unet": net, **change})
    with pytest.raises(ValueError, match=f"^{said}") as found:
        from_diffusers(build(scheduler=step_by and step_by(**config)), **options)
    assert "\n" not in str(found.value)


def test_classes_without_a_null_class_need_a_label() -> None:
    D = from_diffusers(Parts(unet=tiny.unet(classes=4), scheduler=diffusers.DDIMScheduler()))
    with pytest.raises(ValueError, match=r"^class_labels: this pipeline has several classes or prompts"):
        D(normal(1, 3, 8, 8).double(), torch.tensor(1.0))


@pytest.mark.parametrize("name", ["dit", "unet", "sd3"])
def test_guidance_without_a_label_is_refused_not_left_out(name: str, tmp_path: Path) -> None:
    """What is guided leads from no class to one: without one, it was the null class led away from itself."""
    if name == "sd3":
        D = from_diffusers(tiny.sd3_pipeline(tmp_path), prompts=["ab", "c d"], guidance=W)
    elif name == "dit":
        D = from_diffusers(tiny.shared_dit(), guidance=W, interval=(3, 5))
    else:
        D = from_diffusers(Parts(unet=tiny.unet(classes=4), scheduler=diffusers.DDIMScheduler()), guidance=W,
                           null_class=3)  # fmt: skip
    x = normal(2, D.img_channels, D.img_resolution, D.img_resolution)
    with pytest.raises(ValueError, match=r"^class_labels: guidance leads away from an image without a class"):
        Euler(num_steps=2, sigma_min=1, sigma_max=2).sample(D, x)


def test_without_guidance_no_label_is_the_null_class_and_of_several_prompts_none(tmp_path: Path) -> None:
    pipe, x, sigma = tiny.shared_dit(), normal(2, 4, 16, 16).double(), torch.tensor(2.0).double()
    t = (pipe.scheduler.alphas_cumprod.double().reciprocal().sub(1).sqrt() - sigma).abs().argmin()
    at = level(pipe, t, 0)
    with torch.no_grad():
        eps = pipe.transformer((x / (1 + at**2).sqrt()).float(), torch.tensor([t, t]), torch.tensor([1000, 1000]))
    known = (x - at * eps.sample[:, :4]).clamp(-1, 1)
    close(from_diffusers(pipe)(x, at), known, tol=1e-4)
    D = from_diffusers(tiny.sd3_pipeline(tmp_path), prompts=["ab", "c d"])
    with pytest.raises(ValueError, match=r"^class_labels: this pipeline has several classes or prompts"):
        D(normal(2, 4, 8, 8).double(), sigma)


@pytest.mark.parametrize("guidance", [1.0, W])
def test_numbers_of_classes_are_labels(guidance: float) -> None:
    D, x = from_diffusers(tiny.shared_dit(), guidance=guidance), normal(2, 4, 16, 16).double()
    sigma, rows = torch.tensor(2.0).double(), torch.eye(1000)[CLASSES]
    for numbers in (torch.tensor(CLASSES), torch.tensor(CLASSES, dtype=torch.uint8), rows.long(), rows.bool()):
        assert torch.equal(D(x, sigma, numbers), D(x, sigma, rows))
        found, known = (Euler(num_steps=2).sample(D, x, labels).images for labels in (numbers, rows))
        assert torch.equal(found, known)


SEVERAL = r"integers \[2\] from 0 to 999, or one-hot rows \[2, 1000\]"


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (torch.eye(1000)[[7]], r"class_labels: \[1, 1000\] for 2 latents"),
        (torch.tensor([1, 2, 3]), r"class_labels: \[3\] for 2 latents"),
        (torch.tensor(1), r"class_labels: \[\] for 2 latents"),
        (torch.tensor([1, 1000]), "class_labels: 1000 is out of range; this denoiser has classes 0 to 999"),
        (torch.tensor([-1, 3]), "class_labels: -1 is out of range"),
        (torch.tensor([1.0, 2.0]), rf"class_labels: torch.float32 \[2\]; .*{SEVERAL}"),
        (torch.tensor([[1], [2]]), rf"class_labels: torch.int64 \[2, 1\]; .*{SEVERAL}"),
        (torch.eye(999)[CLASSES], rf"class_labels: torch.float32 \[2, 999\]; .*{SEVERAL}"),
        (torch.zeros(2, 1000), "class_labels: (the row of image 0 is not one-hot|guidance leads away from)"),
        (torch.eye(1000)[CLASSES] / 2, "class_labels: the row of image 0 is not one-hot"),
        (CLASSES, "class_labels: a list; give a tensor"),
    ],
    ids=str,
)
@pytest.mark.parametrize("guidance", [1.0, W])
def test_labels_of_another_form_are_one_line(labels: Any, said: str, guidance: float) -> None:
    D, x = from_diffusers(tiny.shared_dit(), guidance=guidance), normal(2, 4, 16, 16).double()
    for call in (lambda: D(x, torch.tensor(2.0).double(), labels), lambda: Euler(num_steps=2).sample(D, x, labels)):
        with pytest.raises(ValueError, match=f"^{said}") as found:
            call()
        assert "\n" not in str(found.value)


def test_one_prompt_takes_no_labels(tmp_path: Path) -> None:
    D = from_diffusers(tiny.sd3_pipeline(tmp_path), prompts="ab", guidance=W)
    with pytest.raises(ValueError, match=r"^class_labels: this denoiser has no classes"):
        D(normal(2, 4, 8, 8).double(), torch.tensor(2.0).double(), torch.eye(2))


@pytest.mark.parametrize(
    ("name", "shape", "said"),
    [
        ("dit", (2, 4, 16, 24), r"with sides that 4 divides, H = W"),
        ("dit", (2, 4, 18, 18), r"with sides that 4 divides, H = W"),
        ("dit", (2, 3, 16, 16), r"must be \[B, 4, H, W\]"),
        ("dit", (2, 4, 16), r"must be \[B, 4, H, W\]"),
        ("unet", (2, 3, 8, 9), r"with sides that 2 divides for this pipeline's network"),
        ("unet", (2, 4, 8, 8), r"must be \[B, 3, H, W\]"),
    ],
)
def test_latents_that_the_network_does_not_take_are_one_line(name: str, shape: tuple[int, ...], said: str) -> None:
    pipe = tiny.shared_dit() if name == "dit" else Parts(unet=tiny.unet(), scheduler=diffusers.DDIMScheduler())
    with pytest.raises(ValueError, match=rf"^latents: .*{said}"):
        from_diffusers(pipe)(normal(*shape).double(), torch.tensor(2.0).double())


def test_images_and_latents_of_other_channels_are_one_line() -> None:
    D = from_diffusers(tiny.shared_dit())
    for shape in ((2, 3, 16, 16), (4, 16, 16)):
        with pytest.raises(ValueError, match=r"^samples: .* must be \[B, 4, H, W\]"):
            decoded(D, normal(*shape))
    with pytest.raises(ValueError, match=r"^images: \[2, 1, 32, 32\]: must be \[B, 3, H, W\]"):
        encoded(D, normal(2, 1, 32, 32), normal(2, 4, 16, 16))


def test_a_unet_takes_latents_that_are_not_square() -> None:
    net, x_vp, t = tiny.unet(), normal(2, 3, 4, 10), 300
    D = from_diffusers(Parts(unet=net, scheduler=diffusers.DDIMScheduler(clip_sample=False)))
    sigma = (1 / diffusers.DDIMScheduler().alphas_cumprod[t].double() - 1).sqrt()
    with torch.no_grad():
        known = (1 + sigma**2).sqrt() * x_vp - sigma * net(x_vp, t).sample
    close(D((1 + sigma**2).sqrt() * x_vp.double(), sigma), known, tol=2e-5)


def test_text_pipelines_need_a_prompt_and_one_is_that_of_all_images(tmp_path: Path) -> None:
    pipe = tiny.sdxl_pipeline(tmp_path)
    with pytest.raises(ValueError, match=r"^prompts: this pipeline's network reads text"):
        from_diffusers(pipe)
    x, sigma = normal(2, 4, 8, 8).double(), torch.tensor(2.0).double()
    one, several = from_diffusers(pipe, prompts="ab"), from_diffusers(pipe, prompts=["c", "ab"])
    assert (one.label_dim, several.label_dim) == (0, 2)
    close(one(x, sigma), several(x, sigma, torch.eye(2)[[1, 1]]), tol=1e-5)
    assert (one(x, sigma) - several(x, sigma, torch.eye(2)[[0, 0]])).abs().max() > 1e-4


def test_a_float16_autoencoder_that_overflows_is_refused(tmp_path: Path) -> None:
    pipe = tiny.dit_pipeline()
    pipe.vae.register_to_config(force_upcast=True)
    pipe.vae.half()
    with pytest.raises(ValueError, match=r"^pipeline: its vae overflows in float16"):
        from_diffusers(pipe)


class Parts:
    """The attributes of a pipeline and nothing else."""

    def __init__(self, **components: Any) -> None:
        self.components = components
        for name, part in components.items():
            setattr(self, name, part)


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(5))


# -- gates ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "blocks", "widths"),
    [
        ("dit", ["transformer_blocks.0", "transformer_blocks.1"], [32, 32]),
        ("sdxl", [f"up_blocks.{i}.resnets.{j}" for i in (0, 1) for j in (0, 1)], [16, 16, 8, 8]),
        ("sd3", ["transformer_blocks.0.ff"], [64]),
    ],
)
def test_a_gate_reads_blocks_of_the_main_network(
    kind: str, blocks: list[str], widths: list[int], tmp_path: Path
) -> None:
    pipe = pipeline(kind, tmp_path)
    D, labels = adapted(pipe, kind, guidance=W)
    plain, _ = adapted(pipe, kind, guidance=1)
    assert gate_blocks(D) == tuple(blocks)
    side = D.img_resolution
    x, noise = normal(2, 4, side, side).double(), normal(1, 2, 4, side, side).double()
    denoise = bind(D, 2, labels)
    found = activations(denoise, x, torch.tensor(0.5).double(), noise, gate_blocks(D))
    assert [p.shape[1] for p in found] == widths
    assert denoise.forward.tolist() == [1, 1]
    for a, b in zip(found, activations(bind(plain, 2, labels), x, torch.tensor(0.5).double(), noise, gate_blocks(D)),
                    strict=True):  # fmt: skip
        assert torch.equal(a, b)
    swapped = activations(bind(D, 2, labels.flip(0)), x, torch.tensor(0.5).double(), noise, gate_blocks(D))
    assert not torch.allclose(found[-1], swapped[-1])


def test_a_gate_is_fitted_to_encoded_images_and_restarts() -> None:
    """As docs/how-to/diffusers.md: without labels, in latents, on a guided pipeline."""
    D = from_diffusers(tiny.shared_dit(), guidance=W)
    labels, blocks, T = torch.eye(1000)[[3] * 16], gate_blocks(D), 0.5
    z = encoded(D, normal(16, 3, 32, 32).double().clamp(-1, 1), normal(16, 4, 16, 16).double())
    sigma = torch.tensor(T).double()
    real = torch.cat(activations(bind(D, 16, labels), z, sigma, normal(1, 16, 4, 16, 16).double(), blocks), dim=1)
    gate = density_ratio(real, None, blocks=blocks, sigma=T, draws=1, network=fingerprint(network_of(D), blocks))
    gate.check(D, [1.0])
    done = restart_sampler(D, normal(2, 4, 16, 16), labels[:2], threshold=-1e9, sigma_r=1, detector=gate, num_steps=4,
                           sigma_min=0.02, sigma_max=80, rounds=1)  # fmt: skip
    assert all(len(record.restart.scores) == 2 for record in done.records)
    with pytest.raises(ValueError, match=r"^detector: the preset's density-ratio is of another network"):
        gate.check(other_dit(), [1.0])


def other_dit() -> AnyDenoiser:
    pipe = tiny.dit_pipeline()
    next(iter(pipe.transformer.transformer_blocks.parameters())).add_(1)
    return from_diffusers(pipe)


def test_blocks_are_named_or_known_by_their_lists() -> None:
    class Other(torch.nn.Module):
        def __init__(self, name: str) -> None:
            super().__init__()
            setattr(self, name, torch.nn.ModuleList([torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)]))

    assert gate_blocks(Other("output_blocks")) == ("output_blocks.0", "output_blocks.1")
    assert gate_blocks(Other("towers"), ["towers.1"]) == ("towers.1",)
    with pytest.raises(ValueError, match=r"in a Other is not known; name modules \(it has the lists towers \(2\)\)"):
        gate_blocks(Other("towers"))
    with pytest.raises(ValueError, match=r"^detector: this network has no module towers.7"):
        gate_blocks(Other("towers"), ["towers.7"])
    with pytest.raises(ValueError, match=r"^block: its output is a tuple; choose one whose"):
        pooled((torch.zeros(1, 2),))  # type: ignore[arg-type]
