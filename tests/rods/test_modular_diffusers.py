"""Modular pipelines of diffusers, tiny and with random weights, from prompt embeddings to images by our samplers."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("diffusers.modular_pipelines", reason="diffusers with modular pipelines is not installed")
pytest.importorskip("transformers", reason="transformers is not installed, which these pipelines import")

import diffusers
from diffusers.modular_pipelines import SequentialPipelineBlocks
from diffusers.modular_pipelines.stable_diffusion_3 import modular_blocks_stable_diffusion_3 as sd3
from diffusers.modular_pipelines.stable_diffusion_3.decoders import StableDiffusion3DecodeStep
from diffusers.modular_pipelines.stable_diffusion_xl import denoise as xl

from rods import Euler, Lid, Restart, RodsCas
from rods.integrations.modular_diffusers import use_sampler

pytestmark = pytest.mark.filterwarnings("ignore")  # what diffusers and transformers warn of is not ours


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# -- a flow: SD3 from embeddings to images ----------------------------------------------------------------------------


@cache
def sd3_parts() -> dict[str, Any]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        transformer = diffusers.SD3Transformer2DModel(
            sample_size=32, patch_size=1, in_channels=4, num_layers=1, attention_head_dim=8, num_attention_heads=4,
            caption_projection_dim=32, joint_attention_dim=32, pooled_projection_dim=64, out_channels=4,
        )  # fmt: skip
        vae = diffusers.AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, shift_factor=0.1)
    return {"transformer": transformer.eval(), "vae": vae.eval()}


def sd3_blocks(core: Any = sd3.StableDiffusion3T2ICoreDenoiseStep) -> Any:
    return SequentialPipelineBlocks.from_blocks_dict({"denoise": core(), "decode": StableDiffusion3DecodeStep()})


def sd3_state(blocks: Any, scheduler: Any = None, **given: Any) -> Any:
    """The state of the pipeline of some blocks after a run for two prompts."""
    pipe = blocks.init_pipeline()
    pipe.update_components(scheduler=scheduler or diffusers.FlowMatchEulerDiscreteScheduler(), **sd3_parts())
    inputs = {
        "prompt_embeds": normal(2, 5, 32, seed=1), "pooled_prompt_embeds": normal(2, 64, seed=2),
        "negative_prompt_embeds": torch.zeros(2, 5, 32), "negative_pooled_prompt_embeds": torch.zeros(2, 64),
        "height": 8, "width": 8, "num_inference_steps": 5, "output_type": "pt",
        "generator": torch.Generator().manual_seed(3),
    }  # fmt: skip
    return pipe(**{**inputs, **given})


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_euler_is_the_pipelines_own_run(shift: float) -> None:
    """Guided, from t = 1, decoded by the VAE: the scheduler's numbers in other coordinates."""
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
    own = sd3_state(sd3_blocks(), scheduler)
    blocks = sd3_blocks()
    assert use_sampler(blocks, Euler()) == ["denoise.denoise"]
    ours = sd3_state(blocks, scheduler)
    torch.testing.assert_close(ours.get("latents"), own.get("latents"), rtol=0, atol=2e-5)
    torch.testing.assert_close(ours.get("images"), own.get("images"), rtol=0, atol=2e-5)
    assert own.get("images").std() > 0.01
    assert [record.forward for record in ours.get("rods_records")] == [5, 5]


def test_an_image_to_start_from_leaves_a_part_of_the_levels() -> None:
    given = {"image_latents": normal(2, 4, 8, 8, seed=4), "strength": 0.6}
    own = sd3_state(sd3_blocks(sd3.StableDiffusion3I2ICoreDenoiseStep), **given)
    blocks = sd3_blocks(sd3.StableDiffusion3I2ICoreDenoiseStep)
    use_sampler(blocks, Euler())
    ours = sd3_state(blocks, **given)
    torch.testing.assert_close(ours.get("latents"), own.get("latents"), rtol=0, atol=2e-5)
    assert ours.get("rods_records")[0].forward == 3


def restarted(threshold: float, **given: Any) -> Any:
    blocks = sd3_blocks()
    use_sampler(blocks, Restart(threshold=threshold, sigma_r=2, rounds=1, detector=Lid(sigma=0.9, draws=2)))
    return sd3_state(blocks, **given)


def test_a_restart_redraws_the_flagged_image_alone() -> None:
    plain = restarted(float("inf"))
    scores = [record.restart.scores[0] for record in plain.get("rods_records")]
    worst = scores.index(max(scores))
    done = restarted(sum(scores) / 2)
    moved = [not torch.equal(a, b) for a, b in zip(done.get("latents"), plain.get("latents"), strict=True)]
    record = done.get("rods_records")[worst]
    assert len(record.restart.scores) == 2
    assert moved[worst] == (record.restart.kept == 1)
    assert not moved[1 - worst]
    assert record.restart.scores[0] == pytest.approx(scores[worst], rel=1e-6)
    again = restarted(sum(scores) / 2)
    assert torch.equal(again.get("latents"), done.get("latents")), "the pipeline's generator decides"
    torch.manual_seed(99)
    one_each = [torch.Generator().manual_seed(i) for i in (7, 8)]
    assert restarted(-float("inf"), generator=one_each).get("latents").isfinite().all()


