"""Scores within groups, by hand."""

import pytest
import torch

from finpercep_plugin.rewards.groups import normalise_groups


def test_groups_by_hand():
    values, groups = torch.tensor([1.0, 10.0, 2.0, 30.0, 6.0]), torch.tensor([4, 1, 4, 1, 4])
    # group 4: 1, 2, 6: mean 3, variance (4 + 1 + 9) / 3; group 1: 10, 30
    sd = (14 / 3) ** 0.5
    torch.testing.assert_close(normalise_groups(values, groups), torch.tensor([-2 / sd, -1, -1 / sd, 1, 3 / sd]))
    torch.testing.assert_close(normalise_groups(values, groups, by='range'), torch.tensor([0, 0, 0.2, 1, 1]))
    with pytest.raises(ValueError, match='a group id for each of 5 samples, got 2'):
        normalise_groups(values, [0, 1])


@pytest.mark.parametrize('by, tie', [('spread', 0.0), ('range', 0.5)])
def test_ties_and_single_samples_give_no_signal(by, tie):
    values = torch.tensor([2.0, 2.0 + 1e-5, 7.0], requires_grad=True)
    out = normalise_groups(values, [0, 0, 1], by)
    assert out.tolist() == [tie, tie, tie] and not out.requires_grad


def test_a_group_depends_on_itself_alone():
    generator = torch.Generator().manual_seed(0)
    values, groups = torch.randn(40, generator=generator), torch.arange(40) % 5
    whole = normalise_groups(values, groups)
    order = torch.randperm(40, generator=generator)
    torch.testing.assert_close(normalise_groups(values[order], groups[order]), whole[order])
    torch.testing.assert_close(normalise_groups(values[groups == 3], [9] * 8), whole[groups == 3])


def test_gradient_is_that_of_the_reward_over_its_spread():
    """mean and sd count as constants; if not, the gradient of the sum over a group would be 0."""
    values = torch.tensor([1.0, 3.0], requires_grad=True)
    normalise_groups(values, [0, 0]).sum().backward()
    assert values.grad.tolist() == [1.0, 1.0]  # 1 / sd


@pytest.mark.parametrize('by', ['spread', 'range'])
def test_groups_that_span_processes(by):
    """The part of a process is, to the bit, the part of what one process would have."""
    generator = torch.Generator().manual_seed(0)
    values, groups = torch.randn(12, generator=generator), torch.arange(12) % 3
    whole = normalise_groups(values, groups, by)
    for part in (slice(0, 5), slice(5, 12)):
        own = normalise_groups(values[part], groups[part], by, everywhere=(values, groups))
        assert torch.equal(own, whole[part])
    assert not torch.equal(normalise_groups(values[:5], groups[:5], by), whole[:5])
