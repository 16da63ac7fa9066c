"""Raters, trials and votes in SQLite: rows are added and never changed; what was committed survives a kill -9."""

from __future__ import annotations

import contextlib
import dataclasses
import sqlite3
import threading
from pathlib import Path
from typing import Iterator

from finpercep_plugin.study.assignment import Placed, Tally
from finpercep_plugin.study.definition import Cell, StudyError

__all__ = ['Rater', 'Store', 'Trial', 'Vote']

FILE = 'votes.sqlite3'
_TABLES = """
CREATE TABLE IF NOT EXISTS study (digest TEXT NOT NULL, created REAL NOT NULL);
CREATE TABLE IF NOT EXISTS raters (
    number INTEGER PRIMARY KEY, token TEXT NOT NULL UNIQUE, key TEXT NOT NULL UNIQUE, joined REAL NOT NULL,
    offline INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS trials (
    token TEXT PRIMARY KEY, rater INTEGER NOT NULL REFERENCES raters, position INTEGER NOT NULL, kind TEXT NOT NULL,
    item TEXT NOT NULL, first TEXT NOT NULL, second TEXT NOT NULL, a TEXT NOT NULL, b TEXT NOT NULL, of INTEGER,
    reserved REAL NOT NULL, UNIQUE (rater, position));
CREATE TABLE IF NOT EXISTS votes (
    id INTEGER PRIMARY KEY, trial TEXT NOT NULL UNIQUE REFERENCES trials, fidelity TEXT NOT NULL,
    realism TEXT NOT NULL, seconds REAL NOT NULL, zoom REAL NOT NULL, flips INTEGER NOT NULL, received REAL NOT NULL);
"""
_FIXED = """CREATE TRIGGER IF NOT EXISTS {table}_{verb} BEFORE {verb} ON {table}
BEGIN SELECT RAISE(ABORT, 'rows of {table} are only added'); END;"""
_OUTSTANDING = """
SELECT t.item, t.first, t.second, COUNT(*), SUM(t.a = t.first) FROM trials t
LEFT JOIN votes v ON v.trial = t.token
WHERE t.kind = 'main' AND (v.id IS NOT NULL OR t.rater IN (SELECT number FROM raters WHERE offline)
    OR t.rater IN (SELECT t.rater FROM trials t LEFT JOIN votes v ON v.trial = t.token
                   GROUP BY t.rater HAVING MAX(MAX(t.reserved, COALESCE(v.received, 0))) >= ?))
GROUP BY t.item, t.first, t.second"""
_SEATS = """
SELECT COUNT(*) FROM raters r WHERE offline OR joined >= :since
    OR (SELECT COUNT(*) FROM trials t JOIN votes v ON v.trial = t.token WHERE t.rater = r.number) >= :all
    OR (SELECT MAX(MAX(t.reserved, COALESCE(v.received, 0))) FROM trials t LEFT JOIN votes v ON v.trial = t.token
        WHERE t.rater = r.number) >= :since"""


@dataclasses.dataclass(frozen=True)
class Rater:
    """`number` counts from 1; `token` is in the rater's link; `offline`: of a static export."""

    number: int
    token: str
    offline: bool


@dataclasses.dataclass(frozen=True)
class Trial:
    """A trial of a rater; `voted`: it has its vote."""

    token: str
    rater: int
    position: int
    placed: Placed
    reserved: float
    voted: bool


@dataclasses.dataclass(frozen=True)
class Vote:
    """Answers to a trial: the side, 'a' or 'b', for each question; how long, how close, how often exchanged."""

    trial: str
    fidelity: str
    realism: str
    seconds: float
    zoom: float
    flips: int
    received: float


