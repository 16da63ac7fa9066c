"""Rows of scores, one a picture, as CSV and JSON lines."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import os
from pathlib import Path
from typing import Any, Iterable, Mapping, Sequence

from finpercep_plugin.scoring.engine import Result
from finpercep_plugin.scoring.metrics import Metric

__all__ = ['Row', 'columns_of', 'row_of', 'write_csv', 'write_jsonl', 'write_text']


@dataclasses.dataclass(frozen=True)
class Row:
    """What is known of one picture; `error` is empty where all of it was scored.

    Args:
        method: what made it; '' where there is one alone.
        path: relative to its method's folder.
        key: what pictures of the same content share over methods.
        width, height: in pixels, or None where it cannot be read.
        values: by column; None where it could not be computed.
        error: why.
        tiles: most tiles that a metric was computed in; above 1, memory did not suffice for the whole.
    """

    method: str
    path: str
    key: str
    width: int | None
    height: int | None
    values: Mapping[str, float | None]
    error: str = ''
    tiles: int = 1


def columns_of(metrics: Sequence[Metric]) -> dict[str, bool | None]:
    """{column: whether higher is better} of all metrics.

    Raises:
        ValueError: two of one name.
    """
    columns: dict[str, bool | None] = {}
    for metric in metrics:
        for column, higher in metric.columns.items():
            if column in columns or column in ('method', 'path', 'width', 'height', 'error'):
                raise ValueError(f'--metrics: two columns are called {column!r}; write LABEL={metric.label}')
            columns[column] = higher
    return columns


def row_of(result: Result, columns: Iterable[str]) -> Row:
    """The row of a result."""
    item, (width, height) = result.item, result.size or (None, None)
    values = {column: result.values.get(column) for column in columns}
    return Row(item.method, item.name, item.key, width, height, values, '; '.join(result.errors), result.tiles)


def write_csv(path: Path, rows: Sequence[Row], columns: Iterable[str]) -> Path:
    """`[method,] path, width, height, <columns>, error`, numbers with 6 digits; `method` where there are several."""
    columns = list(columns)
    named = any(row.method for row in rows)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator='\n')
    writer.writerow([*(['method'] if named else []), 'path', 'width', 'height', *columns, 'error'])
    for row in rows:
        cells = [row.path, row.width, row.height, *(row.values[column] for column in columns), row.error]
        writer.writerow(map(_cell, [row.method, *cells] if named else cells))
    return write_text(path, text.getvalue())


def write_jsonl(
    path: Path, rows: Sequence[Row], protocol: str, partners: Mapping[tuple[str, str], Mapping[str, Any]]
) -> Path:
    """One object a line, numbers in full.

    Args:
        path: of the file.
        rows: to be written.
        protocol: name of it, in every line.
        partners: {(method, path): further fields of the line}.
    """
    lines = []
    for row in rows:
        line = {
            'method': row.method,
            'path': row.path,
            'width': row.width,
            'height': row.height,
            'scores': dict(row.values),
        }
        line |= {
            'protocol': protocol,
            'tiles': row.tiles,
            'error': row.error,
            **partners.get((row.method, row.path), {}),
        }
        lines.append(json.dumps(line) + '\n')
    return write_text(path, ''.join(lines))


def write_text(path: Path, text: str) -> Path:
    """Under a temporary name, then rename; makes the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + '.part')
    with partial.open('w', newline='', encoding='utf-8', errors='surrogateescape') as file:
        file.write(text)
    os.replace(partial, path)
    return path


def _cell(value: str | int | float | None) -> str:
    if value is None:
        return ''
    return f'{value:.6f}' if isinstance(value, float) else str(value)
