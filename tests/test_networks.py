"""Networks built from their configurations: sizes, names and outputs are those of EDM."""

from __future__ import annotations

import inspect

import pytest
import torch
from vectors import CONFIGS, relative_error, tensors, vector_file

from dnnlib.errors import UserError
from torch_utils.persistence import module_tensors, read_pickle
from training.networks import NETWORKS
from training.precond import MODELS, PRECONDS
from training.schema import argument_names, check_init_kwargs, least_size


@pytest.mark.parametrize("name", CONFIGS)
def test_configuration_builds_the_reference_network(name: str) -> None:
    config, v = CONFIGS[name], tensors(f"networks/{name}.npz")
    net = NETWORKS[config["class_name"]](**check_init_kwargs(config["class_name"], config["init_kwargs"])).eval()
    assert sum(p.numel() for p in net.parameters()) == config["parameters"]
    least = least_size(config["class_name"], config["init_kwargs"])[0]
    assert config["parameters"] / 5 < least < config["parameters"]
    state = module_tensors(read_pickle(memoryview(vector_file(f"pickles/{name}.pkl").read_bytes()))["ema"])
    for key, buffer in net.named_buffers():
        if not key.endswith("freqs"):  # random; all other buffers follow from the arguments
            assert torch.allclose(buffer, state[key], rtol=1e-6, atol=0), key
    net.load_state_dict(state)
    with torch.no_grad():
        D = net(v["x"], v["sigma"], v.get("labels"))
    assert relative_error(D, v["D"]) <= 1e-5


@pytest.mark.parametrize("class_name", PRECONDS)
def test_the_schema_knows_exactly_the_constructor_arguments(class_name: str) -> None:
    """A new argument must get bounds before a file may hold it."""
    own = set(inspect.signature(PRECONDS[class_name]).parameters) - {"model_kwargs"}
    for model_type, model in MODELS.items():
        inner = set(inspect.signature(model).parameters) - {"in_channels", "out_channels"}
        assert argument_names(class_name, model_type) == inner | own
        for name in own | inner:
            with pytest.raises(UserError, match=f"^{name}=.* is not allowed"):
                check_init_kwargs(
                    class_name, {"model_type": model_type, "img_resolution": 8, "img_channels": 1, name: b"x"}
                )


def test_defaults_are_those_of_the_published_files() -> None:
    """EDM's files leave out the arguments that equal a default of EDM's, so ours must be the same."""
    song = {n: p.default for n, p in inspect.signature(MODELS["SongUNet"]).parameters.items()}
    assert (song["model_channels"], list(song["channel_mult"]), song["num_blocks"]) == (128, [1, 2, 2, 2], 4)
    assert (list(song["attn_resolutions"]), song["dropout"], list(song["resample_filter"])) == ([16], 0.1, [1, 1])
    adm = {n: p.default for n, p in inspect.signature(MODELS["DhariwalUNet"]).parameters.items()}
    assert (adm["model_channels"], list(adm["channel_mult"]), adm["num_blocks"]) == (192, [1, 2, 3, 4], 3)
    assert (list(adm["attn_resolutions"]), adm["dropout"], adm["label_dropout"]) == ([32, 16, 8], 0.1, 0)
    for class_name, model_type in (("EDMPrecond", "DhariwalUNet"), ("iDDPMPrecond", "DhariwalUNet"),
                                   ("VPPrecond", "SongUNet"), ("VEPrecond", "SongUNet")):  # fmt: skip
        default = inspect.signature(PRECONDS[class_name]).parameters["model_type"].default
        kwargs = check_init_kwargs(class_name, {"img_resolution": 8, "img_channels": 1})
        assert default == kwargs["model_type"] == model_type
