"""Train a diffusion model: options -> frozen config -> training.loop.train."""

from __future__ import annotations

import json
import re
from dataclasses import fields
from functools import partial
from typing import Any

import click
import torch
from click.core import ParameterSource

from dnnlib.cli import Command
from dnnlib.errors import UserError, counted, user_errors
from torch_utils import distributed
from training.config import Execution, RunSettings, TrainConfig
from training.dataset import ImageDataset
from training.estimate import estimate
from training.feed import standard_deviation
from training.folder import find_run_dir, nearly_equal
from training.loop import Draw, start, train
from training.networks import ARCH_OPTIONS, ARCHITECTURES, PRECOND_OPTIONS
from training.options import add_training_options
from training.recipes import LOSS_OPTIONS, NETWORK_OPTIONS, PIXELS, network_kwargs
from training.schema import check_init_kwargs
from training.state import saved_states
from training.trainer import AUTOCAST, Trainer
from training.validation import held_out_loss, images_used


@click.command(cls=Command, context_settings={"show_default": True, "max_content_width": 120})
@add_training_options
@click.pass_context
def main(ctx: click.Context, **opts: Any) -> None:
    """Train a denoiser on a folder or zip of images.

    The same command goes on where it was stopped: the newest run folder in --outdir with equal options is resumed.

    \b
    Examples:
      python scripts/make_data.py hands-32 --dest=data/hands-32.zip
      python train.py --preset=hands-32 --data=data/hands-32.zip --outdir=training-runs
      torchrun --standalone --nproc_per_node=8 train.py --preset=hands-128-ve --data=hands.zip --outdir=training-runs
    """
    device = distributed.pick_device(opts["device"])
    if opts["threads"]:
        torch.set_num_threads(opts["threads"])
    torch.set_flush_denormal(True)
    torch.backends.cudnn.benchmark = opts["bench"]
    distributed.init(device)
    with distributed.rank0_first():
        check_options(opts, ctx, device)
        dataset = ImageDataset(opts["data"], cond=opts["cond"], cache=opts["cache"])
        held_out = held_out_data(opts, dataset)
    if opts["sigma_data"] == "auto":
        opts["sigma_data"] = measured_sigma_data(dataset, device)
    with distributed.rank0_first():
        config = train_config(opts, dataset)
        trainer = build_trainer(config, device, opts)
        settings = run_settings(opts, config, dataset)
    if distributed.rank() == 0:
        describe(trainer, dataset)
        if (recipe := opts["preset"]) and PIXELS[recipe] != dataset.resolution:
            pixels = f"{PIXELS[recipe]} pixels across, and those of --data are {dataset.resolution}"
            click.echo(f"Note: recipe {recipe} is for images {pixels}; its network may not suit them")
        if note := nearly_equal(opts["outdir"], config.options(), settings.run_dir):
            click.echo(note)
    if not opts["dry_run"]:
        validate = None if held_out is None else partial(validation, trainer=trainer, dataset=held_out)
        train(trainer, settings, dataset, draw=drawing(device) if opts["grid"] else None, validate=validate)
    elif distributed.rank() == 0:
        if not saved_states(settings.run_dir):
            start(trainer, dataset)
        for line in estimate(trainer, settings, dataset, ranks=distributed.world_size()).describe():
            click.echo(line)
        click.echo(f"Would train in {settings.run_dir}")
    distributed.close()


