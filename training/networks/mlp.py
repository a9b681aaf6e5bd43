"""A multilayer perceptron for points: the F of a preconditioned denoiser where there is no image to convolve."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.networks.architecture import Architecture, Arguments, integer
from training.networks.layers import Init, Linear


class MLP(Architecture):
    """F(x; c_noise): `num_layers` hidden layers of `hidden` units (SiLU) on [x, c_noise], and a linear one.

    x [B, C, H, W] is read as a vector; c_noise is one more input, for a sample or for all. No class labels.
    """

    arguments: ClassVar[Arguments] = {"hidden": integer(1, 65536), "num_layers": integer(1, 64)}

    def __init__(
        self,
        img_resolution: int,
        in_channels: int,
        out_channels: int,
        label_dim: int = 0,
        hidden: int = 128,
        num_layers: int = 3,
    ) -> None:
        if label_dim:
            raise ValueError(f"label_dim={label_dim}: an MLP takes no class labels; leave it at 0")
        super().__init__()
        self.out_channels = out_channels
        pixels = img_resolution**2
        widths = [in_channels * pixels + 1, *[hidden] * num_layers]
        init = Init("kaiming_uniform", weight=math.sqrt(1 / 3), bias=math.sqrt(1 / 3))  # U(-1, 1) / sqrt(fan_in)
        self.layers = nn.ModuleList(Linear(n, m, init=init) for n, m in pairwise(widths))
        self.out = Linear(hidden, out_channels * pixels, init=init)

    @classmethod
    def least_size(cls, kwargs: Mapping[str, Any]) -> tuple[int, int]:
        """The weights of the hidden layers."""
        hidden, layers = kwargs.get("hidden", 1), kwargs.get("num_layers", 1)
        inputs = kwargs["img_channels"] * kwargs["img_resolution"] ** 2
        return hidden * (inputs + hidden * (layers - 1)), layers

    def forward(
        self, x: Tensor, c_noise: Tensor, class_labels: Tensor | None = None, augment_labels: Tensor | None = None
    ) -> Tensor:
        B, _, H, W = x.shape
        h = torch.cat([x.flatten(1), c_noise.to(x.dtype).reshape(-1, 1).expand(B, 1)], dim=1)  # [B, C H W + 1]
        for layer in self.layers:
            h = F.silu(layer(h))
        return self.out(h).reshape(B, self.out_channels, H, W)
