"""Pipelines of diffusers, sampled, restarted and decoded into run folders: a DiT with classes in latents, and a flow.

The networks are tiny and untrained: only the wiring is shown. Needs pip install diffusers.

python examples/diffusers_pipelines.py [OUTDIR]
"""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that it runs without installing the project

from rods import Lid, Restart
from rods.blocks import gate_blocks
from rods.gate import fingerprint, network_of
from rods.pipelines import from_diffusers
from rods.runs.chunk import cut_chunks
from rods.runs.folder import OutputFolder
from rods.runs.run import Job, run_chunks
from rods.types import AnyDenoiser


def autoencoder() -> Any:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(4, 8),
        norm_num_groups=4,
        latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
    ).eval()


def dit() -> Any:
    """Yours: DiTPipeline.from_pretrained(...). Of labels, with a null class and learned sigma."""
    from diffusers import DDIMScheduler, DiTPipeline, DiTTransformer2DModel

    network = DiTTransformer2DModel(
        sample_size=8, num_layers=2, patch_size=2, attention_head_dim=8, num_attention_heads=2, in_channels=4,
        out_channels=8, num_embeds_ada_norm=10, norm_type="ada_norm_zero",
    )  # fmt: skip
    return DiTPipeline(network.eval(), autoencoder(), DDIMScheduler())


def sd3() -> Any:
    """Yours: StableDiffusion3Pipeline.from_pretrained(...). Of prompts, whose embeddings are noise here."""
    from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel

    network = SD3Transformer2DModel(
        sample_size=8, patch_size=1, in_channels=4, num_layers=1, attention_head_dim=8, num_attention_heads=4,
        caption_projection_dim=32, joint_attention_dim=32, pooled_projection_dim=64, out_channels=4,
    )  # fmt: skip

    def encode_prompt(prompt: list[str], **options: Any) -> tuple[torch.Tensor, ...]:
        n = len(prompt)
        return torch.randn(n, 7, 32), torch.zeros(n, 7, 32), torch.randn(n, 64), torch.zeros(n, 64)

    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    return SimpleNamespace(
        transformer=network.eval(), scheduler=scheduler, vae=autoencoder(), encode_prompt=encode_prompt
    )


def sample(name: str, D: AnyDenoiser, guidance: dict[str, Any], outdir: Path) -> None:
    """A run folder as generate.py's: PNGs, samples.jsonl, options.json. The same call completes it."""
    sampler = Restart(threshold=10, sigma_r=2, detector=Lid(draws=4), num_steps=10, sigma_max=80)
    network = fingerprint(network_of(D), gate_blocks(D))  # with `guidance` what tells this run from others
    job = Job(denoiser=D, sampler=sampler, chunks=cut_chunks(range(4), batch=4), device=torch.device("cpu"), batch=4,
              network_sha256=network, guidance=guidance)  # fmt: skip
    folder = OutputFolder(outdir / name, identity=job.identity())
    with folder.open({"network": name}):
        run_chunks(job, folder, show_progress=False)
        lines = folder.finish()
    spent = sum(line["forward"] for line in lines) / len(lines)
    again = sum(len(line["restart"]["scores"]) > 1 for line in lines)
    print(f"{name}: {len(lines)} images in {folder.outdir}, {spent:.1f} F an image, {again} restarted")


def main() -> None:
    try:
        import diffusers  # noqa: F401
    except ImportError:
        sys.exit("Error: this example needs diffusers, which is not installed: pip install diffusers")
    outdir = Path(sys.argv[1]) if len(sys.argv) > 1 else Path("out/pipelines")
    torch.manual_seed(0)
    of_classes = from_diffusers(dit(), guidance=4, interval=(0.3, 5))
    sample("dit", of_classes, {"guidance": 4, "guidance_interval": "0.3,5"}, outdir)
    of_prompts = from_diffusers(sd3(), prompts=["a hand", "a foot"], guidance=4)
    sample("sd3", of_prompts, {"guidance": 4, "prompts": ["a hand", "a foot"]}, outdir)


if __name__ == "__main__":
    main()
