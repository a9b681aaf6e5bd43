"""The TF-Inception of 2015-12-05, whose 2048 pooled features are those of the FID, as a native module.

It reads the state dict of the widely used PyTorch port, `pt_inception-2015-12-05-6726825d.pth` of pytorch-fid, and
keeps its names. Source: Szegedy et al. 2016 (arXiv 1512.00567), figures 5 to 7. Where the TensorFlow graph behind the
FID leaves the paper, this follows the graph, as the port documents: average pooling does not count the padding, the
last block pools by maximum, and the epsilon of batch normalisation is .001.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dnnlib.errors import UserError
from dnnlib.util import open_url
from rods.eval.features import Extractor
from rods.eval.weights import is_torchscript, load_into, load_torchscript, local_file, read_weights

FILE_NAME = "pt_inception-2015-12-05-6726825d.pth"
URL = f"https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/{FILE_NAME}"
KNOWN_SHA256_START = "6726825d"  # the file's name carries the first digits of its checksum, as torch.hub's names do
DIM = 2048
_SIZE = 299

_avg_pool = partial(F.avg_pool2d, kernel_size=3, stride=1, padding=1, count_include_pad=False)
_max_pool = partial(F.max_pool2d, kernel_size=3, stride=1, padding=1)
_halve = partial(F.max_pool2d, kernel_size=3, stride=2)


class Conv(nn.Module):
    """Convolution without bias, batch normalisation, ReLU."""

    def __init__(
        self, c_in: int, c_out: int, kernel: int | tuple[int, int], *, stride: int = 1, pad: int | tuple[int, int] = 0
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(c_in, c_out, kernel, stride=stride, padding=pad, bias=False)
        self.bn = nn.BatchNorm2d(c_out, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)), inplace=True)


class BlockA(nn.Module):
    """35x35: 1x1, 5x5, two 3x3, and a pooled branch (figure 5)."""

    def __init__(self, c: int, pooled: int) -> None:
        super().__init__()
        self.branch1x1 = Conv(c, 64, 1)
        self.branch5x5_1 = Conv(c, 48, 1)
        self.branch5x5_2 = Conv(48, 64, 5, pad=2)
        self.branch3x3dbl_1 = Conv(c, 64, 1)
        self.branch3x3dbl_2 = Conv(64, 96, 3, pad=1)
        self.branch3x3dbl_3 = Conv(96, 96, 3, pad=1)
        self.branch_pool = Conv(c, pooled, 1)

    def forward(self, x: Tensor) -> Tensor:
        branch5x5 = self.branch5x5_2(self.branch5x5_1(x))
        branch3x3 = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch1x1(x), branch5x5, branch3x3, self.branch_pool(_avg_pool(x))], 1)


class BlockB(nn.Module):
    """35x35 -> 17x17."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.branch3x3 = Conv(c, 384, 3, stride=2)
        self.branch3x3dbl_1 = Conv(c, 64, 1)
        self.branch3x3dbl_2 = Conv(64, 96, 3, pad=1)
        self.branch3x3dbl_3 = Conv(96, 96, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch3x3(x), double, _halve(x)], 1)


