"""Pairs of better and worse samples, by hand."""

import pytest
import torch

from finpercep_plugin.algorithms.preferences import Pair, PreferenceBatch, best_worst_pairs


def test_best_with_worst():
    rewards = torch.tensor([0.5, 3.0, 1.0, 2.0, 0.0, 9.0, 7.0])
    pairs = best_worst_pairs(rewards, [4, 4, 4, 4, 4, 8, 8], best=1)
    assert pairs == [Pair(1, 4, 3.0), Pair(5, 6, 2.0)]
    pairs = best_worst_pairs(rewards[:5], [4] * 5, best=2)
    assert pairs == [Pair(1, 4, 3.0), Pair(1, 0, 2.5), Pair(3, 4, 2.0), Pair(3, 0, 1.5)]


def test_gap_filter_and_ties():
    rewards = torch.tensor([0.5, 3.0, 1.0, 2.0])
    assert [p.gap for p in best_worst_pairs(rewards, [0] * 4, best=2, min_gap=1.5)] == [2.5, 2.0, 1.5]
    assert best_worst_pairs(torch.tensor([1.0, 1.0, 1.0, 1.0]), [0] * 4, best=2) == []
    assert len(best_worst_pairs(torch.tensor([1.0, 2.0, 1.0, 2.0]), [0] * 4, best=2)) == 4


def test_images_may_be_interleaved():
    pairs = best_worst_pairs(torch.tensor([1.0, 5.0, 2.0, 4.0]), [7, 3, 7, 3], best=1)
    assert pairs == [Pair(2, 0, 1.0), Pair(1, 3, 1.0)]


def test_errors():
    with pytest.raises(ValueError, match='image 7 has 3 samples, too few for the 2 best and 2 worst'):
        best_worst_pairs(torch.zeros(3), [7] * 3, best=2)
    one = torch.zeros(1, 3, 4, 4)
    with pytest.raises(ValueError, match="'winner': 1, 'loser': 2"):
        PreferenceBatch([0], [(0,)], one, one.repeat(2, 1, 1, 1), torch.ones(1))
    with pytest.raises(ValueError, match='a gap above 0, got 0.0; leave ties out'):
        PreferenceBatch([0], [(0,)], one, one, torch.zeros(1))
