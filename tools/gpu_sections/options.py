"""Every execution option of generate.py with every family of samplers on the embedded network, beside the plain run."""

from __future__ import annotations

import contextlib
import io
import json
import tempfile
from pathlib import Path

import numpy as np
import PIL.Image
import torch

from rods.runs.execution_options import add_execution_options
from tools.gpu_sections.common import MODELS, THREADS, Section, psnr

NETWORK = MODELS / "hands-32.safetensors"
FAMILIES = {  # the preset of hands-32 gives restart its readout, which looks at layers
    "euler": ["--sampler=euler"],
    "rods-cas": ["--sampler=rods-cas", "--eps=0", "--window=.1,.6"],
    "restart": ["--sampler=restart", "--threshold=0", "--rounds=1"],
}
FLOAT32, BF16 = 45.0, 22.0  # dB to the plain run; PNG rounding alone leaves 59
OPTIONS: dict[str, tuple[list[str], float]] = {  # the parameter's name: what to give, and the least dB
    "batch": (["--batch=3"], FLOAT32),
    "probe_batch": (["--probe-batch=2"], FLOAT32),
    "checkpoint_blocks": (["--checkpoint-blocks"], FLOAT32),
    "dtype": (["--dtype=bf16"], BF16),
    "channels_last": (["--channels-last"], FLOAT32),
    "compile_network": (["--compile"], FLOAT32),
    "threads": (["--threads=1"], FLOAT32),
}


def execution_parameters() -> list[str]:
    """The Python names of the execution options that generate.py has."""

    @add_execution_options
    def command() -> None: ...

    return [parameter.name for parameter in command.__click_params__]  # type: ignore[attr-defined]


def images_of(outdir: Path) -> torch.Tensor:
    """The run's images in [-1, 1], [N, H, W]."""
    pixels = [np.asarray(PIL.Image.open(path)) for path in sorted(outdir.glob("0*.png"))]
    return torch.from_numpy(np.stack(pixels).astype(np.float32) / 127.5 - 1)


def scores_of(outdir: Path) -> list[float]:
    """What the gate of a restart said of each base image."""
    lines = (json.loads(line) for line in (outdir / "samples.jsonl").read_text().splitlines())
    return [line["restart"]["scores"][0] for line in lines if "restart" in line]


def generate(outdir: Path, device: str, *options: str, steps: int) -> str:
    """generate.py in this process; what it said."""
    from generate import main

    said = io.StringIO()
    arguments = [f"--network={NETWORK}", f"--outdir={outdir}", f"--device={device}", f"--steps={steps}", *options]
    if not any(option.startswith("--threads=") for option in options):
        arguments.append(f"--threads={THREADS}")
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            code = main.main(arguments, standalone_mode=False)
        except SystemExit as e:
            code = e.code
    if code:
        raise RuntimeError(f"exit code {code}: {said.getvalue()[-600:]}")
    return said.getvalue()


def compare(section: Section, names: list[str], families: list[str]) -> None:
    steps = 2 if section.quick else 10
    always = ["--seeds=0-7", "--batch=8", "--rng=cpu"]
    with tempfile.TemporaryDirectory() as folder:
        for family in families:
            plain = Path(folder) / f"{family}-plain"
            with section.part(f"{family}, plain"):
                generate(plain, section.device.type, *always, *FAMILIES[family], steps=steps)
            if section.cuda and "compile_network" not in names:
                beside_cpu(section, family, plain, Path(folder) / f"{family}-cpu", always, steps)
            for name in names:
                with section.part(f"{family}, {name}"):
                    options, limit = OPTIONS[name]
                    outdir = Path(folder) / f"{family}-{name}"
                    if name == "compile_network":
                        torch._dynamo.reset()
                    given = [a for a in always if a.split("=")[0] != options[0].split("=")[0]]
                    generate(outdir, section.device.type, *given, *FAMILIES[family], *options, steps=steps)
                    near = psnr(images_of(outdir), images_of(plain))
                    section.check(f"{family}, {' '.join(options)}, dB", near, limit, least=True)


def beside_cpu(section: Section, family: str, plain: Path, outdir: Path, always: list[str], steps: int) -> None:
    """The command's images and gate scores on this device and on the CPU."""
    with section.part(f"{family}, CPU"):
        generate(outdir, "cpu", *always, *FAMILIES[family], steps=steps)
        section.check(f"{family}, beside the CPU, dB", psnr(images_of(plain), images_of(outdir)), 35.0, least=True)
        if family == "restart":
            worst = max(abs(a - b) for a, b in zip(scores_of(plain), scores_of(outdir), strict=True))
            section.check("gate scores beside the CPU's, largest difference", worst, 0.02)


def options(section: Section) -> None:
    for unknown in set(execution_parameters()) - set(OPTIONS):
        section.fails(unknown, KeyError("no value is known for this option of generate.py; add it to OPTIONS"))
    names = ["batch", "probe_batch"] if section.quick else [name for name in OPTIONS if name != "compile_network"]
    compare(section, names, ["rods-cas", "restart"] if section.quick else list(FAMILIES))


def compiled_options(section: Section) -> None:
    compare(section, ["compile_network"], ["rods-cas"] if section.quick else list(FAMILIES))
