"""One self-contained HTML page of results: text, tables with intervals, curves, pictures.

Opens from disk, with no network, and no script but that of a page's `extra`.
"""

from __future__ import annotations

import base64
import dataclasses
import io
import math
import os
from html import escape
from importlib import resources
from pathlib import Path
from typing import Mapping, Sequence, Union

import numpy as np
from PIL import Image

from finpercep_plugin.report.bootstrap import Interval
from finpercep_plugin.report.chart import COLOURS, Chart, svg
from finpercep_plugin.visual import colour_map

__all__ = ['Cell', 'Page', 'PictureRow', 'data_uri', 'map_legend']

Cell = Union[str, int, float, Interval, None]


@dataclasses.dataclass(frozen=True)
class PictureRow:
    """The pictures of one photo.

    Args:
        name: of the photo.
        images: one a column, (h, w, 3) uint8 RGB; None leaves the place empty.
        captions: one a column, such as its score; '' for none.
    """

    name: str
    images: Sequence[np.ndarray | None]
    captions: Sequence[str] = ()


def data_uri(image: np.ndarray, quality: int | None = None) -> str:
    """(h, w, 3) uint8 as a PNG, or as a JPEG of the given quality, inside a data: URI."""
    buffer = io.BytesIO()
    if quality is None:
        Image.fromarray(image).save(buffer, format='PNG', optimize=True)
    else:
        Image.fromarray(image).save(buffer, format='JPEG', quality=quality, subsampling=0)
    kind = 'png' if quality is None else 'jpeg'
    return f'data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}'


