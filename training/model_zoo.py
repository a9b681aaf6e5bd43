"""Networks by name: those that come with the project, in models/, and the published ones of EDM and EDM2.

No published network was ever fetched by this project, and no checksum is known. The names of networks are those of EDM
and EDM2. What stands behind them, that is the addresses, the thousands of images and EMA widths in EDM2's file names,
and the strengths, was written down from memory and compared with nothing but one file name, that of edm2-img512-xs-fid:
compare a strength with the papers (EDM2: arXiv 2312.02696; autoguidance: arXiv 2406.02507) before you report numbers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dnnlib.errors import UserError
from training.encoder import files_of

MODELS = Path(__file__).resolve().parents[1] / "models"
_EDM = "https://nvlabs-fi-cdn.nvidia.com/edm/pretrained"
_EDM2 = "https://nvlabs-fi-cdn.nvidia.com/edm2/posthoc-reconstructions"
_EDM2_VAE = "stabilityai/sd-vae-ft-mse"  # as the files of its 512x512 networks say


def find_model(name: str, *, made_by: str, folder: Path = MODELS) -> Path:
    """The file NAME.safetensors of `folder`.

    Raises UserError where there is no such file, with `made_by`, the command that makes it.
    """
    path = folder / f"{name}.safetensors"
    if not path.is_file():
        raise UserError(f"{path} is missing: fetch it from the project's repository, or train it with `{made_by}`")
    return path


@dataclass(frozen=True)
class RemoteFile:
    """A network file at an address."""

    url: str
    sha256: str | None = None  # what it must be; None: not known, so that nothing is checked


@dataclass(frozen=True)
class Published:
    """A published network, or a pair of one and its guide."""

    network: RemoteFile
    guide: RemoteFile | None = None
    strength: float = 1.0  # of the guidance; 1: none
    vae_name: str | None = None  # the autoencoder of its latents; None: it draws pixels

    def describe(self) -> str:
        """The options that stand for it."""
        options = f"--network={self.network.url}"
        if self.guide is not None:
            options += f" --guide={self.guide.url} --guidance={self.strength:g}"
        if self.vae_name is None:
            return options
        return f"{options} --vae=FOLDER (with {files_of(self.vae_name)})"


def _edm2(network: str, guide: str | None = None, strength: float = 1.0) -> Published:
    """Of post-hoc reconstructions, by data, size, thousands of images and EMA width: img512-xs-2147483-0.135."""
    made_of = None if guide is None else _reconstructed(guide)
    return Published(_reconstructed(network), made_of, strength, _EDM2_VAE if network.startswith("img512-") else None)


def _reconstructed(name: str) -> RemoteFile:
    return RemoteFile(f"{_EDM2}/edm2-{name}.pkl")


_EDM_NAMES = (
    *(f"edm-cifar10-32x32-{cond}-{kind}" for cond in ("cond", "uncond") for kind in ("vp", "ve")),
    *(f"edm-{data}-64x64-uncond-{kind}" for data in ("ffhq", "afhqv2") for kind in ("vp", "ve")),
    "edm-imagenet-64x64-cond-adm",
)
_PLAIN = {  # without guidance: thousands of images, and the width for FID and for FD of DINOv2
    "xs": ("2147483", ("0.135", "0.200")),
    "s": ("2147483", ("0.130", "0.190")),
    "m": ("2147483", ("0.100", "0.155")),
    "l": ("1879048", ("0.085", "0.155")),
    "xl": ("1342177", ("0.085", "0.155")),
    "xxl": ("0939524", ("0.070", "0.150")),
}
_GUIDED = {  # by the unconditional XS network of the same width: (width, strength), as above
    "xs": (("0.045", 1.4), ("0.150", 1.7)),
    "s": (("0.025", 1.4), ("0.085", 1.9)),
    "m": (("0.030", 1.2), ("0.015", 2.0)),
    "l": (("0.015", 1.2), ("0.035", 1.7)),
    "xl": (("0.020", 1.2), ("0.030", 1.7)),
    "xxl": (("0.015", 1.2), ("0.015", 1.7)),
}
_METRICS = ("fid", "dino")

PUBLISHED: dict[str, Published] = {
    **{name: Published(RemoteFile(f"{_EDM}/{name}.pkl")) for name in _EDM_NAMES},
    **{
        f"edm2-img512-{size}-{metric}": _edm2(f"img512-{size}-{kimg}-{std}")
        for size, (kimg, stds) in _PLAIN.items()
        for metric, std in zip(_METRICS, stds, strict=True)
    },
    **{
        f"edm2-img512-{size}-guid-{metric}": _edm2(
            f"img512-{size}-{_PLAIN[size][0]}-{std}", f"img512-xs-uncond-2147483-{std}", strength
        )
        for size, settings in _GUIDED.items()
        for metric, (std, strength) in zip(_METRICS, settings, strict=True)
    },
    "edm2-img512-s-autog-fid": _edm2("img512-s-2147483-0.070", "img512-xs-0134217-0.125", 2.1),
    "edm2-img512-s-autog-dino": _edm2("img512-s-2147483-0.120", "img512-xs-0134217-0.165", 2.45),
    "edm2-img512-xxl-autog-fid": _edm2("img512-xxl-0939524-0.075", "img512-m-0268435-0.155", 2.05),
    "edm2-img512-xxl-autog-dino": _edm2("img512-xxl-0939524-0.130", "img512-m-0268435-0.205", 2.3),
    "edm2-img64-s-fid": _edm2("img64-s-1073741-0.075"),
    "edm2-img64-m-fid": _edm2("img64-m-2147483-0.060"),
    "edm2-img64-l-fid": _edm2("img64-l-1073741-0.040"),
    "edm2-img64-xl-fid": _edm2("img64-xl-0671088-0.040"),
}
"""Networks of EDM and EDM2 by name; what was not checked of them is said above."""


def with_published(opts: Mapping[str, Any]) -> dict[str, Any]:
    """The options, with a published name in --preset as its network, guide and strength.

    What is given stays: files that were fetched by hand, another strength. Other presets are left alone.
    """
    found = PUBLISHED.get(opts["preset"] or "")
    if found is None:
        return dict(opts)
    usual: dict[str, Any] = {"network": found.network.url, "sha256": found.network.sha256, "preset": None}
    if found.guide is not None:
        usual |= {"guide": found.guide.url, "guide_sha256": found.guide.sha256, "guidance": found.strength}
    filled = {name: opts[name] for name in usual if name != "preset" and opts.get(name) is not None}
    return {**opts, **usual, **filled}


@contextmanager
def saying_files(name: object) -> Iterator[None]:
    """A UserError that a published network of this name could not be fetched says which files it stands for."""
    try:
        yield
    except UserError as e:
        if name not in PUBLISHED or "cannot download" not in str(e):
            raise
        raise UserError(f"{e}. {name} stands for {PUBLISHED[str(name)].describe()}") from None


def locate(source: str) -> RemoteFile | None:
    """The file that a published name stands for; None: it is no such name, or a file of this name lies here.

    Raises UserError: the name is that of a network with its guide, which are two files.
    """
    if source not in PUBLISHED or Path(source).exists():
        return None
    found = PUBLISHED[source]
    if found.guide is not None:
        raise UserError(f"{source} is a network with its guide; give --preset={source}, or {found.describe()}")
    return found.network
