"""The preconditionings: D(x; s) = c_skip x + c_out F(c_in x; c_noise)  (EDM, Table 1), and EDM2's.

Each class is a `Denoiser`: called as D(x, sigma, class_labels=None) with x [B, C, H, W] and sigma a number, [] or [B];
the result is float32 [B, C, H, W]; one call is one forward pass (1 F).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from training.loss import EDM2Loss, EDMLoss, Loss, VELoss, VPLoss
from training.networks.architecture import Architecture, Arguments, choice, flag, integer, number
from training.networks.architectures import ARCHITECTURES
from training.networks.mp_layers import MPConv, MPFourier

Coefficients = tuple[Tensor | float, Tensor, Tensor | float, Tensor]  # c_skip, c_out, c_in, c_noise


class Precond(nn.Module):
    """What the classes share: the call, labels, and the precision around F."""

    wire_name: ClassVar[str | None] = None  # in EDM's pickles, where that is not the class's own name
    model_name: ClassVar[str] = "model"  # the attribute of F, and so the prefix of its parameters
    option: ClassVar[str | None] = None  # its name at train.py --precond; None: it is not trained here
    loss: ClassVar[type[Loss] | None] = None
    trained_with: ClassVar[Mapping[str, Any]] = {}  # arguments of a network that is trained here
    default_model: ClassVar[str]  # the architecture of a file that names none
    arguments: ClassVar[Arguments] = {  # which a network file may hold, beside those of the architecture
        "img_resolution": integer(1, 4096),
        "img_channels": integer(1, 64),
        "label_dim": integer(0, 100_000),
        "use_fp16": flag,
        "model_type": choice(ARCHITECTURES),
    }
    out_factor = 1  # channels that F returns per image channel
    model: Architecture
    codec: Any = None  # makes images of latents, where the network draws these (`rods.latents.Codec`); no part of it

    def __init__(
        self,
        img_resolution: int,
        img_channels: int,
        label_dim: int,
        use_fp16: bool,
        model_type: str,
        model_kwargs: dict[str, Any],
    ) -> None:
        super().__init__()
        if model_type not in ARCHITECTURES:
            raise ValueError(f"model_type={model_type!r} is unknown; use one of {', '.join(ARCHITECTURES)}")
        self.img_resolution, self.img_channels, self.label_dim = img_resolution, img_channels, label_dim
        self.use_fp16 = use_fp16
        self.sigma_min, self.sigma_max = 0.0, float("inf")
        out_channels = img_channels * self.out_factor
        model = ARCHITECTURES[model_type](img_resolution, img_channels, out_channels, label_dim, **model_kwargs)
        setattr(self, self.model_name, model)

    @classmethod
    def least_size(cls, kwargs: Mapping[str, Any]) -> tuple[int, int]:
        """(parameters, blocks) that a network with these checked arguments has at least."""
        return ARCHITECTURES[kwargs["model_type"]].least_size(kwargs)

    def decoder_blocks(self) -> dict[str, nn.Module]:
        """The blocks, by their paths, whose outputs describe the image at every scale; {} if it has none."""
        return {f"{self.model_name}.{path}": block for path, block in self.model.decoder_blocks().items()}

    def coefficients(self, sigma: Tensor) -> Coefficients:
        """(c_skip, c_out, c_in, c_noise) for sigma [B or 1, 1, 1, 1] in float32."""
        raise AssertionError("a preconditioning defines its own coefficients")

    def round_sigma(self, sigma: Tensor | float) -> Tensor:
        """The nearest noise level that this network was trained at (all of them, but for iDDPM)."""
        return torch.as_tensor(sigma)

    def forward(
        self,
        x: Tensor,
        sigma: Tensor | float,
        class_labels: Tensor | None = None,
        force_fp32: bool = False,
        augment_labels: Tensor | None = None,
    ) -> Tensor:
        x = x.to(torch.float32)
        s = torch.as_tensor(sigma, device=x.device).to(torch.float32).reshape(-1, 1, 1, 1)
        labels = None
        if self.label_dim:
            zeros = torch.zeros([1, self.label_dim], device=x.device)
            labels = zeros if class_labels is None else class_labels.to(torch.float32).reshape(-1, self.label_dim)
        half = self.use_fp16 and not force_fp32 and not self.training and x.device.type == "cuda"
        c_skip, c_out, c_in, c_noise = self.coefficients(s)
        F_x = self.model(
            (c_in * x).to(torch.float16 if half else torch.float32), c_noise.flatten(), labels, augment_labels
        )
        return c_skip * x + c_out * F_x[:, : self.img_channels].to(torch.float32)


class EDMPrecond(Precond):
    option, loss, default_model = "edm", EDMLoss, "DhariwalUNet"
    arguments: ClassVar[Arguments] = {
        **Precond.arguments,
        "sigma_min": number(0, math.inf),
        "sigma_max": number(0, math.inf),
        "sigma_data": number(1e-6, 1e6),
    }

    def __init__(
        self,
        img_resolution: int,
        img_channels: int,
        label_dim: int = 0,
        use_fp16: bool = False,
        sigma_min: float = 0,
        sigma_max: float = float("inf"),
        sigma_data: float = 0.5,
        model_type: str = "DhariwalUNet",
        **model_kwargs: Any,  # flat, as the file format has them; the U-Net's signature refuses unknown ones
    ) -> None:
        super().__init__(img_resolution, img_channels, label_dim, use_fp16, model_type, model_kwargs)
        self.sigma_min, self.sigma_max, self.sigma_data = sigma_min, sigma_max, sigma_data

    def coefficients(self, sigma: Tensor) -> Coefficients:
        norm2 = sigma**2 + self.sigma_data**2
        return self.sigma_data**2 / norm2, sigma * self.sigma_data / norm2.sqrt(), 1 / norm2.sqrt(), sigma.log() / 4


class EDM2Precond(EDMPrecond):
    """EDM's preconditioning, and what its loss has learned of each noise level: logvar(sigma), u(sigma) of Eq. 21.

    Sampling needs no u(sigma).
    """

    wire_name, model_name = "Precond", "unet"
    option, loss, default_model = "edm2", EDM2Loss, "EDM2UNet"
    trained_with: ClassVar[Mapping[str, Any]] = {"use_fp16": False}
    arguments: ClassVar[Arguments] = {
        **Precond.arguments,
        "sigma_data": number(1e-6, 1e6),
        "logvar_channels": integer(1, 65536),
    }
    unet: Architecture

    def __init__(
        self,
        img_resolution: int,
        img_channels: int,
        label_dim: int = 0,
        use_fp16: bool = True,
        sigma_data: float = 0.5,
        logvar_channels: int = 128,
        model_type: str = "EDM2UNet",
        **model_kwargs: Any,
    ) -> None:
        super().__init__(
            img_resolution, img_channels, label_dim, use_fp16, sigma_data=sigma_data, model_type=model_type,
            **model_kwargs,
        )  # fmt: skip
        self.logvar_fourier = MPFourier(logvar_channels)
        self.logvar_linear = MPConv(logvar_channels, 1)

    @property
    def model(self) -> Architecture:  # type: ignore[override]
        """F, which EDM2's files call `unet`."""
        return self.unet

    def logvar(self, sigma: Tensor) -> Tensor:
        """u(sigma) for sigma [B or 1, 1, 1, 1], in its shape."""
        c_noise = self.coefficients(sigma.to(torch.float32))[3]
        with torch.autocast(sigma.device.type, enabled=False):
            return self.logvar_linear(self.logvar_fourier(c_noise.flatten())).reshape(sigma.shape)


