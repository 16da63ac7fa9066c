"""kill -9 inside an iteration: among its rollouts, between its updates, in a CCL stage; resumed, it ends the same."""

import signal
from pathlib import Path

import pytest
import torch
import yaml

pytest.importorskip('basicsr')
pytestmark = pytest.mark.slow

# Imported by the run, as a user's reward: a file `end` in its folder, such as 'step 9', ends it after the optimiser's
# 9th step of this process, or at the reward's 9th call; the file goes first, so that the next run goes through.
ENDS = """
import os
import signal
from collections import Counter
from pathlib import Path

from torch.optim.optimizer import register_optimizer_step_post_hook

seen, end = Counter(), Path('end')


def count(event):
    seen[event] += 1
    if end.exists() and end.read_text() == f'{event} {seen[event]}':
        end.unlink()
        os.kill(os.getpid(), signal.SIGKILL)


def reward(sr):
    count('reward')
    return 1 - (sr.flatten(1).mean(1) - 0.8).abs()


register_optimizer_step_post_hook(lambda *_: count('step'))
"""

# Options of two rewarded batches an iteration, and its number of optimiser updates.
SPLIT = {
    'refl': ({'micro_batch': 2}, 1),
    'rfsr': ({'micro_batch': 2, 'early_probability': 0.0}, 1),
    'dpo': ({'sample_batch': 8, 'micro_batch': 2, 'epochs': 2}, 2),
    'grpo': ({'micro_batch': 8, 'epochs': 2, 'updates_per_epoch': 2}, 4),
}


def whole_and_broken(opt, breaks, python):
    """Last states of two runs: one that is left alone, and one that goes on after each of `breaks`, (iteration, event)."""
    Path('ends.py').write_text(ENDS)
    every, resumed = opt['logger']['save_checkpoint_freq'], None
    for name in ('whole', 'broken'):
        Path(f'{name}.yml').write_text(yaml.safe_dump({**opt, 'name': name}, sort_keys=False))
    python('-m', 'finpercep_plugin.train', '-opt', 'whole.yml', timeout=300)
    command = ('-m', 'finpercep_plugin.train', '-opt', 'broken.yml', '--auto_resume')
    for iteration, event in breaks:
        Path('end').write_text(event)
        killed = python(*command, check=False, timeout=300)
        assert killed.returncode == -signal.SIGKILL and not Path('end').exists(), killed.stderr[-2000:]
        assert f'iter:{iteration - 1:8,d},' in killed.stderr and f'iter:{iteration:8,d},' not in killed.stderr
        assert resumed is None or f'Resuming training from iter {resumed}.' in killed.stderr
        resumed = (iteration - 1) // every * every
    assert f'Resuming training from iter {resumed}.' in python(*command, timeout=300).stderr
    last = opt['train']['total_iter'] // every * every
    paths = (f'experiments/{name}/training_states/{last}.state' for name in ('whole', 'broken'))
    return tuple(torch.load(path, weights_only=True) for path in paths)


def same(one, other):
    """Whether two states, or parts of them, are alike to the bit."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


@pytest.mark.parametrize('kind', SPLIT)
def test_killed_inside_an_iteration(options, python, kind):
    """In the third, at the second of its rewarded batches; and in the fifth, after the first of its updates."""
    opt, (more, updates) = options(kind), SPLIT[kind]
    opt['train'] |= {'total_iter': 6, 'ccl': {'calibration': 4}, 'monitor': {'every': 0}}
    opt['train']['algorithm'] |= more
    opt['reward'] = {'type': 'Function', 'function': 'ends:reward', 'differentiable': kind in ('refl', 'rfsr')}
    opt['val'] = None
    breaks = [(3, f'reward {1 + 2 * 2 + 2}')]  # the first call calibrates
    if updates > 1:
        breaks.append((5, f'step {updates * 2 + 1}'))
    assert same(*whole_and_broken(opt, breaks, python))


@pytest.mark.parametrize('every', [2, 3])
def test_killed_inside_a_stage(options, python, every):
    """Stages from iterations 1, 4 and 7; between updates of the fifth, when the last state is of stage 1, or of 0."""
    opt, (more, updates) = options('grpo'), SPLIT['grpo']
    opt['train'] |= {'total_iter': 9, 'ccl': {'stages': [3, 3, 3], 'calibration': 6}, 'monitor': {'every': 0}}
    opt['train']['algorithm'] |= more
    opt['logger']['save_checkpoint_freq'] = every
    opt['val'] = {'val_freq': 100, 'rewards': {'watched': {'type': 'Function', 'function': 'ends:reward'}}}
    whole, broken = whole_and_broken(opt, [(5, f'step {updates * 4 + 2}')], python)
    assert same(whole, broken) and set(whole['ccl']['statistics']['mu']) == {0, 1, 2}
