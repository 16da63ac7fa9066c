"""Who sees what: schedules, balance over comparisons and sides, also when raters leave."""

from collections import Counter

import pytest

from finpercep_plugin.study.assignment import Tally, check_trial, choose, repeat_trial, schedule, training_trial
from finpercep_plugin.study.definition import GT, SPOILED, Settings
from tests.study.conftest import OURS, THEIRS, THIRD, study_of


@pytest.mark.parametrize('trials', [1, 4, 8, 40])
@pytest.mark.parametrize('checks', [0, 1, 4])
@pytest.mark.parametrize('repeats', [0, 1, 4])
def test_a_schedule_has_all_its_trials_and_no_repeat_before_what_it_repeats(trials, checks, repeats):
    checks, repeats = min(checks, max(1, trials // 2)), min(repeats, trials // 2)
    settings = Settings(trials=trials, training=2, checks=checks, repeats=repeats)
    for rater in range(1, 30):
        plan = schedule(settings, rater)
        assert plan[:2] == ['training'] * 2 and 'training' not in plan[2:]
        assert Counter(plan) == +Counter(training=2, main=trials, check=checks, repeat=repeats)
        for i, kind in enumerate(plan):
            if kind == 'repeat':
                assert plan[:i].count('main') > plan[:i].count('repeat')
    assert schedule(settings, 1) == schedule(settings, 1)


def test_schedules_differ_between_raters_and_seeds():
    plans = {(seed, rater): tuple(schedule(Settings(seed=seed), rater)) for seed in range(3) for rater in range(5)}
    assert len(set(plans.values())) == 15


def simulate(study, raters, leaving=()):
    """Raters in turn, trial by trial; those who leave stop after their third trial, which goes to others."""
    mine, tallies = {rater: [] for rater in range(1, raters + 1)}, {}
    for _ in range(study.settings.trials):
        for rater, placed in mine.items():
            if rater in leaving and len(placed) >= 3:
                continue
            p = choose(study, tallies, placed, rater)
            t = tallies.get(p.cell, Tally())
            tallies[p.cell] = Tally(t.count + 1, t.first_left + (p.a == p.cell.first))
            placed.append(p)
    return mine


@pytest.mark.parametrize(('methods', 'leaving'), [((OURS, THEIRS), ()), ((OURS, THEIRS, THIRD), (2, 5, 6))])
def test_comparisons_and_sides_are_balanced(methods, leaving):
    study = study_of(methods, items=10, trials=8)
    mine = simulate(study, 12, leaving)
    votes = Counter(p.cell for placed in mine.values() for p in placed)
    left = Counter(p.cell for placed in mine.values() for p in placed if p.a == p.cell.first)
    counts = [votes[cell] for cell in study.cells]
    assert max(counts) - min(counts) <= 1
    assert all(abs(2 * left[cell] - votes[cell]) <= 1 for cell in study.cells)
    for placed in mine.values():
        assert len({p.cell for p in placed}) == len(placed)  # nobody sees a comparison twice
        assert {p.cell.item for p in placed} <= {item.name for item in study.items if not item.spare}


def test_a_rater_sees_each_item_once_while_there_are_others():
    study = study_of((OURS, THEIRS, THIRD), items=10, trials=8)
    placed = simulate(study, 1)[1]
    assert len({p.cell.item for p in placed}) == 8
    assert sorted(Counter((p.cell.first, p.cell.second) for p in placed).values()) == [2, 3, 3]


def test_choices_follow_from_the_seed():
    study = study_of(trials=8)
    assert simulate(study, 3) == simulate(study, 3)
    assert simulate(study, 3) != simulate(study_of(trials=8, seed=1), 3)


def test_the_least_voted_comparison_comes_first():
    study = study_of(items=4)
    wanted = study.cells[2]
    tallies = {cell: Tally(5, 2) for cell in study.cells if cell != wanted}
    placed = choose(study, {**tallies, wanted: Tally(4, 3)}, [], 1)
    assert placed.cell == wanted and placed.a == wanted.second  # its first was on the left three times of four


def test_a_reference_is_in_every_pair():
    study = study_of((OURS, THEIRS, THIRD), reference=THEIRS)
    assert study.pairs == [(OURS, THEIRS), (THEIRS, THIRD)]


def test_a_repeat_exchanges_the_sides_of_an_earlier_trial():
    study = study_of(trials=8)
    mine = simulate(study, 1)[1]
    first = repeat_trial(study, mine, 1)
    assert first.of <= len(mine) - 5
    assert (first.a, first.b, first.cell) == (mine[first.of].b, mine[first.of].a, mine[first.of].cell)
    second = repeat_trial(study, [*mine, first], 1)
    assert second.of != first.of


def test_checks_and_practice_use_spare_items_and_gt_stands_on_both_sides():
    study = study_of(checks=2)
    spare = {item.name for item in study.spares}
    checks = [check_trial(study, n, rater) for rater in range(6) for n in range(2)]
    assert {c.cell.item for c in checks} == spare
    assert Counter(c.a for c in checks) == {GT: 6, SPOILED: 6}
    assert training_trial(study, 0).cell.item in spare
    assert training_trial(study, 0) == training_trial(study, 0)
