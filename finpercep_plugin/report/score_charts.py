"""How the scores of methods are spread: a dot a picture, a box of the quartiles, the mean and its interval, as SVG."""

from __future__ import annotations

from html import escape
from typing import Mapping, Sequence

import numpy as np

from finpercep_plugin.report.bootstrap import Interval
from finpercep_plugin.report.chart import COLOURS, ticks

__all__ = ['distribution']

_WIDTH, _LANE, _TOP, _BOTTOM, _SIDE = 400, 54, 6, 26, 14
_DOTS = 250


def distribution(values: Mapping[str, Sequence[float]], means: Mapping[str, Interval | None], label: str) -> str:
    """One lane a method.

    Args:
        values: {method: numbers}.
        means: {method: interval of the mean}.
        label: for those who cannot see it.
    """
    lanes = {method: np.asarray(numbers, np.float64) for method, numbers in values.items() if len(numbers)}
    height = _TOP + _LANE * len(lanes) + _BOTTOM
    head = f'<svg viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="{escape(label)}">'
    if not lanes:
        return f'{head}</svg>'
    everything = np.concatenate(list(lanes.values()))
    low, high = float(everything.min()), float(everything.max())
    room = 0.04 * (high - low) or 0.5 * abs(high) or 0.5
    low, high = low - room, high + room

    def at(x: float) -> float:
        return _SIDE + (x - low) / (high - low) * (_WIDTH - 2 * _SIDE)

    bottom = height - _BOTTOM
    parts = [head]
    for x in ticks(low, high):
        parts.append(f'<line x1="{at(x):.1f}" x2="{at(x):.1f}" y1="{_TOP}" y2="{bottom}" stroke="#e4e6ea"/>')
        text = f'{x:.6g}'.replace('-', '\u2212')
        parts.append(f'<text x="{at(x):.1f}" y="{bottom + 18}" text-anchor="middle">{text}</text>')
    for number, (method, numbers) in enumerate(lanes.items()):
        colour = COLOURS[list(values).index(method) % len(COLOURS)]
        parts += _lane(method, numbers, means.get(method), colour, _TOP + _LANE * number, at)
    return ''.join(parts) + '</svg>'


def _lane(method: str, numbers: np.ndarray, mean: Interval | None, colour: str, top: float, at) -> list[str]:
    name = f'<text class="lane" x="{_SIDE}" y="{top + 14}">{escape(method)}</text>' if method else ''
    middle = top + 34
    # The same spread every time: the golden ratio's multiples fill the lane evenly.
    shown = numbers[:: max(1, len(numbers) // _DOTS)]
    spread = ((np.arange(len(shown)) * 0.618034) % 1 - 0.5) * 22
    dots = ''.join(f'M{at(x):.1f} {middle + dy:.1f}h0' for x, dy in zip(shown, spread))
    q1, q2, q3 = (at(q) for q in np.quantile(numbers, [0.25, 0.5, 0.75]))
    opacity = 0.6 if len(shown) < 60 else 0.35
    parts = [
        name,
        f'<path d="{dots}" stroke="{colour}" stroke-width="4" stroke-linecap="round" opacity="{opacity}"/>',
        f'<rect x="{q1:.1f}" y="{middle - 8}" width="{max(1, q3 - q1):.1f}" height="16" rx="2" fill="none" '
        f'stroke="{colour}" stroke-width="1.6"/>',
        f'<line x1="{q2:.1f}" x2="{q2:.1f}" y1="{middle - 8}" y2="{middle + 8}" stroke="{colour}" stroke-width="2.4"/>',
    ]
    if mean is not None:
        parts.append(
            f'<line x1="{at(mean.low):.1f}" x2="{at(mean.high):.1f}" y1="{middle}" y2="{middle}" stroke="#1c2128" '
            f'stroke-width="2"/><circle cx="{at(mean.mean):.1f}" cy="{middle}" r="3.4" fill="#1c2128"/>'
        )
    return parts
