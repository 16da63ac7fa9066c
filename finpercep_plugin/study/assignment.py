"""Who sees what next: pure functions of the study, of what was handed out, and of a seed.

A comparison is chosen when it is needed, the one least voted on first, so the study stays balanced when raters leave.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import Mapping, Sequence

from finpercep_plugin.rng import keyed_numpy
from finpercep_plugin.study.definition import GT, SPOILED, Cell, Settings, Study

__all__ = ['Placed', 'Tally', 'check_trial', 'choose', 'repeat_trial', 'schedule', 'training_trial']

_GAP = 5  # trials between a comparison and its repeat, where there are as many


@dataclasses.dataclass(frozen=True)
class Placed:
    """A trial laid before a rater.

    Args:
        kind: training, main, check or repeat.
        cell: what is compared.
        a: the method on the left; `b`, on the right.
        of: of a repeat, the position of the trial that it repeats.
    """

    kind: str
    cell: Cell
    a: str
    b: str
    of: int | None = None


@dataclasses.dataclass(frozen=True)
class Tally:
    """How often a comparison was handed out: in all, and with its first method on the left."""

    count: int = 0
    first_left: int = 0


def schedule(settings: Settings, rater: int) -> list[str]:
    """The kinds of a rater's trials: practice, then main trials, checks spread over them, repeats in the second half.

    >>> schedule(Settings(trials=4, training=1, checks=1, repeats=1), 1)[0]
    'training'
    """
    rng = keyed_numpy('schedule', settings.seed, rater)
    body = _spread(['main'] * settings.trials, 'check', settings.checks, 1, rng)
    body = _spread(body, 'repeat', settings.repeats, (len(body) + 1) // 2, rng)
    return ['training'] * settings.training + body


def _spread(body: list[str], kind: str, count: int, start: int, rng) -> list[str]:
    """`count` of a kind put in from place `start` on, one in each of as many equal parts."""
    if not count:
        return body
    width = (len(body) - start + 1) / count
    places = [start + int(i * width + rng.random() * width) for i in range(count)]
    out = list(body)
    for place in sorted(places, reverse=True):
        out.insert(place, kind)
    return out


def choose(study: Study, tallies: Mapping[Cell, Tally], mine: Sequence[Placed], rater: int) -> Placed:
    """The next main trial.

    The comparison with the fewest votes of those this rater has not had; of these, one of an item and then of a pair
    that the rater saw least. The method on the left is the one that was there less often in this comparison, then
    before this rater.
    """
    rng = keyed_numpy('main', study.settings.seed, rater, len(mine))
    cells = study.cells
    had = {placed.cell for placed in mine}
    items = Counter(p.cell.item for p in mine)
    pairs = Counter((p.cell.first, p.cell.second) for p in mine if p.kind == 'main')

    def rank(number: int) -> tuple[int, int, int]:
        cell = cells[number]
        return tallies.get(cell, Tally()).count, items[cell.item], pairs[cell.first, cell.second]

    order = rng.permutation([n for n, cell in enumerate(cells) if cell not in had])
    cell = cells[min(order, key=rank)]
    tally = tallies.get(cell, Tally())
    lefts = Counter(p.a for p in mine if p.kind == 'main')
    excess = (2 * tally.first_left - tally.count, lefts[cell.first] - lefts[cell.second], rng.random() - 0.5)
    a, b = (cell.first, cell.second) if excess < (0, 0, 0) else (cell.second, cell.first)
    return Placed('main', cell, a, b)


def repeat_trial(study: Study, mine: Sequence[Placed], rater: int) -> Placed:
    """A main trial of this rater again, the sides exchanged; at least `_GAP` trials later where there is one."""
    rng = keyed_numpy('repeat', study.settings.seed, rater, len(mine))
    repeated = {p.of for p in mine}
    left = [i for i, p in enumerate(mine) if p.kind == 'main' and i not in repeated]
    far = [i for i in left if i <= len(mine) - _GAP] or left[:1]
    of = far[int(rng.integers(len(far)))]
    return Placed('repeat', mine[of].cell, mine[of].b, mine[of].a, of)


def training_trial(study: Study, number: int) -> Placed:
    """Practice trial `number`, the same for all raters."""
    rng = keyed_numpy('training', study.settings.seed, number)
    item = study.spares[number % len(study.spares)].name
    first, second = study.pairs[int(rng.integers(len(study.pairs)))]
    a, b = (first, second) if rng.random() < 0.5 else (second, first)
    return Placed('training', Cell(item, first, second), a, b)


def check_trial(study: Study, number: int, rater: int) -> Placed:
    """Attention check `number` of a rater; gt is on the left every second time."""
    item = study.spares[(number + rater) % len(study.spares)].name
    order = keyed_numpy('check', study.settings.seed, rater).permutation(2)
    a, b = (GT, SPOILED) if order[number % 2] else (SPOILED, GT)
    return Placed('check', Cell(item, GT, SPOILED), a, b)
