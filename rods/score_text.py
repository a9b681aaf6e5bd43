"""Scores as text, for command lines and records, and learned combinations as JSON, for presets.

    lid                                   with the defaults of `Lid`
    lid:sigma=1.6,draws=8                 options by name
    learned(-3.2;.5*lid;1.1*log(tvf))     bias, then weight*score or weight*log(score)
    screen(tvf>.01;lid:draws=8)           the second only where the first is above a value
    readout(block;sigma;draws;network;...) a regression on the network's activations, weights in base64 (readout.py)

In a preset a learned combination is {"bias": -3.2, "terms": [{"score": "tvf", "log": true, "weight": 1.1}, ...]}; its
name is then `learned`. A readout is its text there, and its name `readout`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import fields
from math import isfinite
from typing import Any, get_type_hints

from rods.combined_scores import Learned, Screened, Term
from rods.image_scores import HIndex, LambdaMax, Lid, Lmi, Score, Tvf
from rods.readout import Readout, read_readout, write_readout

SCORES: dict[str, type[Any]] = {"lid": Lid, "tvf": Tvf, "h-index": HIndex, "lambda-max": LambdaMax, "lmi": Lmi}
FITTED = {
    "learned": "calibrate one, or write learned(bias;weight*score)",
    "readout": "fit one by scripts/fit_readout.py and name its preset",
}
"""Scores whose weights belong to a network, by the name that they have in its preset; what to do without."""
_TERM = re.compile(r"\s*([^*]+)\*\s*(log\()?([^()]+?)(\))?\s*")


def parse_score(text: str, *, named: Mapping[str, Score] | None = None) -> Score:
    """The score that a text names; `named` is what the bare names `learned` and `readout` stand for, a preset's.

    Raises ValueError: no such score, an option that it does not have, a value that will not do.
    """
    text = text.strip()
    if text in FITTED:
        if named is None or text not in named:
            raise ValueError(f"{text}: no preset gives its weights; {FITTED[text]}")
        return named[text]
    head, is_nested, body = text.removesuffix(")").partition("(")
    if is_nested and text.endswith(")") and head == "learned":
        return _parse_learned(body)
    if is_nested and text.endswith(")") and head == "readout":
        return read_readout(body)
    if is_nested and text.endswith(")") and head == "screen":
        gate, separated, full = body.partition(";")
        cheap, is_compared, above = gate.partition(">")
        if not separated or not is_compared:
            raise ValueError(f"{text!r} is no screen; write screen(cheap>value;full), such as screen(tvf>.01;lid)")
        return Screened(_simple(cheap), _number(above, float, "screen"), parse_score(full, named=named))
    return _simple(text)


def _simple(text: str) -> Score:
    name, has_options, rest = (part.strip() for part in text.partition(":"))
    if name in FITTED:
        raise ValueError(f"{name}: its options are the preset's; give {name} alone")
    if name not in SCORES:
        raise ValueError(f"unknown detector {name!r}; give {' or '.join([*SCORES, *FITTED])}")
    kinds = get_type_hints(SCORES[name])
    given: dict[str, Any] = {}
    for part in rest.split(",") if has_options else []:
        key, _, value = (p.strip() for p in part.partition("="))
        if key not in kinds:
            raise ValueError(f"{name} has no option {key!r}; it has {', '.join(kinds)}, as in {name}:{_example(name)}")
        if key in given:
            raise ValueError(f"{name}: {key} is given twice; give it once")
        given[key] = _number(value, kinds[key], f"{name}: {key}")
    try:
        score: Score = SCORES[name](**given)
    except ValueError as e:
        raise ValueError(f"{name}: {e}") from None
    return score


def _example(name: str) -> str:
    return format_score(SCORES[name]()).partition(":")[2].partition(",")[0]


def _number(text: str, kind: type[Any], what: str) -> Any:
    """A value of a score's option. Raises ValueError, naming it."""
    if kind is bool:
        if text in ("true", "false"):
            return text == "true"
        raise ValueError(f"{what}: {text!r} will not do; give true or false")
    try:
        return kind(text)
    except ValueError:
        wanted = "a whole number" if kind is int else "a number"
        raise ValueError(f"{what}: {text.strip()!r} will not do; give {wanted}") from None


def _parse_learned(body: str) -> Learned:
    bias, *rest = body.split(";")
    terms = []
    for part in rest:
        found = _TERM.fullmatch(part)
        if not found or bool(found[2]) != bool(found[4]):
            raise ValueError(f"learned: {part!r} is no term; write weight*score or weight*log(score)")
        terms.append(Term(_number(found[1], float, "learned"), _simple(found[3]), bool(found[2])))
    return Learned(_number(bias, float, "learned"), tuple(terms))


def format_score(score: Score) -> str:
    """The text that `parse_score` reads back, with every option written out."""
    if isinstance(score, Learned):
        parts = [f"{_written(t.weight)}*{f'log({format_score(t.score)})' if t.log else format_score(t.score)}"
                 for t in score.terms]  # fmt: skip
        return f"learned({';'.join([_written(score.bias), *parts])})"
    if isinstance(score, Screened):
        return f"screen({format_score(score.screen)}>{_written(score.above)};{format_score(score.score)})"
    if isinstance(score, Readout):
        return write_readout(score)
    name = next(name for name, kind in SCORES.items() if type(score) is kind)
    options = [f"{f.name}={_written(getattr(score, f.name))}" for f in fields(SCORES[name])]
    return f"{name}:{','.join(options)}"


def _written(value: float | bool) -> str:
    """All the digits that a number has, and no more."""
    if isinstance(value, bool):
        return str(value).lower()
    return repr(value) if isinstance(value, int) else repr(float(value)).removesuffix(".0")


# -- learned combinations in presets ----------------------------------------------------------------------------------


def learned_of_json(data: Any) -> Learned:
    """A learned combination from a preset. Raises ValueError: not of that form."""
    if not isinstance(data, dict) or set(data) != {"bias", "terms"} or not isinstance(data["terms"], list):
        raise ValueError("learned needs exactly the keys bias, terms")
    return Learned(_finite(data["bias"]), tuple(map(_term_of_json, data["terms"])))


def _term_of_json(data: Any) -> Term:
    if not isinstance(data, dict) or not {"score", "weight"} <= set(data) <= {"score", "weight", "log"}:
        raise ValueError("learned: a term needs the keys score, weight, and log where it is true")
    log = data.get("log", False)
    if not isinstance(data["score"], str) or not isinstance(log, bool):
        raise ValueError("learned: a term's score is a text such as lid:sigma=1.2, its log true or false")
    return Term(_finite(data["weight"]), _simple(data["score"]), log)


def _finite(value: Any) -> float:
    if type(value) not in (int, float) or not isfinite(value):
        raise ValueError(f"learned: {value!r:.40} is not a weight; give a finite number")
    return float(value)


def learned_as_json(learned: Learned) -> Mapping[str, Any]:
    """The inverse of `learned_of_json`."""
    terms = [{"score": format_score(t.score), "log": t.log, "weight": t.weight} for t in learned.terms]
    return {"bias": learned.bias, "terms": terms}
