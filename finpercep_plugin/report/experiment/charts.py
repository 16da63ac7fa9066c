"""Which curves a page shows: every reward, loss, validation figure and whatever else was logged, one chart each."""

from __future__ import annotations

import dataclasses
from typing import Mapping, Sequence

from finpercep_plugin.report.chart import COLOURS, Chart, Mark
from finpercep_plugin.report.experiment.events import Series, as_series
from finpercep_plugin.report.experiment.record import Record

__all__ = ['Group', 'Line', 'chart_groups', 'draw', 'single_values', 'stage_marks']

SMOOTH_FROM = 30
"""Points from which a curve is drawn smoothed, over the faint one."""

TITLES = {
    'reward': 'Reward R of the training batches',
    'reward_raw': 'Raw reward, before normalisation',
    'reward_map_max': 'Reward term: max of the map (lower is better)',
    'reward_map_mean': 'Mean of the map (lower is better)',
    'monitor_reward': 'Reward R of the fixed samples',
    'losses/l_total': 'Loss: total',
    'grad_norm': 'Gradient norm',
    'bad_steps': 'Skipped steps',
    'learning rate': 'Learning rate',
    'seconds an iteration': 'Seconds an iteration',
    'k': 'Sampler step that gets the gradient',
    'below_margin': 'Share of samples below the margin',
    'score_std': 'Spread of the scores',
    'map_mean': 'Mean of the map of syn',
}
EVEN = ('learning rate', 'seconds an iteration', 'bad_steps')
"""Drawn as they are."""

SCORES = {'sr': 'score_sr', 'syn': 'score_syn', 'gt': 'score_gt'}


@dataclasses.dataclass(frozen=True)
class Line:
    """What one chart shows.

    Attributes:
        title: above it.
        tags: {name: tag} of the lines of an experiment.
        levels: {name: y} of horizontal lines.
        smoothed: where there are points enough.
    """

    title: str
    tags: Mapping[str, str]
    levels: Mapping[str, float] = dataclasses.field(default_factory=dict)
    smoothed: bool = True


@dataclasses.dataclass(frozen=True)
class Group:
    """Charts under one heading."""

    heading: str
    charts: list[Chart]
    note: str = ''


def stage_marks(records: Sequence[Record]) -> list[Mark]:
    """Where CCL stages begin; of experiments with other beginnings, in the colours of each."""
    staged = [(i, r) for i, r in enumerate(records) if len(r.stages) > 1]
    if staged and all(r.stages == staged[0][1].stages for _, r in staged):
        return [Mark(first, f'RM_{stage}') for stage, first in staged[0][1].stages.items()]
    return [Mark(first, '', COLOURS[i % len(COLOURS)]) for i, r in staged for first in [*r.stages.values()][1:]]


def draw(records: Sequence[Record], lines: Sequence[Line]) -> list[Chart]:
    """A chart a line of one experiment; of several, a chart a tag, in which each has its colour."""
    if len(records) == 1:
        table = [(line.title, {name: _get(records[0], tag) for name, tag in line.tags.items()}, line) for line in lines]
    else:
        table = [
            (
                line.title if len(line.tags) == 1 else f'{line.title}: {name}',
                {r.label: _get(r, tag) for r in records},
                line,
            )
            for line in lines
            for name, tag in line.tags.items()
        ]
    charts, marks = [], stage_marks(records)
    for title, series, line in table:
        if len(records) == 1:
            series = {name: found for name, found in series.items() if found[0]}
        points = max((len(xs) for xs, _ in series.values()), default=0)
        if points:
            smoothing = 0.8 if line.smoothed and points >= SMOOTH_FROM else 0.0
            charts.append(Chart(title, series, marks=marks, smoothing=smoothing, levels=line.levels, readout=True))
    return charts


def _get(record: Record, tag: str) -> Series:
    return record.scalars.get(tag, ([], []))


