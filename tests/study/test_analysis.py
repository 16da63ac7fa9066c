"""Votes to tables: rates, rules, sets, ranking, files and the page."""

import csv
import dataclasses
import json
import re

import numpy as np
import pytest

from finpercep_plugin.study.analysis import analyse, summarise
from finpercep_plugin.study.assignment import Placed, check_trial, repeat_trial
from finpercep_plugin.study.definition import GT, SPOILED, Rules
from finpercep_plugin.study.votes import Row
from tests.study.conftest import OURS, THEIRS, THIRD, study_of
from tests.study.test_assignment import simulate

RATE = 0.801


def row(rater: int, position: int, placed: Placed, fidelity: str, realism: str, seconds=4.0) -> Row:
    cell = placed.cell
    of = '' if placed.of is None else placed.of
    where = (placed.kind, cell.item.split('/')[0], cell.item, cell.first, cell.second, placed.a, placed.b)
    return Row(rater, position, *where, fidelity, realism, seconds, 1.0, 0, of, '2026-01-01', f'{rater}-{position}')


def rows_of(study, raters, prefer, careless=()) -> list[Row]:
    """Votes of simulated raters: `prefer(first, second)` is the chance that the first is chosen."""
    rng, rows = np.random.default_rng(0), []
    for rater, placed in simulate(study, raters).items():
        for position, p in enumerate(placed):
            chosen = [
                p.cell.first if rng.random() < prefer(p.cell.first, p.cell.second) else p.cell.second for _ in range(2)
            ]
            rows.append(row(rater, position, p, *chosen))
        again = repeat_trial(study, placed, rater)
        before = rows[-len(placed) + again.of]
        rows.append(row(rater, len(placed), again, before.fidelity, before.realism))
        for n in range(4):
            answer = SPOILED if rater in careless else GT
            rows.append(row(rater, 50 + n, check_trial(study, n, rater), answer, answer))
    return rows


def test_a_preference_of_80_percent_is_recovered():
    study = study_of(items=40, trials=40)
    rows = rows_of(study, 20, lambda a, b: RATE)
    found = analyse(study, rows, range(1, 21))
    assert len(found.preferences) == 6  # two sets and both together, two questions
    for p in found.preferences[:2]:
        assert (p.first, p.second, p.votes, p.group) == (OURS, THEIRS, 800, '')
        assert p.clustered.low < RATE < p.clustered.high and p.wilson.low < RATE < p.wilson.high
        assert p.clustered.high - p.clustered.low < 0.1 and p.clustered.groups == 20
    assert found.per_cell == (20, 20) and abs(found.left.mean - 0.5) < 0.04
    assert [p.votes for p in found.preferences[2:]] == [400] * 4
    assert found.repeats['fidelity'].mean == 1


def test_raters_who_break_a_rule_do_not_count():
    study = study_of(items=20, trials=20)
    rows = rows_of(study, 8, lambda a, b: RATE, careless=(3,))
    rows = [r for r in rows if r.rater != 5 or r.position < 8]  # left early
    rows = [
        dataclasses.replace(r, fidelity=r.left, realism=r.left) if r.rater == 6 and r.kind == 'main' else r
        for r in rows
    ]
    rows = [dataclasses.replace(r, seconds=0.5) if r.rater == 7 else r for r in rows]
    found = analyse(study, rows, range(1, 10))  # the ninth joined and did nothing
    reasons = {s.rater: ' '.join(r.split()[0] for r in s.reasons) for s in found.raters}
    assert reasons == {
        1: '',
        2: '',
        3: 'check_accuracy',
        4: '',
        5: 'completed',
        6: 'side_share',
        7: 'median_seconds',
        8: '',
        9: 'completed',
    }
    assert {p.votes for p in found.preferences if not p.group} == {80}
    assert {p.votes for p in found.everyones if not p.group} == {148}
    lenient = dataclasses.replace(study, rules=Rules(0, 0, 1, 0, 0))
    assert not any(s.reasons for s in analyse(lenient, rows, range(1, 10)).raters)


