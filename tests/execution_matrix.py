"""Commands with the options of how they compute, and what a run of each of them comes to, in numbers.

`Subject.execution` has what to give for every such option, `Subject.other` names the options that decide what is
computed or where it goes. A new option belongs to one of them: tests/commands/test_execution_matrix.py says so.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path

import click
import numpy as np
import PIL.Image
import torch
from commands import LABELLED, SMALL, said
from numpy.typing import NDArray
from overridden import last_of_each

import fid
import generate
import train
from rods.bench.task import LoadedNetwork, Task
from rods.eval.labels import Label
from rods.runs.options import all_options
from rods.runs.presets import read_preset
from scripts import bench, fit_gate
from training.checkpoint import load_denoiser

Numbers = dict[str, NDArray[np.float64]]
ROUNDING, BF16 = 2e-3, 0.15
"""How far numbers may be from the plain run's, relative, root mean square: 8 bits of a PNG are 2e-3, too."""
ALONE = {"threads", "device", "rng", "bench", "cache"}
"""Not in pairs: what cannot change a bit on a CPU, and threads, which wait for each other where a machine is busy."""


@dataclass(frozen=True)
class Subject:
    """A command on tiny networks and images."""

    name: str
    command: click.Command
    given: Callable[[Path], list[str]]  # the folder of all runs -> what every run is given
    numbers: Callable[[Path, str], Numbers]  # the run's folder and all that it said -> what it came to
    execution: Mapping[str, Sequence[str]]  # parameter -> what to give for it, one thing after the other
    other: frozenset[str]
    families: Mapping[str, Sequence[str]] = field(default_factory=lambda: {"": ()})
    out: Sequence[str] = ("--outdir={}",)  # none: it prints what it found

    def run(self, folder: Path, shared: Path, *options: str) -> Numbers:
        """What the command comes to with these options over its own."""
        folder.mkdir(parents=True)
        where = [option.format(folder / "out") for option in self.out]
        arguments = [*self.given(shared), *where, *options]
        return self.numbers(folder / "out", said(self.command, *last_of_each(arguments)))

    def unknown(self) -> set[str]:
        """Options that nobody has said anything of."""
        names = {parameter.name or "" for parameter in self.command.params}
        return names - set(all_options()) - set(self.execution) - self.other

    def gone(self) -> set[str]:
        """What is said of options that the command does not have."""
        return (set(self.execution) | self.other) - {parameter.name or "" for parameter in self.command.params}

    def cases(self) -> Iterator[tuple[str, str]]:
        """Families and options to try, which go with those after them; those of `ALONE` by one family."""
        for family in self.families:
            own = [name for name in self.execution if name not in ALONE or family == next(iter(self.families))]
            yield from ((family, name) for name in own)

    def together(self, family: str, first: str) -> Iterator[tuple[str, ...]]:
        """What to give for an option alone, then with each one after it."""
        yield from ((given,) for given in self.execution[first])
        others = list(self.execution)[list(self.execution).index(first) + 1 :]
        for other in others if first not in ALONE and family in self.paired() else ():
            if other not in ALONE:
                yield from product(self.execution[first], self.execution[other])

    def paired(self) -> Sequence[str]:
        """The families in which options are tried in pairs: those of a sampler; of architectures one."""
        return list(self.families) if self.name == "generate" else list(self.families)[:1]


def limit(options: Sequence[str]) -> float:
    return BF16 if {"--dtype=bf16", "--dtype=mixed", "--precision=bf16"} & set(options) else ROUNDING


def apart(a: Numbers, b: Numbers) -> float:
    """The largest relative difference, root mean square, of what two runs came to; inf where one lacks something."""
    if a.keys() != b.keys() or any(a[name].shape != b[name].shape for name in a):
        return np.inf
    return max(float(np.sqrt(((a[k] - b[k]) ** 2).sum() / max((b[k] ** 2).sum(), 1e-12))) for k in a)


