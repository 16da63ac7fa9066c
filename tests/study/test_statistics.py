"""Intervals, ranking and agreement against closed forms, other libraries, and simulations."""

import numpy as np
import pytest

from finpercep_plugin.study.statistics import agreement, bradley_terry, bradley_terry_intervals, clustered, wilson


def test_wilson_is_the_formula():
    wins, n, z = 641, 800, 1.959963984540054
    p = wins / n
    middle, half = p + z * z / (2 * n), z * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    interval = wilson(wins, n)
    assert interval.mean == p
    assert [interval.low, interval.high] == pytest.approx(
        [(middle - half) / (1 + z * z / n), (middle + half) / (1 + z * z / n)]
    )


def test_wilson_at_the_ends():
    assert wilson(0, 5).low == 0 and wilson(0, 5).high == pytest.approx(0.4345, abs=1e-4)
    assert wilson(5, 5).high == 1
    with pytest.raises(ValueError, match='no votes'):
        wilson(0, 0)


def test_two_methods_have_the_log_odds():
    s = bradley_terry(np.array([[0, 30], [10, 0]]), prior=0)
    assert s == pytest.approx([np.log(3) / 2, -np.log(3) / 2])


def test_ranking_as_choix_has_it():
    choix = pytest.importorskip('choix')
    rng = np.random.default_rng(0)
    wins = rng.integers(1, 40, (5, 5)) * (1 - np.eye(5, dtype=int))
    pairs = [(i, j) for i in range(5) for j in range(5) for _ in range(wins[i, j])]
    assert bradley_terry(wins, prior=0) == pytest.approx(choix.opt_pairwise(5, pairs), abs=1e-5)


def test_strengths_are_recovered_and_lie_in_their_intervals():
    truth = np.array([0.9, 0.1, -0.3, -0.7])
    rng = np.random.default_rng(1)
    wins = {}
    for rater in range(30):
        wins[rater] = np.zeros((4, 4))
        for i in range(4):
            for j in range(i + 1, 4):
                won = rng.binomial(12, 1 / (1 + np.exp(truth[j] - truth[i])))
                wins[rater][i, j], wins[rater][j, i] = won, 12 - won
    for strength, interval in zip(truth, bradley_terry_intervals(wins)):
        assert interval.low < strength < interval.high and interval.high - interval.low < 0.4
        assert interval.groups == 30


def test_a_method_that_always_wins_has_a_finite_strength():
    s = bradley_terry(np.array([[0, 20, 20], [0, 0, 10], [0, 10, 0]]))
    assert np.isfinite(s).all() and s[0] > s[1] == pytest.approx(s[2])


def test_methods_that_no_comparison_connects_have_no_strength():
    apart = np.array([[0, 2, 0, 0], [1, 0, 0, 0], [0, 0, 0, 3], [0, 0, 1, 0]])
    assert np.isnan(bradley_terry(apart)).all()
    chain = apart + np.array([[0, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
    assert np.isfinite(bradley_terry(np.stack([chain, apart]))).all(-1).tolist() == [True, False]


def test_agreement_by_hand():
    # Two raters, four comparisons, the same answer in three: 1/4 disagree; by chance, of 5 and 3 answers, 15/28 do.
    votes = [
        (r, unit, answer) for unit, answers in enumerate(['aa', 'aa', 'bb', 'ab']) for r, answer in enumerate(answers)
    ]
    found = agreement(votes)
    assert found.mean == pytest.approx(1 - (1 / 4) / (15 / 28))
    assert found.low <= found.mean <= found.high and (found.n, found.groups) == (8, 4)


def test_agreement_of_chance_and_of_one_mind():
    rng = np.random.default_rng(0)
    chance = [(r, unit, 'ab'[rng.integers(2)]) for unit in range(200) for r in range(4)]
    assert abs(agreement(chance, draws=200).mean) < 0.06
    same = [(r, unit, 'ab'[unit % 2]) for unit in range(20) for r in range(4)]
    assert agreement(same, draws=50).mean == 1


def test_agreement_needs_two_raters_and_two_answers():
    assert agreement([]) is None
    assert agreement([(0, 0, 'a'), (0, 1, 'b')]) is None
    assert agreement([(0, 0, 'a'), (1, 0, 'a')]) is None


def test_clustered_intervals_cover_where_raters_differ():
    """Raters whose own preference scatters around 80.1 %: the interval over raters covers it, Wilson's does not."""
    rng, covered, wilson_covered = np.random.default_rng(0), 0, 0
    for seed in range(300):
        own = rng.beta(8.01, 1.99, 20)  # mean 0.801
        votes = (rng.random((20, 40)) < own[:, None]).astype(float)
        interval = clustered(votes.ravel(), np.repeat(np.arange(20), 40).tolist(), seed=seed)
        covered += interval.low <= 0.801 <= interval.high
        plain = wilson(int(votes.sum()), votes.size)
        wilson_covered += plain.low <= 0.801 <= plain.high
    assert 0.91 < covered / 300 < 0.99 and wilson_covered / 300 < 0.75


def test_a_single_rater_has_no_clustered_interval_and_two_have_all_they_span():
    assert clustered([1.0, 0.0], [1, 1]) is None
    two = clustered([1.0, 1.0, 1.0, 0.0], [1, 1, 2, 2])
    assert (two.low, two.mean, two.high) == (0.5, 0.75, 1.0)
