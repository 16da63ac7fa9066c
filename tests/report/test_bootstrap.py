import numpy as np
import pytest

from finpercep_plugin.report.bootstrap import crossed_interval, mean_interval, paired_difference


def test_two_values_by_hand():
    # Two differences, 0 and 1: a resample's mean is 0, 1/2 or 1 with probability 1/4, 1/2, 1/4. So the middle 40 % lie at 1/2,
    # and the 95 % interval runs from 0 to 1.
    wide = paired_difference([3.0, 5.0], [3.0, 6.0])
    assert (wide.mean, wide.low, wide.high) == (0.5, 0.0, 1.0)
    narrow = paired_difference([3.0, 5.0], [3.0, 6.0], level=0.4)
    assert (narrow.low, narrow.high) == (0.5, 0.5)


def test_whole_groups_are_drawn_by_hand():
    # Photos A (0, 0, 0) and B (1): resampled photos AA, AB, BB have means 0, 1/4, 1 with probability 1/4, 1/2, 1/4.
    middle = mean_interval([0, 0, 0, 1], groups=['A', 'A', 'A', 'B'], level=0.4)
    assert (middle.mean, middle.low, middle.high, middle.n, middle.groups) == (0.25, 0.25, 0.25, 4, 2)


def test_close_to_the_normal_interval_for_many_values():
    x = np.random.default_rng(1).normal(2.0, 3.0, 400)
    half = 1.96 * x.std() / np.sqrt(len(x))
    interval = mean_interval(x)
    assert interval.low == pytest.approx(x.mean() - half, abs=0.1 * half)
    assert interval.high == pytest.approx(x.mean() + half, abs=0.1 * half)


def test_the_seed_decides():
    x = np.random.default_rng(2).normal(size=30)
    assert mean_interval(x, seed=5) == mean_interval(x, seed=5)
    assert mean_interval(x, seed=5) != mean_interval(x, seed=6)


@pytest.mark.parametrize(
    ('call', 'message'),
    [
        (lambda: paired_difference([1.0], [1.0, 2.0]), '1 values before, 2 after'),
        (lambda: mean_interval([]), 'at least one value'),
        (lambda: mean_interval([1.0, float('nan')]), '1 of 2 values are not finite'),
        (lambda: mean_interval([1.0], level=95), 'between 0 and 1, got 95'),
        (lambda: mean_interval([1.0, 2.0], groups=['a']), '2 values but 1 group labels'),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_runs_and_pictures_are_both_drawn_by_hand():
    # Runs (0, 0) and (4, 4), two pictures: a resample's mean is 0, 2 or 4 with probability 1/4, 1/2, 1/4, whatever pictures it has.
    over_runs = crossed_interval([[0.0, 0.0], [4.0, 4.0]])
    assert (over_runs.mean, over_runs.low, over_runs.high) == (2.0, 0.0, 4.0)
    assert crossed_interval([[0.0, 0.0], [4.0, 4.0]], level=0.4).low == 2.0
    # The same over pictures; with one run it is the interval of its values.
    assert crossed_interval([[0.0, 4.0], [0.0, 4.0]], level=0.4).high == 2.0
    # Both: (0, 0), (0, 4): 4 times the share of run 2 times the share of picture 2; above 0 with probability 9/16.
    both = crossed_interval([[0.0, 0.0], [0.0, 4.0]], level=0.1)
    assert (both.mean, both.low, both.high) == (1.0, 1.0, 1.0)


def test_whole_photos_are_drawn_in_tables_too():
    # Photos A (0, 0, 0) and B (1) as above, in two equal runs.
    middle = crossed_interval([[0, 0, 0, 1], [0, 0, 0, 1]], groups=['A', 'A', 'A', 'B'], level=0.4)
    assert (middle.mean, middle.low, middle.high, middle.n, middle.groups) == (0.25, 0.25, 0.25, 8, 2)


@pytest.mark.parametrize(
    ('table', 'groups', 'message'),
    [
        ([1.0], None, r'shape \(1,\)'),
        ([[1.0, float('nan')]], None, '1 of 2 values are not finite'),
        ([[1.0, 2.0]], ['a'], '2 values but 1 group labels'),
    ],
)
def test_wrong_tables(table, groups, message):
    with pytest.raises(ValueError, match=message):
        crossed_interval(table, groups)
