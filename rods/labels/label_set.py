"""What a rater can answer to an image, and what each answer means: valid, hallucinated or uncertain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rods.labels.labels import VERDICTS

UNCERTAIN, VALID, HALLUCINATED = VERDICTS
PAPER: dict[str, tuple[str, ...]] = {  # appendix B.6
    "hands": (
        "normal",
        "extra fingers",
        "missing fingers",
        "incorrect finger structure",
        "abnormal palm",
        "multiple hands",
        "unrecognisable",
    ),
    "faces": ("normal", "hallucinated"),
}
MOST_ANSWERS = 9  # one digit each
MOST_LETTERS = 40
WORDS_FOR_VALID = frozenset(("valid", "normal", "good", "ok", "okay", "fine", "correct", "right", "real", "yes"))
WORDS_FOR_UNCERTAIN = frozenset((UNCERTAIN, "unsure", "unclear", "doubtful", "unknown", "?"))


@dataclass(frozen=True)
class LabelSet:
    """Answers in the order of their keys, the uncertain one last, and the verdict that each stands for."""

    verdicts: Mapping[str, str]

    @property
    def answers(self) -> tuple[str, ...]:
        return tuple(self.verdicts)

    def describe(self) -> str:
        """`good: valid; bad: hallucinated; uncertain: uncertain`."""
        return "; ".join(f"{answer}: {verdict}" for answer, verdict in self.verdicts.items())

    def verdict(self, answer: str) -> str | None:
        """What an answer stands for; the verdicts stand for themselves. None for another word."""
        return self.verdicts.get(answer) or (answer if answer in VERDICTS else None)


def label_set(text: str) -> LabelSet:
    """`good,bad` or `good=valid,odd=hallucinated`, or the paper's set of this name, `hands` or `faces`.

    Without a verdict of their own the first answer is for a valid image, words like `unsure` are uncertain, and all
    others are hallucinated. An uncertain answer is added where there is none.
    Raises ValueError: fewer than two answers or more than MOST_ANSWERS, one of them twice, no answer for a valid or for
    a hallucinated image, or a word for valid that is not the first.
    """
    parts = PAPER.get(text) or tuple(part.strip() for part in text.split(","))
    given = [tuple(word.strip() for word in part.split("=", 1)) for part in parts]
    words = [pair[0] for pair in given]
    odd = [w for w in words if not w or len(w) > MOST_LETTERS or not w.isprintable()]
    if odd:
        raise ValueError(f"{odd[0][:MOST_LETTERS]!r} is not a label; write words with commas between, such as good,bad")
    if len(words) < 2:
        raise ValueError(f"{text!r} is not two labels or more; write words with commas between, such as good,bad")
    if twice := next((w for w in words if words.count(w) > 1), None):
        raise ValueError(f"{twice!r} is there twice; give each label once")
    found = _verdicts(given)
    if UNCERTAIN not in found.values():
        found[UNCERTAIN] = UNCERTAIN
    if len(found) > MOST_ANSWERS:
        raise ValueError(f"{len(found)} answers, the uncertain one included; at most {MOST_ANSWERS} have a key")
    for verdict in (VALID, HALLUCINATED):
        if verdict not in found.values():
            raise ValueError(f"no label means {verdict}; say which one does, such as {words[0]}={verdict}")
    return LabelSet(dict(sorted(found.items(), key=lambda item: item[1] == UNCERTAIN)))


def _verdicts(given: Sequence[tuple[str, ...]]) -> dict[str, str]:
    """The verdict of each word, where it is not given by the word's place."""
    if unknown := next((pair for pair in given if len(pair) == 2 and pair[1] not in VERDICTS), None):
        raise ValueError(f"{unknown[0]}={unknown[1]}: {unknown[1]!r} must be one of {', '.join(VERDICTS)}")
    plain = [pair[0] for pair in given if len(pair) == 1]
    late = next((w for w in plain if w.lower() in WORDS_FOR_VALID and w != given[0][0]), None)
    if late is not None:
        raise ValueError(f"{late!r} is not the first, and the first label is that of a valid image; "
                         f"write {late} first, or {late}=valid and what {given[0][0]} means")  # fmt: skip
    found = {}
    for place, pair in enumerate(given):
        guess = VALID if place == 0 else HALLUCINATED
        found[pair[0]] = pair[1] if len(pair) == 2 else UNCERTAIN if pair[0].lower() in WORDS_FOR_UNCERTAIN else guess
    return found
