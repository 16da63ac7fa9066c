"""The page about one experiment, or several side by side."""

from __future__ import annotations

import platform
import time
from html import escape
from pathlib import Path
from typing import Any, Sequence

import yaml

from finpercep_plugin import __version__
from finpercep_plugin.report.experiment.charts import Group, chart_groups, single_values
from finpercep_plugin.report.experiment.decisions import add_decisions
from finpercep_plugin.report.experiment.monitor import add_monitor, last_level
from finpercep_plugin.report.experiment.panels import STEPS, find_panels, frames_html
from finpercep_plugin.report.experiment.record import Record, read_experiment
from finpercep_plugin.report.experiment.settings import ABSENT, Change, differences, flat, origin
from finpercep_plugin.report.page import Page, map_legend, table_html

__all__ = ['experiment_page', 'read_all']

BUDGET = 10_000_000
"""Bytes of all pictures; as text in the page they take a third more."""


def read_all(folders: Sequence[Path]) -> list[Record]:
    """The experiments, with labels that tell them apart."""
    names = [folder.resolve().name for folder in folders]
    parents = [folder.resolve().parent.parent.name for folder in folders]
    labels = [name if names.count(name) == 1 else f'{parent}/{name}' for name, parent in zip(names, parents)]
    return [read_experiment(folder, label) for folder, label in zip(folders, labels)]


def experiment_page(records: Sequence[Record], command: str, refresh: float = 0.0) -> Page:
    """
    Args:
        records: one, or several to compare.
        command: to repeat it.
        refresh: seconds after which a browser reads the page again; 0 for never.

    Raises:
        ValueError: there is nothing about an experiment but its folder.
    """
    for record in records:
        if not record.scalars and not record.log.sessions:
            raise ValueError(f'{record.folder}: no log and no TensorBoard files of a training run')
    page = Page(', '.join(record.label for record in records), extra='experiment')
    page.content('At a glance', _glances(records) + _again(refresh))
    groups = chart_groups(records)
    for group in groups[:1]:
        _add_curves(page, group)
    _add_panels(page, records)
    for group in groups[1:]:
        _add_curves(page, group)
    add_monitor(page, records)
    add_decisions(page, records)
    _add_settings(page, records)
    for record in records:
        _add_environment(page, record, len(records) > 1)
    facts = {
        'written': time.strftime('%Y-%m-%d %H:%M:%S'),
        'by': f'finpercep_plugin {__version__} on {platform.node()}',
    }
    return page.made(command, facts)


def _add_curves(page: Page, group: Group) -> None:
    """Charts, or a table where each would be a dot."""
    values = single_values(group)
    if values:
        names = list(dict.fromkeys(name for found in values.values() for name in found))
        rows = [[title, *(found.get(name) for name in names)] for title, found in values.items()]
        page.table(group.heading, ('', *names), rows, group.note)
    else:
        page.curves(group.heading, group.charts, group.note)


def _again(seconds: float) -> str:
    if not seconds:
        return ''
    return f'<p class="note" id="refresh" data-seconds="{seconds:g}">This page is written anew every {seconds:g} s.</p>'


def _glances(records: Sequence[Record]) -> str:
    """A list about one experiment; of several, a table without the columns that are empty."""
    rows = [_glance(record) for record in records]
    names = [name for name in rows[0] if any(row[name] is not None for row in rows)]
    if len(records) > 1:
        names = [name for name in names if name != 'validation']  # has a section, and is wide
        return table_html(['', *names], [[r.label, *(row[name] for name in names)] for r, row in zip(records, rows)])
    items = ''.join(f'<dt>{escape(name)}</dt><dd>{escape(str(rows[0][name]))}</dd>' for name in names)
    return f'<dl>{items}</dl>'


