"""NaN and infinity at every stage: named, and a step is skipped, counted and limited, or the run does not begin."""

import dataclasses
import math
import re
from pathlib import Path
from typing import Callable

import pytest
import torch
import yaml

pytest.importorskip('basicsr')
pytest.importorskip('diffusers')
from finpercep_plugin.models.base_model import FinPercepModel
from finpercep_plugin.models.generator_model import GeneratorModel
from finpercep_plugin.models.rm_model import FinPercepRMModel
from finpercep_plugin.rewards.finpercep_reward import FinPercepReward
from finpercep_plugin.train import main
from tests.bad_input.tools import plain, run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
LIMIT = 3


def fed(name, model=GeneratorModel):
    """Every batch has one value of `name` that is none."""

    def spoil(monkeypatch, opt, value):
        feed = model.feed_data

        def spoilt(self, data):
            feed(self, data)
            (self.data[name] if model is FinPercepRMModel else getattr(self, name))[0, 0, 0, 0] = value

        monkeypatch.setattr(model, 'feed_data', spoilt)

    return spoil


def rewarded(field, only=False):
    """The reward model gives it; `only` when its scale has been measured."""

    def spoil(monkeypatch, opt, value):
        raw = FinPercepReward.raw

        def spoilt(self, sr, stage, **inputs):
            out = raw(self, sr, stage, **inputs)
            if not only or self.statistics.ready([stage]):
                if field == 'map':
                    out.maps = {k: v.index_fill(0, torch.tensor([0]), value) for k, v in out.maps.items()}
                    out.score = out.score + sum(v.flatten(1).mean(1) * 0 for v in out.maps.values())
                else:
                    out.score = out.score.index_fill(0, torch.tensor([0]), value)
            return out

        monkeypatch.setattr(FinPercepReward, 'raw', spoilt)

    return spoil


def lost(monkeypatch, opt, value):
    """The loss of every step."""
    update = FinPercepModel._update

    def spoilt(self, micro_batches, current_iter):
        return update(self, ((loss + value, terms) for loss, terms in micro_batches), current_iter)

    monkeypatch.setattr(FinPercepModel, '_update', spoilt)


def gradient(monkeypatch, opt, value):
    """One value of one gradient."""
    start = FinPercepModel.init_training

    def spoilt(self, *arguments, **more):
        start(self, *arguments, **more)
        parameter = next(iter(self.trained.values()))
        parameter.register_hook(lambda grad: grad.flatten().index_fill(0, torch.tensor([0]), value).view_as(grad))

    monkeypatch.setattr(FinPercepModel, 'init_training', spoilt)


def weights(key):
    """One value of a file."""

    def spoil(monkeypatch, opt, value):
        place = {
            'generator': ('generator', 'weights'),
            'rm': ('reward', 'rms'),
            'pretrain': ('path', 'pretrain_network_g'),
        }[key]
        section, name = opt[place[0]], place[1]
        files = section[name] if isinstance(section[name], list) else [section[name]]
        for number, file in enumerate(files):
            data = torch.load(file, weights_only=True)
            last = [k for k, v in data['params'].items() if v.is_floating_point()][-1]
            data['params'][last].view(-1)[0] = value
            torch.save(data, f'spoilt{number}.pth')
        spoilt = [f'spoilt{number}.pth' for number in range(len(files))]
        section[name] = spoilt if isinstance(section[name], list) else spoilt[0]

    return spoil


def function(monkeypatch, opt, value):
    Path('spoilt_reward.py').write_text(f'def reward(sr):\n    return sr.flatten(1).mean(1) * float("{value}")\n')
    opt['reward'] = {'type': 'Function', 'function': 'spoilt_reward:reward', 'differentiable': True}
    del opt['train']['ccl']['stages']
    monkeypatch.syspath_prepend('.')


def trained(monkeypatch, opt, value):
    """The weights themselves, in the midst of training."""
    update = FinPercepModel.update_learning_rate

    def spoilt(self, *arguments, **more):
        if arguments[0] > 1:  # the first one measures the reward's scale
            with torch.no_grad():
                next(iter(self.trained.values())).view(-1)[0] = value
        update(self, *arguments, **more)

    monkeypatch.setattr(FinPercepModel, 'update_learning_rate', spoilt)


