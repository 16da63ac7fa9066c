"""The hacking monitor of a run: its verdicts, the signs behind them, and the weights that were safe."""

from __future__ import annotations

import dataclasses
import math
import time
from html import escape
from typing import Sequence

from finpercep_plugin.curriculum.monitor import LEVELS, MonitorOptions
from finpercep_plugin.curriculum.signs import SIGNS
from finpercep_plugin.report.experiment.charts import Line, draw
from finpercep_plugin.report.experiment.events import Series
from finpercep_plugin.report.experiment.record import Record
from finpercep_plugin.report.page import Cell, Page

__all__ = ['add_monitor', 'best_safe_step', 'last_level', 'observed']

SAFE = 'net_g_safe.pth'


def add_monitor(page: Page, records: Sequence[Record]) -> None:
    """The section about the monitor, of the experiments that have one."""
    watched = [record for record in records if record.log.observations or 'monitor_level' in record.scalars]
    if not watched:
        return
    seen = [dataclasses.replace(record, scalars=observed(record)) for record in records]  # each keeps its colour
    last = max(record.iteration for record in watched)
    strips = ''.join(_strip(record, last, len(records) > 1) for record in watched)
    options = _options(watched[0])
    page.content(
        'Hacking monitor: verdicts',
        f'<div class="strips">{_KEY}{strips}</div><p class="note">{_RULE.format(o=options)}</p>',
    )
    page.table('Hacking monitor: outcome', _OUTCOME, [_outcome(record) for record in watched], note=_SAFE_NOTE)
    page.curves('Hacking monitor: signs', draw(seen, _lines(seen, options)), note=_SIGNS_NOTE)
    if len(records) == 1:
        page.table(
            'Hacking monitor: now',
            _NOW,
            _now(seen[0], options),
            note='Gain: see above; negative is worse. Error: its standard error over the images.',
        )


_KEY = '<ul class="key">' + ''.join(f'<li><i class="level {level}"></i>{level}</li>' for level in LEVELS) + '</ul>'
_RULE = (
    'The same {o.samples} lq are super-resolved every {o.every} iterations, and compared with what the starting generator made of them. '
    'warn: a measure that nothing optimises is worse by {o.warn:g} units or more; hacked: by {o.hacked:g}, while the reward is {o.rise:g} above the start, '
    '{o.patience} times in a row. A unit is the spread of the measure over the outputs of the start, within bounds.'
)
_SIGNS_NOTE = (
    'Change since the start in units, smoothed, 0 is the start, and below is worse. lq_psnr: fidelity to lq after downsampling; hf_energy: energy above '
    "lq's frequencies (any change is worse); flat_tv: noise in flat areas; lattice_n: regular patterns every n pixels. A dip alone proves nothing: "
    'one that comes with a rising reward does.'
)
_OUTCOME = ('', *LEVELS, 'first hacked at', 'last verdict', 'best safe iteration', f'{SAFE}')
_SAFE_NOTE = (
    f'{SAFE}: the weights of the best observation of the latest stage at which nothing was worse by `warn` units, to go on from if the reward was '
    'hacked. Iteration 0 is the starting generator.'
)
_NOW = ('measure', 'better', 'value', 'gain (units)', 'error', 'verdict', 'worst gain', 'at iteration')


def observed(record: Record) -> dict[str, Series]:
    """The monitor's scalars, a point an observation: what is logged in between repeats the last one."""
    every, table = max(1, _options(record).every), {}
    for tag, (steps, values) in record.scalars.items():
        if tag.startswith('monitor_'):
            points = {step - step % every: value for step, value in zip(steps, values)}
            table[tag] = list(points), list(points.values())
    return table


def last_level(record: Record) -> str:
    """Of the last verdict; '' for none."""
    if record.log.observations:
        return record.log.observations[max(record.log.observations)].level
    levels = record.scalars.get('monitor_level', ([], []))[1]
    return LEVELS[int(levels[-1])] if levels else ''


def best_safe_step(record: Record) -> int | None:
    """Iteration whose weights are kept as safe: as logged, else as the newest training state has it."""
    if 'monitor_safe_step' in record.scalars:
        return int(record.scalars['monitor_safe_step'][1][-1])
    states = sorted((record.folder / 'training_states').glob('*.state'), key=lambda f: f.stat().st_mtime)
    if not states:
        return None
    import torch

    try:
        monitor = torch.load(states[-1], map_location='cpu', weights_only=True, mmap=True).get('monitor')
    except Exception:  # cut off, of another program, or just being removed: a dozen types
        return None
    return None if monitor is None else int(monitor['best_safe_step'])


