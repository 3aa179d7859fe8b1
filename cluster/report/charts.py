"""Line charts as SVG, which takes its colours from the page's style sheet, light or dark. Pure functions."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from markupsafe import Markup

WIDTH: Final = 420
HEIGHT: Final = 220
LEFT, RIGHT, TOP, BOTTOM = 44, 14, 10, 24
MAX_POINTS: Final = 400
NUM_COLORS: Final = 6


@dataclass(frozen=True, slots=True)
class Line:
    """One line: y at x; None is a gap."""

    label: str
    xs: Sequence[float]
    ys: Sequence[float | None]
    color: int = 0
    """Of the style sheet's, from 0."""
    look: str = ""
    """CSS classes: faint, dashed, dots."""

    def finite(self) -> list[tuple[float, float]]:
        return [(x, y) for x, y in zip(self.xs, self.ys, strict=True) if y is not None and math.isfinite(y)]


@dataclass(frozen=True, slots=True)
class Chart:
    """A titled chart."""

    title: str
    unit: str
    lines: Sequence[Line]
    from_zero: bool = False
    """Whether the axis begins at 0."""
    is_stacked: bool = False
    """Areas on top of each other; all lines then have the same xs."""
    meaning: str = ""

    @property
    def is_empty(self) -> bool:
        return not any(line.finite() for line in self.lines)

    def svg(self) -> Markup:
        """The picture, with the points for the read-out under the pointer in it."""
        lines = [_thinned(line) for line in self.lines if line.finite()]
        if self.is_stacked:
            lines = _stacked(lines)
        ys = [y for line in lines for _, y in line.finite()]
        low_x, high_x = (end(end(line.xs) for line in self.lines if line.xs) for end in (min, max))
        ticks = nice_ticks(min([*ys, 0.0] if self.from_zero or self.is_stacked else ys), max(ys))
        scale = _Scale(low_x, high_x if high_x > low_x else low_x + 1, ticks[0], ticks[-1])
        body = [_grid(scale, ticks)]
        body += [_area(scale, lines, i) for i in reversed(range(len(lines)))] if self.is_stacked else []
        body += [_path(scale, line) for line in lines if not self.is_stacked]
        told = {
            "left": LEFT,
            "right": WIDTH - RIGHT,
            "low": scale.low_x,
            "high": scale.high_x,
            "unit": self.unit,
            "lines": [
                {"label": line.label, "color": line.color % NUM_COLORS, "points": [*map(_rounded, line.finite())]}
                for line in map(_thinned, self.lines)
                if "faint" not in line.look and line.finite()
            ],
        }
        return Markup(
            '<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}" data-chart="{}">{}'
            '<line class="cursor" y1="{}" y2="{}" hidden></line></svg>'
        ).format(
            *(WIDTH, HEIGHT, f"{self.title}, {self.unit}", json.dumps(told, separators=(",", ":"))),
            *(Markup("").join(body), TOP, HEIGHT - BOTTOM),
        )


@dataclass(frozen=True, slots=True)
class _Scale:
    low_x: float
    high_x: float
    low_y: float
    high_y: float

    def x(self, value: float) -> float:
        return LEFT + (value - self.low_x) / (self.high_x - self.low_x) * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        return HEIGHT - BOTTOM - (value - self.low_y) / (self.high_y - self.low_y) * (HEIGHT - TOP - BOTTOM)