def check_options(opts: dict[str, Any], ctx: click.Context, device: torch.device) -> None:
    """Options that do not go together, and those that stand for others. Raises UserError."""
    if opts["fp16"]:
        given = ctx.get_parameter_source("precision") is not ParameterSource.DEFAULT
        if given and opts["precision"] != "fp16":
            raise UserError(f"--fp16=1 and --precision={opts['precision']} contradict each other; give one of them")
        opts["precision"] = "fp16"
    if opts["precision"] == "fp16" and device.type != "cuda":
        raise UserError(f"--precision=fp16 needs a CUDA device, and this is {device.type}; use bf16 or fp32")

    def is_given(option: str) -> bool:
        return ctx.get_parameter_source(option) is ParameterSource.COMMANDLINE

    loss = PRECOND_OPTIONS[opts["precond"]].loss
    settings = {field.name for field in fields(loss)} if loss else set()
    for option, setting in LOSS_OPTIONS.items():
        if setting not in settings and is_given(option):
            name = f"--{option.replace('_', '-')}={opts[option]}"
            raise UserError(f"{name}: --precond={opts['precond']} has no such setting; leave it out")
    arguments = ARCHITECTURES[ARCH_OPTIONS[opts["arch"]]["model_type"]].arguments
    if opts["label_dropout"]:
        name = f"--label-dropout={opts['label_dropout']}"
        if not opts["cond"]:
            raise UserError(f"{name}: there are no classes to drop; give --cond=1, or use --label-dropout=0")
        if "label_dropout" not in arguments:
            raise UserError(f"{name}: --arch={opts['arch']} has no such setting; use --label-dropout=0")
    if opts["augment"] and "augment_dim" not in arguments:
        raise UserError(f"--augment={opts['augment']}: --arch={opts['arch']} is not told of it; use --augment=0")
    if is_given("ema") and is_given("ema_std"):
        raise UserError("--ema and --ema-std are two kinds of averages; give one of them")
    if is_given("ema") or not opts["ema_std"]:
        opts["ema_std"] = ()
    else:
        opts["ema"] = ()
    if opts["transfer"] and opts["resume"]:
        raise UserError("--transfer and --resume both say where to start from; give one of them")
    if opts["batch"] < (ranks := distributed.world_size()):
        raise UserError(f"--batch={opts['batch']} leaves some of {ranks} ranks without an image; use --batch={ranks}")


def held_out_data(opts: dict[str, Any], dataset: ImageDataset) -> ImageDataset | None:
    """The images of --val, which have to be like those of --data. Raises UserError."""
    if opts["val"] is None:
        return None
    held_out = ImageDataset(opts["val"], cond=opts["cond"], cache=opts["cache"], option="--val")
    for name, what in (("resolution", "pixels"), ("num_channels", "channels"), ("label_dim", "numbers a label")):
        theirs, ours = getattr(held_out, name), getattr(dataset, name)
        if theirs != ours:
            raise UserError(
                f"--val={opts['val']} has {theirs} {what}, and --data={opts['data']} {ours}; prepare it alike"
            )
    for i in images_used(held_out):  # a damaged one is found now, and not at the first tick
        held_out.image(i)
    return held_out


def validation(net: torch.nn.Module, *, trainer: Trainer, dataset: ImageDataset) -> dict[str, Any]:
    """The held-out loss of `net`, in the precision of the training."""
    dtype = AUTOCAST[trainer.config.precision]
    with torch.autocast(trainer.device.type, dtype, enabled=dtype != torch.float32):
        return held_out_loss(net, trainer.loss, dataset, device=trainer.device)


def measured_sigma_data(dataset: ImageDataset, device: torch.device) -> float:
    """The standard deviation of the data, measured by rank 0."""
    measured = None
    if distributed.rank() == 0:
        measured = json.dumps(standard_deviation(dataset)).encode()
    sigma_data = float(json.loads(distributed.from_rank0(measured, device)))
    if distributed.rank() == 0:
        click.echo(f"sigma_data: {sigma_data} (the standard deviation of the data, in [-1, 1])")
    if not sigma_data:
        raise UserError("--sigma-data=auto: all values of all images are equal; give a number")
    return sigma_data