def test_a_summary_by_hand():
    study = study_of(items=4, trials=4)
    placed = simulate(study, 1)[1]
    rows = [row(1, i, p, p.a, p.b if i else p.a, seconds=i + 1.0) for i, p in enumerate(placed)]
    again = dataclasses.replace(placed[0], kind='repeat', a=placed[0].b, b=placed[0].a, of=0)
    rows += [row(1, 9, again, placed[0].a, placed[0].b), row(1, 10, check_trial(study, 0, 1), GT, SPOILED)]
    s = summarise(study, 1, rows)
    assert (s.votes, s.completed, s.check_accuracy, s.repeat_agreement) == (4, 1.0, 0.5, 0.5)
    assert (s.median_seconds, s.side_share) == (2.5, 5 / 8)
    assert s.reasons == ('check_accuracy 0.5 < 0.75',)


def test_three_methods_are_ranked_and_the_reference_comes_first():
    study = study_of((OURS, THEIRS, THIRD), items=20, trials=30, reference='')
    order = {THIRD: 3, OURS: 2, THEIRS: 1}
    found = analyse(study, rows_of(study, 10, lambda a, b: 0.8 if order[a] > order[b] else 0.2), range(1, 11))
    for ranking in found.ranking.values():
        assert list(ranking) == [THIRD, OURS, THEIRS]
        assert sum(i.mean for i, _ in ranking.values()) == pytest.approx(0, abs=1e-9)
        assert ranking[THIRD][1] > 0.6 > 0.4 > ranking[THEIRS][1]
    study = study_of((OURS, THEIRS, THIRD), items=20, trials=10, reference=THIRD)
    found = analyse(study, rows_of(study, 4, lambda a, b: 0.5), range(1, 5))
    assert {(p.first, p.second) for p in found.preferences} == {(THIRD, OURS), (THIRD, THEIRS)}
    assert set(found.alpha) == {(q, THIRD, m) for q in ('fidelity', 'realism') for m in (OURS, THEIRS)}


def test_no_votes_yet_and_a_single_rater():
    study = study_of(items=10, trials=8)
    empty = analyse(study, [], [1])
    assert not empty.preferences and not empty.ranking and empty.left is None and empty.per_cell == (0, 0)
    alone = analyse(study, rows_of(study, 1, lambda a, b: 1.0), [1])
    assert all(p.clustered is None and p.wins == p.votes for p in alone.preferences)
    assert alone.raters[0].reasons == () and not alone.ranking


@pytest.mark.parametrize('votes', [True, False])
def test_everything_is_written(tmp_path, votes):
    pytest.importorskip('matplotlib')
    from finpercep_plugin.study.analysis_page import write_analysis

    study = study_of((OURS, THEIRS, THIRD), items=10, trials=12)
    rows = rows_of(study, 5, lambda a, b: 0.7, careless=(2,)) if votes else []
    analysis = analyse(study, rows, range(1, 6))
    html = write_analysis(study, analysis, rows, tmp_path, 'the command').read_text()
    assert not re.search(r'(src|href)="?(http|//|[\w.]+/)', html) and 'the command' in html
    assert html.count('<img src="data:image/png') == len(list(tmp_path.glob('*.png'))) == (3 if votes else 1)
    values = json.loads((tmp_path / 'analysis.json').read_text())
    assert len(values['raters']) == 5 and len(list(csv.DictReader((tmp_path / 'votes.csv').open()))) == len(rows)
    table = list(csv.DictReader((tmp_path / 'preference.csv').open()))
    assert len(table) == (18 if votes else 0)
    if votes:
        first = next(p for p in analysis.preferences if p.question == 'fidelity')
        assert float(table[0]['share']) == first.wins / first.votes
        assert f'{100 * first.wins / first.votes:.1f} <small>[' in html and 'check_accuracy 0 &lt; 0.75' in html
        assert [r['rank'] for r in csv.DictReader((tmp_path / 'ranking.csv').open())] == ['1', '2', '3'] * 2
    else:
        assert 'No vote counts yet' in html and (tmp_path / 'preference.csv').read_text().startswith('question,set,')
