"""Presets and options of before version 0.2: readouts as text, options that were removed. Read, never written."""

from __future__ import annotations

import base64
import binascii
import re
import struct
from collections.abc import Mapping
from typing import Any

from rods.config import FITTED, detector_from_text, from_json, options, to_json, to_text
from rods.detectors import Detector
from rods.gate import Readout

_RESTART = ("rho", "window", "inside", "ascent_steps", "sas_sign", "inside_solver", "lid_sigma", "draws", "tvf_sigma")
_CONSTANTS = ("epsilon_s", "C_1", "C_2", "M", "alpha")


def readout_from_text(text: str) -> Readout:
    """`readout(block+block;sigma;draws;network;bias;K;weights)`: float32 numbers in base64, mean, scale and so on.

    Raises ValueError: not of that form.
    """
    try:
        body = text.removeprefix("readout(").removesuffix(")")
        blocks, sigma, draws, network, bias, size, data = body.split(";")
        raw, K = base64.b64decode(data, validate=True), int(size)
        numbers = struct.unpack(f"<{len(raw) // 4}f", raw)
        values = float(sigma), int(draws), network, float(bias)
    except (ValueError, struct.error, binascii.Error):
        raise ValueError("readout: this text is not a readout; scripts/fit_readout.py fits one") from None
    mean, scale, linear, quadratic = (numbers[a:b] for a, b in ((0, K), (K, 2 * K), (2 * K, 3 * K), (3 * K, None)))
    return Readout(tuple(blocks.split("+")), *values, mean, scale, linear, quadratic)


def sampler_options(data: Mapping[str, Any]) -> dict[str, Any]:
    """A sampler's JSON as it is written now. Raises ValueError for an option that was removed and acts."""
    found = {k: v for k, v in data.items() if not (k in _CONSTANTS and data.get("sampler") == "ablation")}
    if data.get("sampler") != "restart":
        return found
    detector = str(found.get("detector", "lid"))
    if detector == "lid" and ("lid_sigma" in data or "draws" in data):
        found["detector"] = f"lid:sigma={data.get('lid_sigma', 1.2)},draws={data.get('draws', 4)}"
    elif detector == "tvf" and "tvf_sigma" in data:
        found["detector"] = f"tvf:sigma={data['tvf_sigma']}"
    elif detector.startswith("readout("):
        found["detector"] = "readout"
    elif "detector" in data:
        found["detector"] = detector_text(detector)
    if data.get("rho", 0) != 0:
        if data.get("window", "0,1") != "0,1" or data.get("inside_solver") is not None:
            raise ValueError("window, inside_solver: removed from restart; the restarted steps take --inside alone")
        inside = data.get("inside", "cas")
        extra = {"cas": f",ascent_steps={data.get('ascent_steps', 1)}", "sas": f",sas_sign={data.get('sas_sign')}"}
        found["inside"] = f"{inside}:rho={data['rho']}{extra.get(inside, '')}"
    elif ":" not in str(found.get("inside", "")):
        found.pop("inside", None)
    return {k: v for k, v in found.items() if k not in _RESTART or k == "inside"}


def identity(data: Mapping[str, Any]) -> dict[str, Any]:
    """What decides a run folder's images, as options.json has it now: equal for equal images.

    What does not describe a sampler of this version is left as it is, and then differs from any run's.
    """
    try:
        known = options(data["sampler"])
        own = {k: v for k, v in data.items() if k in known or k in ("sampler", *_RESTART, *_CONSTANTS)}
        detector = str(data.get("detector", ""))
        fitted: dict[str, Detector] = {}
        if detector.startswith("readout("):
            fitted["readout"] = readout_from_text(detector)
        elif detector in FITTED:  # of this version: named, with its checksum beside it
            return dict(data)
        sampler = from_json(sampler_options(own), fitted=fitted)
        selected = {k: v for key in ("filter", "accept") if key in data for k, v in _limit(key, data[key]).items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        return dict(data)
    return {**{k: v for k, v in data.items() if k not in own}, **to_json(sampler), **selected}


def _limit(key: str, text: str) -> dict[str, Any]:
    """A filter `score<=x`, or a limit `score<x`, as it is written now. Raises ValueError for a score of no version."""
    score, less, limit = text.partition("<")
    if score in FITTED:
        return {}
    if score.startswith("readout("):
        return {key: f"readout{less}{limit}", f"{key}_sha256": readout_from_text(score).digest}
    return {key: f"{to_text(detector_from_text(detector_text(score)))}{less}{limit}"}


def detector_text(text: str) -> str:
    """A detector's text without the options that were removed and do not act. Raises ValueError for one that does."""
    if text.startswith(("learned", "screen")):
        raise ValueError(f"detector: {text.partition('(')[0]} was removed; fit a readout, or use one of its scores")
    found = re.sub(r",first=0,near=[0-9.e-]+", "", text)
    if text.startswith("lid") and re.search(r"\b(first|near)=", found):
        raise ValueError("detector: first and near of lid were removed; leave them out, all draws are then taken")
    return found


def preset(data: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Detector]]:
    """A preset's JSON as it is written now, and the detectors whose weights were in it as text."""
    text = data.get("readout")
    fitted: dict[str, Detector] = {}
    if isinstance(text, str) and text.startswith("readout("):
        fitted["readout"] = readout_from_text(text)
    found = {k: v for k, v in data.items() if k not in ("learned", "retention")}
    if isinstance(data.get("samplers"), dict):
        found["samplers"] = {
            name: {k: v for k, v in sampler_options({"sampler": name, **options}).items() if k != "sampler"}
            if isinstance(options, dict)
            else options
            for name, options in data["samplers"].items()
        }
    return found, fitted
