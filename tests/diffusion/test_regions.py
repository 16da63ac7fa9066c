"""Means by region, by hand, and that they add up to the mean of the whole."""

import pytest
import torch

from finpercep_plugin.diffusion.flow_sde import std_free_log_prob
from finpercep_plugin.diffusion.regions import region_mean, region_shares
from finpercep_plugin.diffusion.steps import gaussian_log_prob


def test_by_hand():
    values = torch.arange(15.0).reshape(1, 1, 3, 5)
    values = torch.cat([values, values + 1], 1)  # two channels: the mean is 0.5 above the first
    # of squares of 2: rows 0-1 and 2, columns 0-1, 2-3 and 4
    expected = [[3.5, 5.5, 7.0], [11.0, 13.0, 14.5]]
    assert region_mean(values, 2)[0].tolist() == expected
    assert region_mean(values).tolist() == [7.5]
    assert region_mean(values, 8).tolist() == [[[7.5]]]
    assert region_mean(torch.tensor([[1.0, 3.0]])).tolist() == [2.0]


@pytest.mark.parametrize('size', [(8, 8), (7, 10), (3, 4)])
@pytest.mark.parametrize('side', [1, 2, 4])
def test_shares_make_the_mean_of_the_whole(size, side):
    values = torch.randn(3, 4, *size, generator=torch.Generator().manual_seed(0))
    shares = region_shares(*size, side)
    assert shares.mean().item() == pytest.approx(1) and shares.shape == region_mean(values, side).shape[1:]
    torch.testing.assert_close((region_mean(values, side) * shares).mean((1, 2)), region_mean(values))


def test_log_probabilities_of_regions_are_those_of_the_parts():
    rng = torch.Generator().manual_seed(1)
    x, mean = torch.randn(2, 2, 3, 4, 6, generator=rng)
    std = torch.tensor([0.3, 2.0]).view(2, 1, 1, 1)
    for whole, regions in (
        (lambda a, b: gaussian_log_prob(a, b, std), gaussian_log_prob(x, mean, std, 2)),
        (std_free_log_prob, std_free_log_prob(x, mean, 2)),
    ):
        assert regions.shape == (2, 2, 3)
        part = (..., slice(2, 4), slice(4, 6))
        torch.testing.assert_close(regions[:, 1, 2], whole(x[part], mean[part]))
