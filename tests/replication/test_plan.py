"""Budgets: the same minutes give the same plan, and what a plan is said to cost is what the budget allows."""

import pytest

from finpercep_plugin.replication.plan import Plan, minutes, plan_for


def test_a_budget_gives_one_plan_that_fits_it_closely():
    for budget in (40.0, 90.0, 300.0):
        assert plan_for(budget) == plan_for(budget)
        assert 0.95 * budget < minutes(plan_for(budget)) <= budget


def test_more_minutes_train_longer_on_the_same_crops():
    short, long = plan_for(45), plan_for(180)
    assert all(long.steps[name] > short.steps[name] for name in short.steps)
    assert long.generator > short.generator and long.rm_2 > short.rm_2
    assert (long.size, long.crops, long.points) == (short.size, short.crops, short.points)


def test_too_few_minutes_are_refused_with_the_least():
    with pytest.raises(ValueError, match=r'--budget: expected \d+ minutes or more, got 1'):
        plan_for(1)


def test_the_standard_plan_takes_less_than_two_hours():
    assert minutes(Plan()) < 120
