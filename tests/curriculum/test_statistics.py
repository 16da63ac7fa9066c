"""mu_k and sd_k: measured once, frozen, saved."""

import io
import logging

import pytest
import torch

from finpercep_plugin.curriculum.statistics import ScoreStatistics


def test_mean_and_spread_by_hand():
    statistics = ScoreStatistics()
    statistics.measure(1, torch.tensor([1.0, 2.0, 3.0, 6.0]))  # mean 3; squares 4 + 1 + 0 + 9 = 14; sd sqrt(14 / 4)
    assert statistics.moments(1) == pytest.approx((3.0, 3.5**0.5))
    torch.testing.assert_close(statistics.normalise(1, torch.tensor([3.0, 10.0])), torch.tensor([0.0, 7 / 3.5**0.5]))


def test_frozen_once_set():
    statistics = ScoreStatistics()
    statistics.set(0, 0.5, 0.1)
    with pytest.raises(RuntimeError, match='stage 0 are frozen'):
        statistics.measure(0, torch.tensor([1.0, 2.0]))
    with pytest.raises(RuntimeError, match='stage 2 are not measured yet'):
        statistics.normalise(2, torch.zeros(1))
    assert statistics.ready([0]) and not statistics.ready([0, 2])


@pytest.mark.parametrize(
    ('raw', 'message'),
    [
        ([0.25] * 5, 'all 5 calibration rewards are 0.25'),
        ([0.25], 'at least 2 images, got 1'),
        ([0.25, float('nan'), float('inf')], '2 of 3 calibration rewards are not finite'),
    ],
)
def test_rewards_that_say_nothing_are_refused(raw, message):
    with pytest.raises(ValueError, match=message):
        ScoreStatistics().measure(0, torch.tensor(raw))


def test_a_small_spread_is_raised_to_the_floor(caplog):
    statistics = ScoreStatistics(floor=1e-2)
    with caplog.at_level(logging.WARNING):
        statistics.measure(2, torch.tensor([0.5, 0.502]))
    assert statistics.moments(2) == pytest.approx((0.501, 1e-2))
    assert 'spread by 0.001 only; sd is set to 0.01' in caplog.text


def test_saves_with_weights_only():
    statistics, buffer = ScoreStatistics(), io.BytesIO()
    statistics.set(0, 0.1, 0.2)
    statistics.set(2, 0.3, 0.4)
    torch.save(statistics.state_dict(), buffer)
    buffer.seek(0)
    again = ScoreStatistics()
    again.load_state_dict(torch.load(buffer, weights_only=True))
    assert [again.moments(k) for k in (0, 2)] == [(0.1, 0.2), (0.3, 0.4)]
