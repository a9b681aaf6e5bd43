"""Networks that draw latents, as the commands load them: with the autoencoder that their file names."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click
import torch

from dnnlib.errors import UserError, of_option, shown
from rods.gate import fingerprint
from rods.latents import Vae, image_channels
from rods.runs.images import CHANNELS
from rods.types import AnyDenoiser
from training.checkpoint import Snapshot, load_snapshot
from training.encoder import FILES, StoredEncoder, files_of, stored_encoder
from training.model_zoo import saying_files

F = TypeVar("F", bound=Callable[..., Any])

add_vae_option: Callable[[F], F] = click.option(
    "--vae",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="The autoencoder of a network that draws latents: a folder with its config.json and safetensors weights, or "
    "of a pipeline of diffusers [default: what the network's file names, in the cache of Hugging Face].",
)


def open_network(
    source: str | os.PathLike[str],
    *,
    device: torch.device,
    sha256: str | None = None,
    vae: Path | None = None,
    option: str = "--network",
) -> Snapshot:
    """`load_snapshot`, and with it the autoencoder of a network that draws latents, as the network's `codec`.

    Nothing is fetched. Raises UserError, naming the option: as `load_snapshot`; no such autoencoder, or one that does
    not fit.
    """
    with of_option(option), saying_files(source):
        snapshot = load_snapshot(source, device=device, sha256=sha256)
    encoder = stored_encoder(snapshot.header.extra)
    if encoder is not None:
        snapshot.net.codec = open_vae(encoder, snapshot, vae, device)
    elif vae is not None:
        raise UserError(f"--vae={vae}: {snapshot.name} draws pixels, for its file names no autoencoder; leave it out")
    return snapshot


def check_channels(net: AnyDenoiser, *, option: str) -> None:
    """UserError where neither a network's samples nor the images that it decodes them to are grey or coloured."""
    if (channels := image_channels(net)) not in CHANNELS:
        raise UserError(
            f"{option} makes {channels} channels, and a PNG has 1 or 3; latents need their autoencoder, and this "
            "network's file names none (the library samples them: rods.edm_sampler)"
        )


def open_vae(encoder: StoredEncoder, snapshot: Snapshot, folder: Path | None, device: torch.device) -> Vae:
    """The autoencoder in a folder or in the cache, for the latents of a network. Raises UserError."""
    who = f"--vae={folder}" if folder else f"--network: {snapshot.name} draws latents of {encoder.vae_name}"
    try:
        from diffusers import AutoencoderKL
    except ImportError:
        raise UserError(f"{who}: latents are decoded by diffusers, which is missing: pip install diffusers") from None
    if folder and not (folder / "config.json").is_file() and (folder / "vae" / "config.json").is_file():
        folder = folder / "vae"
    if folder and not (folder / "config.json").is_file():
        found = "it holds no config.json" if folder.is_dir() else "it is a file"
        what = found if folder.exists() else "there is no such folder"
        raise UserError(f"{who}: {what}; give the folder of an autoencoder of diffusers, with its {FILES}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of diffusers, on how it calls its own libraries
            vae = AutoencoderKL.from_pretrained(  # type: ignore[no-untyped-call]
                str(folder or encoder.vae_name),
                local_files_only=True,
                use_safetensors=True,  # never torch's own files, which are pickles
                torch_dtype=torch.float32,
                low_cpu_mem_usage=False,
            )
    except (OSError, ValueError, RuntimeError, LookupError, TypeError) as e:
        if folder:
            raise UserError(f"{who}: no autoencoder of diffusers ({FILES}): {shown(str(e), 160)}") from None
        raise UserError(
            f"{who}, which is not in the cache of Hugging Face; fetch "
            f"{files_of(encoder.vae_name)} into a folder and give --vae=FOLDER"
        ) from None
    C, channels = snapshot.net.img_channels, vae.config.latent_channels
    if channels != C or len(encoder.scale) not in (1, C):
        raise UserError(
            f"{who}: its latents have {channels} channels and {len(encoder.scale)} scales, and {snapshot.name} draws "
            f"{C}; give the autoencoder that the network was trained with"
        )
    vae = vae.to(device).eval().requires_grad_(False)
    side = snapshot.net.img_resolution * 2 ** (len(vae.config.block_out_channels) - 1)
    mark = fingerprint(vae, ("decoder",))
    return Vae(vae, encoder.scale, encoder.bias, vae.config.out_channels, side, identity=mark, shows_unit=True)