class BlockC(nn.Module):
    """17x17: 1x1, 7x7 and a double 7x7 in rows and columns, and a pooled branch (figure 6); `c7` channels inside."""

    def __init__(self, c7: int) -> None:
        super().__init__()
        row, column = partial(Conv, kernel=(1, 7), pad=(0, 3)), partial(Conv, kernel=(7, 1), pad=(3, 0))
        self.branch1x1 = Conv(768, 192, 1)
        self.branch7x7_1 = Conv(768, c7, 1)
        self.branch7x7_2 = row(c7, c7)
        self.branch7x7_3 = column(c7, 192)
        self.branch7x7dbl_1 = Conv(768, c7, 1)
        self.branch7x7dbl_2 = column(c7, c7)
        self.branch7x7dbl_3 = row(c7, c7)
        self.branch7x7dbl_4 = column(c7, c7)
        self.branch7x7dbl_5 = row(c7, 192)
        self.branch_pool = Conv(768, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        branch7x7 = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
        double = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        double = self.branch7x7dbl_5(self.branch7x7dbl_4(double))
        return torch.cat([self.branch1x1(x), branch7x7, double, self.branch_pool(_avg_pool(x))], 1)


class BlockD(nn.Module):
    """17x17 -> 8x8."""

    def __init__(self) -> None:
        super().__init__()
        self.branch3x3_1 = Conv(768, 192, 1)
        self.branch3x3_2 = Conv(192, 320, 3, stride=2)
        self.branch7x7x3_1 = Conv(768, 192, 1)
        self.branch7x7x3_2 = Conv(192, 192, (1, 7), pad=(0, 3))
        self.branch7x7x3_3 = Conv(192, 192, (7, 1), pad=(3, 0))
        self.branch7x7x3_4 = Conv(192, 192, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        branch7x7x3 = self.branch7x7x3_4(self.branch7x7x3_3(self.branch7x7x3_2(self.branch7x7x3_1(x))))
        return torch.cat([self.branch3x3_2(self.branch3x3_1(x)), branch7x7x3, _halve(x)], 1)


class BlockE(nn.Module):
    """8x8: 1x1, 3x3 and a double 3x3 that end in rows beside columns, and a pooled branch (figure 7)."""

    def __init__(self, c: int, pool: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.pool = pool
        self.branch1x1 = Conv(c, 320, 1)
        self.branch3x3_1 = Conv(c, 384, 1)
        self.branch3x3_2a = Conv(384, 384, (1, 3), pad=(0, 1))
        self.branch3x3_2b = Conv(384, 384, (3, 1), pad=(1, 0))
        self.branch3x3dbl_1 = Conv(c, 448, 1)
        self.branch3x3dbl_2 = Conv(448, 384, 3, pad=1)
        self.branch3x3dbl_3a = Conv(384, 384, (1, 3), pad=(0, 1))
        self.branch3x3dbl_3b = Conv(384, 384, (3, 1), pad=(1, 0))
        self.branch_pool = Conv(c, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        single = self.branch3x3_1(x)
        double = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        return torch.cat(
            [
                self.branch1x1(x),
                self.branch3x3_2a(single),
                self.branch3x3_2b(single),
                self.branch3x3dbl_3a(double),
                self.branch3x3dbl_3b(double),
                self.branch_pool(self.pool(x)),
            ],
            1,
        )


class Inception(nn.Module):
    """[B, 3, 299, 299] in [-1, 1] -> 2048 pooled features [B, 2048]. `fc` is in the files and not used by the FID."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = Conv(3, 32, 3, stride=2)
        self.Conv2d_2a_3x3 = Conv(32, 32, 3)
        self.Conv2d_2b_3x3 = Conv(32, 64, 3, pad=1)
        self.Conv2d_3b_1x1 = Conv(64, 80, 1)
        self.Conv2d_4a_3x3 = Conv(80, 192, 3)
        self.Mixed_5b = BlockA(192, 32)
        self.Mixed_5c = BlockA(256, 64)
        self.Mixed_5d = BlockA(288, 64)
        self.Mixed_6a = BlockB(288)
        self.Mixed_6b = BlockC(128)
        self.Mixed_6c = BlockC(160)
        self.Mixed_6d = BlockC(160)
        self.Mixed_6e = BlockC(192)
        self.Mixed_7a = BlockD()
        self.Mixed_7b = BlockE(1280, _avg_pool)
        self.Mixed_7c = BlockE(2048, _max_pool)
        self.fc = nn.Linear(2048, 1008)

    def forward(self, x: Tensor) -> Tensor:
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))  # [B, 64, 147, 147]
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(_halve(x)))  # [B, 192, 71, 71]
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(_halve(x))))  # [B, 288, 35, 35]
        x = self.Mixed_6e(self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x)))))  # [B, 768, 17, 17]
        x = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(x)))  # [B, 2048, 8, 8]
        return x.mean(dim=(2, 3))


def resize_half_pixel(images: Tensor) -> Tensor:
    """uint8 [B, 3, H, W] -> [B, 3, 299, 299] in [-1, 1], as the PyTorch port does it: pixel centres at half steps."""
    return F.interpolate(images.float() / 255, size=(_SIZE, _SIZE), mode="bilinear", align_corners=False) * 2 - 1


def resize_tf1(images: Tensor) -> Tensor:
    """uint8 [B, 3, H, W] -> [B, 3, 299, 299], (x - 128) / 128, as the TensorFlow graph does it.

    Output pixel i looks at i H / 299 without the half-pixel offset, so that the image moves up and left by a part
    of a pixel.
    """
    rows, columns = (_tf1_matrix(size, images.device) for size in images.shape[2:])  # [299, H], [299, W]
    return (rows @ images.float() @ columns.T - 128) / 128


def _tf1_matrix(size: int, device: torch.device) -> Tensor:
    position = torch.arange(_SIZE, dtype=torch.float64) * (size / _SIZE)
    low = position.floor().long()
    high = (low + 1).clamp(max=size - 1)
    matrix = torch.zeros(_SIZE, size, dtype=torch.float64)
    index = torch.arange(_SIZE)
    matrix[index, low] += 1 - (position - low)
    matrix[index, high] += position - low
    return matrix.float().to(device)


RESIZES: dict[str, Callable[[Tensor], Tensor]] = {"tf1": resize_tf1, "half-pixel": resize_half_pixel}


def inception_extractor(
    source: str | None, *, device: torch.device, resize: str | None = None, trust: str | None = None
) -> Extractor:
    """The Inception in a file or at an address; None: the published file, downloaded once.

    Args:
        resize: "tf1" (default: TensorFlow's, which published FIDs and EDM's references follow) or "half-pixel" (the
            port's).
        trust: the sha256 of a file that the user vouches for: it makes the numbers a FID, and lets TorchScript run.
    Raises:
        UserError: no such file, no such network in it, TorchScript without `trust`, or another checksum.
    """
    where = f"--detector={source}" if source else "the Inception"
    path, sha256 = local_file(source or _published(), option="--detector")
    if trust is not None and trust.lower() != sha256:
        raise UserError(f"--trust-detector={trust}: the sha256 of {path} is {sha256}; name that one if you trust it")
    if trust is not None and is_torchscript(path):
        if resize is not None:
            raise UserError(f"--resize={resize}: {where} is TorchScript and resizes by itself; leave --resize out")
        return _torchscript_extractor(path, sha256, device, where)
    resize = resize or "tf1"
    if resize not in RESIZES:
        raise UserError(f"--resize={resize}: {where} has {', '.join(RESIZES)}")
    weights = read_weights(path, where=where)
    net = Inception()
    load_into(net, weights, where=where)
    net = net.to(device).eval().requires_grad_(False)
    genuine = trust is not None or sha256.startswith(KNOWN_SHA256_START)
    suffix = "" if genuine else f"Inception-{sha256[:8]}"
    prepare = RESIZES[resize]
    return Extractor("inception", suffix, DIM, sha256, f"{resize}-{_SIZE}", device, lambda images: net(prepare(images)))


def _published() -> str:
    try:
        return str(open_url(URL))
    except UserError as e:
        raise UserError(f"the Inception: {e}; --detector=efficientnet-lite0 needs no download") from None


def _torchscript_extractor(path: Path, sha256: str, device: torch.device, where: str) -> Extractor:
    net = load_torchscript(path, device, where=where)

    def extract(images: Tensor) -> Tensor:
        features: Tensor = net(images, return_features=True)
        return features

    return Extractor("inception", "", DIM, sha256, "torchscript", device, extract)
