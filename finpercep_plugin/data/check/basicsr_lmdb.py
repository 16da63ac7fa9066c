"""BasicSR's LMDB folders (data.mdb and meta_info.txt) as sources of pictures."""

from __future__ import annotations

import functools
import re
from pathlib import Path

from finpercep_plugin.data.check.pictures import Source
from finpercep_plugin.data.check.report import Report
from finpercep_plugin.data.lmdb_io import Reader

__all__ = ['lmdb_sources']

_LINE = re.compile(r'(?P<name>\S+)\s+\((?P<height>\d+),\s*(?P<width>\d+)(,\s*\d+)?\)(\s+\d+)?')


def lmdb_sources(folder: Path, report: Report) -> dict[str, Source]:
    """{key: picture} of those that meta_info.txt names and the store has; the others are reported.

    Raises:
        OSError: no store, or not a readable one, or no meta_info.txt.
    """
    reader = Reader(folder)
    stored = set(reader.keys())
    listed: dict[str, None] = {}
    for number, line in enumerate((folder / 'meta_info.txt').read_text(encoding='utf-8').splitlines(), 1):
        key, where = line.split('.')[0], f'{folder.name}/meta_info.txt:{number}'
        if not _LINE.fullmatch(line.strip()):
            report.add(where, 'record', f'expected "name.png (height,width,channels) level", got {line[:80]!r}')
        if key in listed:
            report.add(where, 'record', f'{key} a second time')
        elif key not in stored:
            report.add(where, 'record', f'the store has no {key}')
        else:
            listed[key] = None
    for key in sorted(stored - listed.keys()):
        report.add(f'{folder.name}/{key}', 'record', 'in the store, but not in meta_info.txt: never read')
    return {key: (key, functools.partial(_read, reader, key)) for key in listed}


def _read(reader: Reader, key: str) -> bytes:
    return bytes(reader.raw(key))