class Store:
    """The database of a study.

    Args:
        folder: of the study.
        digest: of its definition, which is kept with the votes.
        now: seconds since 1970.

    Raises:
        StudyError: the definition is not the one that its votes were given under.
    """

    def __init__(self, folder: Path, digest: str, now: float):
        self.path = folder / FILE
        self._lock = threading.RLock()
        self.path.touch(0o600)  # it holds the raters' links
        self._db = sqlite3.connect(self.path, timeout=30, isolation_level=None, check_same_thread=False)
        self._db.execute('PRAGMA journal_mode=WAL')
        self._db.execute('PRAGMA synchronous=FULL')  # a commit is on disk before it is answered
        self._db.execute('PRAGMA foreign_keys=ON')
        self._db.executescript(_TABLES + self._triggers())
        with self.transaction():
            known = self._db.execute('SELECT digest FROM study').fetchone()
            if known is None:
                self._db.execute('INSERT INTO study VALUES (?, ?)', (digest, now))
        if known and known[0] != digest:
            self.close()
            raise StudyError(f'{folder}: study.json was changed after the study was made')

    @staticmethod
    def _triggers() -> str:
        tables = ('study', 'raters', 'trials', 'votes')
        return '\n'.join(_FIXED.format(table=t, verb=v) for t in tables for v in ('UPDATE', 'DELETE'))

    def close(self) -> None:
        """Close the database."""
        self._db.close()

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """All or nothing, one writer at a time; what is read inside stays true until the end."""
        with self._lock:
            self._db.execute('BEGIN IMMEDIATE')
            try:
                yield
                self._db.execute('COMMIT')
            except BaseException:
                if self._db.in_transaction:  # a full disk ends it by itself
                    self._db.execute('ROLLBACK')
                raise

    def _rows(self, query: str, values=()) -> list[tuple]:
        with self._lock:
            return self._db.execute(query, values).fetchall()

    def add_rater(self, token: str, key: str, now: float, offline: bool = False) -> Rater:
        """A new rater; `key` is what the browser made up, so that a request sent twice adds one."""
        row = (token, key, now, int(offline))
        cursor = self._db.execute('INSERT INTO raters (token, key, joined, offline) VALUES (?, ?, ?, ?)', row)
        return Rater(int(cursor.lastrowid), token, offline)

    def rater(self, token: str) -> Rater | None:
        """The rater of a link."""
        return self._rater('token', token)

    def rater_of_key(self, key: str) -> Rater | None:
        """The rater that a browser has already become."""
        return self._rater('key', key)

    def rater_at(self, number: int) -> Rater | None:
        """The rater of a number."""
        return self._rater('number', number)

    def _rater(self, column: str, value: str | int) -> Rater | None:
        rows = self._rows(f'SELECT number, token, offline FROM raters WHERE {column} = ?', (value,))
        return Rater(rows[0][0], rows[0][1], bool(rows[0][2])) if rows else None

    def raters(self) -> list[tuple[Rater, float]]:
        """All raters with the time they joined."""
        rows = self._rows('SELECT number, token, offline, joined FROM raters ORDER BY number')
        return [(Rater(number, token, bool(offline)), joined) for number, token, offline, joined in rows]

    def seats_taken(self, trials: int, since: float) -> int:
        """Raters who have answered that many trials, or were active since then."""
        return self._rows(_SEATS, {'all': trials, 'since': since})[0][0]

    def add_trial(self, token: str, rater: int, position: int, placed: Placed, now: float) -> Trial:
        """Reserve a trial."""
        cell = placed.cell
        row = (token, rater, position, placed.kind, cell.item, cell.first, cell.second, placed.a, placed.b, placed.of)
        self._db.execute(f'INSERT INTO trials VALUES ({", ".join("?" * 11)})', (*row, now))
        return Trial(token, rater, position, placed, now, False)

    def trial(self, token: str) -> Trial | None:
        """The trial of a token."""
        rows = self._trials('t.token = ?', token)
        return rows[0] if rows else None

    def trials(self, rater: int) -> list[Trial]:
        """A rater's trials in order."""
        return self._trials('t.rater = ?', rater)

    def all_trials(self) -> list[Trial]:
        """Everybody's trials, by rater, in order."""
        return self._trials('t.rater >= ?', 0)

    def _trials(self, condition: str, value: str | int) -> list[Trial]:
        query = (
            'SELECT t.token, t.rater, t.position, t.kind, t.item, t.first, t.second, t.a, t.b, t.of, t.reserved, '
            f'v.id FROM trials t LEFT JOIN votes v ON v.trial = t.token WHERE {condition} ORDER BY t.rater, t.position'
        )
        return [
            Trial(token, rater, position, Placed(kind, Cell(*cell), a, b, of), reserved, vote is not None)
            for token, rater, position, kind, *cell, a, b, of, reserved, vote in self._rows(query, (value,))
        ]

    def add_vote(self, vote: Vote) -> None:
        """Append a vote; the trial must not have one."""
        self._db.execute(
            'INSERT INTO votes (trial, fidelity, realism, seconds, zoom, flips, received) VALUES (?, ?, ?, ?, ?, ?, ?)',
            dataclasses.astuple(vote),
        )

    def vote(self, trial: str) -> Vote | None:
        """The vote on a trial."""
        rows = self._votes('WHERE trial = ?', (trial,))
        return rows[0] if rows else None

    def last_vote(self, rater: int) -> float:
        """When the latest vote of a rater came; 0 before the first."""
        query = 'SELECT MAX(v.received) FROM votes v JOIN trials t ON t.token = v.trial WHERE t.rater = ?'
        return self._rows(query, (rater,))[0][0] or 0.0

    def votes(self) -> list[Vote]:
        """All votes in the order they came."""
        return self._votes('ORDER BY id')

    def _votes(self, condition: str, values=()) -> list[Vote]:
        query = f'SELECT trial, fidelity, realism, seconds, zoom, flips, received FROM votes {condition}'
        return [Vote(*row) for row in self._rows(query, values)]

    def tallies(self, since: float) -> dict[Cell, Tally]:
        """Votes on each comparison, and trials that lie before raters who were active since then."""
        rows = self._rows(_OUTSTANDING, (since,))
        return {Cell(*cell): Tally(count, left) for *cell, count, left in rows}
