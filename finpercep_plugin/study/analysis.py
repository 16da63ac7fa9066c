"""Votes -> who counts, preference rates, ranking, agreement: pure functions of the rows."""

from __future__ import annotations

import dataclasses
import statistics
from typing import Any, Sequence

import numpy as np

from finpercep_plugin.report.bootstrap import Interval
from finpercep_plugin.study.definition import QUESTIONS, Rules, Study
from finpercep_plugin.study.statistics import agreement, bradley_terry_intervals, clustered, wilson
from finpercep_plugin.study.votes import Row

__all__ = ['Analysis', 'Preference', 'RaterSummary', 'analyse', 'summarise']

_ENOUGH = 10  # answers before a preference for one side says something


@dataclasses.dataclass(frozen=True)
class RaterSummary:
    """One rater, and why the votes do not count; no reasons: they do.

    Args:
        rater: number. votes: main trials answered. completed: these as a share of what was planned.
        check_accuracy, repeat_agreement, side_share, median_seconds: what the rules look at; None without any answers.
        reasons: the rules that were broken.
    """

    rater: int
    votes: int
    completed: float
    check_accuracy: float | None
    repeat_agreement: float | None
    side_share: float | None
    median_seconds: float | None
    reasons: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Preference:
    """How often `first` was chosen over `second`.

    Args:
        question: fidelity or realism. group: test set; '' all of them.
        wins, votes: for `first`, and in all.
        wilson: as if votes were independent. clustered: over raters; None for a single one.
    """

    question: str
    group: str
    first: str
    second: str
    wins: int
    votes: int
    wilson: Interval
    clustered: Interval | None


@dataclasses.dataclass(frozen=True)
class Analysis:
    """What the votes say.

    Args:
        raters: all of them.
        preferences: of the raters who count; everyones: of all, for comparison.
        ranking: {question: {method: (log strength, share of its comparisons won)}}, best first.
        alpha: {(question, first, second): Krippendorff's alpha}.
        repeats: {question: share of repeats answered as before}; left: share of answers on the left.
        per_cell: fewest and most votes on a comparison.
    """

    raters: Sequence[RaterSummary]
    preferences: Sequence[Preference]
    everyones: Sequence[Preference]
    ranking: dict[str, dict[str, tuple[Interval, float]]]
    alpha: dict[tuple[str, str, str], Interval | None]
    repeats: dict[str, Interval | None]
    left: Interval | None
    per_cell: tuple[int, int]

    def values(self) -> dict[str, Any]:
        """As plain values."""
        alpha = [{'question': q, 'first': f, 'second': s, 'alpha': _plain(a)} for (q, f, s), a in self.alpha.items()]
        ranking = {
            q: [{'method': m, 'strength': _plain(i), 'won': won} for m, (i, won) in methods.items()]
            for q, methods in self.ranking.items()
        }
        return {
            'raters': [dataclasses.asdict(r) for r in self.raters],
            'preferences': [dataclasses.asdict(p) for p in self.preferences],
            'preferences_of_all_raters': [dataclasses.asdict(p) for p in self.everyones],
            'ranking': ranking,
            'alpha': alpha,
            'repeats': {q: _plain(i) for q, i in self.repeats.items()},
            'left': _plain(self.left),
            'votes_per_comparison': self.per_cell,
        }


def analyse(study: Study, rows: Sequence[Row], raters: Sequence[int], seed: int = 0) -> Analysis:
    """The analysis, with the rules fixed in the study.

    Args:
        study: its definition.
        rows: all votes.
        raters: numbers of all who joined.
        seed: of the bootstrap.
    """
    summaries = [summarise(study, number, [r for r in rows if r.rater == number]) for number in raters]
    kept = {summary.rater for summary in summaries if not summary.reasons}
    main = [row for row in rows if row.kind == 'main']
    counted = [row for row in main if row.rater in kept]
    sides = [float(_left(row, q)) for row in counted for q in QUESTIONS]
    return Analysis(
        raters=summaries,
        preferences=_preferences(study, counted, seed),
        everyones=_preferences(study, main, seed),
        ranking=_ranking(study, counted, seed),
        alpha=_alpha(study, counted, seed),
        repeats={q: _repeats([r for r in rows if r.rater in kept], q) for q in QUESTIONS},
        left=wilson(int(sum(sides)), len(sides)) if sides else None,
        per_cell=_per_cell(study, counted),
    )


