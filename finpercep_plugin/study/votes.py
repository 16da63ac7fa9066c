"""Votes as rows with the methods' names: one table for CSV files and for the analysis."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Iterable, Sequence

from finpercep_plugin.study.definition import GT, QUESTIONS, Study, StudyError
from finpercep_plugin.study.store import Store, Trial, Vote

__all__ = ['Row', 'csv_text', 'read_answers', 'vote_rows']


@dataclasses.dataclass(frozen=True)
class Row:
    """A vote.

    Args:
        rater: number of the rater, from 1; position: of the trial, from 0; kind: training, main, check or repeat.
        group, item: test set and scene; first, second: what was compared; left, right: where it stood.
        fidelity, realism: what was chosen.
        seconds: looked at; zoom: highest, in device pixels for a pixel; flips: how often exchanged.
        repeat_of: position of the trial that a repeat repeats, or ''.
        received: UTC.
        trial: its token.
    """

    rater: int
    position: int
    kind: str
    group: str
    item: str
    first: str
    second: str
    left: str
    right: str
    fidelity: str
    realism: str
    seconds: float
    zoom: float
    flips: int
    repeat_of: int | str
    received: str
    trial: str

    def chose(self, question: str) -> str:
        """The method chosen."""
        return getattr(self, question)

    def right_answer(self, question: str) -> bool:
        """Of an attention check: gt was chosen."""
        return self.chose(question) == GT


def vote_rows(study: Study, store: Store, more: Iterable[Vote] = ()) -> list[Row]:
    """All votes by rater and position; of several on one trial the first, as in the store.

    Args:
        study: its definition.
        store: its votes.
        more: further ones, of static exports.
    """
    votes = {}
    for vote in (*store.votes(), *more):
        votes.setdefault(vote.trial, vote)
    groups = {item.name: item.group for item in study.items}
    return [_row(groups, trial, votes[trial.token]) for trial in store.all_trials() if trial.token in votes]


def _row(groups: dict[str, str], trial: Trial, vote: Vote) -> Row:
    placed, cell = trial.placed, trial.placed.cell
    return Row(
        rater=trial.rater,
        position=trial.position,
        kind=placed.kind,
        group=groups[cell.item],
        item=cell.item,
        first=cell.first,
        second=cell.second,
        left=placed.a,
        right=placed.b,
        fidelity=getattr(placed, vote.fidelity),
        realism=getattr(placed, vote.realism),
        seconds=vote.seconds,
        zoom=vote.zoom,
        flips=vote.flips,
        repeat_of='' if placed.of is None else placed.of,
        received=datetime.fromtimestamp(vote.received, timezone.utc).isoformat(timespec='milliseconds'),
        trial=trial.token,
    )


def csv_text(rows: Sequence[Row]) -> str:
    """The rows as CSV with a header; text that a spreadsheet would compute has an apostrophe before it."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator='\n')
    writer.writerow([field.name for field in dataclasses.fields(Row)])
    writer.writerows([_plain(value) for value in dataclasses.astuple(row)] for row in rows)
    return stream.getvalue()


def _plain(value: Any) -> Any:
    return f"'{value}" if isinstance(value, str) and value[:1] in ('=', '+', '-', '@') else value


def read_answers(files: Sequence[Path], study: Study, store: Store) -> list[Vote]:
    """The votes in files that raters of a static export sent back.

    Raises:
        StudyError: not such a file, an answer to a trial of another study, or one that cannot be.
    """
    votes = []
    for file in files:
        try:
            answers = json.loads(file.read_text(encoding='utf-8'))['answers']
            votes += [_answer(answer, study, store) for answer in answers]
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise StudyError(f'{file}: not a file of answers to this study ({error})') from error
    return votes


def _answer(answer: dict[str, Any], study: Study, store: Store) -> Vote:
    trial = store.trial(str(answer['trial']))
    if trial is None:
        raise ValueError(f'no trial {answer["trial"]!r}')
    if any(answer[question] not in ('a', 'b') for question in QUESTIONS):
        raise ValueError(f'trial {trial.token}: the answers must be a or b')
    seconds, received = float(answer['seconds']), float(answer['received'])
    if not seconds >= study.settings.min_seconds:
        raise ValueError(f'trial {trial.token}: looked at for {seconds:g} s')
    flips, zoom = int(answer['flips']), float(answer['zoom'])
    return Vote(trial.token, answer['fidelity'], answer['realism'], seconds, zoom, flips, received)