def chart_groups(records: Sequence[Record]) -> list[Group]:
    """All curves but those of the hacking monitor and of the curriculum's decisions; groups without any are left out."""
    tags = list(dict.fromkeys(tag for record in records for tag in record.scalars))
    rest = [
        t
        for t in tags
        if not t.startswith(('reward', 'losses/', 'metrics/', 'monitor_')) and t not in ('stage', 'bad_steps')
    ]
    scores = [Line('Mean scores', SCORES)] if SCORES['gt'] in rest else []
    rest = [t for t in rest if not (scores and t in SCORES.values())]
    if any(max(_get(r, 'bad_steps')[1], default=0) > 0 for r in records):
        rest.append('bad_steps')
    losses = sorted((t for t in tags if t.startswith('losses/')), key=lambda t: t != 'losses/l_total')
    groups = [
        ('Reward', _with_spread([t for t in tags if t.startswith('reward')], tags)),
        ('Losses', _with_spread(losses, tags)),
        ('Validation', _validation(tags, records)),
        ('Algorithm and optimiser', scores + _with_spread(rest, tags)),
    ]
    drawn = [Group(heading, draw(records, lines), _NOTES.get(heading, '')) for heading, lines in groups]
    return [*(group for group in drawn if group.charts), *_grown(records)]


def single_values(group: Group) -> dict[str, dict[str, float]]:
    """{title: {name: value}} of a group in which nothing has two points, so that there is nothing to draw."""
    series = [xy for chart in group.charts for xy in chart.series.values()]
    if max(len(xs) for xs, _ in series) > 1:
        return {}
    return {chart.title: {name: ys[0] for name, (_, ys) in chart.series.items() if ys} for chart in group.charts}


_NOTES = {
    'Reward': 'R_k is the raw reward of stage k, normalised by its mean and spread over outputs of the starting generator: '
    '0 is the start, and a step where the stage changes is that of another reward. Spread: standard deviation within a batch.',
    'Validation': 'On the validation set, with the smoothed (EMA) weights where there are such.',
}


def _with_spread(tags: Sequence[str], known: Sequence[str]) -> list[Line]:
    """A line a tag, with that of its spread beside it."""
    lines = []
    for tag in tags:
        if tag.endswith('_std') and tag.removesuffix('_std') in known:
            continue
        spread = {'spread': f'{tag}_std'} if f'{tag}_std' in known else {}
        lines.append(
            Line(_title(tag), {'mean' if spread else tag.rpartition('/')[2]: tag, **spread}, smoothed=tag not in EVEN)
        )
    return lines


def _title(tag: str) -> str:
    if tag in TITLES:
        return TITLES[tag]
    name = tag.rpartition('/')[2]
    if tag.startswith('losses/'):
        return f'Loss: {name.removeprefix("l_").replace("_", " ")}'
    if tag.startswith('reward_'):
        return f'Reward term: {name.removeprefix("reward_").replace("_", " ")}'
    return name.replace('_', ' ').capitalize()


def _validation(tags: Sequence[str], records: Sequence[Record]) -> list[Line]:
    """A chart a measure, with a line a data set."""
    held = {name for r in records for name in (r.settings.options.get('val') or {}).get('rewards') or {}}
    charts: dict[str, dict[str, str]] = {}
    for tag in tags:
        if tag.startswith('metrics/'):
            *where, name = tag.split('/')[1:]
            charts.setdefault(name, {})['/'.join(where) or name] = tag
    titles = {name: f'{name}{" (held-out reward)" if name in held else ""}' for name in charts}
    return [Line(titles[name], found, smoothed=False) for name, found in charts.items()]


def _grown(records: Sequence[Record]) -> list[Group]:
    """The losses of reward models that were trained within a run."""
    groups = []
    for record in records:
        for stage, tables in record.log.grown.items():
            losses = {tag: as_series(table) for tag, table in tables.items() if tag.startswith('losses/')}
            charts = [Chart(_title(tag), {tag: series}, readout=True) for tag, series in losses.items()]
            name = f'{record.label}: ' if len(records) > 1 else ''
            groups.append(Group(f'{name}RM_{stage}, trained at the switch', charts))
    return groups
