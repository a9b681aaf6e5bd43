"""The blocks of a network that a gate reads: by name, or chosen for any U-Net or transformer that is built as usual."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from rods.gate import module_of, network_of
from rods.types import AnyDenoiser

LISTS = ("up_blocks", "transformer_blocks", "output_blocks", "out_blocks", "blocks")
"""The lists of blocks that make the image, as networks call them: diffusers' U-Nets and transformers, ADM's and Stable
Diffusion's own U-Net, U-ViT, DiT."""


def gate_blocks(denoiser: AnyDenoiser, names: Sequence[str] = ()) -> tuple[str, ...]:
    """The paths of blocks below the network of a denoiser (`gate.network_of`), in the order of their evaluation.

    `names` are taken as they are. Without, they are the blocks of a U-Net's way up, or all of a transformer: each
    gives [B, C, H, W] or tokens [B, N, C], which `gate.activations` pools alike.
    Raises ValueError: no such module, or a network that is built in another way.
    """
    network = network_of(denoiser)
    if names:
        for name in names:
            module_of(network, name)
        return tuple(names)
    own = getattr(network, "decoder_blocks", None)  # this project's networks
    if own is not None and (paths := tuple(own())):
        return paths
    for name in LISTS:
        found = getattr(network, name, None)
        if isinstance(found, nn.ModuleList) and len(found):
            return tuple(path for i, block in enumerate(found) for path in _within(f"{name}.{i}", block))
    lists = [f"{name} ({len(m)})" for name, m in network.named_modules() if isinstance(m, nn.ModuleList)]
    has = f"it has the lists {', '.join(lists[:6])}" if lists else "it has no list of blocks"
    raise ValueError(f"blocks: which make the image in a {type(network).__name__} is not known; name modules ({has})")


def _within(path: str, block: nn.Module) -> list[str]:
    """What of a block has an output that is one tensor: of a level of diffusers' U-Nets its residual blocks, of a block
    that returns the text's tokens as well its last part for the image's."""
    resnets = getattr(block, "resnets", None)
    if isinstance(resnets, nn.ModuleList):
        return [f"{path}.resnets.{i}" for i in range(len(resnets))]
    return [f"{path}.ff"] if hasattr(block, "ff_context") else [path]
