"""Gates: what a readout computes and costs, whose layers it reads, and its file."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import SMALL
from exact import latents, mixture

from dnnlib.errors import UserError
from rods import Readout, Restart, bind
from rods.gate import activations, fingerprint, pooled, products
from rods.micro_batches import MicroBatches
from rods.runs.gates import read_gate, write_gate
from training.checkpoint import load_denoiser

BLOCK = "model.dec.8x8_block0"
SIGMA = torch.tensor(0.5, dtype=torch.float64)


def network() -> Any:
    return load_denoiser(SMALL)


def pictures(n: int = 6) -> torch.Tensor:
    return torch.randn(n, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def noise(k: int, n: int = 6) -> torch.Tensor:
    return torch.randn(k, n, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


def own() -> str:
    return fingerprint(network(), (BLOCK,))


def readout(*, quadratic: bool = True, draws: int = 2, blocks: tuple[str, ...] = (BLOCK,)) -> Readout:
    K = 8  # of 4 channels
    draw = torch.Generator().manual_seed(3)
    a, b, c, d = (torch.randn(n, generator=draw).tolist() for n in (K, K, K, K * (K + 1) // 2))
    scale = tuple(abs(v) + 0.5 for v in b)
    return Readout(blocks, 0.5, draws, own(), 0.25, tuple(a), scale, tuple(c), tuple(d) if quadratic else ())


def scored(
    gate: Readout, x: torch.Tensor, e: torch.Tensor, *, micro_batches: MicroBatches | None = None
) -> tuple[torch.Tensor, Any]:
    denoise = bind(network(), len(x), micro_batches=micro_batches)
    return gate.score(denoise, x, noise=e), denoise


# -- what it is -------------------------------------------------------------------------------------------------------


def test_it_is_the_regression_of_what_the_block_puts_out() -> None:
    net, r, x, e = network(), readout(), pictures(), noise(2)
    seen: list[torch.Tensor] = []
    net.get_submodule(BLOCK).register_forward_hook(lambda _m, _i, output: seen.append(output.double()))
    for draw in e:
        net(x + 0.5 * draw, SIGMA)
    p = sum(torch.cat([o.mean(dim=(2, 3)), o.var(dim=(2, 3), correction=0).sqrt()], dim=1) for o in seen) / 2
    z = (p - torch.tensor(r.mean)) / torch.tensor(r.scale)
    i, j = torch.triu_indices(8, 8)
    logit = 0.25 + z @ torch.tensor(r.linear).double() + (z[:, i] * z[:, j]) @ torch.tensor(r.quadratic).double()
    score, denoise = scored(r, x, e)
    torch.testing.assert_close(score, torch.sigmoid(logit), rtol=1e-4, atol=1e-6)
    assert score.std() > 0.03 * score.mean()
    assert denoise.forward.tolist() == [2] * 6
    assert denoise.backward.tolist() == [0] * 6
    assert not net.get_submodule("model.dec.8x8_in0")._forward_hooks


def test_an_image_is_scored_by_itself_and_memory_may_be_short() -> None:
    x, e = pictures(), noise(2)
    whole, _ = scored(readout(), x, e)
    for rows in (slice(0, 1), slice(2, 5)):
        torch.testing.assert_close(scored(readout(), x[rows], e[:, rows])[0], whole[rows], rtol=1e-5, atol=1e-6)
    batches = MicroBatches()
    batches.limits["forward"] = 4
    split, denoise = scored(readout(), x, e, micro_batches=batches)
    torch.testing.assert_close(split, whole, rtol=1e-5, atol=1e-6)
    assert denoise.forward.tolist() == [2] * 6


def test_pooling_has_its_closed_form() -> None:
    checker = torch.tensor([[1.0, -1.0], [-1.0, 1.0]])
    output = torch.stack([3 + 2 * checker, checker * 0 - 1])[None]
    torch.testing.assert_close(pooled(output), torch.tensor([[3.0, -1.0, 2.0, 0.0]], dtype=torch.float64))
    with pytest.raises(ValueError, match="choose one whose output is"):
        pooled(torch.zeros(2))
    torch.testing.assert_close(products(torch.tensor([[2.0, 3.0]])), torch.tensor([[4.0, 6.0, 9.0]]))


def test_only_a_network_with_that_block_has_it() -> None:
    with pytest.raises(ValueError, match="not a torch module"):
        activations(bind(mixture(), 6), latents().double(), SIGMA, torch.zeros(1, *latents().shape), (BLOCK,))
    with pytest.raises(ValueError, match=r"no module model\.dec\.9"):
        scored(readout(blocks=("model.dec.9",)), pictures(), noise(2))
    never = network()
    never.unused = torch.nn.Identity()
    with pytest.raises(ValueError, match="evaluations do not show unused"):
        activations(bind(never, 6), pictures(), SIGMA, noise(1), ("unused",))


@pytest.mark.parametrize(
    "change",
    [{"blocks": ("",)}, {"blocks": ()}, {"mean": (0.0,)}, {"scale": (0.0,) * 8}, {"linear": (math.nan,) * 8},
     {"quadratic": (1.0,) * 2}, {"quadratic": (1.0,) * 45}, {"sigma": 0.0}, {"draws": 0}, {"bias": math.inf},
     {"network": "small"}],
)  # fmt: skip
def test_what_is_no_readout_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"^readout: "):
        replace(readout(), **change)


# -- whose it is ------------------------------------------------------------------------------------------------------


def test_the_fingerprint_is_of_the_weights_alone() -> None:
    net = network()
    assert fingerprint(net.to(torch.float64), (BLOCK,)) == own()
    assert fingerprint(net.to(memory_format=torch.channels_last), (BLOCK,)) == own()
    others = fingerprint(net, ("model.dec.8x8_block1",)), fingerprint(net, (BLOCK, "model.dec.8x8_block1"))
    with torch.no_grad():
        next(net.get_submodule(BLOCK).parameters()).flatten()[0] += 1e-3
    assert len({own(), *others, fingerprint(net, (BLOCK,))}) == 4


def test_a_check_looks_for_the_block_and_whose_it_is() -> None:
    trained_on = network()
    with torch.no_grad():
        next(trained_on.get_submodule(BLOCK).parameters()).mul_(1.01)
    sampler = Restart(threshold=0.5, sigma_r=1.0, num_steps=4, detector=readout())
    sampler.check(network())
    sampler.check(bind(network(), 3))
    for block, denoiser, why in (
        ("model.x", network(), r"no module model\.x"),
        (BLOCK, mixture(), "not a torch module"),
        (BLOCK, trained_on, r"of another network \(model\.dec\.8x8_block0 has checksum"),
    ):
        with pytest.raises(ValueError, match=f"^detector: .*{why}"):
            replace(sampler, detector=readout(blocks=(block,))).check(denoiser)


# -- its file ---------------------------------------------------------------------------------------------------------


def as_float32(r: Readout) -> Readout:
    """The readout that its file holds."""
    arrays = {name: tuple(torch.tensor(getattr(r, name)).tolist()) for name in ("mean", "scale", "linear", "quadratic")}
    return replace(r, **arrays)


@pytest.mark.parametrize("quadratic", [False, True])
def test_its_file_is_read_back(quadratic: bool, tmp_path: Path) -> None:
    r, path = as_float32(readout(quadratic=quadratic, blocks=("a", "b"))), tmp_path / "x.readout.safetensors"
    write_gate(path, r)
    again = read_gate(path, "readout", option="--preset")
    assert again == r
    assert again.digest == r.digest
    write_gate(tmp_path / "y", again)
    assert (tmp_path / "y").read_bytes() == path.read_bytes()


def test_any_change_changes_the_checksum() -> None:
    r = readout()
    changes: list[dict[str, Any]] = [
        {"bias": 0.5}, {"sigma": 0.6}, {"draws": 3}, {"blocks": ("x",)}, {"network": "0" * 12},
        {"linear": (*r.linear[:-1], 0.0)}, {"quadratic": ()},
    ]  # fmt: skip
    assert len({r.digest, *(replace(r, **change).digest for change in changes)}) == len(changes) + 1


@pytest.mark.parametrize("content", [b"", b"{", b"\x08\0\0\0\0\0\0\0{}      "])
def test_a_file_that_is_none_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(content)
    for path in (tmp_path / "x", tmp_path / "absent"):
        with pytest.raises(UserError, match=r"^--preset: .* is not a readout"):
            read_gate(path, "readout", option="--preset")
