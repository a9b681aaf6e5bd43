"""The training recipes: whole configurations of train.py by name, and the network that its options ask for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from training.augment import NUM_LABELS
from training.networks import ARCH_OPTIONS, ARCHITECTURES

NETWORK_OPTIONS = {  # constructor argument: the option of train.py that gives its value
    "model_channels": "cbase",
    "channel_mult": "cres",
    "num_blocks": "blocks",
    "attn_resolutions": "attn",
    "dropout": "dropout",
    "sigma_data": "sigma_data",
}
LOSS_OPTIONS = {"sigma_data": "sigma_data", "p_mean": "P_mean", "p_std": "P_std"}  # option: field of the loss

# EDM's "vp" and "ve" networks differ in --arch; both were trained with the EDM preconditioning and loss.
_CIFAR10 = {"precond": "edm", "batch": 512, "lr": 1e-3, "dropout": 0.13, "augment": 0.12, "duration": 200.0}
_FFHQ_64 = {
    "arch": "ncsnpp",
    "precond": "edm",
    "cond": False,
    "cres": (1, 2, 2, 2),
    "batch": 256,
    "lr": 2e-4,
    "dropout": 0.05,
    "augment": 0.15,
    "duration": 200.0,
}
_HANDS_32 = {  # small enough for two CPU cores: 1.2 M parameters, .24 GFLOP an image
    "arch": "ddpmpp",
    "precond": "edm",
    "cbase": 16,
    "cres": (1, 2, 4, 4),
    "blocks": 1,
    "attn": (8,),
    "batch": 64,
    "lr": 2e-3,
    "lr_rampup": 0.01,
    "ema": 0.02,
    "dropout": 0.0,
    "augment": 0.0,
    "p_mean": -0.6,
    "p_std": 1.3,
    "duration": 0.3,
    "tick": 2.0,
    "snap": 10,
}
_MNIST_32 = {**_HANDS_32, "dropout": 0.05, "duration": 0.25}

_MNIST_32_EDM2 = {  # small enough for one CPU core: 0.8 M parameters
    "arch": "edm2",
    "precond": "edm2",
    "cond": True,
    "cbase": 16,
    "cres": (1, 2, 4),
    "blocks": 1,
    "attn": (8,),
    "batch": 64,
    "lr": 0.01,
    "lr_rampup": 0.002,
    "lr_decay": 0.02,
    "augment": 0.0,
    "duration": 0.25,
    "tick": 2.0,
    "snap": 2,
}
_HANDS_32_EDM2 = {**_MNIST_32_EDM2, "cond": False, "p_mean": -0.6, "p_std": 1.3, "duration": 0.2}

RECIPES: dict[str, dict[str, Any]] = {
    "cifar10-32-vp": {"arch": "ddpmpp", "cond": False, **_CIFAR10},
    "cifar10-32-cond-vp": {"arch": "ddpmpp", "cond": True, **_CIFAR10},
    "cifar10-32-ve": {"arch": "ncsnpp", "cond": False, **_CIFAR10},
    "cifar10-32-cond-ve": {"arch": "ncsnpp", "cond": True, **_CIFAR10},
    "ffhq-64-ve": _FFHQ_64,
    "afhqv2-64-ve": {**_FFHQ_64, "dropout": 0.25},
    "hands-128-ve": {**_FFHQ_64, "cres": (1, 2, 2, 2, 2)},
    "hands-32": _HANDS_32,
    "hands-32-edm2": _HANDS_32_EDM2,
    "mnist-32": _MNIST_32,
    "mnist-32-cond": {**_MNIST_32, "cond": True, "label_dropout": 0.1, "snap": 2},
    "mnist-32-edm2": _MNIST_32_EDM2,
    "shapes-64": {**_HANDS_32, "cbase": 8, "attn": (16, 8), "duration": 0.2},
    "hands-64r": {**_HANDS_32, "cbase": 8, "cres": (1, 2, 4, 8), "xflip": True, "duration": 0.2},
}
"""The options of train.py, by their Python names, that each recipe gives a default to."""

PIXELS: dict[str, int] = {
    **dict.fromkeys(("cifar10-32-vp", "cifar10-32-cond-vp", "cifar10-32-ve", "cifar10-32-cond-ve"), 32),
    **dict.fromkeys(("ffhq-64-ve", "afhqv2-64-ve", "shapes-64", "hands-64r"), 64),
    **dict.fromkeys(("hands-32", "hands-32-edm2", "mnist-32", "mnist-32-cond", "mnist-32-edm2"), 32),
    "hands-128-ve": 128,
}
"""How many pixels across the images are that each recipe was made for."""

SOURCES: dict[str, str] = {
    "cifar10-32-vp": "EDM, Appendix F: CIFAR-10, DDPM++, unconditional",
    "cifar10-32-cond-vp": "EDM, Appendix F: CIFAR-10, DDPM++, class-conditional",
    "cifar10-32-ve": "EDM, Appendix F: CIFAR-10, NCSN++, unconditional",
    "cifar10-32-cond-ve": "EDM, Appendix F: CIFAR-10, NCSN++, class-conditional",
    "ffhq-64-ve": "EDM, Appendix F: FFHQ 64x64, NCSN++",
    "afhqv2-64-ve": "EDM, Appendix F: AFHQv2 64x64, NCSN++",
    "hands-128-ve": "ours: ffhq-64-ve with one more level for 128x128 (RODS, B.1: EDM's defaults on 11k-hands)",
    "hands-32": "ours: drawn hands at 32x32 on two CPU cores",
    "hands-32-edm2": "ours: mnist-32-edm2 without classes, for drawn hands",
    "mnist-32": "ours: hands-32 with some dropout, for the benchmark's handwritten digits",
    "mnist-32-cond": "ours: mnist-32 with classes, a tenth of them dropped for classifier-free guidance",
    "mnist-32-edm2": "ours: a small class-conditional EDM2 network for handwritten digits, on one CPU core",
    "shapes-64": "ours: hands-32 with half of its channels, for Simple Shapes at 64x64",
    "hands-64r": "ours: shapes-64 with more channels at 8x8 and mirrored images, for rendered hands at 64x64",
}
"""Where each recipe comes from, in a line."""


def network_kwargs(
    options: Mapping[str, Any], *, img_resolution: int, img_channels: int, label_dim: int = 0
) -> dict[str, Any]:
    """The constructor arguments of the network that these options of train.py ask for.

    Args:
        options: `arch` and, where given and not None, `cbase`, `cres`, `blocks`, `attn`, `dropout`,
            `label_dropout` and `augment`; others are passed over. A recipe will do.
    """
    arch = ARCH_OPTIONS[options["arch"]]
    known = ARCHITECTURES[arch["model_type"]].arguments
    kwargs = {"img_resolution": img_resolution, "img_channels": img_channels, "label_dim": label_dim, **arch}
    for name, option in NETWORK_OPTIONS.items():
        if name in known and (value := options.get(option)) is not None:
            kwargs[name] = list(value) if isinstance(value, tuple) else value
    if options.get("augment"):
        kwargs["augment_dim"] = NUM_LABELS
    if options.get("label_dropout"):  # left out where it is 0, as in the runs that knew no such option
        kwargs["label_dropout"] = options["label_dropout"]
    return kwargs
