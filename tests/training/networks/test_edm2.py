"""EDM2's networks: outputs of the original, its files, what its layers preserve, and what runs on them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
import torch
from click.testing import CliRunner
from commands import generate, generated, records, refusal
from torch import Tensor
from vectors import relative_error, tensors, vector_file

import fid
from dnnlib.errors import UserError
from rods import edm_sampler
from rods.bench.readout_fit import decoder_blocks, pooled_activations
from rods.schedules import edm_grid
from scripts.convert import main as convert
from torch_utils.persistence import module_tensors, read_pickle
from training.checkpoint import load_denoiser, load_snapshot, save_snapshot
from training.model_zoo import PUBLISHED, locate, with_published
from training.networks import PICKLED_PRECONDS, EDM2Precond, EDM2UNet, EDMPrecond
from training.networks.edm2 import MPBlock
from training.networks.mp_layers import MPConv, MPFourier, mp_cat, mp_silu, mp_sum, normalize, normalize_weights
from training.schema import check_init_kwargs

CONFIGS: dict[str, dict[str, Any]] = json.loads(vector_file("edm2/networks/edm2-configs.json").read_text())
LATENT = "edm2-latent-cond"
TINY = {"img_resolution": 8, "img_channels": 1, "label_dim": 3, "model_channels": 8, "channel_mult": [1, 2],
        "num_blocks": 1, "attn_resolutions": [4], "channels_per_head": 8}  # fmt: skip


def pickled(name: str) -> Path:
    return vector_file(f"edm2/pickles/{name}.pkl")


def tiny(**changes: Any) -> EDM2Precond:
    """A network with random weights whose gains are not at 0, where they start."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = EDM2Precond(**{**TINY, **changes}).eval().requires_grad_(False)
    for name, p in net.named_parameters():
        if name.endswith("gain"):
            p.fill_(0.5)
    return net


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny class-conditional network of one channel, as a file."""
    path = tmp_path_factory.mktemp("edm2") / "tiny.safetensors"
    save_snapshot(path, tiny(), init_kwargs=TINY)
    return path


# --- the reference ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CONFIGS)
def test_pickle_gives_the_reference_outputs(name: str) -> None:
    net, v = load_denoiser(pickled(name)), tensors(f"edm2/networks/{name}.npz")
    assert (net.sigma_min, net.sigma_max, net.use_fp16) == (0, float("inf"), True)
    x = v["x"].clone().requires_grad_(True)
    D = net(x, v["sigma"], v.get("labels"))
    (grad,) = torch.autograd.grad(D.sum(), x)
    assert D.dtype == torch.float32
    assert relative_error(D, v["D"]) <= 1e-5
    assert relative_error(grad, v["grad_sum_D"]) <= 1e-5
    assert isinstance(net, EDM2Precond)
    assert relative_error(net.logvar(v["sigma"].reshape(-1, 1, 1, 1)), v["logvar"]) <= 1e-5
    if "labels" in v:
        assert relative_error(net(v["x"], v["sigma"]), v["D_nolabel"]) <= 1e-5
    labels = v["labels"][: len(v["latents"])] if "labels" in v else None
    assert relative_error(edm_sampler(net, v["latents"], labels, num_steps=6), v["edm_sampler_6"]) <= 1e-4


@pytest.mark.parametrize("name", CONFIGS)
def test_configuration_builds_the_reference_network(name: str) -> None:
    config = CONFIGS[name]
    kind = PICKLED_PRECONDS[config["class_name"]]
    kwargs = check_init_kwargs(kind.__name__, config["init_kwargs"])
    net = kind(**kwargs)
    state = module_tensors(read_pickle(memoryview(pickled(name).read_bytes()))["ema"])  # type: ignore[index]
    assert {k: t.shape for k, t in net.state_dict().items()} == {k: t.shape for k, t in state.items()}
    parameters = sum(p.numel() for p in net.parameters())
    assert parameters / 5 < net.least_size(kwargs)[0] < parameters


def guided(guide: str, w: float) -> Callable[..., Tensor]:
    """D of edm2-cond with a guide, by the formula: what these networks are to guidance."""
    main, weaker = load_denoiser(pickled("edm2-cond")), load_denoiser(pickled(guide))

    def D(x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        weak = weaker(x, sigma, labels if weaker.label_dim else None)
        return weak + w * (main(x, sigma, labels) - weak)

    return D


@pytest.mark.parametrize(
    ("result", "guide", "w"),
    [
        ("guided_uncond_1.7", "edm2-guide-uncond", 1.7),
        ("guided_auto_2.3", "edm2-guide-auto", 2.3),
        ("guided_auto_0.5", "edm2-guide-auto", 0.5),
        ("unguided", "edm2-guide-auto", 1.0),
    ],
)
def test_guided_sampling_is_the_reference(result: str, guide: str, w: float) -> None:
    v = tensors("edm2/networks/edm2-guidance.npz")
    assert relative_error(edm_sampler(guided(guide, w), v["latents"], v["labels"], num_steps=8), v[result]) <= 1e-4


def test_guided_sampling_with_churn_is_the_reference() -> None:
    """The original draws noise at the steps that churn alone, this project at each: here its draws, at those."""
    v = tensors("edm2/networks/edm2-guidance.npz")
    levels, draws = edm_grid(8, sigma_min=0.002, sigma_max=80), iter(v["noise"])
    churned = iter([0.05 <= float(t) <= 50 for t in levels])

    def noise(x: Tensor) -> Tensor:
        return next(draws) if next(churned) else torch.zeros_like(x)

    options = {"S_churn": 20, "S_min": 0.05, "S_max": 50, "S_noise": 1.003}
    D = guided("edm2-guide-uncond", 1.7)
    x = edm_sampler(D, v["latents"], v["labels"], num_steps=8, randn_like=noise, **options)
    assert relative_error(x, v["guided_uncond_1.7_churn_20_0.05_50_1.003"]) <= 1e-4
    assert len(list(draws)) == 3  # 5 of the 8 steps churn


def test_a_converted_pickle_is_the_same_network(tmp_path: Path) -> None:
    source, dest = pickled(LATENT), tmp_path / "latent.safetensors"
    result = CliRunner().invoke(convert, [f"--source={source}", f"--dest={dest}"])
    assert result.exit_code == 0, result.output
    before, after = load_snapshot(source), load_snapshot(dest)
    a, b = before.net.state_dict(), after.net.state_dict()
    assert a.keys() == b.keys()
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert (after.header.class_name, after.header.init_kwargs["model_type"]) == ("EDM2Precond", "EDM2UNet")
    assert after.header.init_kwargs == before.header.init_kwargs


def test_a_genuine_pickle_with_a_hostile_argument_is_refused_by_name(tmp_path: Path) -> None:
    content, taps = pickled("edm2-mults").read_bytes(), b"K\x01K\x03K\x03K\x01e"
    assert taps in content
    (tmp_path / "sum.pkl").write_bytes(content.replace(taps, b"K\x00K\x00K\x00K\x00e"))
    with pytest.raises(UserError, match="resample_filter="):
        load_denoiser(tmp_path / "sum.pkl")
    (tmp_path / "odd.pkl").write_bytes(content.replace(taps, b"K\x01K\x03NNK\x01e"))
    with pytest.raises(UserError, match="resample_filter="):
        load_denoiser(tmp_path / "odd.pkl")
    (tmp_path / "name.pkl").write_bytes(content.replace(b"channel_mult_emb", b"channel_mult_emc"))
    with pytest.raises(UserError, match="takes no argument 'channel_mult_emc'"):
        load_denoiser(tmp_path / "name.pkl")
    with pytest.raises(ValueError, match="even length"):
        tiny(resample_filter=[1, 2, 1])


# --- what the layers preserve ----------------------------------------------------------------------------------------


def rms(x: Tensor) -> float:
    return float(x.detach().square().mean().sqrt())


def test_layers_preserve_magnitude() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(8, 64, 16, 16), torch.randn(8, 32, 16, 16)
    assert rms(MPConv(64, 32, 1)(x)) == pytest.approx(1, abs=0.02)
    assert rms(MPConv(64, 32)(torch.randn(1000, 64))) == pytest.approx(1, abs=0.02)
    assert rms(mp_silu(x)) == pytest.approx(1, abs=0.01)
    for t in (0.0, 0.3, 0.5, 1.0):
        assert rms(mp_sum(x, torch.randn_like(x), t)) == pytest.approx(1, abs=0.01)
        assert rms(mp_cat(x, y, t)) == pytest.approx(1, abs=0.01)
    a, b = mp_cat(x, y, 0.3).split([64, 32], dim=1)
    assert b.square().sum() / a.square().sum() == pytest.approx((0.3 / 0.7) ** 2, rel=0.02)
    assert rms(MPFourier(4096)(torch.randn(64))) == pytest.approx(1, abs=0.02)
    assert rms(normalize(100 * x, dim=1)) == pytest.approx(1, abs=1e-3)


def test_activations_of_a_new_network_keep_their_magnitude() -> None:
    torch.manual_seed(0)
    net = EDM2UNet(32, 3, 3, model_channels=32, channel_mult=[1, 2, 2], num_blocks=2, channels_per_head=16)
    found: list[float] = []
    for block in net.blocks():
        block.register_forward_hook(lambda module, args, y: found.append(rms(y)))
    with torch.no_grad():
        out = net(torch.randn(2, 3, 32, 32), torch.randn(2))
    assert len(found) == len(net.blocks()) == 21
    assert 0.6 < min(found) <= max(found) < 1.1
    assert float(out.abs().max()) == 0  # its gain starts at 0, so that D = c_skip x


def test_only_the_direction_of_weights_matters_and_forced_normalisation_shows_it() -> None:
    net, scaled = tiny(), tiny()
    for module in scaled.modules():
        if isinstance(module, MPConv):
            module.weight.data *= 7
    x, sigma = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([0.3, 5.0])
    assert relative_error(scaled(x, sigma), net(x, sigma)) < 2e-3  # eps of the norm: 1e-4 in each of 30 layers
    normalize_weights(scaled)
    assert relative_error(scaled(x, sigma), net(x, sigma)) < 2e-3
    weights = [m.weight.square().flatten(1).mean(1).sqrt() for m in scaled.modules() if isinstance(m, MPConv)]
    assert torch.cat(weights).tolist() == pytest.approx([1.0] * len(torch.cat(weights)), abs=3e-4)
    gains = [float(p) for name, p in scaled.named_parameters() if name.endswith("gain")]
    assert gains == [0.5] * len(gains)


def test_heads_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="16 channels do not divide into 3 attention heads"):
        tiny(channels_per_head=5)


def test_a_narrow_network_has_no_attention_and_says_so() -> None:
    net = tiny(channels_per_head=64)
    assert net.model.attention_resolutions() == []
    assert not any(isinstance(m, MPBlock) and m.num_heads for m in net.modules())


# --- what runs on them -----------------------------------------------------------------------------------------------

FAMILIES = {
    "edm": ["--sampler=edm", "--S_churn=5"],
    "euler": ["--sampler=euler"],
    "ablation": ["--sampler=ablation", "--disc=vp", "--schedule=vp", "--scaling=vp"],
    "rods-cas": ["--sampler=rods-cas", "--eps=0", "--detect=true", "--rho=1", "--window=0,1"],
    "rods-cas on heun": ["--sampler=rods-cas", "--eps=0", "--rho=1", "--window=0,1", "--solver=heun"],
    "restart by lid": ["--sampler=restart", "--detector=lid", "--threshold=0", "--sigma-r=2"],
}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_of_samplers_runs(family: str, snapshot: Path, tmp_path: Path) -> None:
    options = ["--seeds=0-2", "--class=1", *FAMILIES[family]]
    generated(tmp_path / "out", *options, network=snapshot, steps=3)
    lines = records(tmp_path / "out")
    assert [line["class"] for line in lines] == [1, 1, 1]
    assert all(line["sha256"] for line in lines)
    if family == "restart by lid":
        assert all(len(line["restart"]["scores"]) > 1 for line in lines)  # threshold 0: all go back


def test_a_class_that_it_has_not_got_is_one_line(snapshot: Path, tmp_path: Path) -> None:
    code, output = generate(tmp_path / "out", "--class=3", network=snapshot)
    assert (code, output.count("\n")) == (2, 1)
    assert not (tmp_path / "out").exists()


def test_latents_are_refused_in_one_line_that_says_what_is_missing(tmp_path: Path) -> None:
    code, output = generate(tmp_path / "out", network=pickled(LATENT))
    assert (code, output.count("\n")) == (2, 1)
    assert "draws latents of stabilityai/sd-vae-ft-mse" in output
    assert "--vae" in output or "pip install diffusers" in output
    assert not (tmp_path / "out").exists()


def test_float16_inside_is_close() -> None:
    """As on CUDA: the types inside F are those of EDM2, float32 for the embedding and norms."""
    net = tiny(img_channels=2)
    x, c_noise, labels = (
        torch.randn(3, 2, 8, 8, generator=torch.Generator().manual_seed(0)),
        torch.zeros(3),
        torch.eye(3),
    )
    half = net.model(x.half(), c_noise, labels)
    assert half.dtype == torch.float16
    assert net.unet.embed(c_noise, labels).dtype == torch.float32
    assert relative_error(half.float(), net.model(x, c_noise, labels)) < 0.01


def test_images_do_not_depend_on_the_batch() -> None:
    net = tiny()
    x = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    labels = torch.eye(3)
    together = net(x, 0.7, labels)
    for b in range(3):
        assert relative_error(net(x[b : b + 1], 0.7, labels[b : b + 1]), together[b : b + 1]) < 1e-6


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")  # torch's own decompositions
def test_it_is_differentiated_forwards_and_backwards_alike() -> None:
    """u . J v by a Jacobian-vector product, and by a vector-Jacobian one."""
    net, g = tiny(), torch.Generator().manual_seed(0)
    x, u, v = torch.randn(3, 1, 1, 8, 8, generator=g)
    _, Jv = torch.func.jvp(lambda x: net(x, 0.7), (x,), (v,))
    _, vjp = torch.func.vjp(lambda x: net(x, 0.7), x)
    assert float((u * Jv).sum()) == pytest.approx(float((vjp(u)[0] * v).sum()), rel=1e-4)


def test_blocks_of_the_decoder_are_found_and_read() -> None:
    net = tiny()
    blocks = decoder_blocks(net)
    assert blocks == tuple(f"unet.dec.{r}x{r}_block{i}" for r in (4, 8) for i in range(2))
    images = np.random.default_rng(0).integers(0, 256, (5, 1, 8, 8), dtype=np.uint8)
    found = pooled_activations(net, images, 1.0, blocks, draws=1, batch=2, report=lambda n: None)
    assert {block: p.shape for block, p in found.items()} == {
        block: (5, 2 * net.get_submodule(block).conv_res1.weight.shape[0]) for block in blocks
    }
    assert all(np.isfinite(p).all() and p.std(axis=0).max() > 0.01 for p in found.values())


def test_its_preconditioning_and_network_go_with_the_others() -> None:
    """Architecture and preconditioning are two entries: neither asks for the other by name."""
    x = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    net = tiny()
    same = EDMPrecond(model_type="EDM2UNet", **TINY).eval()
    same.model.load_state_dict(net.model.state_dict())
    assert torch.equal(same(x, 0.7), net(x, 0.7))
    other = EDM2Precond(8, 1, model_type="SongUNet", model_channels=4, channel_mult=[1], num_blocks=1)
    assert next(iter(other.state_dict())).startswith("unet.")
    assert other.logvar(torch.ones(1, 1, 1, 1)).shape == (1, 1, 1, 1)


# --- published networks ----------------------------------------------------------------------------------------------


def test_published_names_stand_for_files_in_the_container_of_the_paper() -> None:
    assert len(PUBLISHED) > 40
    for name, found in PUBLISHED.items():
        assert found.network.url.startswith("https://")
        assert found.network.url.endswith(".pkl")
        assert found.network.sha256 is None  # none is known here
        assert (found.guide is None) == (found.strength == 1)
        assert ("guid" in name or "autog" in name) == (found.guide is not None)
        assert found.guide is None or 1.2 <= found.strength <= 2.9  # the range of the papers
    assert PUBLISHED["edm2-img512-xs-fid"].network.url.endswith("/edm2-img512-xs-2147483-0.135.pkl")
    for size in ("xs", "s", "m", "l", "xl", "xxl"):
        assert {f"edm2-img512-{size}-{kind}" for kind in ("fid", "dino", "guid-fid", "guid-dino")} <= PUBLISHED.keys()


def test_without_a_connection_a_name_says_which_files_to_fetch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise requests.exceptions.ConnectionError

    monkeypatch.setattr(requests, "get", refuse)
    monkeypatch.setenv("DNNLIB_CACHE_DIR", str(tmp_path / "cache"))
    code, output = generate(tmp_path / "out", network=Path("edm2-img64-s-fid"))
    assert (code, output.count("\n")) == (2, 1)
    assert "edm2-img64-s-1073741-0.075.pkl" in output
    assert f"put the file at {tmp_path / 'cache'}" in output
    assert "--vae" not in output, "it draws pixels"
    code, output = generate(tmp_path / "out", network=Path("edm2-img512-xs-guid-fid"))
    assert (code, output.count("\n")) == (2, 1)
    assert "--preset=edm2-img512-xs-guid-fid" in output
    found = PUBLISHED["edm2-img512-xs-guid-fid"]
    assert found.guide is not None
    code, output = generate(tmp_path / "out", "--preset=edm2-img512-xs-guid-fid", "-n", network=None)
    assert (code, output.count("\n")) == (2, 1)
    assert f"put the file at {tmp_path / 'cache'}" in output
    assert found.network.url in output
    assert f"--guide={found.guide.url} --guidance=1.4 --vae=FOLDER" in output
    assert "diffusion_pytorch_model.safetensors of https://huggingface.co/stabilityai/sd-vae-ft-mse" in output
    code, output = generate(tmp_path / "out", network=Path("edm2-img512-xs-fid"))
    assert (code, output.count("\n")) == (2, 1)
    stands_for = f"xs-fid stands for --network={PUBLISHED['edm2-img512-xs-fid'].network.url} --vae=FOLDER"
    assert stands_for in output
    _, output = generate(tmp_path / "out", "--preset=none", network=Path("edm2-img512-xs-fid"))
    assert stands_for in output, "whatever preset is asked for"
    assert output.count("--network: ") == 1
    np.savez(tmp_path / "ref.npz", mu=np.zeros(192), sigma=np.eye(192))
    sampled = ("--from-network=edm2-img512-xs-fid", "--num=2", "--detector=pixels", f"--ref={tmp_path / 'ref.npz'}")
    told = refusal(fid.main, "calc", *sampled)
    assert stands_for in told
    assert not (tmp_path / "out").exists()


def test_a_published_preset_is_its_files_and_strength_but_for_what_is_given() -> None:
    nothing = dict.fromkeys(("network", "sha256", "guidance", "guide", "guidance_interval", "guide_sha256"))
    found = PUBLISHED["edm2-img512-s-autog-fid"]
    assert found.guide is not None
    options = with_published({**nothing, "preset": "edm2-img512-s-autog-fid", "steps": 8})
    assert options == {
        **nothing, "preset": None, "steps": 8, "network": found.network.url, "guide": found.guide.url, "guidance": 2.1
    }  # fmt: skip
    given = {**nothing, "network": "here.pkl", "guidance": 1.5, "guide_sha256": "0" * 64}
    options = with_published({**given, "preset": "edm2-img512-s-autog-fid"})
    assert options == {**given, "preset": None, "guide": found.guide.url}
    other = {**nothing, "preset": "hands-32"}
    assert with_published(other) == other


def test_a_file_goes_before_a_published_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    name = "edm2-img64-s-fid"
    assert locate(name) == PUBLISHED[name].network
    save_snapshot(tmp_path / name, tiny(), init_kwargs=TINY)
    assert locate(name) is None
    assert load_snapshot(name).name == name
    assert locate("some/other.pkl") is None
