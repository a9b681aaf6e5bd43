"""The pickle interpreter agrees with Python's Unpickler on what network files are made of."""

from __future__ import annotations

import collections
import pickle

import numpy as np
import pytest
import torch

from dnnlib.errors import UserError
from torch_utils.persistence import read_pickle
from torch_utils.pickle_arrays import Array


def read(content: bytes) -> object:
    return read_pickle(memoryview(content))


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_plain_values(protocol: int) -> None:
    shared = [1, -1, 255, 256, 65536, 2**31, -(2**63), 0.5, float("inf"), None, True, False]
    value = {
        "list": shared,
        "again": shared,
        "tuples": ((), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)),
        "text": "sigma é ∞",
        "empty": [[], {}, "", ()],
        "long": list(range(3000)),
        "ordered": collections.OrderedDict([("b", 1), ("a", 2)]),
        3: "x" * 300,
    }
    result = read(pickle.dumps(value, protocol))
    assert result == value
    assert isinstance(result, dict)
    assert result["list"] is result["again"]
    assert list(result["ordered"]) == ["b", "a"]


@pytest.mark.parametrize("protocol", [3, 4, 5])
@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.bool]
)
def test_tensors(protocol: int, dtype: torch.dtype) -> None:
    whole = torch.arange(24).reshape(2, 3, 4).to(dtype)
    value = [whole, whole[1, :, 1:3], whole.transpose(0, 2), torch.nn.Parameter(torch.tensor([float("nan"), 1.0]))]
    result = read(pickle.dumps(value, protocol))
    assert isinstance(result, list)
    for a, b in zip(result, value, strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(torch.nan_to_num(a.float()), torch.nan_to_num(b.detach().float()))
        assert a.device.type == "cpu"
        assert not a.requires_grad


@pytest.mark.parametrize("protocol", [3, 4])
def test_numpy_numbers(protocol: int) -> None:
    value = [np.float64(1.5), np.float32(0.25), np.int64(-7), np.bool_(True), np.arange(6.0).reshape(2, 3)]
    *numbers, array = read(pickle.dumps(value, protocol))
    assert numbers == [1.5, 0.25, -7, True]
    assert [type(n) for n in numbers] == [float, float, int, bool]
    assert isinstance(array, Array)
    assert np.array_equal(array.value, value[-1])
    big_endian = read(pickle.dumps(np.arange(3, dtype=">i4"), protocol))
    assert isinstance(big_endian, Array)
    assert big_endian.value.tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    "value", [b"raw".decode, complex(1, 2), range(3), frozenset([1]), bytearray(b"x"), Ellipsis, int]
)
def test_anything_else_is_refused(value: object) -> None:
    with pytest.raises(UserError, match="refused"):
        read(pickle.dumps(value, 5))
