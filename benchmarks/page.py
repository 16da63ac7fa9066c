"""docs/performance.md and its plots, from what was measured and from benchmarks/changes.md, which is written by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Mapping

from benchmarks.common import Figure, Series

__all__ = ['table', 'write']

CHANGES = Path(__file__).with_name('changes.md')

_HEAD = """# Performance

Written by `python benchmarks/run.py` from benchmarks/results.json and benchmarks/changes.md. Each figure is the median, over rounds in which ours and the peer take turns, of
the ratio of the two in one round; in brackets the lowest and highest round. On a CPU, time is processor time of one thread (other work on the machine counts little), memory what torch's allocator held.
"""


def write(data: Mapping[str, Any], docs: Path) -> None:
    """Write `performance.md` and `performance/*.png`.

    Args:
        data: {'benchmarks': {name: what benchmarks/run.py stores}}.
        docs: the folder.
    """
    found = data['benchmarks']
    lines = [_HEAD, '## Goals\n', *_goals(found)]
    for name, one in found.items():
        lines += [
            '',
            f'## {one["title"]}\n',
            one['words'],
            '',
            *table(one),
            '',
            f'`{one["command"]}`: {one["took"]} s; {one["sizes"]}; {one["machine"]}.',
        ]
        lines += [
            f'\n![{plot}](performance/{file})' for plot, file in _plots(name, one['series'], docs / 'performance')
        ]
    lines += ['', CHANGES.read_text(encoding='utf-8').rstrip()]
    (docs / 'performance.md').write_text('\n'.join(lines) + '\n', encoding='utf-8')


def table(found: Mapping[str, Any]) -> list[str]:
    """The figures of a benchmark as lines of Markdown."""
    lines = ['| What | Against | Ours | Peer | Ratio | Goal |', '| --- | --- | --- | --- | --- | --- |']
    for values in found['figures']:
        one = Figure(**values)
        lines.append(
            f'| {one.name} | {one.peer} | {_value(one.ours, one.unit)} | {_value(one.theirs, one.unit)} | {_ratio(one)} | {_goal(one)} |'
        )
    return lines if found['figures'] else []


def _goals(found: Mapping[str, Any]) -> list[str]:
    lines = ['| Benchmark | What | Goal | Measured |', '| --- | --- | --- | --- |']
    for name, one in found.items():
        for figure in (Figure(**values) for values in one['figures']):
            if figure.goal:
                measured = _value(figure.ours, figure.unit) if len(figure.goal.split()) > 2 else _ratio(figure)
                lines.append(f'| {name} | {figure.name} | {_goal(figure)} | {measured} |')
    return lines


def _goal(one: Figure) -> str:
    return '' if one.met is None else f'{one.goal}, {"met" if one.met else "**missed**"}'


def _ratio(one: Figure) -> str:
    spread = '' if one.low == one.high else f' ({one.low:.3g} to {one.high:.3g})'
    return f'**{one.ratio:.3g}**{spread}'


def _value(value: float, unit: str) -> str:
    return f'{value:.3g} {unit}' if abs(value) < 1000 else f'{value:.0f} {unit}'


def _plots(name: str, series: list[Mapping[str, Any]], folder: Path) -> list[tuple[str, str]]:
    """Draw each plot of a benchmark; (its title, its file)."""
    lines = [Series(**values) for values in series]
    titles = list(dict.fromkeys(line.plot for line in lines))
    files = []
    for number, title in enumerate(titles):
        files.append((title, f'{name}_{number}.png'))
        folder.mkdir(parents=True, exist_ok=True)
        _draw([line for line in lines if line.plot == title], title, folder / files[-1][1])
    return files


def _draw(lines: list[Series], title: str, file: Path) -> None:
    """A panel for each quantity, over the same x."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Picture

    quantities = list(dict.fromkeys(line.y_name for line in lines))
    picture = Picture(figsize=(4 * len(quantities), 3.2), layout='constrained')
    FigureCanvasAgg(picture)
    picture.suptitle(title)
    for axes, quantity in zip(picture.subplots(1, len(quantities), squeeze=False)[0], quantities):
        for line in lines:
            if line.y_name == quantity:
                axes.plot(line.x, line.y, marker='o', label=line.name)
        points = sorted({x for line in lines for x in line.x})
        axes.set(xlabel=lines[0].x_name, ylabel=quantity, xticks=points, xticklabels=[f'{x:g}' for x in points])
        axes.set_ylim(0, 1.1 * axes.get_ylim()[1])
        axes.grid(alpha=0.3)
        axes.legend(fontsize='small')
    picture.savefig(file, dpi=100)