class VPPrecond(Precond):
    option, loss, default_model = "vp", VPLoss, "SongUNet"
    arguments: ClassVar[Arguments] = {
        **Precond.arguments,
        "beta_d": number(1e-6, 1e3),
        "beta_min": number(0, 1e3),
        "M": integer(2, 100_000),
        "epsilon_t": number(1e-12, 1),
    }

    def __init__(
        self,
        img_resolution: int,
        img_channels: int,
        label_dim: int = 0,
        use_fp16: bool = False,
        beta_d: float = 19.9,
        beta_min: float = 0.1,
        M: int = 1000,
        epsilon_t: float = 1e-5,
        model_type: str = "SongUNet",
        **model_kwargs: Any,
    ) -> None:
        super().__init__(img_resolution, img_channels, label_dim, use_fp16, model_type, model_kwargs)
        self.beta_d, self.beta_min, self.M, self.epsilon_t = beta_d, beta_min, M, epsilon_t
        self.sigma_min, self.sigma_max = float(self.sigma(epsilon_t)), float(self.sigma(1))

    def coefficients(self, sigma: Tensor) -> Coefficients:
        return 1.0, -sigma, 1 / (sigma**2 + 1).sqrt(), (self.M - 1) * self.sigma_inv(sigma)

    def sigma(self, t: Tensor | float) -> Tensor:
        """sigma(t) = sqrt(exp(beta_d t^2 / 2 + beta_min t) - 1), in float32 as the published range was computed."""
        t = torch.as_tensor(t, dtype=torch.float32)
        return ((0.5 * self.beta_d * t**2 + self.beta_min * t).exp() - 1).sqrt()

    def sigma_inv(self, sigma: Tensor) -> Tensor:
        return ((self.beta_min**2 + 2 * self.beta_d * (1 + sigma**2).log()).sqrt() - self.beta_min) / self.beta_d


