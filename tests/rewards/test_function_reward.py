"""A user's function as a reward, and every way in which it can be wrong."""

import math

import numpy as np
import pytest
import torch

from finpercep_plugin.config import ConfigError, build
from finpercep_plugin.registry import REWARDS
from finpercep_plugin.rewards.function_reward import FunctionReward, import_function

SOURCE = """
import torch
from torch import nn
from finpercep_plugin.rewards.base import RewardOutput

def brightness(sr):
    return sr.mean(dim=(1, 2, 3))

def distance(sr, gt, power=1.0):
    score = (sr - gt).abs().pow(power).mean(dim=(1, 2, 3))
    return RewardOutput(score, {'squared': score ** 2})

def length(sr, prompt):
    return [len(text) for text in prompt]

def array(sr):
    return sr.mean(dim=(1, 2, 3)).double().numpy()

def cut(sr):
    return sr.detach().mean(dim=(1, 2, 3))

def whole(sr):
    return sr.mean()

def nothing(sr):
    return None

def infinite(sr):
    return sr.mean(dim=(1, 2, 3)) / 0

def mapped(sr, side):
    return RewardOutput(sr.mean(dim=(1, 2, 3)), maps={'map': sr[:, :1, :side]} if side else {})

def recorded(sr):
    assert not sr.requires_grad and not torch.is_grad_enabled()
    return torch.zeros(len(sr))

class Score: ...

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 1)
    def forward(self, sr):
        return self.layer(sr.mean(dim=(2, 3)))[:, 0]

net = Net()
number = 3
"""


@pytest.fixture
def module(tmp_path, monkeypatch) -> str:
    """The name of an importable module that holds SOURCE."""
    name = f'user_rewards_{tmp_path.name}'
    (tmp_path / f'{name}.py').write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path)
    return name


def test_by_hand(module):
    reward = build(REWARDS, {'type': 'Function', 'function': f'{module}:brightness'}, '$.reward')
    assert not reward.differentiable and reward.needs == frozenset() and reward.higher_is_better
    sr = torch.tensor([0.2, 0.6]).view(2, 1, 1, 1).expand(2, 3, 2, 2)
    torch.testing.assert_close(reward(sr).score, torch.tensor([0.2, 0.6]))
    score = FunctionReward(f'{module}:array')(sr).score
    assert score.dtype == torch.float32 and score.tolist() == pytest.approx([0.2, 0.6])


def test_inputs_options_terms_and_gradient(module):
    section = {
        'type': 'Function',
        'function': f'{module}:distance',
        'differentiable': True,
        'needs': ['gt'],
        'higher_is_better': False,
        'options': {'power': 2.0},
    }
    reward = build(REWARDS, section, '$.reward')
    assert reward.differentiable and reward.needs == {'gt'} and not reward.higher_is_better
    sr = torch.full((1, 3, 2, 2), 0.5, requires_grad=True)
    out = reward(sr, gt=torch.full((1, 3, 2, 2), 0.2), prompt=['unused'])
    assert out.score.item() == pytest.approx(0.09) and out.terms['squared'].item() == pytest.approx(0.0081)
    out.score.sum().backward()
    assert sr.grad.sum().item() == pytest.approx(0.6)  # 2 * 0.3
    with pytest.raises(ValueError, match=f'reward {module}:distance needs gt, and there is none'):
        reward(sr)


def test_prompts_and_lists(module):
    reward = FunctionReward(f'{module}:length', needs=['prompt'])
    assert reward(torch.zeros(2, 3, 2, 2), prompt=['ab', 'abcd']).score.tolist() == [2.0, 4.0]


def test_a_map_is_passed_on(module):
    sr = torch.rand(2, 3, 4, 4)
    reward = FunctionReward(f'{module}:mapped', gives_map=True, options={'side': 4})
    assert torch.equal(reward(sr).maps['map'], sr[:, :1]) and reward.gives_map


def test_without_gradient_none_is_made(module):
    sr = torch.zeros(2, 3, 2, 2, requires_grad=True)
    assert not FunctionReward(f'{module}:recorded')(sr).score.requires_grad


def test_a_network_is_called_and_frozen(module):
    reward = FunctionReward(f'{module}:net', differentiable=True)
    assert len(list(reward.parameters())) == 2 and not any(p.requires_grad for p in reward.parameters())
    sr = torch.rand(2, 3, 2, 2, requires_grad=True)
    reward.train()(sr).score.sum().backward()
    assert (sr.grad != 0).any() and not reward.function.training


@pytest.mark.parametrize(
    'name, options, message',
    [
        ('whole', {}, r'expected one score a sample, shape \(2,\), got \(\)'),
        ('nothing', {}, 'expected a tensor of 2 scores, got None'),
        ('infinite', {}, r'not finite: \[inf, inf\]'),
        ('cut', {'differentiable': True}, 'declared differentiable, but its score has no gradient'),
        (
            'mapped',
            {'gives_map': True, 'options': {'side': 0}},
            r'declared to give a map of \(B, 1, H, W\), gives none',
        ),
        ('mapped', {'gives_map': True, 'options': {'side': 1}}, r'.* gives one of shape \(2, 1, 1, 2\)'),
    ],
)
def test_results_that_are_no_scores(module, name, options, message):
    with pytest.raises(ValueError, match=f'reward {module}:{name}: {message}'):
        FunctionReward(f'{module}:{name}', **options)(torch.ones(2, 3, 2, 2, requires_grad=True))


@pytest.mark.parametrize(
    'options, message',
    [
        ({'function': 'M:brightnes'}, "'M:brightnes' has no 'brightnes'; did you mean 'brightness'"),
        ({'function': 'M:number'}, "'M:number' is of type int; expected a function"),
        ({'function': 'M:Score'}, "'M:Score' is a class; expected a function"),
        ({'function': 'M.brightness'}, "expected 'module:function', such as"),
        ({'function': 'a b:c'}, "expected 'module:function', such as"),
        ({'function': 'no_such_module.x:f'}, "no module 'no_such_module' .* into PYTHONPATH"),
        ({'function': 'M:brightness', 'needs': ['gtt']}, "needs: 'gtt' is no input of a reward; did you mean 'gt'"),
        ({'function': 'M:brightness', 'needs': ['gt']}, r'takes \(sr\), and would be called with \(sr, gt=...\)'),
        ({'function': 'M:brightness', 'options': {'k': 1}}, r'would be called with \(sr, k=...\): .*unexpected'),
        ({'function': 'M:distance'}, r'would be called with \(sr\): missing a required argument'),
        ({'function': 'M:distance', 'needs': ['gt'], 'options': {'gt': 1}}, "'gt' is in needs and in options"),
    ],
)
def test_what_is_wrong_shows_when_it_is_built(module, options, message):
    options = {**options, 'function': options['function'].replace('M', module)}
    with pytest.raises(ConfigError, match=message.replace('M:', f'{module}:')):
        build(REWARDS, {'type': 'Function', **options}, '$.reward')


def test_errors_of_the_module_itself_are_not_hidden(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / 'user_broken_one.py').write_text('import a_package_that_is_not_there\n')
    with pytest.raises(ModuleNotFoundError, match='a_package_that_is_not_there'):
        import_function('user_broken_one:f')
    (tmp_path / 'user_broken_two.py').write_text('1 / 0\n')
    with pytest.raises(ZeroDivisionError):
        import_function('user_broken_two:f')


def test_builtins_without_a_signature():
    assert import_function('math:hypot') is math.hypot
    assert import_function('numpy:linalg.norm') is np.linalg.norm