def names(text: str) -> frozenset[str]:
    return frozenset(text.split())


# -- generate.py ------------------------------------------------------------------------------------------------------


def pictures(folder: Path, n: int, side: int, *, classes: int = 0) -> Path:
    """n images of noise on shades of grey, with classes if there are any; made once."""
    if not folder.is_dir():
        folder.mkdir(parents=True)
        rng = np.random.default_rng(0)
        for i in range(n):
            x = np.clip(40 + 60 * (i % 3) + rng.normal(0, 30, (side, side)), 0, 255)
            PIL.Image.fromarray(x.astype(np.uint8)).save(folder / f"{i:03d}.png")
        if classes:
            labels = [[f"{i:03d}.png", i % classes] for i in range(n)]
            (folder / "dataset.json").write_text(json.dumps({"labels": labels}))
    return folder


def gate_preset(shared: Path) -> Path:
    """A preset of the small network with a gate that reads its activations; fitted once."""
    dest = shared / "gate.preset.json"
    if not dest.exists():
        said(fit_gate.main, *GATE.given(shared), f"--dest={dest}", f"--out={shared / 'gate'}")
    return dest


def images_of(outdir: Path, output: str) -> Numbers:
    lines = [json.loads(line) for line in (outdir / "samples.jsonl").read_text().splitlines()]
    found = [np.asarray(PIL.Image.open(outdir / line["name"]), dtype=np.float64) for line in lines]
    return {"images": np.stack(found), "F and B": np.array([[line["forward"], line["backward"]] for line in lines])}


def generate_given(shared: Path) -> list[str]:
    return [f"--network={SMALL}", "--seeds=0-5", "--batch=6", "--steps=3", "--threads=1",
            f"--preset={gate_preset(shared)}"]  # fmt: skip


GENERATE = Subject(
    "generate",
    generate.main,
    generate_given,
    images_of,
    {
        "batch": ["--batch=4"],
        "probe_batch": ["--probe-batch=2"],
        "checkpoint_blocks": ["--checkpoint-blocks"],
        "dtype": ["--dtype=bf16", "--dtype=mixed"],
        "channels_last": ["--channels-last"],
        "compile_network": ["--compile"],
        "threads": ["--threads=2"],
        "rng": ["--rng=cpu"],
        "device": ["--device=cpu"],
    },
    names(
        "network sha256 outdir seeds subdirs class_index grid trajectory sampler preset guidance guide "
        "guidance_interval guide_sha256 vae restart_share filter filter_threshold rejected accept max_tries seeding "
        "dry_run"
    ),
    {
        "heun": ["--preset=none", "--sampler=edm", "--S_churn=5"],
        "cas": ["--preset=none", "--sampler=rods-cas", "--eps=0", "--detect=true", "--rho=1",
                "--window=0,1"],
        "gate": ["--sampler=restart", "--threshold=-1e9", "--rounds=1"],
        "lid": ["--preset=none", "--sampler=restart", "--detector=lid:sigma=1,draws=2", "--threshold=-1e9",
                "--rounds=1", "--score-at=0", "--sigma-r=2"],
        "guided": [f"--network={LABELLED}", "--preset=none", "--guidance=2", "--guide=none", "--sampler=rods-sas",
                   "--eps=0", "--rho=1"],
    },
)  # fmt: skip


# -- train.py ---------------------------------------------------------------------------------------------------------


