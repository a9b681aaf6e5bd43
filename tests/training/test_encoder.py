"""What a network file says of its autoencoder is checked, whoever wrote it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from dnnlib.errors import UserError
from torch_utils.persistence import PersistentObject
from torch_utils.pickle_arrays import Array
from training.encoder import pickled_encoder, stored_encoder

GOOD: dict[str, Any] = {"vae_name": "stabilityai/sd-vae-ft-mse", "scale": [0.5, 0.25], "bias": [0, 1.5]}


def array(*values: float, ndim: int = 1) -> Array:
    found = Array()
    found.value = np.array(values, dtype=np.float32).reshape(-1, *[1] * (ndim - 1))
    return found


def encoder(**change: Any) -> PersistentObject:
    state = {"vae_name": GOOD["vae_name"], "scale": array(0.5, 0.25), "bias": array(0, 1.5), **change}
    return PersistentObject("StabilityVAEEncoder", state)


def test_a_pickles_encoder_is_an_entry_of_the_header() -> None:
    assert pickled_encoder(encoder()) == {"encoder": GOOD}
    assert pickled_encoder(PersistentObject("StandardRGBEncoder", {})) == {}
    assert pickled_encoder(None) == {}
    found = stored_encoder({"encoder": GOOD})
    assert found is not None
    assert (found.vae_name, found.scale, found.bias) == (GOOD["vae_name"], (0.5, 0.25), (0.0, 1.5))
    assert stored_encoder({}) is None


@pytest.mark.parametrize(
    "change", [{"vae_name": 3}, {"scale": [0.5]}, {"bias": array(1, 2, ndim=2)}, {"scale": Array()}, {"bias": None},
               {"scale": array(*range(1, 80))}]
)  # fmt: skip
def test_a_hostile_pickles_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"^damaged or hostile pickle: its encoder lacks"):
        pickled_encoder(encoder(**change))


@pytest.mark.parametrize(
    "change", [{"vae_name": "/etc/passwd"}, {"vae_name": "../x"}, {"vae_name": "a/b/c"}, {"scale": [0.5, 0]},
               {"scale": [0.5]}, {"bias": [float("nan"), 1]}, {"bias": ["1", "2"]}, {"scale": [], "bias": []}]
)  # fmt: skip
def test_a_damaged_headers_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"^the network file's encoder is damaged: "):
        stored_encoder({"encoder": {**GOOD, **change}})