@dataclasses.dataclass
class Case:
    """
    Args:
        what: is not finite.
        kind: of the model.
        spoil: makes it so.
        code: exit code.
        says: a part of what is said.
    """

    what: str
    kind: str
    spoil: Callable
    code: int = 1
    says: str = f'error: {LIMIT} steps were not finite (train.max_bad_steps); the state of iter '


FILE = 'holds numbers that are not finite, in '
CASES = [
    Case('lq', 'refl', fed('lq')),
    Case('lq', 'grpo', fed('lq')),
    Case('gt', 'refl', fed('gt')),
    Case('gt', 'rfsr', fed('gt')),
    Case('map of the training set', 'rm', fed('map', FinPercepRMModel)),
    Case('gt of the training set', 'rm', fed('gt', FinPercepRMModel)),
    Case(
        'reward, when its scale is measured',
        'refl',
        rewarded('score'),
        2,
        'error: $.reward: on outputs of the starting',
    ),
    Case('reward', 'refl', rewarded('score', True)),
    Case('reward', 'dpo', rewarded('score', True)),
    Case('reward', 'grpo', rewarded('score', True)),
    Case('reward', 'rfsr', rewarded('score', True)),
    Case('map', 'refl', rewarded('map', True)),
    Case('reward of a user', 'refl', function, 1, 'error: reward spoilt_reward:reward: not finite: ['),
    Case('loss', 'refl', lost),
    Case('loss', 'rm', lost),
    Case('gradient', 'refl', gradient),
    Case('gradient', 'grpo', gradient),
    Case('gradient', 'rm', gradient),
    Case('trained weights', 'refl', trained),
    Case('trained weights', 'rm', trained),
    Case('file of the generator', 'refl', weights('generator'), 2, FILE),
    Case('file of the reward model', 'refl', weights('rm'), 2, FILE),
    Case('file that the reward model starts from', 'rm', weights('pretrain'), 2, FILE),
]


@pytest.mark.parametrize('value', [math.nan, math.inf], ids=str)
@pytest.mark.parametrize('case', CASES, ids=lambda c: f'{c.what}-{c.kind}')
def test_named(case, value, options, monkeypatch, told, tmp_path):
    opt = options(case.kind)
    opt['train'] |= {'total_iter': 8, 'max_bad_steps': LIMIT}
    opt['val'], opt['logger']['save_checkpoint_freq'] = None, 100
    if case.kind != 'rm':
        opt['train']['monitor'] = {'every': 0}
    if case.kind == 'rfsr':
        opt['train']['algorithm']['early_probability'] = float(case.what == 'gt')  # late steps do without
    case.spoil(monkeypatch, opt, value)
    (tmp_path / 'opt.yml').write_text(yaml.safe_dump(opt, sort_keys=False))
    seen = run(main, '-opt', 'opt.yml')
    assert seen.code == case.code and case.says in seen.text and 'Traceback' not in seen.text, seen.text[-2000:]
    error = [line for line in seen.text.splitlines() if line.startswith('error: ')]
    assert len(error) == 1
    states = sorted(Path(f'experiments/{case.kind}/training_states').glob('*.state'))
    assert bool(states) == ('the state of iter' in case.says)  # from which it can be continued
    if states:
        assert seen.text.count('step skipped') == LIMIT
        state = torch.load(states[0], weights_only=True)
        finite = all(bool(value.isfinite().all()) for value in state['trained'].values())
        assert state['bad_steps'] == LIMIT and finite == (case.spoil is not trained)
    text = re.sub(r'iter \d+ is', 'iter N is', plain(error[0], tmp_path))
    row = (f'{case.what} ({case.kind})', case.code, re.sub(r'\[[naif, ]+\]', '[...]', text))
    told.add('not_finite', row[0].replace('(', f'is {value} ('), *row[1:])
