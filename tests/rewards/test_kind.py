"""What is said of a reward before it is built is what it then is."""

import pytest

from finpercep_plugin.config import ConfigError, build
from finpercep_plugin.registry import REWARDS
from finpercep_plugin.rewards.kind import RewardKind, reward_kind

FUNCTION = {'type': 'Function', 'function': 'math:hypot'}
SHARP, SSIM = {'type': 'Sharpness'}, {'type': 'SSIM'}


@pytest.mark.parametrize(
    'section, expected',
    [
        (SHARP, RewardKind(True)),
        (SSIM, RewardKind(True, frozenset({'gt'}))),
        (FUNCTION, RewardKind(False)),
        ({**FUNCTION, 'differentiable': True, 'gives_map': True}, RewardKind(True, gives_map=True)),
        ({**FUNCTION, 'needs': ['gt', 'prompt']}, RewardKind(False, frozenset({'gt', 'prompt'}))),
        ({'type': 'Weighted', 'rewards': {'a': SHARP, 'b': SSIM}}, RewardKind(True, frozenset({'gt'}), False, True)),
        ({'type': 'Weighted', 'rewards': {'a': SHARP, 'b': FUNCTION}, 'normalise': 'none'}, RewardKind(False)),
    ],
)
def test_of_a_section_and_of_what_is_built(section, expected):
    reward = build(REWARDS, section, '$.reward')
    assert reward_kind(section) == expected
    flags = getattr(reward, 'gives_map', False), getattr(reward, 'needs_groups', False)
    assert (reward.differentiable, frozenset(reward.needs), *flags) == (
        expected.differentiable,
        expected.needs,
        expected.gives_map,
        expected.needs_groups,
    )


@pytest.mark.parametrize('metric, differentiable, needs', [('psnr', True, {'gt'}), ('niqe', False, set())])
def test_of_pyiqa_without_weights(metric, differentiable, needs):
    pytest.importorskip('pyiqa')
    section = {'type': 'PyIQA', 'metric': metric}
    assert reward_kind(section) == RewardKind(differentiable, frozenset(needs))


def test_a_metric_that_is_none_is_told_before_anything_is_built():
    pytest.importorskip('pyiqa')
    check = REWARDS.get('PyIQA').check
    check({'metric': 'musiq'}, '$.reward')
    for metric, message in (
        ('musik', "pyiqa has no metric 'musik'; did you mean 'musiq'"),
        ('fid', 'cannot be a reward'),
    ):
        with pytest.raises(ConfigError, match=rf'\$.reward.metric: .*{message}'):
            check({'metric': metric}, '$.reward')
    with pytest.raises(ConfigError, match=r'\$.reward.rewards.a.metric: pyiqa has no metric'):
        section = {'rewards': {'a': {'type': 'PyIQA', 'metric': 'musik'}}}
        REWARDS.get('Weighted').check(section, '$.reward')


def test_every_registered_reward_has_one_or_says_by_options():
    for name in REWARDS.names():
        reward = REWARDS.get(name)
        assert hasattr(reward, 'kind') or isinstance(reward_kind({'type': name}), RewardKind)
