"""The training recipes: published sizes, settings that build, and one source for each."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import nn
from vectors import ROOT

from training.augment import NUM_LABELS
from training.checkpoint import load_snapshot
from training.networks import ARCH_OPTIONS, PRECOND_OPTIONS
from training.recipes import PIXELS, RECIPES, SOURCES, network_kwargs
from training.schema import check_init_kwargs

GREY = ("hands-32", "hands-32-edm2", "mnist-32", "mnist-32-cond", "mnist-32-edm2", "shapes-64", "hands-64r")
CHANNELS = dict.fromkeys(GREY, 1)


def size_of(name: str) -> int:
    return int(name.split("-")[1].rstrip("r"))


@functools.cache
def built(name: str) -> nn.Module:
    """The recipe's network at the size in its name, without memory for its weights."""
    kwargs = network_kwargs(RECIPES[name], img_resolution=size_of(name), img_channels=CHANNELS.get(name, 3))
    denoiser = PRECOND_OPTIONS[RECIPES[name]["precond"]]
    with torch.device("meta"):
        return denoiser(**check_init_kwargs(denoiser.__name__, kwargs))


def millions(net: nn.Module) -> float:
    return sum(p.numel() for p in net.parameters()) / 1e6


@pytest.mark.parametrize(("name", "published"), [("ffhq-64-ve", 62.8), ("afhqv2-64-ve", 62.8), ("cifar10-32-vp", 55.7)])
def test_networks_have_the_published_sizes(name: str, published: float) -> None:
    assert millions(built(name)) == pytest.approx(published, abs=0.05)


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_builds_with_labels_for_its_augmentation(name: str) -> None:
    augmented = getattr(built(name).model, "map_augment", None)
    assert (augmented is not None) == (RECIPES[name]["augment"] > 0)
    if augmented is not None:
        assert augmented.weight.shape[1] == NUM_LABELS


def test_the_large_hands_are_ffhq_with_a_level_more() -> None:
    assert built("ffhq-64-ve").model.resolutions == [64, 32, 16, 8]
    assert built("hands-128-ve").model.resolutions == [128, 64, 32, 16, 8]


def test_every_recipe_has_its_source_and_known_names() -> None:
    assert list(SOURCES) == list(RECIPES)
    assert {name: size_of(name) for name in RECIPES} == PIXELS
    assert all(SOURCES[name].startswith(("EDM, ", "ours: ")) and "\n" not in SOURCES[name] for name in RECIPES)
    for recipe in RECIPES.values():
        assert recipe["arch"] in ARCH_OPTIONS
        assert PRECOND_OPTIONS[recipe["precond"]].loss is not None


def test_the_values_of_the_specification() -> None:
    ffhq = {"arch": "ncsnpp", "precond": "edm", "cond": False, "batch": 256, "cres": (1, 2, 2, 2), "lr": 2e-4}
    assert RECIPES["ffhq-64-ve"] == {**ffhq, "dropout": 0.05, "augment": 0.15, "duration": 200}
    assert RECIPES["afhqv2-64-ve"] == {**ffhq, "dropout": 0.25, "augment": 0.15, "duration": 200}
    cifar = {"precond": "edm", "batch": 512, "lr": 1e-3, "dropout": 0.13, "augment": 0.12, "duration": 200}
    for name, arch, cond in (("vp", "ddpmpp", False), ("cond-ve", "ncsnpp", True)):
        assert RECIPES[f"cifar10-32-{name}"] == {**cifar, "arch": arch, "cond": cond}


def test_hands_32_is_what_the_embedded_network_was_trained_with() -> None:
    header = load_snapshot(ROOT / "models" / "hands-32.safetensors").header
    recipe, trained = RECIPES["hands-32"], header.extra["training"]
    assert network_kwargs(recipe, img_resolution=32, img_channels=1) == trained["network"]["init_kwargs"]
    for name, option in {"batch": "batch", "lr": "lr", "P_mean": "p_mean", "P_std": "p_std"}.items():
        assert trained[name] == recipe[option]
    for name, option in {"lr_rampup": "lr_rampup", "ema_halflife": "ema"}.items():
        assert trained[name] == round(recipe[option] * 1e6)


@pytest.mark.parametrize("name", ["mnist-32", "shapes-64", "hands-64r"])
def test_the_benchmark_s_networks_are_what_their_recipes_build(name: str) -> None:
    header = load_snapshot(ROOT / "models" / f"{name}.safetensors").header
    assert network_kwargs(RECIPES[name], img_resolution=size_of(name), img_channels=1) == header.init_kwargs
    assert header.kimg is not None
    assert header.kimg <= 1000 * RECIPES[name]["duration"]
    assert f"--preset={name} --data=data/{name}.zip" in (ROOT / "models" / f"{name}.md").read_text()


def test_options_replace_the_architecture() -> None:
    size = {"img_resolution": 32, "img_channels": 1}
    plain = network_kwargs({"arch": "ddpmpp", "cbase": None, "lr": 1}, **size)
    assert plain == {**size, "label_dim": 0, **ARCH_OPTIONS["ddpmpp"]}
    options = {"arch": "ddpmpp", "cbase": 8, "cres": (1, 2), "blocks": 2, "attn": (8,), "dropout": 0.0, "augment": 0}
    changed = network_kwargs(options, label_dim=4, **size)
    assert changed == {
        **plain,
        "label_dim": 4,
        "model_channels": 8,
        "channel_mult": [1, 2],
        "num_blocks": 2,
        "attn_resolutions": [8],
        "dropout": 0.0,
    }
    assert ARCH_OPTIONS["ddpmpp"]["channel_mult"] == [2, 2, 2]
