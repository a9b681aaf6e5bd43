"""Charts as SVG text, without a plotting package: lines, points with names and intervals, on plain or log axes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c6bb1", "#666666")  # Okabe and Ito's
WIDTH, HEIGHT = 560, 380
LEFT, RIGHT, TOP, BOTTOM = 62, 18, 40, 52
INK, MUTED, GRID = "#222222", "#666666", "#e4e4e4"
STYLE = "font-family:system-ui,'DejaVu Sans',sans-serif"
LABEL_HEIGHT = 13


@dataclass(frozen=True)
class Series:
    """Values of one name. With `labels` they are points, each with its own name beside it; else dots, or a line."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    labels: Sequence[str] = ()
    low: Sequence[float] = ()  # ends of the intervals of y
    high: Sequence[float] = ()
    step: bool = False  # a line that keeps its value up to the next x
    dashed: bool = False
    dots: bool = False


@dataclass(frozen=True)
class Axis:
    """A range with its ticks. Percent axes hold fractions."""

    label: str
    lo: float
    hi: float
    log: bool = False
    percent: bool = False

    def at(self, value: float) -> float:
        """Where a value lies, 0 to 1 inside the range."""
        lo, hi, v = (math.log(max(a, 1e-300)) if self.log else a for a in (self.lo, self.hi, value))
        return (v - lo) / (hi - lo)

    def ticks(self) -> list[float]:
        if self.log:
            decades = range(math.floor(math.log10(self.lo)), math.ceil(math.log10(self.hi)) + 1)
            ratio = self.hi / self.lo
            steps = (1,) if ratio > 300 else (1, 2, 5) if ratio > 8 else (1, 1.5, 2, 3, 4, 5, 6, 8)
            marks = [m * 10.0**k for k in decades for m in steps]
            return [m for m in marks if self.lo * 0.999 <= m <= self.hi * 1.001]
        raw = (self.hi - self.lo) / 5
        size = 10 ** math.floor(math.log10(raw))
        step = next(m * size for m in (1, 2, 2.5, 5, 10) if m * size >= raw * 0.999)
        first = math.ceil(self.lo / step - 1e-9)
        return [k * step for k in range(first, math.floor(self.hi / step + 1e-9) + 1)]

    def text(self, value: float) -> str:
        return f"{100 * value:.3g} %" if self.percent else f"{value:.4g}"


def around(
    label: str, values: Sequence[float], *, log: bool = False, percent: bool = False, zero: bool = False
) -> Axis:
    """An axis that holds the finite values with some room; from 0 on where asked."""
    known = [v for v in values if math.isfinite(v) and (v > 0 or not log)] or [1.0]
    lo, hi = min(known), max(known)
    if log:
        return Axis(label, lo / 1.15, hi * 1.15, log=True, percent=percent)
    room = 0.06 * (hi - lo) or 0.06 * abs(hi) or 1.0
    return Axis(label, 0.0 if zero and lo >= 0 else lo - room, hi + room, percent=percent)


def chart(title: str, series: Sequence[Series], x: Axis, y: Axis, *, diagonal: bool = False) -> str:
    """A chart as one SVG element. Values that are not finite are left out, those outside the axes clipped away."""
    inner = [_frame(title, x, y)]
    if diagonal:
        inner.append(_path([(x.lo, x.lo), (x.hi, x.hi)], x, y, MUTED, dashed=True))
    taken: list[tuple[float, float, float, float]] = []
    for k, one in enumerate(series):
        colour = COLOURS[k % len(COLOURS)]
        if one.dots:
            inner.append(_dots(one, x, y, colour))
        else:
            inner.append(_points(one, x, y, colour, taken) if one.labels else _line(one, x, y, colour))
    inner.append(_legend([(s.name, COLOURS[k % len(COLOURS)]) for k, s in enumerate(series) if s.name and len(s.x)]))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        f'role="img" aria-label="{escape(title)}" style="{STYLE}">'
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>' + "".join(inner) + "</svg>"
    )


def _place(px: float, py: float, x: Axis, y: Axis) -> tuple[float, float]:
    return (
        LEFT + x.at(px) * (WIDTH - LEFT - RIGHT),
        HEIGHT - BOTTOM - y.at(py) * (HEIGHT - TOP - BOTTOM),
    )


def _text(px: float, py: float, text: str, *, anchor: str = "start", size: int = 11, colour: str = INK) -> str:
    at = f'x="{px:.1f}" y="{py:.1f}"'
    return f'<text {at} text-anchor="{anchor}" font-size="{size}" fill="{colour}">{escape(text)}</text>'