def train_config(opts: dict[str, Any], dataset: ImageDataset) -> TrainConfig:
    """What decides the weights, of the options."""
    kwargs = network_kwargs(
        opts, img_resolution=dataset.resolution, img_channels=dataset.num_channels, label_dim=dataset.label_dim
    )
    precond = PRECOND_OPTIONS[opts["precond"]]
    if "sigma_data" in precond.arguments:
        kwargs["sigma_data"] = opts["sigma_data"]
    return TrainConfig(
        data=opts["data"],
        num_images=len(dataset),
        network={"class_name": precond.__name__, "init_kwargs": {**kwargs, **precond.trained_with}},
        cond=opts["cond"],
        batch=opts["batch"],
        lr=opts["lr"],
        lr_rampup=round(opts["lr_rampup"] * 1e6),
        lr_decay=round(opts["lr_decay"] * 1e6) if opts["lr_decay"] else None,
        adam_beta2=opts["adam_beta2"],
        ema_halflives=tuple(round(halflife * 1e6) for halflife in opts["ema"]),
        ema_stds=opts["ema_std"],
        P_mean=opts["p_mean"],
        P_std=opts["p_std"],
        augment=opts["augment"],
        xflip=opts["xflip"],
        seed=opts["seed"],
        precision=opts["precision"],
        loss_scale=opts["ls"],
        grad_clip=opts["grad_clip"],
        transfer=opts["transfer"],
        resume=opts["resume"],
    )


def build_trainer(config: TrainConfig, device: torch.device, opts: dict[str, Any]) -> Trainer:
    """The trainer; UserError where the options describe no network."""
    execution = Execution(opts["batch_gpu"], compiled=opts["compiled"], channels_last=opts["channels_last"])
    class_name, kwargs = config.network["class_name"], config.network["init_kwargs"]
    spelled = {argument: f"--{option.replace('_', '-')}" for argument, option in NETWORK_OPTIONS.items()}
    check_init_kwargs(class_name, kwargs, options=spelled)
    with user_errors("--cbase, --cres and --attn describe no network of this size"):
        trainer = Trainer(config, device, execution)
    levels, wanted = trainer.net.model.resolutions, kwargs.get("attn_resolutions", ())
    if unused := [r for r in wanted if r not in levels]:
        raise UserError(
            f"--attn={','.join(map(str, wanted))}: the network has no layers at {unused[0]} pixels, "
            f"only at {', '.join(map(str, levels))}; give some of these"
        )
    return trainer


def run_settings(opts: dict[str, Any], config: TrainConfig, dataset: ImageDataset) -> RunSettings:
    """Where, how far and how often. The folder is that of rank 0, the one that writes."""
    desc = opts["desc"] or dataset.name
    if not re.fullmatch(r"[\w.,=+-]+", desc):
        raise UserError(f"--desc={desc} does not fit in a folder's name; use letters, digits and . , = + - _")
    return RunSettings(
        find_run_dir(opts["outdir"], config.options(), desc=desc, nosubdir=opts["nosubdir"]),
        total_images=max(round(opts["duration"] * 1e6), 1),
        tick_images=max(round(opts["tick"] * 1e3), 1),
        snapshot_ticks=opts["snap"],
        dump_ticks=opts["dump"],
        keep_states=opts["keep_states"],
        max_bad_steps=opts["max_bad_steps"],
        workers=opts["workers"],
    )


def describe(trainer: Trainer, dataset: ImageDataset) -> None:
    """Prints what will be trained."""
    click.echo(json.dumps(trainer.config.options(), indent=2))
    size = f"{dataset.resolution}x{dataset.resolution}x{dataset.num_channels}"
    classes = f", labels of {dataset.label_dim} numbers" if dataset.label_dim else ""
    over = f"; passed over: {dataset.left_out}" if dataset.left_out else ""
    click.echo(f"Data: {counted(len(dataset), 'image')}, {size}{classes}{over}")
    attention = ", ".join(map(str, trainer.net.model.attention_resolutions()))
    millions = sum(p.numel() for p in trainer.net.parameters()) / 1e6
    ranks = f", {distributed.world_size()} ranks" if distributed.world_size() > 1 else ""
    click.echo(f"Network: {millions:.2f} M parameters, attention at {attention} pixels, on {trainer.device}{ranks}")
    if busy := distributed.oversubscription(torch.get_num_threads()):
        click.echo(busy)


def drawing(device: torch.device) -> Draw:
    """What draws the images of --grid: training knows nothing of samplers."""
    from rods.runs.snapshot_grid import draw_grid

    return partial(draw_grid, device=device)


if __name__ == "__main__":
    main()
