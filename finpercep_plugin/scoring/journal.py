"""Scores on disk as they come, by content: what was scored once is not scored again, also after kill -9."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import os
import threading
from pathlib import Path
from typing import Iterable, Mapping

from finpercep_plugin.ranks import Ranks

__all__ = ['Entry', 'Journal', 'entry_key']


@dataclasses.dataclass(frozen=True)
class Entry:
    """One metric's values of one picture.

    Args:
        key: see `entry_key`.
        name: of the picture, for whoever reads the file.
        metric: its label, likewise.
        values: by column.
        size: (width, height) of the picture.
        tiles: in how many it was computed.
    """

    key: str
    name: str
    metric: str
    values: Mapping[str, float]
    size: tuple[int, int]
    tiles: int = 1


def entry_key(version: str, files: Mapping[str, str], prompt: str = '') -> str:
    """What identifies values: the metric's version and the content of the pictures.

    Args:
        version: of the metric.
        files: {'sr': SHA-256, ...} of those it looks at.
        prompt: of a metric that reads it.

    >>> entry_key('v', {'sr': 'ab'}) == entry_key('v', {'sr': 'ab'}, 'a text')
    False
    """
    text = json.dumps([version, dict(files), prompt], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


class Journal:
    """A folder of JSONL files, one a process, each line an `Entry`. A line is whole or, at a kill, the last one torn.

    Args:
        folder: made by `open`; None keeps nothing on disk.
        ranks: which process this is.
        fresh: forget what is there.

    Raises:
        OSError: it cannot be read.
    """

    def __init__(self, folder: Path | None = None, ranks: Ranks | None = None, fresh: bool = False):
        ranks = ranks or Ranks()
        self.folder = folder
        self.path = None if folder is None else folder / _file_name(ranks.rank, ranks.world)
        self._entries: dict[str, Entry] = {}
        self._lock = threading.Lock()
        if fresh and folder is not None:
            others = {_file_name(rank, ranks.world) for rank in range(1, ranks.world)} if ranks.rank == 0 else set()
            for path in folder.glob('*.jsonl') if ranks.rank == 0 else [self.path]:
                if path.name not in others:
                    path.unlink(missing_ok=True)
        else:
            self.read()

    def __len__(self) -> int:
        return len(self._entries)

    def read(self) -> None:
        """Take in what all processes have written."""
        for path in sorted(self.folder.glob('*.jsonl')) if self.folder is not None else ():
            for line in path.read_bytes().split(b'\n'):
                try:
                    fields = json.loads(line)
                    self._entries[fields['key']] = Entry(**{**fields, 'size': tuple(fields['size'])})
                except (ValueError, KeyError, TypeError):  # a torn line, or one of another version
                    continue

    def get(self, key: str) -> Entry | None:
        return self._entries.get(key)

    def open(self) -> None:
        """Make the folder and the file; a torn last line is cut off.

        Raises:
            OSError: it cannot be written.
        """
        if self.path is None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, 'ab+') as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(0)
            whole = file.read().rfind(b'\n') + 1
            if whole < size:
                file.truncate(whole)

    def add(self, entries: Iterable[Entry]) -> None:
        """Keep entries; they reach the file in one write.

        Raises:
            OSError: it cannot be written.
        """
        entries = list(entries)
        lines = ''.join(json.dumps(dataclasses.asdict(entry)) + '\n' for entry in entries)
        with self._lock:
            if self.path is not None and lines:
                with open(self.path, 'ab', buffering=0) as file:
                    if file.write(lines.encode()) != len(lines):  # json.dumps leaves ASCII
                        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
            self._entries.update({entry.key: entry for entry in entries})

    def map_path(self, key: str) -> Path | None:
        """Where the map of an entry is kept, as an 8-bit grey PNG; None where nothing is kept."""
        return None if self.folder is None else self.folder / 'maps' / f'{key}.map'


def _file_name(rank: int, world: int) -> str:
    return f'{rank}of{world}.jsonl'