def _options(record: Record) -> MonitorOptions:
    section = (record.settings.options.get('train') or {}).get('monitor') or {}
    known = {field.name for field in dataclasses.fields(MonitorOptions)}
    try:
        return MonitorOptions(**{key: value for key, value in section.items() if key in known})
    except (TypeError, ValueError):
        return MonitorOptions()


def _measures(record: Record) -> list[str]:
    """Those that are judged: a unit of infinity mutes one."""
    units = _options(record).units
    names = [
        tag[len('monitor_') : -len('_z')] for tag in record.scalars if tag.startswith('monitor_') and tag.endswith('_z')
    ]
    return [name for name in names if not math.isinf(float(units.get(name, 1.0)))]


def _lines(records: Sequence[Record], options: MonitorOptions) -> list[Line]:
    names = list(dict.fromkeys(name for record in records for name in _measures(record)))
    lattices = sorted((n for n in names if n.startswith('lattice_')), key=lambda n: int(n.rpartition('_')[2]))
    levels = {'warn': -options.warn, 'hacked': -options.hacked}

    def line(title: str, chosen: Sequence[str]) -> list[Line]:
        return [Line(title, {name: f'monitor_{name}_z' for name in chosen}, levels, smoothed=False)] if chosen else []

    return [
        Line('Rise of the reward', {'rise': 'monitor_rise'}, {'counts from': options.rise}, smoothed=False),
        *line('Fidelity to lq, spectrum, flat areas', [n for n in names if n in SIGNS and n not in lattices]),
        *line('Lattices', lattices),
        *line('Held-out rewards', [n for n in names if n not in SIGNS]),
    ]


def _strip(record: Record, last: int, named: bool) -> str:
    """Verdicts as a band over the iterations; each covers what lies before it since the one before."""
    log, parts, before = record.log.observations, [], 0
    seen = {step: (o.level, o.text) for step, o in log.items()}
    if not seen:
        steps, values = observed(record)['monitor_level']
        seen = {int(step): (LEVELS[int(value)], '') for step, value in zip(steps, values)}
    for step, (level, text) in sorted(seen.items()):
        place = f'left:{100 * before / last:.3f}%;width:{100 * (step - before) / last:.3f}%'
        parts.append(
            f'<i class="level {level}" style="{place}" title="{escape(f"iteration {step}: {level}: {text}")}"></i>'
        )
        before = step
    for stage, first in record.stages.items() if len(record.stages) > 1 else ():
        parts.append(f'<b style="left:{100 * (first - 1) / last:.3f}%">RM_{stage}</b>')
    name = f'<h3>{escape(record.label)}</h3>' if named else ''
    return f'{name}<div class="strip">{"".join(parts)}</div>'


def _outcome(record: Record) -> list[Cell]:
    levels = [o.level for _, o in sorted(record.log.observations.items())]
    hacked = [step for step, o in record.log.observations.items() if o.level == 'hacked']
    file, kept = record.folder / 'models' / SAFE, 'not kept'
    if file.is_file():
        kept = f'written {time.strftime("%Y-%m-%d %H:%M", time.localtime(file.stat().st_mtime))}'
    counts = [levels.count(level) for level in LEVELS] if levels else [None] * len(LEVELS)
    return [record.label, *counts, min(hacked, default=None), last_level(record) or None, best_safe_step(record), kept]


def _now(record: Record, options: MonitorOptions) -> list[list[Cell]]:
    rows = []
    for name in _measures(record):
        value, gains, errors = (record.scalars[f'monitor_{name}{end}'] for end in ('', '_z', '_se'))
        gain, error = gains[1][-1], errors[1][-1]
        sure = -gain > options.sure * error
        verdict = 'hacked' if sure and -gain >= options.hacked else 'warn' if sure and -gain >= options.warn else 'ok'
        worst = min(range(len(gains[1])), key=lambda i: gains[1][i])
        better = SIGNS[name].better if name in SIGNS else 'held-out reward'
        rows.append([name, better, value[1][-1], gain, error, verdict, gains[1][worst], int(gains[0][worst])])
    return sorted(rows, key=lambda row: row[3])