def _glance(record: Record) -> dict[str, str | None]:
    total, state, eta = record.total, record.state(), record.log.eta
    if state == 'running' and eta and not eta.startswith('-'):
        state = f'running, {eta} to go'
    rewards, percent = record.scalars.get('reward', ([], []))[1], 100 * record.iteration / total if total else 0
    tenth = max(1, len(rewards) // 10)
    first, last = (f'{sum(part) / tenth:.3g}' if part else '' for part in (rewards[:tenth], rewards[-tenth:]))
    stage = record.stage_at(record.iteration)
    return {
        'state': state,
        'iteration': f'{record.iteration:,} of {total:,} ({percent:.0f} %)' if total else f'{record.iteration:,}',
        'model': record.settings.options.get('model_type'),
        'stage': None if stage is None else f'RM_{stage}',
        'reward, first to last tenth': f'{first} \u2192 {last}' if rewards else None,
        'validation': _validated(record),
        'monitor': last_level(record) or None,
    }


def _validated(record: Record) -> str | None:
    """The last of each validation figure."""
    found = {
        tag.rpartition('/')[2]: values[-1] for tag, (_, values) in record.scalars.items() if tag.startswith('metrics/')
    }
    return ', '.join(f'{name} {value:.4g}' for name, value in [*found.items()][:3]) or None


def _add_panels(page: Page, records: Sequence[Record]) -> None:
    found = [(record, panel) for record in records for panel in find_panels(record)]
    frames = sum(min(24, len(panel.frames)) for _, panel in found)
    viewers = [frames_html(r, panel, BUDGET // max(frames, 24), len(records) > 1) for r, panel in found]
    if any(viewers):
        shown = ''.join(viewers)
        legend = map_legend() if '<span>map' in shown else ''
        page.content('Pictures over time', f'{STEPS}{legend}<div class="viewers">{shown}</div>{_PICTURE_NOTE}')


_PICTURE_NOTE = (
    '<p class="note">The same samples of the validation set at each validation, a row each; of several experiments, the latest that each has at the '
    'iteration chosen. Keys: &#8592; and &#8594;. Choose a picture to enlarge it, and again to make it small.</p>'
)


def _add_settings(page: Page, records: Sequence[Record]) -> None:
    if len(records) > 1:
        rows = [list(row) for row in _compared(records)]
        page.content('Configuration: what differs', table_html(('setting', *(r.label for r in records)), rows))
        return
    settings = records[0].settings
    made_from = origin(settings)
    parts, changed = [], set()
    if made_from:
        changes = differences(made_from.options, settings.options)
        changed = {change.key for change in changes}
        parts = _changes(changes, f'{made_from.name}.yml', made_from.why)
    lines = ''.join(
        f'<tr class="{"changed" if key in changed else ""}"><th scope="row">{escape(key)}</th><td>{escape(_plain(value))}</td></tr>'
        for key, value in flat(settings.options).items()
    )
    if settings.options:
        parts.append(
            f'<details><summary>All settings</summary><div class="scroll"><table class="settings"><tbody>{lines}</tbody></table></div></details>'
        )
        page.content('Configuration', ''.join(parts))


def _changes(changes: Sequence[Change], name: str, why: str) -> list[str]:
    """The changed settings, those that only say where things lie folded away."""
    chosen = [[change for change in changes if change.place == place] for place in (False, True)]
    tables = [
        table_html(('setting', f'in {name}', 'here'), [[c.key, _plain(c.before), _plain(c.now)] for c in part])
        for part in chosen
    ]
    head = f'<p>Compared with the shipped <b>{escape(name)}</b> ({escape(why)}): {len(chosen[0])} settings differ, and {len(chosen[1])} paths and names.</p>'
    parts = [head, f'<div class="changes">{tables[0]}</div>' if chosen[0] else '']
    if chosen[1]:
        parts.append(
            f'<details><summary>Paths and names that differ</summary><div class="changes">{tables[1]}</div></details>'
        )
    return parts


def _compared(records: Sequence[Record]) -> list[list[str]]:
    tables = [flat(record.settings.options) for record in records]
    keys = list(dict.fromkeys(key for table in tables for key in table))
    rows = [[key, *(table.get(key, ABSENT) for table in tables)] for key in keys]
    differing = [row for row in rows if any(value != row[1] for value in row[2:])]
    return [[row[0], *map(_plain, row[1:])] for row in differing]


def _plain(value: Any) -> str:
    if value is ABSENT:
        return '\u2013'
    return yaml.safe_dump(value, default_flow_style=True, width=10_000).removesuffix('...\n').strip()


def _add_environment(page: Page, record: Record, named: bool) -> None:
    rows = [
        [
            f'{s.began:%Y-%m-%d %H:%M:%S}',
            f'{s.resumed:,}' if s.resumed else 'the start',
            f'{s.reached:,}',
            f'{s.last:%Y-%m-%d %H:%M:%S}',
            _end(record, i),
        ]
        for i, s in enumerate(record.log.sessions)
    ]
    facts = dict(record.log.sessions[-1].facts) if record.log.sessions else {}
    options = record.settings.options
    facts |= {
        'num_gpu': _plain(options.get('num_gpu')),
        'precision': (options.get('train') or {}).get('precision', 'fp32'),
    }
    facts |= {'seed': _plain(options.get('manual_seed')), 'folder': str(record.folder)}
    items = ''.join(f'<dt>{escape(k)}</dt><dd>{escape(str(v))}</dd>' for k, v in facts.items())
    parts = [
        f'<dl>{items}</dl>',
        table_html(('started', 'from iteration', 'to', 'last line', 'end'), rows) if rows else '',
    ]
    if record.settings.command:
        parts.insert(0, f'<pre>{escape(record.settings.command)}</pre>')
    if record.log.warnings:
        shown = escape('\n'.join(record.log.warnings[-50:]))
        parts.append(f'<details><summary>{len(record.log.warnings)} warnings</summary><pre>{shown}</pre></details>')
    page.content(f'Environment: {record.label}' if named else 'Environment', ''.join(parts))


def _end(record: Record, index: int) -> str:
    if index == len(record.log.sessions) - 1:
        return record.state()
    return 'finished' if record.log.sessions[index].over else 'interrupted'
