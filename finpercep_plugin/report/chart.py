"""Line charts as inline SVG, no plotting library needed: series, stage marks, round ticks."""

from __future__ import annotations

import dataclasses
import json
import math
from html import escape
from typing import Mapping, Sequence

__all__ = ['COLOURS', 'Chart', 'Mark', 'smooth', 'svg', 'ticks']

# Okabe and Ito's colours: told apart with colour-blind eyes.
COLOURS = ('#0072b2', '#d55e00', '#009e73', '#cc79a7', '#e69f00', '#56b4e9', '#555555')
_WIDTH, _HEIGHT = 400, 260
_LEFT, _RIGHT, _TOP, _BOTTOM = 66, 16, 24, 44


@dataclasses.dataclass(frozen=True)
class Mark:
    """A vertical line.

    Args:
        x: where.
        label: above it; '' for none.
        colour: of the line.
    """

    x: float
    label: str = ''
    colour: str = '#8a919c'


@dataclasses.dataclass(frozen=True)
class Chart:
    """One chart.

    Args:
        title: above it.
        series: {name: (x values, y values)}; pairs with a value that is not finite are left out.
        x_label: under the horizontal axis.
        marks: {label: x} or marks, vertical lines such as a change of stage.
        smoothing: weight of the past in an exponential moving average drawn over the faint raw line; 0 draws the raw line alone.
        levels: {label: y}, dashed horizontal lines such as thresholds; always inside the chart.
        readout: carry the numbers of the lines, for a script that reads them off.
    """

    title: str
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]]
    x_label: str = 'iteration'
    marks: Mapping[str, float] | Sequence[Mark] = ()
    smoothing: float = 0.0
    levels: Mapping[str, float] = dataclasses.field(default_factory=dict)
    readout: bool = False


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` round numbers that lie in [low, high].

    >>> ticks(0, 10)
    [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]
    """
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 12) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def smooth(values: Sequence[float], weight: float) -> list[float]:
    """Bias-corrected exponential moving average.

    >>> smooth([1.0, 2.0], 0.5)
    [1.0, 1.6666666666666667]
    """
    total, norm, out = 0.0, 0.0, []
    for value in values:
        total, norm = weight * total + (1 - weight) * value, weight * norm + (1 - weight)
        out.append(total / norm)
    return out


def svg(chart: Chart) -> str:
    """The chart as an <svg> element that scales with its container."""
    lines = {name: _finite(*xy) for name, xy in chart.series.items()}
    points = [p for line in lines.values() for p in line]
    head = f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(chart.title)}"'
    if not points:
        middle = f'<text x="{_WIDTH / 2}" y="{_HEIGHT / 2}" text-anchor="middle">no data</text>'
        return f'{head}>{middle}</svg>'
    marks = [Mark(x, label) for label, x in chart.marks.items()] if isinstance(chart.marks, Mapping) else chart.marks
    x0, x1 = _span([p[0] for p in points] + [mark.x for mark in marks], pad=0.0)
    y0, y1 = _span([p[1] for p in points] + list(chart.levels.values()), pad=0.06)
    head += f'{_numbers(lines, (x0, x1)) if chart.readout else ""}>'

    def at(x: float, y: float) -> tuple[float, float]:
        across = _LEFT + (x - x0) / (x1 - x0) * (_WIDTH - _LEFT - _RIGHT)
        return across, _HEIGHT - _BOTTOM - (y - y0) / (y1 - y0) * (_HEIGHT - _TOP - _BOTTOM)

    parts = [
        head,
        *_axes(at, (x0, x1), (y0, y1), chart.x_label),
        *_marks(at, marks, y0),
        *_levels(at, chart.levels, x0),
    ]
    for colour, line in zip(_cycle(len(lines)), lines.values()):
        parts += _line(at, line, colour, chart.smoothing)
    return ''.join(parts) + '</svg>'


def _line(at, points: list[tuple[float, float]], colour: str, smoothing: float) -> list[str]:
    shown = [(points, 0.25 if smoothing else 1.0)]
    if smoothing:
        shown.append((list(zip([p[0] for p in points], smooth([p[1] for p in points], smoothing))), 1.0))
    parts = []
    for line, opacity in shown:
        path = ' '.join('{:.1f},{:.1f}'.format(*at(*p)) for p in _thin(line))
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2" opacity="{opacity}"/>')
    if len(points) <= 12:
        parts += ['<circle cx="{:.1f}" cy="{:.1f}" r="3.2" fill="{}"/>'.format(*at(*p), colour) for p in shown[-1][0]]
    return parts


def _axes(at, xs: tuple[float, float], ys: tuple[float, float], x_label: str) -> list[str]:
    parts = []
    for y in ticks(*ys):
        left, level = at(xs[0], y)
        parts.append(f'<line x1="{left}" x2="{_WIDTH - _RIGHT}" y1="{level:.1f}" y2="{level:.1f}" stroke="#e4e6ea"/>')
        text = _number(y)
        narrow = f' textLength="{_LEFT - 9}" lengthAdjust="spacingAndGlyphs"' if len(text) > 7 else ''
        parts.append(f'<text x="{left - 7}" y="{level + 4.5:.1f}" text-anchor="end"{narrow}>{text}</text>')
    for x in ticks(*xs):
        across, bottom = at(x, ys[0])
        parts.append(f'<text x="{across:.1f}" y="{bottom + 18}" text-anchor="middle">{_number(x)}</text>')
    left, bottom = at(xs[0], ys[0])
    parts.append(f'<line x1="{left}" x2="{_WIDTH - _RIGHT}" y1="{bottom}" y2="{bottom}" stroke="#8a919c"/>')
    centre = (_LEFT + _WIDTH - _RIGHT) / 2
    parts.append(f'<text x="{centre}" y="{_HEIGHT - 5}" text-anchor="middle">{escape(x_label)}</text>')
    return parts


def _marks(at, marks: Sequence[Mark], y0: float) -> list[str]:
    parts, free = [], 0.0
    for mark in sorted(marks, key=lambda m: m.x):
        across, bottom = at(mark.x, y0)
        parts.append(
            f'<line x1="{across:.1f}" x2="{across:.1f}" y1="{_TOP - 6}" y2="{bottom}" stroke="{mark.colour}" '
            f'stroke-dasharray="4 4"/>'
        )
        left, width = max(across + 4, free), 9.2 * len(mark.label)
        if mark.label:  # beside its line, or right of the label before; pushed back from the edge
            left = min(left, _WIDTH - width - 2)
            parts.append(f'<text x="{left:.1f}" y="{_TOP - 8}">{escape(mark.label)}</text>')
            free = left + width + 6
    return parts


def _levels(at, levels: Mapping[str, float], x0: float) -> list[str]:
    parts = []
    for label, y in levels.items():
        left, level = at(x0, y)
        parts.append(
            f'<line x1="{left}" x2="{_WIDTH - _RIGHT}" y1="{level:.1f}" y2="{level:.1f}" stroke="#a40e26" '
            f'stroke-dasharray="2 3"/><text x="{_WIDTH - _RIGHT}" y="{level - 4:.1f}" text-anchor="end">{escape(label)}</text>'
        )
    return parts


def _numbers(lines: Mapping[str, list[tuple[float, float]]], xs: tuple[float, float]) -> str:
    """Attributes: where the horizontal axis lies in the drawing and what it spans, and the lines' points."""
    rounded = {name: [[x, float(f'{y:.4g}')] for x, y in _thin(line)] for name, line in lines.items()}
    axis = [_LEFT, _WIDTH - _RIGHT, _TOP, _HEIGHT - _BOTTOM, *xs]
    return f' data-axis="{json.dumps(axis)}" data-lines="{escape(json.dumps(rounded, separators=(",", ":")))}"'


def _finite(xs: Sequence[float], ys: Sequence[float]) -> list[tuple[float, float]]:
    if len(xs) != len(ys):
        raise ValueError(f'a series has {len(xs)} x and {len(ys)} y values')
    return [(float(x), float(y)) for x, y in zip(xs, ys) if math.isfinite(x) and math.isfinite(y)]


def _span(values: list[float], pad: float) -> tuple[float, float]:
    low, high = min(values), max(values)
    if high - low <= 1e-12 * max(1.0, abs(high)):
        room = 0.5 * abs(high) or 0.5
        return low - room, high + room
    return low - pad * (high - low), high + pad * (high - low)


def _thin(points: list[tuple[float, float]], most: int = 600) -> list[tuple[float, float]]:
    """At most about `most` points, the last one kept: more cannot be seen at this size."""
    step = max(1, len(points) // most)
    return points[::step] if (len(points) - 1) % step == 0 else [*points[::step], points[-1]]


def _number(value: float) -> str:
    """
    >>> _number(2.5e-5), _number(0.036775), _number(-3.0)
    ('2.5e\u22125', '0.036775', '\u22123')
    """
    if value and (abs(value) >= 1e5 or abs(value) < 1e-3):
        digits, power = f'{value:.3e}'.split('e')
        return f'{float(digits):g}e{int(power)}'.replace('-', '\u2212')
    return f'{value:.6g}'.replace('-', '\u2212')


def _cycle(count: int) -> list[str]:
    return [COLOURS[i % len(COLOURS)] for i in range(count)]
