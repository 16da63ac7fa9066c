"""The analysis of a study as CSV files, plots and one HTML report."""

from __future__ import annotations

import base64
import csv
import dataclasses
import json
from pathlib import Path
from typing import Any, Sequence

from finpercep_plugin.report.bootstrap import Interval
from finpercep_plugin.report.page import Cell, Page
from finpercep_plugin.study.analysis import Analysis, Preference, RaterSummary
from finpercep_plugin.study.definition import QUESTIONS, Study
from finpercep_plugin.study.plots import draw
from finpercep_plugin.study.votes import Row, csv_text

__all__ = ['write_analysis']

_PREFERENCE = (
    'Percent of the votes for the first method; 50 is no preference. First in brackets: 95 % bootstrap interval over '
    'raters, widened for their small number (Hesterberg 2015), which is the one to cite; then Wilson\u2019s, which '
    'takes all votes as independent.'
)
_SHARES = ('question', 'set', 'first', 'second', 'wins', 'votes', 'share')
_SHARES += ('wilson_low', 'wilson_high', 'clustered_low', 'clustered_high')
_RANKS = ('question', 'rank', 'method', 'strength', 'low', 'high', 'won')


def write_analysis(study: Study, analysis: Analysis, rows: Sequence[Row], folder: Path, command: str) -> Path:
    """Write everything.

    Returns:
        The HTML report.

    Raises:
        ImportError: matplotlib is not installed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / 'votes.csv').write_text(csv_text(rows), encoding='utf-8')
    (folder / 'analysis.json').write_text(json.dumps(analysis.values(), indent=1) + '\n', encoding='utf-8')
    _csv(folder / 'preference.csv', _SHARES, [_flat(p) for p in analysis.preferences])
    raters = [{**dataclasses.asdict(r), 'reasons': '; '.join(r.reasons)} for r in analysis.raters]
    _csv(folder / 'raters.csv', [field.name for field in dataclasses.fields(RaterSummary)], raters)
    ranked = [
        dict(zip(_RANKS, (question, rank, method, strength.mean, strength.low, strength.high, won)))
        for question, methods in analysis.ranking.items()
        for rank, (method, (strength, won)) in enumerate(methods.items(), 1)
    ]
    _csv(folder / 'ranking.csv', _RANKS, ranked)
    page = _page(study, analysis, rows, draw(analysis, folder), command)
    return page.write(folder / 'report.html')


def _csv(path: Path, columns: Sequence[str], rows: Sequence[dict[str, Any]]) -> None:
    with path.open('w', newline='', encoding='utf-8') as stream:
        writer = csv.DictWriter(stream, columns, lineterminator='\n')
        writer.writeheader()
        writer.writerows(rows)


def _flat(p: Preference) -> dict[str, Any]:
    low, high = (p.clustered.low, p.clustered.high) if p.clustered else (None, None)
    shares = (p.wins / p.votes, p.wilson.low, p.wilson.high, low, high)
    return dict(zip(_SHARES, (p.question, p.group, p.first, p.second, p.wins, p.votes, *shares)))


def _page(study: Study, analysis: Analysis, rows: Sequence[Row], files: dict[str, Path], command: str) -> Page:
    kept = [r for r in analysis.raters if not r.reasons]
    votes = sum(r.votes for r in kept)
    page = Page(f'User study: {study.title}')
    asked = ' '.join(f'{name.capitalize()}: {text}' for name, text in QUESTIONS.items())
    page.intro(
        f'{votes} votes of {len(kept)} raters count, of {len(analysis.raters)} who joined. Each vote answers two '
        f'questions about two results beside the low-quality picture. {asked}',
        f'Every comparison has {analysis.per_cell[0]} to {analysis.per_cell[1]} of these votes. The rules for leaving '
        'raters out were fixed with the study, before the first vote.',
    )
    if not votes:
        page.intro('No vote counts yet.')
    else:
        _picture(page, files, 'Preference')
        page.table('Preference in numbers', *_preference_table(analysis.preferences), note=_PREFERENCE, digits=1)
        _picture(page, files, 'Ranking')
        _ranking(page, analysis)
        _agreement(page, analysis)
    _picture(page, files, 'Raters')
    _raters(page, study, analysis)
    if len(kept) < len(analysis.raters) and analysis.everyones:
        note = 'With the raters that were left out above, to see what that changed.'
        page.table('Preference, all raters', *_preference_table(analysis.everyones), note=note, digits=1)
    settings = {name: value for name, value in dataclasses.asdict(study.settings).items() if value != ''}
    return page.made(command, {'study': study.digest[:16], 'votes in all': len(rows), **settings})


def _picture(page: Page, files: dict[str, Path], title: str) -> None:
    if title in files:
        data = base64.b64encode(files[title].read_bytes()).decode()
        style = 'max-width:100%;min-width:640px'  # on a phone it is moved sideways rather than read with a lens
        image = f'<img src="data:image/png;base64,{data}" alt="{title}" style="{style}">'
        page.content(title, f'<div style="overflow-x:auto">{image}</div>')


def _preference_table(preferences: Sequence[Preference]) -> tuple[list[str], list[list[Cell]]]:
    columns = ['first over second', 'votes', *(c for q in QUESTIONS for c in (q, f'{q}, Wilson'))]
    found = {(p.group, p.first, p.second, p.question): p for p in preferences}
    table = []
    for group, first, second in dict.fromkeys((p.group, p.first, p.second) for p in preferences):
        both = [found[group, first, second, q] for q in QUESTIONS]
        name = f'{first} over {second}' + (f', {group}' if group else '')
        cells = [c for p in both for c in (_percent(p.clustered) or 100 * p.wins / p.votes, _percent(p.wilson))]
        table.append([name, both[0].votes, *cells])
    return columns, table


def _percent(interval: Interval | None) -> Interval | None:
    if interval is None:
        return None
    return dataclasses.replace(interval, mean=100 * interval.mean, low=100 * interval.low, high=100 * interval.high)


def _ranking(page: Page, analysis: Analysis) -> None:
    table = [
        [f'{rank}. {method}', question, strength, 100 * won]
        for question, methods in analysis.ranking.items()
        for rank, (method, (strength, won)) in enumerate(methods.items(), 1)
    ]
    if table:
        note = (
            'Bradley-Terry: the chance that one method is chosen over another is the logistic function of the '
            'difference of their strengths, whose mean is 0. Intervals: 95 %, bootstrap over raters.'
        )
        page.table('Ranking in numbers', ['method', 'question', 'log strength', 'won, %'], table, note=note, digits=2)


def _agreement(page: Page, analysis: Analysis) -> None:
    table: list[list[Cell]] = [
        [f'{first} / {second}', question, alpha] for (question, first, second), alpha in analysis.alpha.items()
    ]
    table += [['Repeats answered as before', q, interval] for q, interval in analysis.repeats.items() if interval]
    table += [['Answers on the left', 'both', analysis.left]]
    note = (
        'Krippendorff\u2019s alpha between raters, 1 for agreement and 0 for chance, with 95 % intervals over '
        'the comparisons; a dash where nobody differed or nothing was seen by two. Below: shares with Wilson\u2019s '
        'intervals.'
    )
    page.table('Agreement', ['of', 'question', 'alpha or share'], table, note=note, digits=2)


def _raters(page: Page, study: Study, analysis: Analysis) -> None:
    columns = ['rater', 'votes', 'checks right', 'repeats as before', 'same side', 'median s', 'left out because']
    table: list[list[Cell]] = [
        [
            str(r.rater),
            r.votes,
            r.check_accuracy,
            r.repeat_agreement,
            r.side_share,
            r.median_seconds,
            '; '.join(r.reasons) or None,
        ]
        for r in analysis.raters
    ]
    rules = ', '.join(f'{name} {value:g}' for name, value in dataclasses.asdict(study.rules).items())
    page.table('Raters in numbers', columns, table, note=f'Rules fixed with the study: {rules}.', digits=2)