def training_numbers(outdir: Path, output: str) -> Numbers:
    """Loss and gradient norm of each step, and D of the last snapshot."""
    lines = [json.loads(line) for line in (outdir / "stats.jsonl").read_text().splitlines()]
    net = load_denoiser(sorted(outdir.glob("*.safetensors"))[-1])
    x = torch.randn(4, 1, 16, 16, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        D = net(x, torch.tensor([0.1, 0.5, 2, 20]), torch.eye(2)[[0, 1, 0, 1]])
    found = {key: np.array([line[key] for line in lines]) for key in ("loss", "grad_norm", "images_seen")}
    return {**found, "D": D.double().numpy(), "held out": np.array([line["val_loss"] for line in lines])}


def training_given(shared: Path) -> list[str]:
    data = pictures(shared / "shades", 10, 16, classes=2)
    return [f"--data={data}", f"--val={data}", "--cond=1", "--cbase=4", "--cres=1,2", "--blocks=1", "--batch=8",
            "--lr-rampup=0", "--ema=1e-5", "--augment=.5", "--xflip=1", "--dropout=0", "--threads=1", "--nosubdir",
            "--tick=.008", "--duration=24e-6", "--batch-gpu=8"]  # fmt: skip


TRAIN = Subject(
    "train",
    train.main,
    training_given,
    training_numbers,
    {
        "batch_gpu": ["--batch-gpu=3"],
        "precision": ["--precision=bf16"],
        "ls": ["--ls=8"],
        "compiled": ["--compile"],
        "channels_last": ["--channels-last"],
        "bench": ["--bench=0"],
        "threads": ["--threads=2"],
        "cache": ["--cache=0"],
        "workers": ["--workers=3"],
        "device": ["--device=cpu"],
    },
    names(
        "preset outdir data cond arch precond cbase cres blocks attn dropout label_dropout sigma_data duration batch "
        "lr lr_rampup lr_decay adam_beta2 ema ema_std p_mean p_std augment xflip grad_clip max_bad_steps seed transfer "
        "resume desc nosubdir tick snap dump keep_states val grid dry_run"
    )
    | {"fp16"},  # on CUDA alone
    {"ddpmpp": ["--arch=ddpmpp"], "adm": ["--arch=adm"], "edm2": ["--arch=edm2", "--precond=edm2", "--augment=0"]},
)


# -- fid.py -----------------------------------------------------------------------------------------------------------

EXTRACTION = {"batch": ["--batch=5"], "device": ["--device=cpu"], "threads": ["--threads=2"]}
EXTRACTOR = names("detector resize trust_detector seed force")
PIXELS = ["--detector=pixels", "--threads=1", "--batch=16"]


def reference(shared: Path) -> Path:
    if not (ref := shared / "ref.npz").exists():
        said(fid.main, "ref", f"--data={pictures(shared / 'real', 70, 8)}", f"--dest={ref}", *PIXELS)
    return ref


def metrics_of(outdir: Path, output: str) -> Numbers:
    """By metric, every number of its row."""
    line = next(line for line in output.splitlines() if line.startswith("{"))
    return {
        f"{row['metric']} {key}": np.array([value], dtype=np.float64)
        for row in json.loads(line)["metrics"]
        for key, value in row.items()
        if isinstance(value, float)
    }


def statistics_of(outdir: Path, output: str) -> Numbers:
    with np.load(outdir.with_suffix(".npz"), allow_pickle=False) as found:
        return {name: found[name].astype(np.float64) for name in ("mu", "sigma")}


CALC = Subject(
    "fid calc",
    fid.main.commands["calc"],
    lambda shared: [f"--ref={reference(shared)}", "--json", "--metrics=fid,kid,inception-var", *PIXELS],
    metrics_of,
    EXTRACTION,
    EXTRACTOR
    | names(
        "images from_network num seeds class_index sampler preset ref metrics as_json guidance guide guidance_interval "
        "guide_sha256 vae"
    ),
    {
        "cas": [f"--from-network={SMALL}", "--sampler=rods-cas", "--eps=0", "--rho=1", "--steps=3", "--num=24"],
        "guided": [
            f"--from-network={LABELLED}",
            "--guidance=2",
            "--guide=none",
            "--sampler=euler",
            "--steps=3",
            "--num=24",
        ],
    },
    out=(),
)
REF = Subject(
    "fid ref",
    fid.main.commands["ref"],
    lambda shared: [f"--data={pictures(shared / 'real', 70, 8)}", *PIXELS],
    statistics_of,
    EXTRACTION,
    EXTRACTOR | names("data dest features"),
    out=["--dest={}.npz"],
)
COMPARE = Subject(
    "fid compare",
    fid.main.commands["compare"],
    lambda shared: [str(pictures(shared / "real", 70, 8)), str(pictures(shared / "others", 40, 8)), "--json",
                    f"--ref={reference(shared)}", "--metrics=fid,inception-var", "--bootstrap=50", *PIXELS],
    metrics_of,
    EXTRACTION,
    EXTRACTOR | names("a b bootstrap ref metrics as_json"),
    out=(),
)  # fmt: skip


# -- scripts/bench.py and scripts/fit_gate.py -------------------------------------------------------------------------


def benchmark_of(outdir: Path, output: str) -> Numbers:
    """The images of every method's run, and the table that was printed."""
    runs = sorted(path.parent for path in outdir.rglob("samples.jsonl"))
    return {f"{run.name} {key}": value for run in runs for key, value in images_of(run, "").items()}


def small_task() -> Task:
    """The small network's images, which all are valid."""
    return Task(
        name="small",
        title="Images of a small network",
        networks={"small": lambda: LoadedNetwork(load_denoiser(SMALL), "small", "2" * 64)},
        label=lambda x: np.full(len(x), Label.VALID, np.int8),
        kinds=lambda x: np.zeros(len(x), np.int64),
        num_kinds=1,
        real=lambda n, seed: np.random.default_rng(seed).standard_normal((n, 1, 8, 8)),
        audit=lambda: (),
        calibration_seeds=range(1000, 1016),
        report_seeds=range(32),
        batch=8,
        num_steps=4,
        settings={
            "rods-cas": {"eps": 0.0, "rho": 1.0, "window": "0,1"},
            "restart": {"threshold": -1e9, "sigma_r": 2.0, "detector": "lid:sigma=1,draws=2", "rounds": 1},
        },
    )


BENCH = Subject(
    "bench run",
    bench.main.commands["run"],
    lambda shared: ["--task=small", "--samplers=euler,rods-cas", "--samplers=restart", "--seeds=0-9", "--batch=10",
                    "--threads=1"],
    benchmark_of,
    {"batch": ["--batch=4"], "device": ["--device=auto"], "threads": ["--threads=2"]},
    names("experiment task_name network samplers seeds preset out"),
    out=["--out={}"],
)  # fmt: skip
BENCH_OTHERS = {  # its other commands compute with threads at most
    "label": names("run_folder task_name"),
    "compare": names("run_a run_b source real pairs blind"),
    "audit": names("task_name out"),
    "report": names("task_name dest out"),
}


def gate_of(outdir: Path, output: str) -> Numbers:
    """The gate's own numbers, and the restart that it decides."""
    preset = read_preset(outdir.with_suffix(".preset.json"))
    restart = preset.samplers["restart"]
    scores = np.array(preset.quantiles["restart"])
    return {"restart": np.array([restart.threshold, restart.sigma_r, restart.score_at]), "scores": scores}


GATE = Subject(
    "fit_gate",
    fit_gate.main,
    lambda shared: [f"--network={SMALL}", f"--real={pictures(shared / 'real', 70, 8)}", "--steps=8", "--batch=16",
                    "--samples=40", "--trial=16", "--threads=1", "--device=cpu"],
    gate_of,
    {"batch": ["--batch=9"], "device": ["--device=auto"], "threads": ["--threads=2"]},
    names(
        "network vae real labels runs dest samples num_trial budget alpha score_at steps guidance guide "
        "guidance_interval guide_sha256 out dry_run"
    ),
    {"two classes": (), "one class": ["--samples=0"]},
    out=["--dest={}.preset.json", "--out={}"],
)  # fmt: skip

SUBJECTS = {subject.name: subject for subject in (GENERATE, TRAIN, CALC, REF, COMPARE, BENCH, GATE)}