def _frame(title: str, x: Axis, y: Axis) -> str:
    parts = [_text(LEFT, 20, title, size=14)]
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
    for t in x.ticks():
        px, _ = _place(t, y.lo, x, y)
        parts.append(f'<path d="M{px:.1f} {TOP}V{bottom}" stroke="{GRID}"/>')
        parts.append(_text(px, bottom + 16, x.text(t), anchor="middle", colour=MUTED))
    for t in y.ticks():
        _, py = _place(x.lo, t, x, y)
        parts.append(f'<path d="M{LEFT} {py:.1f}H{right}" stroke="{GRID}"/>')
        parts.append(_text(LEFT - 6, py + 4, y.text(t), anchor="end", colour=MUTED))
    parts.append(f'<path d="M{LEFT} {TOP}V{bottom}H{right}" fill="none" stroke="{MUTED}"/>')
    parts.append(_text((LEFT + right) / 2, HEIGHT - 14, x.label, anchor="middle", size=12))
    middle = (TOP + bottom) / 2
    parts.append(
        f'<text transform="translate(15 {middle:.0f}) rotate(-90)" text-anchor="middle" font-size="12" '
        f'fill="{INK}">{escape(y.label)}</text>'
    )
    return "".join(parts)


def _path(points: Sequence[tuple[float, float]], x: Axis, y: Axis, colour: str, *, dashed: bool = False) -> str:
    inside = [_place(min(max(a, x.lo), x.hi), min(max(b, y.lo), y.hi), x, y) for a, b in points]
    d = "M" + "L".join(f"{a:.1f} {b:.1f}" for a, b in inside)
    dash = ' stroke-dasharray="4 4"' if dashed else ""
    return f'<path d="{d}" fill="none" stroke="{colour}" stroke-width="1.8"{dash}/>'


def _line(one: Series, x: Axis, y: Axis, colour: str) -> str:
    points = [(a, b) for a, b in zip(one.x, one.y, strict=True) if math.isfinite(a) and math.isfinite(b)]
    if one.step:
        corners = [(points[i + 1][0], points[i][1]) for i in range(len(points) - 1)]
        points = [p for pair in zip(points, [*corners, points[-1]], strict=True) for p in pair] if points else []
    return _path(points, x, y, colour, dashed=one.dashed) if points else ""


def _points(one: Series, x: Axis, y: Axis, colour: str, taken: list[tuple[float, float, float, float]]) -> str:
    parts = []
    for i, (a, b, label) in enumerate(zip(one.x, one.y, one.labels, strict=True)):
        if not (math.isfinite(a) and math.isfinite(b)):
            continue
        px, py = _place(a, b, x, y)
        if one.low:
            ends = [_place(a, min(max(v, y.lo), y.hi), x, y)[1] for v in (one.low[i], one.high[i])]
            parts.append(f'<path d="M{px:.1f} {ends[0]:.1f}V{ends[1]:.1f}" stroke="{colour}" stroke-opacity=".35"/>')
        parts.append(f'<circle cx="{px:.1f}" cy="{py:.1f}" r="4" fill="{colour}"/>')
        parts.append(_beside(px, py, label, taken))
    return "".join(parts)


def _dots(one: Series, x: Axis, y: Axis, colour: str) -> str:
    inside = [(a, b) for a, b in zip(one.x, one.y, strict=True) if x.lo <= a <= x.hi and y.lo <= b <= y.hi]
    marks = "".join("M{:.1f} {:.1f}h0".format(*_place(a, b, x, y)) for a, b in inside)
    return f'<path d="{marks}" stroke="{colour}" stroke-width="2.6" stroke-linecap="round" stroke-opacity=".6"/>'


def _beside(px: float, py: float, label: str, taken: list[tuple[float, float, float, float]]) -> str:
    """A label right or left of its point, moved up or down until it covers no other."""
    wide = 6.1 * len(label)
    for shift in sorted(range(-8, 9), key=abs):
        for right in (True, False):
            left = px + 7 if right else px - 7 - wide
            box = (left, py + shift * LABEL_HEIGHT - 6, left + wide, py + shift * LABEL_HEIGHT + 6)
            inside = box[0] >= LEFT and box[2] <= WIDTH and box[1] >= TOP and box[3] <= HEIGHT - BOTTOM
            if inside and all(box[2] < t[0] or t[2] < box[0] or box[3] < t[1] or t[3] < box[1] for t in taken):
                taken.append(box)
                end = left if right else left + wide
                middle = (box[1] + box[3]) / 2
                lead = f'<path d="M{px:.1f} {py:.1f}L{end:.1f} {middle:.1f}" stroke="{MUTED}" stroke-width=".5"/>'
                return (lead if shift else "") + _text(left, box[3] - 2, label)
    return ""


def _legend(entries: Sequence[tuple[str, str]]) -> str:
    parts, left, upper = [], LEFT + 4.0, TOP - 8.0
    for name, colour in entries:
        wide = 24 + 6.6 * len(name)
        if left + wide > WIDTH - 4:
            left, upper = LEFT + 4.0, upper + 14
        parts.append(f'<rect x="{left:.1f}" y="{upper - 8:.1f}" width="9" height="9" rx="2" fill="{colour}"/>')
        parts.append(_text(left + 13, upper, name, colour=MUTED))
        left += wide
    return "".join(parts)
