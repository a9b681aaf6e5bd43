"""The networks that come with the project: files in models/, by name."""

from __future__ import annotations

from pathlib import Path

from dnnlib.errors import UserError

MODELS = Path(__file__).resolve().parents[1] / "models"


def find_model(name: str, *, made_by: str, folder: Path = MODELS) -> Path:
    """The file NAME.safetensors of `folder`.

    Raises UserError where there is no such file, with `made_by`, the command that makes it.
    """
    path = folder / f"{name}.safetensors"
    if not path.is_file():
        raise UserError(f"{path} is missing: fetch it from the project's repository, or train it with `{made_by}`")
    return path
