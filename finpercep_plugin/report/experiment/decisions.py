"""What the adaptive curriculum decided, and on what evidence, as a run logged it."""

from __future__ import annotations

import dataclasses
from typing import Sequence

from finpercep_plugin.curriculum.adaptive import AdaptiveOptions
from finpercep_plugin.curriculum.schedule import Decision
from finpercep_plugin.report.experiment.charts import Line, draw
from finpercep_plugin.report.experiment.events import Series
from finpercep_plugin.report.experiment.record import Record
from finpercep_plugin.report.page import Cell, Page, table_html

__all__ = ['add_decisions']

REASONS = {
    'short': 'too few iterations or observations of the stage yet',
    'rising': 'a measure that nothing optimises still rises',
    'patience': 'looked flat or hacked, but not often enough in a row',
    'flat': 'no measure that nothing optimises rises any more',
    'hacked': 'the reward rises while such a measure falls, or the monitor says so',
    'limit': 'its planned iterations are over',
    'not finite': 'statistics that are not finite',
}
_COLUMNS = ('after iteration', 'stage', 'decision', 'why', 'flat in a row', 'hacked in a row', 'monitor')
_SHOWN = ('', 'stage', 'decision', 'why', 'monitor', 'rise of the reward', 'fell most', 'rose most')
_NOTE = (
    'Rise: what the fitted slope amounts to over the window, in units. A stage is left as flat when no measure rises by more than min_gain, '
    'and as hacked when the reward rises and one falls by drop. The numbers are those of the log, of three digits.'
)


def add_decisions(page: Page, records: Sequence[Record]) -> None:
    """The sections about the decisions, of the experiments whose curriculum is adaptive."""
    decided = [record for record in records if record.log.decisions]
    if not decided:
        return
    rows = [_left(record, d, len(records) > 1) for record in decided for d in record.log.decisions.values() if d.leave]
    last = [_left(record, [*record.log.decisions.values()][-1], len(records) > 1) for record in decided]
    shown = rows + [row for row in last if row not in rows]
    page.table('Adaptive curriculum: decisions', _SHOWN, shown, note=f'{_explained(decided)} {_NOTE}')
    lines = [
        Line(title, {name: f'{name}_rise' for name in names}, _levels(decided[0], title), smoothed=False)
        for title, names in _groups(decided).items()
        if names
    ]
    evidence = [dataclasses.replace(record, scalars=_rises(record)) for record in records]  # each keeps its colour
    page.curves('Adaptive curriculum: evidence', draw(evidence, lines))
    if len(records) == 1:
        table = table_html(_COLUMNS, [_row(d) for d in decided[0].log.decisions.values()])
        page.content(
            'Adaptive curriculum: every decision',
            f'<details><summary>{len(decided[0].log.decisions)} decisions</summary>{table}</details>',
        )


def _explained(records: Sequence[Record]) -> str:
    used = sorted({decision.reason for record in records for decision in record.log.decisions.values()})
    return ' '.join(f'{reason}: {REASONS[reason]}.' for reason in used if reason in REASONS)


def _rises(record: Record) -> dict[str, Series]:
    """{'<measure>_rise': (iterations, rise over the window)}."""
    table: dict[str, Series] = {}
    for step, decision in sorted(record.log.decisions.items()):
        for name, value in decision.evidence.items():
            if name.endswith('_rise'):
                steps, values = table.setdefault(name, ([], []))
                steps.append(float(step))
                values.append(value)
    return {name: (steps, values) for name, (steps, values) in table.items() if any(values)}


def _groups(records: Sequence[Record]) -> dict[str, list[str]]:
    """Titles of charts, and the measures in them."""
    names = list(dict.fromkeys(name.removesuffix('_rise') for record in records for name in _rises(record)))
    lattices = [n for n in names if n.startswith('lattice_')]
    others = [n for n in names if n not in lattices and n != 'reward']
    return {
        'Rise of the reward over the window': [n for n in names if n == 'reward'],
        'Rise of the measures': others,
        'Rise of the lattices': lattices,
    }


def _levels(record: Record, title: str) -> dict[str, float]:
    section = ((record.settings.options.get('train') or {}).get('ccl') or {}).get('adaptive') or {}
    known = {f.name: section.get(f.name, f.default) for f in dataclasses.fields(AdaptiveOptions)}
    levels = {'min_gain': float(known['min_gain'])}
    return levels if 'reward' in title else {**levels, '-drop': -float(known['drop'])}


def _left(record: Record, decision: Decision, named: bool) -> list[Cell]:
    rises = {n.removesuffix('_rise'): v for n, v in decision.evidence.items() if n.endswith('_rise')}
    ranked = sorted((n for n in rises if n != 'reward' and rises[n]), key=lambda n: rises[n])  # one that is muted is 0

    def told(name: str) -> str:
        error = decision.evidence.get(f'{name}_se', float('nan'))
        return f'{rises[name]:+.3g} \u00b1 {error:.2g}'.replace('-', '\u2212')

    where = f'{record.label}, iteration {decision.step}' if named else f'iteration {decision.step}'
    verb = 'left' if decision.leave else 'stays'
    return [
        where,
        f'RM_{decision.stage}',
        verb,
        decision.reason,
        'hacked' if decision.evidence.get('monitor') else None,
        told('reward') if 'reward' in rises else None,
        f'{ranked[0]} {told(ranked[0])}' if ranked else None,
        f'{ranked[-1]} {told(ranked[-1])}' if ranked else None,
    ]


def _row(decision: Decision) -> list[Cell]:
    counts = [int(decision.evidence.get(name, 0)) for name in ('flat', 'hacked', 'monitor')]
    verb = 'left' if decision.leave else 'stays'
    return [str(decision.step), f'RM_{decision.stage}', verb, decision.reason, *counts]
