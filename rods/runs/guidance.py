"""Guidance as the commands have it: its options, the guide's file, and what a run's identity says of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import click
import torch
from torch import Tensor

from dnnlib.cli import Sha256, with_options
from dnnlib.errors import UserError, user_errors
from rods.base_samplers import Sampler
from rods.dropout import Dropout
from rods.guidance import Guidance, Guided, guide_to_text, interval_from_text, interval_to_text
from rods.presets import Preset
from rods.runs.options import respell
from rods.schema import digits
from rods.types import AnyDenoiser
from training.checkpoint import load_snapshot

F = TypeVar("F", bound=Callable[..., Any])
GUIDANCE_OPTIONS = ("guidance", "guide", "guidance_interval", "guide_sha256")


def add_guidance_options(command: F) -> F:
    """Decorator: the options above, None where they are not given."""
    options = (
        click.option("--guidance", metavar="W", type=float,
                     help="Guide the network: D = guide + W (network - guide); 1 is no guidance."),
        click.option("--guide", metavar="NAME|FILE|URL",
                     help="What it is led away from: none (the network without class labels), another network (without "
                          "classes, or an earlier snapshot), dropout[:rate=P] (the network with its dropout on), "
                          "noisier[:ratio=R] (told R times the noise level)."),
        click.option("--guidance-interval", metavar="LO,HI",
                     help="The noise levels at which it is guided; elsewhere the guide is not evaluated "
                          "[default: all]."),
        click.option("--guide-sha256", metavar="HEX", type=Sha256(),
                     help="What the checksum of the guide's file must be."),
    )  # fmt: skip
    return with_options(command, options)


def guidance_option(opts: Mapping[str, Any], preset: Preset | None) -> Guidance | None:
    """The guidance that the options ask for, and the preset where they do not say; None: none.

    Raises UserError, naming the option, for what is missing or out of range.
    """
    usual = preset.guidance if preset else None
    strength, guide, interval, sha256 = (opts[name] for name in GUIDANCE_OPTIONS)
    if strength is None and usual is None:
        for name in GUIDANCE_OPTIONS[1:]:
            if opts[name] is not None:
                option = "--" + name.replace("_", "-")
                raise UserError(f"{option}={opts[name]} needs --guidance=W: how strongly, such as --guidance=2")
        return None
    strength = usual.strength if strength is None and usual else float(strength)
    if strength == 1:
        return None
    if guide is None and usual is None:
        raise UserError(
            f"--guidance={strength:g} needs a guide: --guide=none (without class labels), a network's file or address, "
            "dropout or noisier"
        )
    with user_errors(spelled=respell):
        window = usual.interval if usual else None
        if interval is not None:
            window = interval_from_text(interval)
        if guide is None and usual:
            guide, sha256 = usual.guide, sha256 or usual.sha256
        return Guidance(strength, guide, window, sha256)


def forwards(denoiser: AnyDenoiser, levels: Sequence[float]) -> int:
    """How often networks are evaluated, F an image, where a denoiser is at each of these noise levels."""
    return len(levels) + (sum(map(denoiser.is_guided, levels)) if isinstance(denoiser, Guided) else 0)


@dataclass(frozen=True)
class GuidedNetwork:
    """A network as it is sampled from, and what guides it."""

    denoiser: AnyDenoiser
    identity: Mapping[str, Any]  # what options.json says of the guidance; empty where there is none
    guide: str | None = None  # what the guide's file holds, where it has one

    def check(self, sampler: Sampler) -> None:
        """UserError where no step of the sampler lies in the guidance interval."""
        if not isinstance(self.denoiser, Guided) or (interval := self.denoiser.interval) is None:
            return
        levels = sampler.levels(self.denoiser)
        if not any(map(self.denoiser.is_guided, levels)):
            raise UserError(
                f"--guidance-interval={interval_to_text(interval)} holds no step of this run, whose noise levels are "
                f"{levels[-1]:g} to {levels[0]:g}; widen it"
            )


def guided_network(
    net: AnyDenoiser,
    guidance: Guidance | None,
    *,
    device: torch.device,
    executed: Callable[[Any], Any] = lambda net: net,
) -> GuidedNetwork:
    """The network with its guide, loaded if it is a file and `executed` as the network is; without guidance, itself.

    Raises UserError: a guide that cannot be read, or does not suit the network.
    """
    if guidance is None:
        return GuidedNetwork(net, {})
    about: str | None = None
    identity: dict[str, Any] = {"guidance": guidance.strength}
    try:
        if guidance.is_self:
            guide: Any = guidance.self_guide(net)
            identity["guide"] = guide_to_text(guide)
        else:
            snapshot = load_snapshot(guidance.guide, device=device, sha256=guidance.sha256)
            guide, about = executed(snapshot.net), snapshot.describe()
            identity["guide_sha256"] = snapshot.sha256
        denoiser = guidance.applied(net, guide)
        if isinstance(guide, Dropout):  # whether a network has any shows when it is evaluated
            with torch.no_grad():
                guide(*one_image(denoiser, device))
    except UserError as e:
        raise UserError(f"--guide: {e}") from None
    except ValueError as e:
        raise UserError(f"--guide={guidance.guide}: {str(e).removeprefix('guide: ')}") from None
    if guidance.interval is not None:
        identity["guidance_interval"] = interval_to_text(guidance.interval)
    return GuidedNetwork(denoiser, identity, about)


def one_image(denoiser: Guided, device: torch.device) -> tuple[Tensor, Tensor]:
    """Any x [1, C, H, W] and a noise level that the network knows."""
    side = denoiser.img_resolution
    level = min(max(1.0, denoiser.sigma_min), denoiser.sigma_max)
    return torch.zeros(1, denoiser.img_channels, side, side, device=device), torch.tensor(level, device=device)


def guidance_text(guidance: Guidance) -> str:
    """As on the command line."""
    interval = f" --guidance-interval={interval_to_text(guidance.interval)}" if guidance.interval else ""
    return f"--guidance={digits(guidance.strength)} --guide={guidance.guide}{interval}"
