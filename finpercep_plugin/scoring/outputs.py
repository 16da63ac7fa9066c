"""What a run of the scorer leaves: tables in four formats, one HTML page, overlays, a record of how it was measured."""

from __future__ import annotations

import dataclasses
import json
import platform
from pathlib import Path
from typing import Any, Mapping, Sequence

import numpy as np
import torch
from PIL import Image

from finpercep_plugin import __version__
from finpercep_plugin.images import ImageError, read_image, write_png
from finpercep_plugin.report.score_page import Looks, ScorePage, write_score_page
from finpercep_plugin.scoring.engine import Result
from finpercep_plugin.scoring.journal import Journal
from finpercep_plugin.scoring.metrics import Metric
from finpercep_plugin.scoring.papers import latex, markdown
from finpercep_plugin.scoring.protocols import Protocol, centre
from finpercep_plugin.scoring.sources import Item
from finpercep_plugin.scoring.statistics import compare
from finpercep_plugin.scoring.table import Row, columns_of, row_of, write_csv, write_jsonl, write_text
from finpercep_plugin.visual import overlay

__all__ = ['FORMATS', 'Outputs', 'map_path', 'write_outputs', 'write_overlays']

FORMATS = ('csv', 'jsonl', 'md', 'tex', 'html')


@dataclasses.dataclass(frozen=True)
class Outputs:
    """What is written, and what it tells beside the scores.

    Args:
        out: path whose suffix each format replaces.
        formats: of `FORMATS`.
        metrics, protocol: that it was measured by.
        unmatched: see `Pairing`.
        command: that made it.
        device: where.
        baseline: see `compare`.
        pictures: most on the HTML page, of each method.
    """

    out: Path
    formats: Sequence[str]
    metrics: Sequence[Metric]
    protocol: Protocol
    unmatched: Mapping[str, Sequence[str]]
    command: str
    device: str
    baseline: str = ''
    pictures: int = 100

    def protocol_text(self) -> str:
        """The protocol in words, as far as it matters here."""
        compares = any('gt' in metric.needs for metric in self.metrics)
        return self.protocol.text([metric.name for metric in self.metrics], compares)

    def path(self, suffix: str) -> Path:
        """Of one format."""
        return self.out.with_name(f'{self.out.stem}.{suffix}')


def write_outputs(
    told: Outputs, results: Sequence[Result], journal: Journal, overlay_errors: Mapping[Item, str]
) -> list[Row]:
    """Write all formats and the record; returns the rows in the order of the items.

    Raises:
        OSError: one cannot be written.
        ValueError: the pictures do not fit onto the page.
    """
    columns = columns_of(told.metrics)
    rows = []
    for result in results:
        row = row_of(result, columns)
        more = overlay_errors.get(result.item)
        rows.append(dataclasses.replace(row, error='; '.join(filter(None, (row.error, more)))) if more else row)
    texts = {'csv': lambda: write_csv(told.path('csv'), rows, columns)}
    texts['jsonl'] = lambda: write_jsonl(told.path('jsonl'), rows, told.protocol.name, _partners(results))
    versions = {metric.label: metric.version for metric in told.metrics}
    if {'md', 'tex', 'html'} & set(told.formats):
        comparison = compare(rows, columns, told.baseline)
        protocol = told.protocol_text()
        texts['md'] = lambda: write_text(told.path('md'), markdown(comparison, protocol, versions, told.unmatched))
        texts['tex'] = lambda: write_text(told.path('tex'), latex(comparison, protocol, versions))
        page = ScorePage(
            rows, comparison, protocol, told.command, {**_facts(told), **versions}, told.unmatched, told.pictures
        )
        texts['html'] = lambda: write_score_page(told.path('html'), page, _looks(results, journal, told))
    for name in told.formats:
        texts[name]()
    write_text(told.path('run.json'), json.dumps(_record(told, rows), indent=2) + '\n')
    return rows


