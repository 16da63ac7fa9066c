"""A running study: raters join, are handed trials, and vote."""

from __future__ import annotations

import dataclasses
import secrets
import time
from pathlib import Path
from typing import Callable

from finpercep_plugin.study.assignment import Placed, check_trial, choose, repeat_trial, schedule, training_trial
from finpercep_plugin.study.definition import Secrets, Study
from finpercep_plugin.study.store import Rater, Store, Trial, Vote

__all__ = ['AHEAD', 'Conflict', 'Full', 'Session', 'TooEarly']

AHEAD = 3  # trials that a browser holds at once: the one shown, and those it loads meanwhile


class Full(Exception):
    """All seats are taken."""


class Conflict(Exception):
    """The trial has other answers already, which stay."""


class TooEarly(Exception):
    """A trial was answered before its minimum time; `wait`: seconds until it may be."""

    def __init__(self, wait: float):
        super().__init__(f'{wait:g} s too early')
        self.wait = wait


class Session:
    """A study and its votes.

    Args:
        folder: of the study.
        clock: seconds since 1970.

    Raises:
        StudyError: no study there, or one that was changed.
    """

    def __init__(self, folder: Path, clock: Callable[[], float] = time.time):
        self.folder, self.clock = folder, clock
        self.study, self.secrets = Study.read(folder), Secrets.read(folder)
        self.settings = self.study.settings
        self.store = Store(folder, self.study.digest, clock())
        self._items = {item.name: item for item in self.study.items}
        self.length = len(schedule(self.settings, 0))

    @property
    def _since(self) -> float:
        return self.clock() - 60 * self.settings.idle_minutes

    def join(self, key: str, offline: bool = False) -> Rater:
        """The rater of a browser's key; a new one unless the key is known.

        Raises:
            Full: no seat is free.
        """
        with self.store.transaction():
            known = self.store.rater_of_key(key)
            if known:
                return known
            seats = self.settings.raters
            if seats and self.store.seats_taken(self.length, self._since) >= seats:
                raise Full
            return self.store.add_rater(secrets.token_urlsafe(16), key, self.clock(), offline)

    def pending(self, rater: Rater, ahead: int = AHEAD) -> tuple[int, list[Trial]]:
        """How many trials are answered, and the next ones, which are reserved for this rater."""
        with self.store.transaction():
            trials = self.store.trials(rater.number)
            waiting = [trial for trial in trials if not trial.voted]
            plan = schedule(self.settings, rater.number)
            while len(waiting) < ahead and len(trials) < len(plan):
                placed = self._next(plan, [t.placed for t in trials], rater.number)
                token = secrets.token_urlsafe(16)
                trials.append(self.store.add_trial(token, rater.number, len(trials), placed, self.clock()))
                waiting.append(trials[-1])
        return len(trials) - len(waiting), waiting[:ahead]

    def _next(self, plan: list[str], mine: list[Placed], rater: int) -> Placed:
        position = len(mine)
        number = plan[:position].count(plan[position])
        if plan[position] == 'training':
            return training_trial(self.study, number)
        if plan[position] == 'check':
            return check_trial(self.study, number, rater)
        if plan[position] == 'repeat':
            return repeat_trial(self.study, mine, rater)
        return choose(self.study, self.store.tallies(self._since), mine, rater)

    def vote(self, trial: Trial, vote: Vote) -> None:
        """Store a vote; the same once more changes nothing.

        Raises:
            Conflict: the trial has other answers.
            TooEarly: not looked at for long enough; as the server sees it, from when it was laid before the rater, or
                from the rater's vote before, whichever came later.
        """
        with self.store.transaction():
            known = self.store.vote(trial.token)
            if known:
                if (known.fidelity, known.realism) != (vote.fidelity, vote.realism):
                    raise Conflict
                return
            now = self.clock()
            looked = min(vote.seconds, now - max(trial.reserved, self.store.last_vote(trial.rater)))
            if looked < self.settings.min_seconds:
                raise TooEarly(self.settings.min_seconds - looked)
            self.store.add_vote(dataclasses.replace(vote, received=now))

    def image(self, trial: Trial, role: str) -> Path:
        """The file of a trial's picture: 'lq', 'a' or 'b'."""
        images = self._items[trial.placed.cell.item].images
        return image_file(self.folder, images['lq' if role == 'lq' else getattr(trial.placed, role)])

    def size(self, trial: Trial) -> tuple[int, int]:
        """(width, height) of a trial's results."""
        item = self._items[trial.placed.cell.item]
        return item.width, item.height

    def questions(self, rater: Rater) -> list[str]:
        """The questions' names in the order this rater is asked; every second rater has the other."""
        return ['fidelity', 'realism'] if rater.number % 2 else ['realism', 'fidelity']


def image_file(folder: Path, name: str) -> Path:
    """Where a study keeps the picture of an id."""
    return folder / 'images' / f'{name}.png'