def test_cas_goes_by_differences() -> None:
    blocks = sd3_blocks()
    use_sampler(blocks, RodsCas(eps=0, rho=0.5, window=(0, 1), gradient="difference"))
    found = sd3_state(blocks)
    assert not torch.allclose(found.get("latents"), sd3_state(sd3_blocks()).get("latents"), atol=1e-3)
    blocks = sd3_blocks()
    use_sampler(blocks, RodsCas(eps=0, rho=0.5, window=(0, 1)))
    with pytest.raises(ValueError, match=r"gives no gradient .* gradient=\"difference\""):
        sd3_state(blocks)


# -- noise levels: SDXL's network and Euler's scheduler ---------------------------------------------------------------


@cache
def unet(*, distilled: bool = False) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return diffusers.UNet2DConditionModel(
            sample_size=8, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, cross_attention_dim=32,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), attention_head_dim=(1, 2),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), transformer_layers_per_block=(1, 1),
            addition_embed_type="text_time", addition_time_embed_dim=4, projection_class_embeddings_input_dim=40,
            time_cond_proj_dim=8 if distilled else None,
        ).eval()  # fmt: skip


def xl_state(scheduler: Any, sampler: Any = None, *, distilled: bool = False) -> Any:
    blocks = SequentialPipelineBlocks.from_blocks_dict({"denoise": xl.StableDiffusionXLDenoiseStep()})
    if sampler is not None:
        assert use_sampler(blocks, sampler) == ["denoise"]
    pipe = blocks.init_pipeline()
    pipe.update_components(scheduler=scheduler, unet=unet(distilled=distilled))
    scheduler.set_timesteps(5)
    conditions = {
        "prompt_embeds": normal(2, 5, 32, seed=1), "negative_prompt_embeds": torch.zeros(2, 5, 32),
        "pooled_prompt_embeds": normal(2, 16, seed=2), "negative_pooled_prompt_embeds": torch.zeros(2, 16),
        "add_time_ids": torch.ones(2, 6), "negative_add_time_ids": torch.ones(2, 6),
    }  # fmt: skip
    latents = normal(2, 4, 8, 8, seed=3) * scheduler.init_noise_sigma
    return pipe(
        latents=latents, timesteps=scheduler.timesteps, num_inference_steps=5, denoiser_input_fields=conditions,
        generator=torch.Generator().manual_seed(5),
    )  # fmt: skip


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("spacing", ["leading", "linspace"])
def test_eulers_scheduler_is_followed_for_every_prediction(prediction: str, spacing: str) -> None:
    def scheduler() -> Any:
        return diffusers.EulerDiscreteScheduler(prediction_type=prediction, timestep_spacing=spacing, steps_offset=1)

    own, ours = xl_state(scheduler()), xl_state(scheduler(), Euler())
    scale = float(own.get("latents").abs().max())
    torch.testing.assert_close(ours.get("latents"), own.get("latents"), rtol=0, atol=5e-5 * scale)
    moved = xl_state(scheduler(), Restart(threshold=-float("inf"), sigma_r=2, rounds=1)).get("rods_records")
    assert all(record.forward > 5 + 2 * 4 for record in moved), "five steps, two scores of four draws, a restart"


# -- what is not taken over -------------------------------------------------------------------------------------------


def test_a_loop_that_does_more_is_refused() -> None:
    blocks = SequentialPipelineBlocks.from_blocks_dict({"denoise": xl.StableDiffusionXLInpaintDenoiseStep()})
    with pytest.raises(ValueError, match=r"^blocks: denoise is a StableDiffusionXLInpaintDenoiseStep"):
        use_sampler(blocks, Euler())
    whole = diffusers.StableDiffusionXLAutoBlocks()
    with pytest.raises(ValueError, match=r"Choose a workflow"):
        use_sampler(whole, Euler())
    assert "RodsDenoiseStep" not in repr(whole), "nothing is replaced where something is refused"
    assert use_sampler(whole.get_workflow("text2image"), Euler()) == ["denoise.denoise"]
    with pytest.raises(ValueError, match=r"^blocks: .* holds no denoise step"):
        use_sampler(SequentialPipelineBlocks.from_blocks_dict({"decode": StableDiffusion3DecodeStep()}), Euler())


def test_a_scheduler_with_other_coordinates_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^scheduler: DDIMScheduler keeps its latents"):
        xl_state(diffusers.DDIMScheduler(), Euler())
    blocks = sd3_blocks()
    use_sampler(blocks, Euler())
    with pytest.raises(ValueError, match=r"^scheduler: invert_sigmas"):
        sd3_state(blocks, diffusers.FlowMatchEulerDiscreteScheduler(invert_sigmas=True))


def test_a_distilled_network_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^unet: it is distilled"):
        xl_state(diffusers.EulerDiscreteScheduler(), Euler(), distilled=True)
