"""Tables of the score page, as HTML: means, paired differences, one row a picture; all of them sort by any column."""

from __future__ import annotations

from html import escape
from typing import Mapping, Sequence

from finpercep_plugin.report.bootstrap import Interval
from finpercep_plugin.report.score_pictures import Shot
from finpercep_plugin.scoring.statistics import Comparison
from finpercep_plugin.scoring.table import Row

__all__ = ['arrow', 'differences_table', 'means_table', 'pictures_table']

_DASH = '\u2013'


def arrow(higher: bool | None) -> str:
    """Whether up or down is better."""
    return '' if higher is None else ' \u2191' if higher else ' \u2193'


def means_table(told: Comparison) -> str:
    """One row a method; the best of each column in bold."""
    rows = []
    for method in told.methods:
        cells = [f'<th scope="row" data-v="{escape(method)}">{escape(method or "all pictures")}</th>']
        counts = [interval.n for interval in told.means[method].values() if interval]
        cells.append(f'<td data-v="{max(counts, default=0)}">{_span(counts)}</td>')
        for column in told.columns:
            interval = told.means[method][column]
            cells.append(_interval(interval, told.digits[column], 'best' if told.best.get(column) == method else ''))
        rows.append(f'<tr>{"".join(cells)}</tr>')
    heads = [*map(_head, ('method', 'n')), *(_head(f'{c}{arrow(h)}') for c, h in told.columns.items())]
    return _table('means', heads, rows)


def differences_table(told: Comparison) -> str:
    """One row a method; green and red where the interval leaves out 0."""
    rows = []
    for method, intervals in told.differences.items():
        cells = [f'<th scope="row" data-v="{escape(method)}">{escape(method)}</th>']
        counts = [interval.n for interval in intervals.values() if interval]
        cells.append(f'<td data-v="{max(counts, default=0)}">{_span(counts)}</td>')
        for column, interval in intervals.items():
            cells.append(_interval(interval, told.digits[column], _verdict(interval, told.columns[column]), '+'))
        rows.append(f'<tr>{"".join(cells)}</tr>')
    heads = [*map(_head, ('method', 'n')), *(_head(f'{c}{arrow(h)}') for c, h in told.columns.items())]
    return _table('differences', heads, rows)


def pictures_table(
    rows: Sequence[Row], shots: Mapping[tuple[str, str], Shot], partners: Sequence[str], told: Comparison
) -> str:
    """One row a picture of a method.

    Args:
        rows: those shown.
        shots: {(method, path): its pictures}.
        partners: of 'gt' and 'lq', those that there are; that of the n-th key is the background of `.gt-<n>`.
        told: columns and methods.
    """
    numbers = {key: number for number, key in enumerate(dict.fromkeys(row.key for row in rows))}
    crops = any(shot.crop for shot in shots.values())
    body = []
    for row in rows:
        shot = shots.get((row.method, row.path))
        pictures = [('main', _shot(shot))]
        if crops:
            pictures.append(('crop', f'<img src="{shot.crop}" alt="worst region">' if shot and shot.crop else ''))
        width, height = shot.size if shot else (1, 1)
        for partner in partners:
            style = f'style="aspect-ratio:{width}/{height}"'
            name = f'{partner}-{numbers[row.key]}'
            pictures.append((partner, f'<i class="ref {name}" role="img" aria-label="{_NAMES[partner]}" {style}></i>'))
        body.append(_row(row, pictures, told))
    heads = ['picture and map', *([_NAMES['crop']] if crops else []), *(_NAMES[p] for p in partners)]
    plain = [f'<th scope="col" class="plain">{escape(head)}</th>' for head in heads]
    sorts = [_head('name'), *plain, *(_head(f'{c}{arrow(h)}') for c, h in told.columns.items())]
    return _controls(told) + _table('pictures', sorts, body)


_NAMES = {'crop': 'worst region', 'gt': 'ground truth', 'lq': 'lq'}