def map_path(folder: Path, item: Item) -> Path:
    """Where the overlay of a picture goes. Its whole name is kept, so a.png and a.jpg do not meet.

    >>> map_path(Path('maps'), Item('', 'sub/a.jpg', 'sub/a', Path())).as_posix()
    'maps/sub/a.jpg.map.png'
    """
    return folder / item.method / f'{item.name}.map.png'


def write_overlays(folder: Path, results: Sequence[Result], journal: Journal, told: Outputs) -> dict[Item, str]:
    """A picture of each map; returns why some cannot be written."""
    failed = {}
    looks = _looks(results, journal, told)
    for result in results:
        row = Row(result.item.method, result.item.name, result.item.key, None, None, {})
        values = looks.map(row)
        image = None if values is None else looks.sr(row)
        if values is None or image is None:
            continue
        try:
            write_png(map_path(folder, result.item), overlay(image, values / 255))
        except OSError as error:  # a full disk, or a name that is too long with .map.png behind it
            failed[result.item] = f'its map cannot be written ({error.strerror or error})'
    return failed


def _looks(results: Sequence[Result], journal: Journal, told: Outputs) -> Looks:
    """Pictures by row, from the files and the journal."""
    table = {(result.item.method, result.item.name): result for result in results}
    labels = [metric.label for metric in told.metrics if metric.gives_map]

    def sr(row: Row) -> np.ndarray | None:
        image = _read(table[row.method, row.path].item.sr)
        return None if image is None else centre(image, told.protocol.centre)

    def values(row: Row) -> np.ndarray | None:
        result = table[row.method, row.path]
        path = journal.map_path(result.keys.get(labels[0], '')) if labels else None
        if path is None or not path.is_file() or 'map_mean' not in result.values:
            return None
        with Image.open(path) as image:
            return np.asarray(image)

    def partner(field: str):
        return lambda row: _read(getattr(table[row.method, row.path].item, field))

    given = [f for f in ('gt', 'lq') if any(getattr(result.item, f) is not None for result in results)]
    return Looks(sr, values, {field: partner(field) for field in given})


def _read(path: Path | None) -> np.ndarray | None:
    try:
        return None if path is None else read_image(path)
    except (ImageError, MemoryError):
        return None


def _partners(results: Sequence[Result]) -> dict[tuple[str, str], dict[str, Any]]:
    table = {}
    for result in results:
        item = result.item
        fields = {field: None if path is None else path.name for field, path in (('gt', item.gt), ('lq', item.lq))}
        table[item.method, item.name] = {name: value for name, value in fields.items() if value is not None}
    return table


def _facts(told: Outputs) -> dict[str, object]:
    return {
        'protocol': f'{told.protocol.name}: {told.protocol.source}' if told.protocol.source else told.protocol.name,
        'intervals': 'percentile bootstrap over pictures, 10000 draws, seed 0',
        'finpercep_plugin': __version__,
        'torch': torch.__version__,
        'device': told.device,
        'machine': f'{platform.system()} {platform.machine()}, Python {platform.python_version()}',
    }


def _record(told: Outputs, rows: Sequence[Row]) -> dict[str, Any]:
    """All that is needed to repeat and to cite the scores; the same for the same run, so it holds no times."""
    counts: dict[str, int] = {}
    for row in rows:
        counts[row.method] = counts.get(row.method, 0) + 1
    return {
        'command': told.command,
        'protocol': dataclasses.asdict(told.protocol),
        'metrics': [
            {'label': m.label, 'version': m.version, 'needs': sorted(m.needs), 'higher_is_better': dict(m.columns)}
            for m in told.metrics
        ],
        'pictures': counts,
        'skipped': [_name(row) for row in rows if row.error],
        'in_tiles': [_name(row) for row in rows if row.tiles > 1],
        'unmatched': {why: list(names) for why, names in told.unmatched.items()},
        **{name: value for name, value in _facts(told).items() if name != 'protocol'},
    }


def _name(row: Row) -> str:
    return f'{row.method}/{row.path}' if row.method else row.path
