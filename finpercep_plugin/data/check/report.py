"""What a check finds: problems, notes, and which photos a set holds."""

from __future__ import annotations

import concurrent.futures
import dataclasses
from typing import Any, Callable, Iterable, Sequence, TypeVar

__all__ = ['ALONE', 'KINDS', 'Problem', 'Report', 'Work']

KINDS = {
    'unreadable': 'missing, truncated, empty, not a picture, or values out of range',
    'small': 'less than the crop',
    'blank': 'one colour all over',
    'copy': 'a picture that is there already: the same bytes, or the same pixels',
    'partner': 'a half of a pair is missing',
    'size': 'gt is not lq times the scale',
    'enlarged': 'gt is lq enlarged, there is nothing to learn',
    'stranger': 'lq and gt are not the same picture',
    'record': 'a record, a checksum or a figure of a built set is wrong',
    'leak': 'a validation photo is also among the training photos',
    'options': 'a section of options that cannot be used',
    'converted': 'a note: read, but otherwise than it is stored',
    'not checked': 'a note: something that was left out',
}
"""The kinds of findings; the notes among them are no problems."""

_NOTES = ('converted', 'not checked')

Item = TypeVar('Item')
Result = TypeVar('Result')


@dataclasses.dataclass(frozen=True)
class Problem:
    """One finding.

    Args:
        where: the file, sample or option; '' for the data as a whole.
        kind: a key of `KINDS`.
        text: what is wrong, without `where`.
    """

    where: str
    kind: str
    text: str

    @property
    def is_note(self) -> bool:
        return self.kind in _NOTES

    def __str__(self) -> str:
        return f'{self.where}: {self.text}' if self.where else self.text


@dataclasses.dataclass
class Report:
    """What was found in one data set.

    Args:
        source: its folder, folders or section.
        what: the kind of data, in words.
        checked: pictures, pairs, samples or records looked at.
        findings: all of them.
        photos: {identity: name} of the photos in it, see `leaks`.
    """

    source: str
    what: str
    checked: int = 0
    findings: list[Problem] = dataclasses.field(default_factory=list)
    photos: dict[str, str] = dataclasses.field(default_factory=dict)

    def add(self, where: str, kind: str, text: str) -> None:
        assert kind in KINDS, kind
        self.findings.append(Problem(where, kind, text))

    @property
    def problems(self) -> list[Problem]:
        return [f for f in self.findings if not f.is_note]

    @property
    def notes(self) -> list[Problem]:
        return [f for f in self.findings if f.is_note]

    def as_json(self) -> dict[str, Any]:
        return {
            'source': self.source,
            'what': self.what,
            'checked': self.checked,
            'problems': [dataclasses.asdict(p) for p in self.problems],
            'notes': [dataclasses.asdict(p) for p in self.notes],
        }


@dataclasses.dataclass(frozen=True)
class Work:
    """How a check works through its items.

    Threads are enough: decoding and hashing let go of Python's lock.

    Args:
        threads: how many; 0 for none but the caller's.
        tell: called with (source, done, all) after each item.
    """

    threads: int = 0
    tell: Callable[[str, int, int], None] = lambda source, done, total: None

    def over(self, source: str, function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
        """`function` of each item, in order."""
        if not self.threads:
            return list(self._counted(source, map(function, items), len(items)))
        pool = concurrent.futures.ThreadPoolExecutor(self.threads)
        try:
            return list(self._counted(source, pool.map(function, items), len(items)))
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _counted(self, source: str, results: Iterable[Result], total: int) -> Iterable[Result]:
        for done, result in enumerate(results, 1):
            self.tell(source, done, total)
            yield result


ALONE = Work()
"""One item after the other, and nobody is told."""