class VEPrecond(Precond):
    option, loss, default_model = "ve", VELoss, "SongUNet"
    arguments: ClassVar[Arguments] = {
        **Precond.arguments,
        "sigma_min": number(0, math.inf),
        "sigma_max": number(0, math.inf),
    }

    def __init__(
        self,
        img_resolution: int,
        img_channels: int,
        label_dim: int = 0,
        use_fp16: bool = False,
        sigma_min: float = 0.02,
        sigma_max: float = 100,
        model_type: str = "SongUNet",
        **model_kwargs: Any,
    ) -> None:
        super().__init__(img_resolution, img_channels, label_dim, use_fp16, model_type, model_kwargs)
        self.sigma_min, self.sigma_max = sigma_min, sigma_max

    def coefficients(self, sigma: Tensor) -> Coefficients:
        return 1.0, sigma, 1.0, (0.5 * sigma).log()


class iDDPMPrecond(Precond):  # noqa: N801  (the name in EDM's files)
    out_factor = 2  # the second half predicts a variance that no sampler here uses
    u: Tensor

    default_model = "DhariwalUNet"
    arguments: ClassVar[Arguments] = {
        **Precond.arguments,
        "C_1": number(1e-12, 1),
        "C_2": number(0, 1),
        "M": integer(2, 10_000),
    }

    def __init__(
        self,
        img_resolution: int,
        img_channels: int,
        label_dim: int = 0,
        use_fp16: bool = False,
        C_1: float = 0.001,
        C_2: float = 0.008,
        M: int = 1000,
        model_type: str = "DhariwalUNet",
        **model_kwargs: Any,
    ) -> None:
        super().__init__(img_resolution, img_channels, label_dim, use_fp16, model_type, model_kwargs)
        self.C_1, self.C_2, self.M = C_1, C_2, M
        u = torch.zeros(M + 1)
        for j in range(M, 0, -1):  # u_M = 0, and upwards in noise from there
            ratio = self.alpha_bar(j - 1) / self.alpha_bar(j)
            u[j - 1] = ((u[j] ** 2 + 1) / ratio.clip(min=C_1) - 1).sqrt()
        self.register_buffer("u", u)
        self.sigma_min, self.sigma_max = float(u[M - 1]), float(u[0])

    @classmethod
    def least_size(cls, kwargs: Mapping[str, Any]) -> tuple[int, int]:
        parameters, blocks = super().least_size(kwargs)
        return parameters + kwargs.get("M", 1000), blocks

    def alpha_bar(self, j: int) -> Tensor:
        return (0.5 * torch.pi * torch.as_tensor(j, dtype=torch.float32) / self.M / (self.C_2 + 1)).sin() ** 2

    def coefficients(self, sigma: Tensor) -> Coefficients:
        c_noise = (self.M - 1 - self.nearest(sigma)).to(torch.float32)
        return 1.0, -sigma, 1 / (sigma**2 + 1).sqrt(), c_noise

    def nearest(self, sigma: Tensor) -> Tensor:
        """Index j of the u_j nearest to each sigma."""
        flat = sigma.to(device=self.u.device, dtype=torch.float32).reshape(-1, 1)
        return (flat - self.u).abs().argmin(dim=1).reshape(sigma.shape)

    def round_sigma(self, sigma: Tensor | float) -> Tensor:
        s = torch.as_tensor(sigma)
        return self.u[self.nearest(s)].to(dtype=s.dtype if s.is_floating_point() else torch.float32, device=s.device)
