"""Networks built from their configurations: sizes, names and outputs are those of EDM."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from vectors import CONFIGS, relative_error, tensors, vector_file

from dnnlib.errors import UserError
from torch_utils.persistence import module_tensors, read_pickle
from training.checkpoint import load_denoiser, save_snapshot
from training.networks import ARCHITECTURES, PRECONDS
from training.networks.architecture import Architecture, Arguments, number
from training.networks.blocks import CheckpointedBlock
from training.schema import argument_names, check_init_kwargs


@pytest.mark.parametrize("name", CONFIGS)
def test_configuration_builds_the_reference_network(name: str) -> None:
    config, v = CONFIGS[name], tensors(f"networks/{name}.npz")
    net = PRECONDS[config["class_name"]](**check_init_kwargs(config["class_name"], config["init_kwargs"])).eval()
    assert sum(p.numel() for p in net.parameters()) == config["parameters"]
    least = net.least_size(check_init_kwargs(config["class_name"], config["init_kwargs"]))[0]
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
    for model_type, model in ARCHITECTURES.items():
        inner = set(inspect.signature(model).parameters) - {"in_channels", "out_channels"}
        assert argument_names(class_name, model_type) == inner | own
        for name in own | inner:
            with pytest.raises(UserError, match=f"^{name}=.* is not allowed"):
                check_init_kwargs(
                    class_name, {"model_type": model_type, "img_resolution": 8, "img_channels": 1, name: b"x"}
                )


def test_defaults_are_those_of_the_published_files() -> None:
    """Official files leave out arguments that equal a default."""
    song = {n: p.default for n, p in inspect.signature(ARCHITECTURES["SongUNet"]).parameters.items()}
    assert (song["model_channels"], list(song["channel_mult"]), song["num_blocks"]) == (128, [1, 2, 2, 2], 4)
    assert (list(song["attn_resolutions"]), song["dropout"], list(song["resample_filter"])) == ([16], 0.1, [1, 1])
    adm = {n: p.default for n, p in inspect.signature(ARCHITECTURES["DhariwalUNet"]).parameters.items()}
    assert (adm["model_channels"], list(adm["channel_mult"]), adm["num_blocks"]) == (192, [1, 2, 3, 4], 3)
    assert (list(adm["attn_resolutions"]), adm["dropout"], adm["label_dropout"]) == ([32, 16, 8], 0.1, 0)
    for class_name, model_type in (("EDMPrecond", "DhariwalUNet"), ("iDDPMPrecond", "DhariwalUNet"),
                                   ("VPPrecond", "SongUNet"), ("VEPrecond", "SongUNet")):  # fmt: skip
        default = inspect.signature(PRECONDS[class_name]).parameters["model_type"].default
        kwargs = check_init_kwargs(class_name, {"img_resolution": 8, "img_channels": 1})
        assert default == kwargs["model_type"] == model_type


@pytest.mark.parametrize("model_type", ["SongUNet", "DhariwalUNet", "EDM2UNet"])
def test_a_unet_tells_where_it_attends_and_what_its_decoder_is_made_of(model_type: str) -> None:
    kwargs = {"model_channels": 64, "channel_mult": [1, 1, 1], "num_blocks": 1, "attn_resolutions": [8, 5]}
    net = PRECONDS["EDMPrecond"](16, 1, model_type=model_type, **kwargs)
    assert net.model.attention_resolutions() == [8, 4]  # 5 is no level; the coarsest one always attends
    names = {name.split(".")[2] for name, _ in net.named_modules() if name.endswith("qkv")}
    assert {int(name.split("x")[0]) for name in names} == {8, 4}
    decoder = net.decoder_blocks()
    assert list(decoder) == [f"model.dec.{r}x{r}_block{i}" for r in (4, 8, 16) for i in range(2)]
    assert all(net.get_submodule(path) is block for path, block in decoder.items())
    assert len(net.model.blocks()) == sum(isinstance(m, CheckpointedBlock) for m in net.modules())


class Scale(Architecture):
    """F(x; c_noise) = w x."""

    arguments: ClassVar[Arguments] = {"start": number(0, 1)}

    def __init__(
        self, img_resolution: int, in_channels: int, out_channels: int, label_dim: int = 0, start: float = 1.0
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full([out_channels, 1, 1], start))

    @classmethod
    def least_size(cls, kwargs: Mapping[str, Any]) -> tuple[int, int]:
        return kwargs["img_channels"], 1

    def forward(self, x: Tensor, c_noise: Tensor, class_labels: Tensor | None, augment_labels: Tensor | None) -> Tensor:
        return self.weight * x


def test_an_architecture_is_a_class_and_an_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With them it can be built, saved, loaded and asked for what it has not got."""
    monkeypatch.setitem(ARCHITECTURES, "Scale", Scale)
    kwargs = {"img_resolution": 4, "img_channels": 2, "model_type": "Scale", "start": 0.5}
    net = PRECONDS["EDMPrecond"](**kwargs)
    save_snapshot(tmp_path / "scale.safetensors", net, init_kwargs=kwargs)
    loaded = load_denoiser(tmp_path / "scale.safetensors")
    x = torch.ones(1, 2, 4, 4)
    assert torch.equal(loaded(x, 1.0), net(x, 1.0))
    assert (loaded.decoder_blocks(), loaded.model.blocks(), loaded.model.attention_resolutions()) == ({}, [], [])
    with pytest.raises(UserError, match=r"^start=2 is not allowed in a network file: it must be a number from 0 to 1$"):
        check_init_kwargs("EDMPrecond", {**kwargs, "start": 2})
    with pytest.raises(UserError, match=r"^--start=2 is not allowed: it must be"):
        check_init_kwargs("EDMPrecond", {**kwargs, "start": 2}, options={"start": "--start"})