def _row(row: Row, pictures: Sequence[tuple[str, str]], told: Comparison) -> str:
    tag = f' <span class="tag">{escape(row.method)}</span>' if len(told.methods) > 1 else ''
    small = f'{row.width} \u00d7 {row.height}' if row.width else ''
    small += f', in {row.tiles} tiles' if row.tiles > 1 else ''
    error = f'<span class="error">{escape(row.error)}</span>' if row.error else ''
    name = escape(_printable(row.path))
    cells = [f'<th scope="row" data-v="{name}"><b>{name}</b>{tag}<small>{small}</small>{error}</th>']
    cells += [f'<td class="see {kind}" data-name="{_NAMES.get(kind, "")}">{html}</td>' for kind, html in pictures]
    for number, column in enumerate(told.columns):
        value = row.values[column]
        text = _DASH if value is None else f'{value:.{told.digits[column]}f}'.replace('-', '\u2212')
        data = '' if value is None else f' data-v="{value!r}"'
        kind = '' if number else ' class="first"'
        cells.append(f'<td{kind} data-label="{escape(column)}"{data}>{text}</td>')
    return f'<tr data-method="{escape(row.method)}">{"".join(cells)}</tr>'


def _shot(shot: Shot | None) -> str:
    if shot is None:
        return ''
    width, height = shot.size
    image = f'<img src="{shot.thumb}" alt="picture" width="{width}" height="{height}">'
    if not shot.map or shot.box is None:
        return f'<span class="shot">{image}</span>'
    place = ';'.join(f'{side}:{100 * share:.2f}%' for side, share in zip(('left', 'top', 'width', 'height'), shot.box))
    return (
        f'<button class="shot" type="button" aria-pressed="false" aria-label="show the map">{image}'
        f'<img class="map" src="{shot.map}" alt=""><i class="box" style="{place}"></i></button>'
    )


def _controls(told: Comparison) -> str:
    """Filters, and sorting where there are no headings to choose."""
    options = ''.join(f'<option value="{escape(m)}">{escape(m)}</option>' for m in told.methods)
    methods = f'<label>method <select id="method"><option value="">all</option>{options}</select></label>'
    names = ['name', *told.columns]
    sorts = ''.join(f'<option value="{i}">{escape(name)}</option>' for i, name in enumerate(names))
    return (
        f'<div class="menus">{methods if len(told.methods) > 1 else ""}'
        f'<label>sort by <select id="sort">{sorts}</select></label>'
        '<button id="turn" type="button" aria-label="reverse the order">\u2191\u2193</button>'
        '<label>name <input id="find" type="search" size="12"></label>'
        '<button id="maps" type="button" aria-pressed="false">all maps</button><span id="shown"></span></div>'
    )


def _head(text: str) -> str:
    """Of a column that sorts."""
    return f'<th scope="col" aria-sort="none"><button type="button">{escape(text)}</button></th>'


def _table(name: str, heads: Sequence[str], rows: Sequence[str]) -> str:
    return (
        f'<div class="scroll"><table class="sorts {name}"><thead><tr>{"".join(heads)}</tr></thead>'
        f'<tbody>{"".join(rows)}</tbody></table></div>'
    )


def _interval(interval: Interval | None, digits: int, kind: str, sign: str = '') -> str:
    if interval is None:
        return f'<td>{_DASH}</td>'
    mean, low, high = (
        f'{x:{sign}.{digits}f}'.replace('-', '\u2212') for x in (interval.mean, interval.low, interval.high)
    )
    start = f'<td class="{kind}" ' if kind else '<td '
    return f'{start}data-v="{interval.mean!r}">{mean} <small>[{low}, {high}]</small></td>'


def _verdict(interval: Interval | None, higher: bool | None) -> str:
    if interval is None or higher is None or interval.low <= 0 <= interval.high:
        return ''
    return 'better' if (interval.mean > 0) == higher else 'worse'


def _span(counts: Sequence[int]) -> str:
    return _DASH.join(map(str, sorted({min(counts), max(counts)}))) if counts else '0'


def _printable(text: str) -> str:
    """Names of files may hold bytes that are no text."""
    return text.encode('utf-8', 'backslashreplace').decode()