class Page:
    """Sections are added in the order they appear; every method but `write` returns the page.

    Args:
        title: heading and window title.
        jpeg_above: pictures with more pixels than this are embedded as JPEG of quality 92, the others exactly, as PNG.
        extra: name of a further style sheet and script in this package, such as 'sheet' of sheet.css and sheet.js.
    """

    def __init__(self, title: str, jpeg_above: int = 512 * 512, extra: str = ''):
        self.title, self.jpeg_above, self.extra = title, jpeg_above, extra
        self._sections: list[str] = []

    def intro(self, *paragraphs: str) -> Page:
        """Paragraphs of plain text below the title."""
        self._sections.append(''.join(f'<p class="intro">{escape(p)}</p>' for p in paragraphs))
        return self

    def table(
        self, heading: str, columns: Sequence[str], rows: Sequence[Sequence[Cell]], note: str = '', digits: int = 3
    ) -> Page:
        """A table of key figures.

        Args:
            heading: above it.
            columns: headings; the first column holds names, on the left.
            rows: text, numbers, or `Interval`s, which show as mean with the interval small beside it; None is a dash.
            note: small print below.
            digits: after the point.

        Raises:
            ValueError: a row of another length than `columns`.
        """
        for row in rows:
            if len(row) != len(columns):
                raise ValueError(f'table {heading!r}: {len(columns)} columns, but a row of {len(row)}: {list(row)}')
        head = ''.join(f'<th scope="col">{escape(c)}</th>' for c in columns)
        body = ''.join(
            f'<tr><th scope="row">{_cell(row[0], digits)}</th>'
            + ''.join(f'<td>{_cell(cell, digits)}</td>' for cell in row[1:])
            + '</tr>'
            for row in rows
        )
        table = f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
        return self._section(heading, table + _note(note))

    def curves(self, heading: str, charts: Sequence[Chart], note: str = '') -> Page:
        """Line charts side by side where there is room."""
        figures = ''.join(f'<figure><h3>{escape(c.title)}</h3>{_key(c)}{svg(c)}</figure>' for c in charts)
        return self._section(heading, f'<div class="charts">{figures}</div>{_note(note)}')

    def pictures(
        self,
        heading: str,
        columns: Sequence[str],
        rows: Sequence[PictureRow],
        note: str = '',
        map_scale: bool = False,
    ) -> Page:
        """Photos in rows, one column a kind of picture; hover, tap or focus enlarges a picture, pixels kept.

        Args:
            heading: above them.
            columns: name of each column.
            rows: the photos.
            note: small print below.
            map_scale: show the colours of degradation maps below.

        Raises:
            ValueError: a row with another number of pictures than `columns`, or more captions than that.
        """
        parts = []
        for row in rows:
            if len(row.images) != len(columns) or len(row.captions) > len(columns):
                raise ValueError(
                    f'pictures of {row.name}: {len(columns)} columns, but {len(row.images)} images '
                    f'and {len(row.captions)} captions'
                )
            captions = [*row.captions, *[''] * (len(columns) - len(row.captions))]
            cells = ''.join(map(self._figure, columns, row.images, captions))
            parts.append(
                f'<h3 class="photo">{escape(row.name)}</h3><div class="row" style="--n:{len(columns)}">{cells}</div>'
            )
        return self._section(heading, ''.join(parts) + (map_legend() if map_scale else '') + _note(note))

    def made(self, command: str, facts: Mapping[str, object]) -> Page:
        """How this page was made: the command to repeat it, and facts such as seed, machine, versions, time."""
        items = ''.join(f'<dt>{escape(str(k))}</dt><dd>{escape(str(v))}</dd>' for k, v in facts.items())
        return self._section('How this was made', f'<pre>{escape(command)}</pre><dl>{items}</dl>')

    def content(self, heading: str, html: str) -> Page:
        """A section of ready HTML."""
        return self._section(heading, html)

    def html(self) -> str:
        """The whole page."""
        style = _resource('page.css') + (_resource(f'{self.extra}.css') if self.extra else '')
        script = f'<script>\n{_resource(self.extra + ".js")}</script>\n' if self.extra else ''
        title = escape(self.title)
        return (
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f'<title>{title}</title>\n<style>\n{style}</style></head>\n'
            f'<body><main><h1>{title}</h1>\n' + '\n'.join(self._sections) + f'\n</main>{script}</body></html>\n'
        )

    def write(self, path: str | Path) -> Path:
        """Write the page under a temporary name, then rename; makes the folder."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f'.{path.name}.part')
        partial.write_text(self.html(), encoding='utf-8')
        os.replace(partial, path)
        return path

    def _section(self, heading: str, content: str) -> Page:
        self._sections.append(f'<section><h2>{escape(heading)}</h2>{content}</section>')
        return self

    def _figure(self, column: str, image: np.ndarray | None, caption: str) -> str:
        name = f'<b>{escape(column)}</b>'
        if image is None:
            return f'<figure><div class="none"></div><figcaption>{name}</figcaption></figure>'
        h, w = image.shape[:2]
        uri = data_uri(image, 92 if h * w > self.jpeg_above else None)
        picture = f'<img src="{uri}" width="{w}" height="{h}" alt="{escape(column)}" tabindex="0">'
        return f'<figure>{picture}<figcaption>{name} <span>{escape(caption)}</span></figcaption></figure>'


def _resource(name: str) -> str:
    return resources.files('finpercep_plugin.report').joinpath(name).read_text(encoding='utf-8')


def _cell(cell: Cell, digits: int) -> str:
    if cell is None or (isinstance(cell, (float, np.floating)) and math.isnan(cell)):
        return '\u2013'
    if isinstance(cell, Interval):
        low, high = _signed(cell.low, digits), _signed(cell.high, digits)
        return f'{_signed(cell.mean, digits)} <small>[{low}, {high}]</small>'
    if isinstance(cell, (float, np.floating)):
        return _signed(float(cell), digits)
    return escape(str(cell))


def _signed(value: float, digits: int) -> str:
    return f'{value:.{digits}f}'.replace('-', '\u2212')


def map_legend() -> str:
    """The colours of degradation maps, as HTML."""
    colours = ', '.join('rgb({}, {}, {})'.format(*c) for c in colour_map(np.linspace(0, 1, 6)[None])[0])
    return (
        f'<div class="scale">clean 0 <i style="background:linear-gradient(to right, {colours})"></i> 1 degraded</div>'
    )


def _note(text: str) -> str:
    return f'<p class="note">{escape(text)}</p>' if text else ''


def _key(chart: Chart) -> str:
    if len(chart.series) < 2:
        return ''
    items = ''.join(
        f'<li><i style="background:{COLOURS[i % len(COLOURS)]}"></i>{escape(name)}</li>'
        for i, name in enumerate(chart.series)
    )
    return f'<ul class="key">{items}</ul>'
