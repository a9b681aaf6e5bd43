"""EDM pickles and our snapshots: loaded networks give the reference outputs, and what was loaded is reported."""

from __future__ import annotations

import hashlib
import json
import stat

import pytest
import torch
from click.testing import CliRunner
from safetensors import safe_open
from vectors import CONFIGS, relative_error, tensors, vector_file

from dnnlib.errors import UserError
from scripts.convert import main as convert
from torch_utils.persistence import read_pickle
from training.checkpoint import load_denoiser, load_snapshot, save_snapshot
from training.networks import EDMPrecond

TOLERANCE = 1e-5
SMALL = "edm-ncsnpp-cond"


def check_outputs(net: torch.nn.Module, name: str) -> None:
    v = tensors(f"networks/{name}.npz")
    assert net.sigma_min == pytest.approx(float(v["sigma_min"]), rel=1e-9)
    assert net.sigma_max == pytest.approx(float(v["sigma_max"]), rel=1e-9)
    x = v["x"].clone().requires_grad_(True)
    D = net(x, v["sigma"], v.get("labels"))
    (grad,) = torch.autograd.grad(D.sum(), x)
    assert D.dtype == torch.float32
    assert relative_error(D, v["D"]) <= TOLERANCE
    assert relative_error(grad, v["grad_sum_D"]) <= TOLERANCE
    with torch.no_grad():
        if "labels" in v:
            assert relative_error(net(v["x"], v["sigma"]), v["D_nolabel"]) <= TOLERANCE
        if "augment_labels" in v:
            D = net(v["x"], v["sigma"], v.get("labels"), augment_labels=v["augment_labels"])
            assert relative_error(D, v["D_augment"]) <= TOLERANCE


@pytest.mark.parametrize("name", CONFIGS)
def test_pickle_gives_the_reference_outputs(name: str) -> None:
    net = load_denoiser(vector_file(f"pickles/{name}.pkl"))
    assert not net.training
    assert not any(p.requires_grad for p in net.parameters())
    check_outputs(net, name)


@pytest.mark.parametrize("name", ["edm-ncsnpp-cond", "edm-ddpmpp-uncond", "iddpm-adm-cond", "vp-ddpmpp-uncond"])
def test_converted_snapshot_is_the_same_network(name: str, tmp_path) -> None:
    source, dest = vector_file(f"pickles/{name}.pkl"), tmp_path / "new" / "network-snapshot-000000.safetensors"
    result = CliRunner().invoke(convert, [f"--source={source}", f"--dest={dest}"])
    assert result.exit_code == 0, result.output
    before, after = load_snapshot(source), load_snapshot(dest)
    a, b = before.net.state_dict(), after.net.state_dict()
    assert a.keys() == b.keys()
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert before.header.init_kwargs == after.header.init_kwargs
    assert after.header.dataset == "example-16x16"
    assert after.header.extra["converted_from"] == {"name": name, "sha256": before.sha256}
    check_outputs(after.net, name)
    assert stat.S_IMODE(dest.stat().st_mode) == stat.S_IMODE((tmp_path / "new").stat().st_mode) & 0o666


def test_convert_stores_bfloat16_but_keeps_buffers(tmp_path) -> None:
    source, dest = vector_file(f"pickles/{SMALL}.pkl"), tmp_path / "half.safetensors"
    assert CliRunner().invoke(convert, [f"--source={source}", f"--dest={dest}", "--dtype=bf16"]).exit_code == 0
    assert dest.stat().st_size < 0.7 * source.stat().st_size
    with safe_open(dest, framework="pt") as f:
        assert f.get_tensor("model.enc.16x16_conv.weight").dtype == torch.bfloat16
        assert f.get_tensor("model.map_noise.freqs").dtype == torch.float32
    before, after = load_denoiser(source).state_dict(), load_denoiser(dest).state_dict()
    for key, value in before.items():
        assert after[key].dtype == torch.float32
        assert torch.allclose(after[key], value, rtol=2**-8, atol=0)
    assert torch.equal(after["model.map_noise.freqs"], before["model.map_noise.freqs"])


def test_convert_never_overwrites_silently(tmp_path) -> None:
    source, dest = vector_file(f"pickles/{SMALL}.pkl"), tmp_path / "net.safetensors"
    dest.write_bytes(b"precious")
    result = CliRunner().invoke(convert, [f"--source={source}", f"--dest={dest}"])
    assert result.exit_code == 2
    assert result.output == f"Error: --dest {dest} exists; choose another name or add --force\n"
    assert dest.read_bytes() == b"precious"
    assert CliRunner().invoke(convert, [f"--source={source}", f"--dest={dest}", "--force"]).exit_code == 0
    assert load_snapshot(dest).name == "net"
    result = CliRunner().invoke(convert, [f"--source={source}", f"--dest={tmp_path / 'net.pkl'}"])
    assert result.exit_code == 2
    assert "ends with .safetensors" in result.output


def test_a_snapshot_is_reported_with_its_checksum(tmp_path) -> None:
    source = vector_file(f"pickles/{SMALL}.pkl")
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    snapshot = load_snapshot(source, sha256=digest.upper())
    assert snapshot.sha256 == digest
    assert snapshot.name == SMALL
    assert snapshot.header.class_name == "EDMPrecond"
    for part in (SMALL, "SongUNet", "16x16x1", "0.2 M", digest, str(source)):
        assert part in snapshot.describe()
    with pytest.raises(UserError, match=r"SHA-256 is 334952.*, expected 0000"):
        load_snapshot(source, sha256="0" * 64)
    with pytest.raises(UserError, match="64 hexadecimal digits"):
        load_snapshot(source, sha256="abc")


