"""What the tests of faults have seen, as rows of docs/faults.md and as docs/faults.json."""

from __future__ import annotations

import json
import os
import platform
from pathlib import Path
from typing import Any

import torch

from tests.bad_input.tools import cell

PAGE = Path(__file__).parents[2] / 'docs/faults.md'
SECTIONS = {
    'kill': (
        'kill -9',
        'A process is killed at a random moment and started again with the same command, again and again until it has '
        'ended; then the next one is begun, until so many kills have met it. After each kill, all that had been kept '
        'before it must be there, to the bit as in a run that nobody killed; so must be the end. "lost": kills after which it was not.',
        ('what ran', 'kills', 'survived', 'lost', 'runs to the end', 'seed'),
    ),
    'ranks': (
        'A rank that dies or hangs',
        'Two processes (gloo), `dist_params.timeout: 0.2`.',
        ('what', 'said', 'resumed'),
    ),
    'disk': (
        'A full disk',
        'While a checkpoint is written, into a file system of 1 MiB more than is there.',
        ('what', 'exit', 'said', 'state before it', 'resumed'),
    ),
    'checkpoints': ('Checkpoints that are none, or of something else', '', ('file', 'given as', 'exit', 'said')),
    'options': (
        'Options at random',
        'Every YAML of `options/`, one random change in each: an unknown key, a value of another type, a value that is '
        'huge or no number. "refused": one error, which names the key; "taken": the change is within what the option allows.',
        ('file', 'changes', 'refused', 'taken', 'seed'),
    ),
    'not_finite': ('NaN and infinity', '', ('where', 'exit', 'what happens')),
    'pickles': ('A pickle that would run code', 'In place of every kind of file that is read.', ('place', 'said')),
    'bombs': ('Pictures made to exhaust the memory', '', ('picture', 'tool', 'said', 'at most')),
}
"""{name: (title, text, columns)}, in the order of the page."""

_HEAD = """# Faults

What training, building, scoring and the user study do when they are killed, cut off, or fed with what was made to break
them. `pytest -m slow tests/faults` meets all of it; `FINPERCEP_WRITE_DOCS=1 pytest -m slow tests/faults` writes this page and
`faults.json`, which also has the moments of the kills. What stands as `...` is another library's wording.
"""


class Told:
    """Rows by section, and more for the JSON alone.

    Args:
        seed: of the run.
    """

    def __init__(self, seed: int):
        self.seed = seed
        self._rows: dict[str, dict[tuple[str, ...], tuple[str, ...]]] = {name: {} for name in SECTIONS}
        self._more: dict[str, Any] = {}

    def add(self, section: str, *row: object, **more: Any) -> None:
        """A row of a table; `more` goes to the JSON, under the row's first cell."""
        assert len(row) == len(SECTIONS[section][2]), row
        texts = tuple(str(value) for value in row)
        self._rows[section][texts] = texts
        if more:
            self._more.setdefault(section, {})[texts[0]] = more

    @property
    def missing(self) -> list[str]:
        """Sections that nothing was seen of."""
        return [name for name, rows in self._rows.items() if not rows]

    def rows(self, section: str) -> list[tuple[str, ...]]:
        """Of a table."""
        return list(self._rows[section].values())

    def page(self) -> str:
        """In Markdown."""
        parts = [_HEAD]
        for name, (title, text, columns) in SECTIONS.items():
            lines = [columns, ('---',) * len(columns), *self._rows[name].values()]
            table = ''.join(f'| {" | ".join(cell(value) for value in line)} |\n' for line in lines)
            parts.append('\n\n'.join(filter(None, (f'## {title}', text, table))))
        return '\n'.join(parts)

    def write(self) -> None:
        """The page and the JSON."""
        PAGE.write_text(self.page(), encoding='utf-8')
        machine = f'{platform.system()} {platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}'
        tables = {
            name: [dict(zip(columns, row)) for row in self._rows[name].values()]
            for name, (_, _, columns) in SECTIONS.items()
        }
        content = {'seed': self.seed, 'machine': machine, 'tables': tables, 'more': self._more}
        PAGE.with_suffix('.json').write_text(json.dumps(content, indent=1) + '\n', encoding='utf-8')
