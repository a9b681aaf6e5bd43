"""Latents: a sampler there is the same sampler in the images' coordinates; the decoder gets a few rows at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from exact import close, golden, latents, mixture, normal
from torch import Tensor

from rods import Cas, Lid, Restart, RodsCas, Sampler, bind, guided
from rods.combinators import Within
from rods.guidance import Noisier
from rods.latents import codec_of, decoded, encoded, image_channels
from rods.micro_batches import MicroBatches
from rods.wrappers import FunctionDenoiser

S = 1.7  # of the latents: their noise levels are as much larger
SHAPE = (2, 3, 3)


@dataclass(frozen=True, eq=False)
class Rotation:
    """Latents z = S Q x + b of images x, with Q orthogonal: the decoder is linear, invertible and keeps noise white."""

    Q: Tensor = field(default_factory=lambda: torch.linalg.qr(normal(18, 18, seed=8))[0])
    b: Tensor = field(default_factory=lambda: normal(18, seed=9))
    img_channels: int = 2
    img_resolution: int = 3
    identity: str = "rotation"
    calls: list[int] = field(default_factory=list)

    def decode(self, latents: Tensor) -> Tensor:
        self.calls.append(len(latents))
        return ((latents.flatten(1) - self.b) @ self.Q / S).unflatten(1, SHAPE)

    def encode(self, images: Tensor, noise: Tensor) -> Tensor:
        return (S * images.flatten(1) @ self.Q.T + self.b).unflatten(1, SHAPE)

    def turned(self, noise: Tensor) -> Tensor:
        """White noise of the images as that of the latents, one unit of either."""
        return (noise.flatten(1) @ self.Q.T).unflatten(1, SHAPE)


def in_latents(codec: Rotation) -> FunctionDenoiser:
    """The mixture of the reference vectors, seen by a network that draws its latents."""

    def D(z: Tensor, sigma: Tensor) -> Tensor:
        x = ((z.flatten(1) - codec.b) @ codec.Q / S).unflatten(1, SHAPE)
        return codec.encode(mixture()(x, sigma / S), z)

    return FunctionDenoiser(D, 2, 3, codec=codec)


def both(sampler: Callable[[float], Sampler]) -> tuple[Any, Any, Rotation]:
    """Results of a sampler of images, sampler(1), and of the same one of latents, sampler(S)."""
    codec, draws = Rotation(), golden("samplers/mixture")["noise"].double()
    found = []
    for scale in (1.0, S):
        D = mixture() if scale == 1 else in_latents(codec)
        x = latents().double()
        noise = iter([*draws, *normal(64, *x.shape, seed=4)])

        def randn_like(like: Tensor, noise: Any = noise, is_latent: bool = scale != 1) -> Tensor:
            e = next(noise)
            return codec.turned(e) if is_latent else e

        start = x if scale == 1 else codec.turned(x) + codec.b.reshape(SHAPE) / (scale * 80)
        recorder, denoise = sampler(scale).recorder(), bind(D, 6, randn_like=randn_like)
        for step in sampler(scale).steps(denoise, start):
            recorder.add(step)
        found.append(recorder.result(denoise))
    return found[0], found[1], codec


def float64(values: Sequence[Any]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def grid(scale: float) -> dict[str, Any]:
    return {"num_steps": 12, "sigma_min": 0.02 * scale, "sigma_max": 80 * scale}


def test_cas_and_its_index_are_those_of_the_images() -> None:
    """Gradients by x are S times those by z, those of the norm of the score S^2 times."""
    eps = 0.2
    x, z, codec = both(lambda s: RodsCas(eps=eps / s**2, rho=0.5 * s, window=(0, 1), **grid(s)))
    assert close(decoded(in_latents(codec), z.images), x.images, tol=1e-9)
    assert 0 < sum(len(record.flagged) for record in x.records) < 72
    for a, b in zip(x.records, z.records, strict=True):
        assert (a.flagged, a.forward, a.backward) == (b.flagged, b.forward, b.backward)
    H, H_z = (float64([record.H for record in found.records]) for found in (x, z))
    assert close(H_z * S**2, H, tol=1e-9)
    H, H_z = (float64([record.H_scaled for record in found.records]) for found in (x, z))
    assert close(H_z, H, tol=1e-9)


def test_a_gated_restart_is_that_of_the_images() -> None:
    """With corrections inside and its own draws: scores, rounds and images."""
    x, z, codec = both(
        lambda s: Restart(
            threshold=0.6, sigma_r=3 * s, detector=Lid(sigma=0.5 * s, draws=4),
            inside=Within((0, 1), Cas(rho=0.2 * s)), **grid(s),
        )
    )  # fmt: skip
    assert close(decoded(in_latents(codec), z.images), x.images, tol=1e-9)
    rounds = [len(record.restart.scores) for record in x.records]
    assert max(rounds) > 1
    for a, b in zip(x.records, z.records, strict=True):
        assert close(float64(b.restart.scores), float64(a.restart.scores), tol=1e-9)
        assert a.restart.kept == b.restart.kept


def test_what_a_denoiser_shows_is_its_main_networks() -> None:
    D = in_latents(Rotation())
    assert codec_of(guided(D, Noisier(D), 2)) is codec_of(bind(D, 2)) is D.codec
    assert image_channels(D) == 2
    x = normal(3, *SHAPE)
    assert codec_of(mixture()) is None
    assert decoded(mixture(), x) is x
    assert encoded(mixture(), x, x) is x
    assert close(decoded(D, encoded(D, x, x)), x, tol=1e-12)


def test_the_decoder_gets_eight_rows_at_once_and_fewer_where_they_do_not_fit() -> None:
    codec = Rotation()
    D, z = in_latents(codec), normal(19, *SHAPE)
    whole = decoded(D, z)
    assert codec.calls == [8, 8, 3]
    assert decoded(D, z[:0]).shape == (0, *SHAPE)
    decode, parts = codec.decode, MicroBatches()

    def narrow(latents: Tensor) -> Tensor:
        if len(latents) > 2:
            raise MemoryError
        return decode(latents)

    object.__setattr__(codec, "decode", narrow)
    assert close(decoded(D, z, micro_batches=parts), whole, tol=1e-14)
    assert "decoded 2 at a time" in parts.describe()