def test_format_is_told_by_content_not_by_name(tmp_path) -> None:
    source, disguised = vector_file(f"pickles/{SMALL}.pkl"), tmp_path / "a.safetensors"
    disguised.write_bytes(source.read_bytes())
    assert load_snapshot(disguised).header.class_name == "EDMPrecond"


def test_saving_is_deterministic_and_keeps_the_header(tmp_path) -> None:
    s = load_snapshot(vector_file(f"pickles/{SMALL}.pkl"))
    for file in ("a", "b"):
        header = save_snapshot(
            tmp_path / file,
            s.net,
            init_kwargs=s.header.init_kwargs,
            label_names=["three", "four", "five", "six"],
            kimg=12.5,
            dataset="hands-32",
            extra={"note": [1, 2], "limit": float("inf")},
        )
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b"]
    loaded = load_snapshot(tmp_path / "a").header
    assert (loaded.label_names, loaded.kimg, loaded.dataset) == (["three", "four", "five", "six"], 12.5, "hands-32")
    assert loaded.extra == {"note": [1, 2], "limit": "inf"}
    assert loaded.init_kwargs == header.init_kwargs
    with safe_open(tmp_path / "a", framework="pt") as f:
        text = f.metadata()["header"]
    assert "Infinity" not in text
    assert "float64" not in text
    assert json.loads(text)["schema_version"] == 1


def test_infinite_sigma_max_survives_the_header(tmp_path) -> None:
    s = load_snapshot(vector_file(f"pickles/{SMALL}.pkl"))
    kwargs = {**s.header.init_kwargs, "sigma_max": float("inf")}
    save_snapshot(tmp_path / "a", s.net, init_kwargs=kwargs)
    assert load_denoiser(tmp_path / "a").sigma_max == float("inf")


def test_saving_refuses_what_does_not_describe_the_network(tmp_path) -> None:
    s = load_snapshot(vector_file(f"pickles/{SMALL}.pkl"))
    kwargs = dict(s.header.init_kwargs)
    with pytest.raises(UserError, match="do not fit"):
        save_snapshot(tmp_path / "a", s.net, init_kwargs={**kwargs, "model_channels": 32})
    with pytest.raises(UserError, match="4 classes"):
        save_snapshot(tmp_path / "a", s.net, init_kwargs=kwargs, label_names=["one"])
    with pytest.raises(UserError, match="JSON"):
        save_snapshot(tmp_path / "a", s.net, init_kwargs=kwargs, extra={"x": object()})
    with pytest.raises(UserError, match="float32, bf16"):
        save_snapshot(tmp_path / "a", s.net, init_kwargs=kwargs, dtype="float16")
    assert not list(tmp_path.iterdir())


def test_loading_leaves_the_random_stream_alone() -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    load_denoiser(vector_file(f"pickles/{SMALL}.pkl"))
    assert torch.equal(torch.rand(3), expected)


def test_embedded_source_text_is_dropped(tmp_path) -> None:
    """Real files carry source code, which EDM's loader runs; here it is neither run nor kept."""
    content = vector_file(f"pickles/{SMALL}.pkl").read_bytes()
    assert content.count(b"# source text removed\n") == 1
    mark = content.index(b"# source text removed\n")
    source = b"open('canary', 'w')   #"[:22].ljust(22)
    assert len(source) == 22
    hostile = tmp_path / "net.pkl"
    hostile.write_bytes(content[:mark] + source + content[mark + 22 :])
    load_denoiser(hostile)
    assert not (tmp_path / "canary").exists()
    ema = read_pickle(memoryview(hostile.read_bytes()))["ema"]
    assert set(vars(ema)) == {"class_name", "state"}
    assert not any(isinstance(v, str) and "canary" in v for v in ema.state.values())


def test_a_bare_denoiser_without_the_dict_loads_too(tmp_path) -> None:
    """{'ema': net, ...} cut down to net alone: protocol, then the persistent object itself, then STOP."""
    content = vector_file(f"pickles/{SMALL}.pkl").read_bytes()
    begin, end = content.index(b"\x8c\x17torch_utils.persistence"), content.index(b"\x8c\x07loss_fn")
    memo_before = b"N\x94N\x94N\x94"  # the dict, "ema" and so on held memo numbers 0 and 1: keep the numbering
    assert content[:begin].count(b"\x94") == 2
    (tmp_path / "bare.pkl").write_bytes(b"\x80\x04" + memo_before[:4] + content[begin:end] + b".")
    check_outputs(load_denoiser(tmp_path / "bare.pkl"), SMALL)


def test_a_snapshot_whose_first_byte_is_that_of_a_pickle_loads(tmp_path) -> None:
    kwargs = {"img_resolution": 8, "img_channels": 1, "model_type": "SongUNet", "model_channels": 4,
              "channel_mult": [1], "num_blocks": 1}  # fmt: skip
    net = EDMPrecond(**kwargs)
    path, first = tmp_path / "network.safetensors", set()
    for padding in range(0, 256, 8):
        save_snapshot(path, net, init_kwargs=kwargs, extra={"padding": "x" * padding})
        first.add(path.read_bytes()[0])
        assert load_snapshot(path).header.extra == {"padding": "x" * padding}
    assert 0x80 in first
