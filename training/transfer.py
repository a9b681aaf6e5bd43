"""Starting a run from what another one learned: the weights of a snapshot, or a whole state."""

from __future__ import annotations

from pathlib import Path

from dnnlib.errors import UserError, of_option
from training.checkpoint import load_snapshot
from training.config import averages, different_options
from training.state import TrainingState, load_state
from training.trainer import Trainer

_SHOWN = 8


def start_from_weights(trainer: Trainer, source: str) -> list[str]:
    """Net and EMAs from a snapshot, tensor by tensor where name and shape agree; what to say about it.

    Tensors that do not agree keep their initial values. Raises UserError: no such file, a state, or no tensor fits.
    """
    if source.endswith(".pt") and Path(source).is_file():
        raise UserError(f"--transfer={source}: that is a training state; give a network-snapshot, or --resume={source}")
    with of_option("--transfer"):
        snapshot = load_snapshot(source)
    found, wanted = snapshot.net.state_dict(), trainer.net.state_dict()
    fits = {k: t for k, t in found.items() if k in wanted and t.shape == wanted[k].shape}
    trained = {name for name, _ in trainer.net.named_parameters()}
    if not trained & fits.keys():
        raise UserError(f"--transfer={source}: none of its tensors fits this network; give the options of that network")
    for net in (trainer.net, *trainer.emas):
        net.load_state_dict(fits, strict=False)
    shapes = [
        f"{k} {list(t.shape)} there, {list(wanted[k].shape)} here"
        for k, t in found.items()
        if k in wanted and t.shape != wanted[k].shape
    ]
    lines = [f"Weights of {snapshot.describe()}: {len(fits)} of {len(wanted)} tensors loaded"]
    lines += _listed("mismatched, left at their initial values", shapes)
    lines += _listed("missing there, left at their initial values", [k for k in wanted if k not in found])
    lines += _listed("not used", [k for k in found if k not in wanted])
    if (theirs := snapshot.header.class_name) != (ours := trainer.config.network["class_name"]):
        lines.append(f"  it was trained as {theirs}, and this run is {ours}: the network has to learn other inputs")
    return lines


def _listed(what: str, names: list[str]) -> list[str]:
    if not names:
        return []
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return [f"  {len(names)} {what}: {'; '.join(names[:_SHOWN])}{more}"]


def start_from_state(trainer: Trainer, source: str) -> list[str]:
    """Everything from a state of another run, whose options may differ in all but the network; what to say about it.

    Raises UserError: no such file, no state, or one of another network.
    """
    path = Path(source)
    if not path.is_file():
        raise UserError(f"--resume={source}: there is no such file; name a training-state-*.pt")
    if path.suffix == ".safetensors":
        raise UserError(f"--resume={path}: that is a network; give a training-state-*.pt, or --transfer={path}")
    try:
        state = load_state(path)
    except UserError:
        raise UserError(f"--resume={path}: not a training state, or damaged; name a training-state-*.pt") from None
    theirs, ours = state.options, trainer.config.options()
    if theirs["network"] != ours["network"]:
        raise UserError(f"--resume={source} is the state of another network; --transfer takes the weights that fit")
    labels = [average.label for average in averages(theirs)]
    wanted = [average.label for average in trainer.config.averages]
    emas = [state.emas[labels.index(label) if label in labels else 0] for label in wanted]
    trainer.restore(TrainingState(**{**vars(state), "emas": emas}))
    different = [k for k in different_options(ours, theirs) if k != "resume"]
    changed = [f"{k}={ours.get(k)} instead of {theirs.get(k)}" for k in different]
    lines = [f"State of {source} at {state.images_seen / 1000:.1f} kimg"]
    return lines + _listed("options differ from there", changed)