def summarise(study: Study, rater: int, rows: Sequence[Row]) -> RaterSummary:
    """One rater's votes against the rules."""
    main = [row for row in rows if row.kind == 'main']
    checks = [row.right_answer(q) for row in rows if row.kind == 'check' for q in QUESTIONS]
    before = {row.position: row for row in main}
    repeats = [
        row.chose(q) == before[row.repeat_of].chose(q)
        for row in rows
        if row.kind == 'repeat' and row.repeat_of in before
        for q in QUESTIONS
    ]
    left = [_left(row, q) for row in main for q in QUESTIONS]
    share = float(np.mean(left)) if left else None
    summary = RaterSummary(
        rater=rater,
        votes=len(main),
        completed=len(main) / study.settings.trials,
        check_accuracy=float(np.mean(checks)) if checks else None,
        repeat_agreement=float(np.mean(repeats)) if repeats else None,
        side_share=None if share is None else max(share, 1 - share),
        median_seconds=float(statistics.median(row.seconds for row in main)) if main else None,
        reasons=(),
    )
    return dataclasses.replace(summary, reasons=_reasons(study.rules, summary, len(left)))


def _reasons(rules: Rules, summary: RaterSummary, answers: int) -> tuple[str, ...]:
    lowest = {
        'completed': rules.completed,
        'check_accuracy': rules.check_accuracy,
        'repeat_agreement': rules.repeat_agreement,
        'median_seconds': rules.median_seconds,
    }
    reasons = [
        f'{name} {getattr(summary, name):.3g} < {least:g}'
        for name, least in lowest.items()
        if getattr(summary, name) is not None and getattr(summary, name) < least
    ]
    if answers >= _ENOUGH and summary.side_share is not None and summary.side_share > rules.side_share:
        reasons.append(f'side_share {summary.side_share:.3g} > {rules.side_share:g}')
    return tuple(reasons)


def _left(row: Row, question: str) -> bool:
    return row.chose(question) == row.left


def _pairs(study: Study) -> list[tuple[str, str]]:
    """As they are reported: the reference first."""
    return [(b, a) if b == study.settings.reference else (a, b) for a, b in study.pairs]


def _preferences(study: Study, rows: Sequence[Row], seed: int) -> list[Preference]:
    groups = sorted({item.group for item in study.items if not item.spare})
    found = []
    for group in ['', *groups] if len(groups) > 1 else ['']:
        for first, second in _pairs(study):
            of_pair = [r for r in rows if {r.first, r.second} == {first, second} and (not group or r.group == group)]
            if of_pair:
                found += [_preference(q, group, first, second, of_pair, seed) for q in QUESTIONS]
    return found


def _preference(question: str, group: str, first: str, second: str, rows: Sequence[Row], seed: int) -> Preference:
    wins = [float(row.chose(question) == first) for row in rows]
    raters = [row.rater for row in rows]
    won, votes = int(sum(wins)), len(wins)
    intervals = wilson(won, votes), clustered(wins, raters, seed=seed)
    return Preference(question, group, first, second, won, votes, *intervals)


def _ranking(study: Study, rows: Sequence[Row], seed: int) -> dict[str, dict[str, tuple[Interval, float]]]:
    if len({row.rater for row in rows}) < 2:
        return {}
    index = {method: i for i, method in enumerate(study.methods)}
    ranking = {}
    for question in QUESTIONS:
        wins = {row.rater: np.zeros((len(index), len(index))) for row in rows}
        for row in rows:
            winner = row.chose(question)
            loser = row.second if winner == row.first else row.first
            wins[row.rater][index[winner], index[loser]] += 1
        total = sum(wins.values())
        played = total.sum(0) + total.sum(1)
        strengths = bradley_terry_intervals(wins, seed=seed)
        order = sorted((m for m in index if played[index[m]]), key=lambda m: -strengths[index[m]].mean)
        ranking[question] = {m: (strengths[index[m]], float(total[index[m]].sum() / played[index[m]])) for m in order}
    return ranking


def _alpha(study: Study, rows: Sequence[Row], seed: int) -> dict[tuple[str, str, str], Interval | None]:
    """Within each pair of methods: over several, the answers are not the same ones."""
    found = {}
    for question in QUESTIONS:
        for first, second in _pairs(study):
            votes = [(r.rater, r.item, r.chose(question)) for r in rows if {r.first, r.second} == {first, second}]
            found[question, first, second] = agreement(votes, seed=seed)
    return found


def _repeats(rows: Sequence[Row], question: str) -> Interval | None:
    before = {(row.rater, row.position): row.chose(question) for row in rows if row.kind == 'main'}
    again = [(row.rater, row.repeat_of, row.chose(question)) for row in rows if row.kind == 'repeat']
    same = [before[rater, of] == chosen for rater, of, chosen in again if (rater, of) in before]
    return wilson(sum(same), len(same)) if same else None


def _per_cell(study: Study, rows: Sequence[Row]) -> tuple[int, int]:
    counts = {(cell.item, cell.first, cell.second): 0 for cell in study.cells}
    for row in rows:
        counts[row.item, row.first, row.second] += 1
    return min(counts.values()), max(counts.values())


def _plain(interval: Interval | None) -> dict[str, Any] | None:
    return None if interval is None else dataclasses.asdict(interval)
