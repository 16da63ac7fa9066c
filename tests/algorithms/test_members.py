"""Members of a group: numbering, noise that depends on nothing else, conditions computed once."""

import pytest
import torch

from finpercep_plugin.algorithms.members import (
    Member,
    condition_rows,
    member_randn,
    number_members,
    reward_rows,
    reward_terms,
)
from finpercep_plugin.rewards.base import RewardOutput
from finpercep_plugin.rng import keyed_randn


def test_numbering():
    assert number_members([5], 2, first=6) == [Member(0, 5, 6), Member(0, 5, 7)]
    members = number_members(torch.tensor([5, 9, 5]), 2)
    assert [(m.row, m.image, m.number) for m in members] == [
        (0, 5, 0), (0, 5, 1), (1, 9, 0), (1, 9, 1), (2, 5, 2), (2, 5, 3)
    ]  # fmt: skip


def test_noise_is_of_image_and_number_alone():
    members = number_members([5, 9], 3)
    noise = member_randn((2, 4), members, 1, 'x')
    assert torch.equal(noise[4], member_randn((2, 4), [Member(7, 9, 1)], 1, 'x')[0])
    assert torch.equal(noise[4], keyed_randn((2, 4), [1], 1, 'x', 9)[0])
    assert len({tuple(row.flatten().tolist()) for row in noise}) == 6
    assert not torch.equal(noise, member_randn((2, 4), members, 2, 'x'))


def test_condition_is_computed_once_a_row(tiny):
    generator, (lq, _), seen = tiny.make(), tiny.data(), []
    inner = generator.condition
    generator.condition = lambda lq, prompt=None: (seen.append(len(lq)), inner(lq, prompt))[1]
    cond = condition_rows(generator, lq, [2, 0, 2, 2])
    assert seen == [2] and torch.equal(cond.lq, lq[[2, 0, 2, 2]])
    torch.testing.assert_close(cond.lq_up, inner(lq).lq_up[[2, 0, 2, 2]])


def test_reward_gets_the_rows():
    seen = {}

    def reward(sr, lq=None, gt=None, prompt=None):
        seen.update(lq=lq, gt=gt, prompt=prompt)
        return RewardOutput(sr.flatten(1).mean(1))

    lq = torch.arange(3.0).reshape(3, 1, 1, 1)
    reward_rows(reward, torch.zeros(2, 1, 2, 2), lq, lq + 10, [2, 1], ('a', 'b'))
    assert seen['lq'].flatten().tolist() == [2, 1] and seen['gt'].flatten().tolist() == [12, 11]
    assert seen['prompt'] == ('a', 'b')
    reward_rows(reward, torch.zeros(2, 1, 2, 2), lq, None, [2, 1], ('a', 'b'))
    assert seen['gt'] is None


def test_terms_of_several_batches():
    outputs = [
        RewardOutput(torch.tensor([1.0, 2.0]), {'a': torch.tensor([0.0, 0.0])}),
        RewardOutput(torch.tensor([6.0]), {'a': torch.tensor([3.0])}),
    ]
    seen = {name: value.item() for name, value in reward_terms(outputs).items()}
    assert seen == pytest.approx(
        {'reward': 3.0, 'reward_std': (14 / 3) ** 0.5, 'reward_a': 1.0, 'reward_a_std': 2**0.5}
    )
