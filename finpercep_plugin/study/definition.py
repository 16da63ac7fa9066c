"""What a study is, fixed when it is made: methods, pictures, questions, how many trials, whom to leave out."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import os
import secrets
from pathlib import Path
from typing import Any, Mapping

__all__ = ['GT', 'QUESTIONS', 'SPOILED', 'Cell', 'Item', 'Rules', 'Secrets', 'Settings', 'Study', 'StudyError']

GT, SPOILED = '(gt)', '(spoiled)'  # stand where a method does, in attention checks; no method can be called so
QUESTIONS = {
    'fidelity': 'Which result better preserves the identity and structure of the reference?',
    'realism': 'Which result looks more like a natural photograph?',
}
_FILE, _SECRETS = 'study.json', 'secrets.json'


class StudyError(ValueError):
    """A study that cannot be made, read or analysed; the message says what to change."""


@dataclasses.dataclass(frozen=True, order=True)
class Cell:
    """One comparison: two methods on one item, in the study's order of methods."""

    item: str
    first: str
    second: str


@dataclasses.dataclass(frozen=True)
class Item:
    """One scene.

    Args:
        name: of the lq picture, without suffix, with its folder.
        width, height: of the results, in pixels.
        images: {'lq', GT, SPOILED or a method: id of the file}.
        spare: not voted on; for practice and attention checks alone.
    """

    name: str
    width: int
    height: int
    images: Mapping[str, str]
    spare: bool = False

    @property
    def group(self) -> str:
        """The test set: the folder of the lq picture; '' at the top."""
        return self.name.rpartition('/')[0]


@dataclasses.dataclass(frozen=True)
class Rules:
    """Who is left out of the analysis; fixed before the first vote.

    Args:
        check_accuracy: least share of right answers to attention checks.
        repeat_agreement: least share of equal answers to repeated comparisons.
        side_share: most answers for the same side, as a share.
        median_seconds: least median time of a trial.
        completed: least share of the trials that a rater was to do.
    """

    check_accuracy: float = 0.75
    repeat_agreement: float = 0.0
    side_share: float = 0.95
    median_seconds: float = 1.0
    completed: float = 0.5


@dataclasses.dataclass(frozen=True)
class Settings:
    """How it is run.

    Args:
        trials: comparisons that count, for each rater.
        training: practice trials before them, which do not count.
        checks: attention checks among them: gt against a spoiled copy of it.
        repeats: comparisons asked twice, sides exchanged.
        raters: seats; that of someone who left is given away again. 0: no limit.
        min_seconds: a trial is looked at for at least this long.
        idle_minutes: after these without an answer someone has left, and what lay before them goes to others.
        reference: a method that every pair holds; '': all pairs.
        seed: of order, sides and who sees what.
    """

    trials: int = 40
    training: int = 3
    checks: int = 4
    repeats: int = 4
    raters: int = 0
    min_seconds: float = 2.0
    idle_minutes: float = 120.0
    reference: str = ''
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class Study:
    """A study as its file holds it; nothing of it is sent to raters as it is."""

    title: str
    consent: str
    methods: tuple[str, ...]
    items: tuple[Item, ...]
    settings: Settings
    rules: Rules

    @property
    def cells(self) -> list[Cell]:
        """All comparisons that count, in a fixed order."""
        return [Cell(item.name, *pair) for item in self.items if not item.spare for pair in self.pairs]

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """Pairs of methods, in the order of `methods`."""
        wanted = self.settings.reference
        return [p for p in itertools.combinations(self.methods, 2) if not wanted or wanted in p]

    @property
    def spares(self) -> list[Item]:
        """The items for practice and checks."""
        return [item for item in self.items if item.spare]

    def item(self, name: str) -> Item:
        """The item of that name."""
        return next(item for item in self.items if item.name == name)

    def check(self) -> None:
        """
        Raises:
            StudyError: numbers that do not go together.
        """
        s, problems = self.settings, []
        if len(self.methods) < 2:
            problems.append(f'at least two methods are compared, got {len(self.methods)}')
        if s.reference and s.reference not in self.methods:
            problems.append(f'reference: no method {s.reference!r}; there are {", ".join(self.methods)}')
        if not 1 <= s.trials <= len(self.cells):
            problems.append(f'trials: expected 1 to {len(self.cells)}, the number of comparisons, got {s.trials}')
        if s.checks > max(1, s.trials // 2) or s.repeats > s.trials // 2:
            problems.append(f'checks, repeats: at most half of {s.trials} trials, got {s.checks} and {s.repeats}')
        if (s.checks or s.training) and not self.spares:
            problems.append('practice and checks need items of their own')
        if s.checks and any(GT not in item.images for item in self.spares):
            problems.append('checks need the ground truth')
        for name in ('training', 'checks', 'repeats', 'raters', 'min_seconds'):
            if getattr(s, name) < 0:
                problems.append(f'{name}: expected 0 or more, got {getattr(s, name)}')
        for name in ('check_accuracy', 'repeat_agreement', 'side_share', 'completed'):
            if not 0 <= getattr(self.rules, name) <= 1:
                problems.append(f'{name}: expected a share from 0 to 1, got {getattr(self.rules, name)}')
        if problems:
            raise StudyError('; '.join(problems))

    def text(self) -> str:
        """As JSON."""
        return json.dumps(dataclasses.asdict(self), indent=1, ensure_ascii=False, sort_keys=True) + '\n'

    @property
    def digest(self) -> str:
        """A hash of all of it: that of a study whose votes have begun is not changed."""
        return hashlib.sha256(self.text().encode()).hexdigest()

    def write(self, folder: Path) -> None:
        """Write its file."""
        _write(folder / _FILE, self.text())

    @classmethod
    def read(cls, folder: Path) -> Study:
        """
        Raises:
            StudyError: no study there, or not such a file.
        """
        values = _read(folder / _FILE)
        try:
            items = tuple(Item(**item) for item in values.pop('items'))
            settings, rules = Settings(**values.pop('settings')), Rules(**values.pop('rules'))
            return cls(items=items, settings=settings, rules=rules, methods=tuple(values.pop('methods')), **values)
        except (KeyError, TypeError, AttributeError) as error:
            raise StudyError(f'{folder / _FILE}: not a study of this version ({error})') from error


@dataclasses.dataclass(frozen=True)
class Secrets:
    """What opens a study: `study` is in the link for raters, `admin` in requests for the votes."""

    study: str
    admin: str

    @classmethod
    def make(cls) -> Secrets:
        """New ones, of 128 and 256 random bits."""
        return cls(secrets.token_urlsafe(16), secrets.token_urlsafe(32))

    def write(self, folder: Path) -> None:
        """Write their file, which the owner alone may read."""
        _write(folder / _SECRETS, json.dumps(dataclasses.asdict(self), indent=1) + '\n', 0o600)

    @classmethod
    def read(cls, folder: Path) -> Secrets:
        """
        Raises:
            StudyError: there are none.
        """
        try:
            return cls(**_read(folder / _SECRETS))
        except TypeError as error:
            raise StudyError(f'{folder / _SECRETS}: {error}') from error


def _read(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding='utf-8'))
    except FileNotFoundError:
        raise StudyError(f'{path.parent}: no study there (no {path.name})') from None
    except (OSError, ValueError) as error:
        raise StudyError(f'{path}: cannot be read: {error}') from error


def _write(path: Path, text: str, mode: int = 0o644) -> None:
    partial = path.with_name(f'.{path.name}.part')
    with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), 'w', encoding='utf-8') as stream:
        stream.write(text)
    os.replace(partial, path)