def nice_ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Round numbers that enclose [low, high], about `count` steps of 1, 2, 2.5 or 5 times a power of ten."""
    if high - low < 1e-12 * max(1.0, abs(high)):
        pad = abs(high) * 0.1 or 1.0
        low, high = low - pad, high + pad
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [number * step for number in range(first, last + 1)]


def number(value: float | None) -> str:
    """Three digits that matter: 0.00123, 12.3, 4.56k, 1.2e-7."""
    if value is None or not math.isfinite(value):
        return "–"
    size = abs(value)
    if size and (size < 1e-4 or size >= 1e9):
        return f"{value:.2g}"
    for limit, suffix in ((1e6, "M"), (1e4, "k")):
        if size >= limit:
            return f"{value / (limit if suffix == 'M' else 1e3):.3g}{suffix}"
    return f"{value:.0f}" if size >= 1000 else f"{value:.3g}"


def _grid(scale: _Scale, ticks: Sequence[float]) -> Markup:
    parts = []
    for tick in ticks:
        y = scale.y(tick)
        parts.append(
            Markup('<line class="grid" x1="{}" x2="{}" y1="{:.1f}" y2="{:.1f}"></line>').format(
                LEFT, WIDTH - RIGHT, y, y
            )
        )
        parts.append(
            Markup('<text class="tick" x="{}" y="{:.1f}" text-anchor="end">{}</text>').format(
                LEFT - 6, y + 3.5, number(tick if abs(tick) > 1e-12 else 0.0)
            )
        )
    steps = [tick for tick in nice_ticks(scale.low_x, scale.high_x, 5) if scale.low_x <= tick <= scale.high_x]
    mark = Markup('<text class="tick" x="{:.1f}" y="{}" text-anchor="middle">{}</text>')
    parts += [mark.format(scale.x(tick), HEIGHT - 8, f"{tick:.0f}") for tick in steps if tick == int(tick)]
    return Markup("").join(parts)


def _path(scale: _Scale, line: Line) -> Markup:
    if "dots" in line.look or len(line.finite()) == 1:
        dots = Markup("").join(
            Markup('<circle cx="{:.1f}" cy="{:.1f}" r="3"></circle>').format(scale.x(x), scale.y(y))
            for x, y in line.finite()
        )
    else:
        dots = Markup("")
    runs: list[list[str]] = [[]]
    for x, y in zip(line.xs, line.ys, strict=True):
        if y is None or not math.isfinite(y):
            if "dots" not in line.look and runs[-1]:
                runs.append([])
        else:
            runs[-1].append(f"{scale.x(x):.1f},{scale.y(y):.1f}")
    drawn = " ".join("M" + "L".join(run) for run in runs if run)
    classes = f"line c{line.color % NUM_COLORS} {line.look}".strip()
    return Markup('<g class="{}"><path d="{}"></path>{}</g>').format(classes, drawn, dots)


def _area(scale: _Scale, lines: Sequence[Line], index: int) -> Markup:
    top = lines[index].finite()
    floor = lines[index - 1].finite() if index else [(x, 0.0) for x, _ in top]
    outline = [*top, *reversed(floor)]
    drawn = "M" + "L".join(f"{scale.x(x):.1f},{scale.y(y):.1f}" for x, y in outline) + "Z"
    return Markup('<path class="area c{}" d="{}"></path>').format(lines[index].color % NUM_COLORS, drawn)


def _stacked(lines: Sequence[Line]) -> list[Line]:
    total = [0.0] * len(lines[0].xs) if lines else []
    stacked = []
    for line in lines:
        total = [before + (y or 0.0) for before, y in zip(total, line.ys, strict=True)]
        stacked.append(Line(line.label, line.xs, list(total), line.color, line.look))
    return stacked


def _thinned(line: Line) -> Line:
    """At most MAX_POINTS: of each stretch of steps its mean, a gap where nothing was measured."""
    if len(line.xs) <= MAX_POINTS or "dots" in line.look:
        return line
    width = -(-len(line.xs) // MAX_POINTS)
    xs, ys = [], []
    for start in range(0, len(line.xs), width):
        part = [y for y in line.ys[start : start + width] if y is not None and math.isfinite(y)]
        xs.append(line.xs[min(start + width // 2, len(line.xs) - 1)])
        ys.append(sum(part) / len(part) if part else None)
    return Line(line.label, xs, ys, line.color, line.look)


def _rounded(point: tuple[float, float]) -> list[float]:
    return [point[0], float(f"{point[1]:.4g}")]


def legend(lines: Sequence[Line]) -> Markup:
    """What each line is, with its last value."""
    items = []
    for line in lines:
        if "faint" in line.look or not (finite := line.finite()):
            continue
        items.append(
            Markup('<span><i class="c{} {}"></i>{} <b>{}</b></span>').format(
                line.color % NUM_COLORS, line.look, line.label or "last", number(finite[-1][1])
            )
        )
    return Markup("").join(items)
