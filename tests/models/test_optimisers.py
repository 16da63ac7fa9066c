"""The optimisers of `train.optim_g`: 8-bit moments, their size, a resume that continues exactly, and their absence."""

import importlib.util

import pytest
import torch

from finpercep_plugin.config import ConfigError, parse
from finpercep_plugin.models.optimisers import build_optimiser
from finpercep_plugin.models.options import OptimOptions, TrainOptions


def after(optim, steps, parameter, state=None):
    """The optimiser and the parameter after some steps, continued from a state if there is one."""
    groups = [{'params': [parameter], 'lr': 1e-2, 'initial_lr': 1e-2}]
    optimiser = build_optimiser(optim, groups, torch.device('cpu'))
    if state is not None:
        optimiser.load_state_dict(state)
    for step in steps:
        parameter.grad = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(step))
        optimiser.step()
    return optimiser, parameter


def start():
    return torch.nn.Parameter(torch.randn(96, 96, generator=torch.Generator().manual_seed(7)))


def test_eight_bits_follow_the_full_optimiser_in_a_quarter_of_its_memory(tmp_path):
    pytest.importorskip('bitsandbytes')
    _, full = after(OptimOptions(), range(5), start())
    small, own = after(OptimOptions(type='AdamW8bit'), range(5), start())
    moved = (full - start()).abs().mean()
    assert moved > 0.01 and (own - full).abs().mean() < 0.2 * moved

    state = next(iter(small.state_dict()['state'].values()))
    moments = {name: value for name, value in _flat(state).items() if value.shape == own.shape}
    assert {value.dtype for value in moments.values()} == {torch.uint8} and len(moments) == 2
    torch.save(small.state_dict(), tmp_path / 'state.pth')
    loaded = torch.load(tmp_path / 'state.pth', weights_only=True)
    _, resumed = after(OptimOptions(type='AdamW8bit'), [9], torch.nn.Parameter(own.detach().clone()), loaded)
    own.grad = torch.randn(own.shape, generator=torch.Generator().manual_seed(9))
    small.step()
    assert torch.equal(resumed, own)


def _flat(state):
    """Tensors of a state, which bitsandbytes may keep one level below."""
    found = {}
    for name, value in state.items():
        if isinstance(value, dict):
            found.update(_flat(value))
        elif torch.is_tensor(value):
            found[name] = value
    return found


def test_eight_bits_without_bitsandbytes_or_with_shards_are_refused(monkeypatch):
    section = {'total_iter': 1, 'optim_g': {'type': 'AdamW8bit'}}
    if importlib.util.find_spec('bitsandbytes'):
        assert parse(TrainOptions, section, '$.train').optim_g.type == 'AdamW8bit'
        with pytest.raises(ConfigError, match='does not know sharded parameters'):
            parse(TrainOptions, {**section, 'parallel': 'fsdp'}, '$.train')
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, 'find_spec', lambda name, *rest: None if name == 'bitsandbytes' else real(name, *rest)
    )
    with pytest.raises(ConfigError, match='pip install bitsandbytes'):
        parse(TrainOptions, section, '$.train')
