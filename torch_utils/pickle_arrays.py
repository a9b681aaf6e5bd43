"""NumPy arrays of plain numbers inside a pickle, as inert records: what `pickle_machine` may build of them."""

from __future__ import annotations

import math
import re

import numpy as np

from dnnlib.errors import UserError, shown
from torch_utils.pickle_machine import Global, Record


class DType(Record):
    """A numeric numpy.dtype; the byte order comes with BUILD."""

    def __init__(self, code: str) -> None:
        self.code, self.order = code, "<"

    def build(self, state: object) -> None:
        match state:
            case (int(), str(order), None, None, None, *_) if order in ("<", ">", "|"):
                self.order = order
            case _:
                raise UserError("refused: the pickle has a NumPy type that is not a plain number")

    @property
    def numpy(self) -> np.dtype[np.generic]:
        return np.dtype(self.order + self.code)


class Array(Record):
    """A numeric numpy.ndarray; `value` is there after BUILD."""

    value: np.ndarray | None = None

    def build(self, state: object) -> None:
        match state:
            case (int(), tuple() as shape, DType() as dtype, bool(fortran), memoryview() as raw):
                pass
            case _:
                raise UserError("refused: the pickle has a NumPy array that is not plain numbers")
        sizes = naturals(shape, "the shape of an array")
        if not sizes or not 0 < math.prod(sizes) * dtype.numpy.itemsize == len(raw):
            raise UserError("damaged or hostile pickle: a NumPy array whose shape does not fit its bytes")
        self.value = np.frombuffer(raw, dtype.numpy).reshape(sizes, order="F" if fortran else "C")


def _dtype(arguments: tuple[object, ...]) -> DType:
    code = arguments[0] if arguments else None
    if not isinstance(code, str) or not re.fullmatch(r"b1|f[248]|[iu][1248]", code):
        raise UserError(f"refused: the pickle has the NumPy type {shown(code)}, which is no plain number")
    return DType(code)


def _array(arguments: tuple[object, ...]) -> Array:
    if not arguments or arguments[0] is not _NDARRAY:
        raise UserError("refused: the pickle builds a NumPy object that is not an array")
    return Array()


_NDARRAY = Global("numpy.ndarray")
NUMPY_NAMES = {  # what a pickle of arrays of plain numbers may mention
    ("numpy", "dtype"): Global("numpy.dtype", _dtype),
    ("numpy", "ndarray"): _NDARRAY,
    ("numpy.core.multiarray", "_reconstruct"): Global("numpy._reconstruct", _array),
    ("numpy._core.multiarray", "_reconstruct"): Global("numpy._reconstruct", _array),
}


def naturals(values: tuple[object, ...], what: str) -> tuple[int, ...]:
    """`values` as sizes: at most eight whole numbers. Raises UserError."""
    if len(values) > 8 or not all(type(n) is int and 0 <= n < 2**40 for n in values):
        raise UserError(f"refused: {what} is absurd")
    return tuple(n for n in values if isinstance(n, int))
