"""Training states in folders: written whole, read by any number of processes, and no pickle of others."""

import os
import pickle

import pytest
import torch
import torch.distributed as dist

from finpercep_plugin.config import ConfigError
from finpercep_plugin.integrations.checkpoints import load_resume_state, remove_leftovers
from finpercep_plugin.models.sharded_state import check_shards, read_state, write_state


def state(value: float) -> dict:
    optimizer = {'state': {0: {'step': torch.tensor(2.0), 'exp_avg': torch.full((3, 2), value)}, 1: {}}, 'param_groups': [{'lr': 0.1, 'params': [0, 1], 'betas': (0.9, 0.99)}]}  # fmt: skip
    return {
        'iter': 4,
        'epoch': 0,
        'optimizers': [optimizer],
        'trained': {'a.weight': torch.full((3, 2), value), '0': torch.ones(2)},
        'ema': {},
        'buffers': {'count': torch.tensor(7)},
        'rng': torch.get_rng_state(),
    }


@pytest.fixture
def written(tmp_path):
    """The file of a state, written twice."""
    dist.init_process_group('gloo', init_method=f'file://{tmp_path / "store"}', rank=0, world_size=1)
    file = tmp_path / 'training_states/4.state'
    try:
        write_state(state(1.0), file)
        write_state(state(5.0), file)
    finally:
        dist.destroy_process_group()
    return file


def opt_of(file) -> dict:
    paths = {'resume_state': str(file), 'training_states': str(file.parent), 'models': str(file.parent)}
    return {'auto_resume': False, 'path': paths}


def read(file) -> dict:
    saved = torch.load(file, weights_only=True)
    return read_state(saved, file.parent, lambda keys, size: torch.empty(size), True)


def same(one, other) -> bool:
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    return torch.equal(one, other) if torch.is_tensor(one) else one == other


def test_is_read_as_it_was_by_a_process_alone(written):
    assert sorted(p.name for p in written.parent.iterdir()) == ['4.1.shards', '4.state']
    assert same(read(written), state(5.0)) and not same(read(written), state(1.0))
    assert not torch.load(written, weights_only=True)['trained'], 'the tensors are in the folder'
    assert load_resume_state(opt_of(written))['shards'] == '4.1.shards'


def test_reads_into_the_tensors_that_are_given(written):
    saved, asked = torch.load(written, weights_only=True), {}

    def empty(keys, size):
        asked[keys] = torch.full(size, torch.nan, dtype=torch.float32)
        return asked[keys]

    result = read_state(saved, written.parent, empty, True)
    assert result['trained']['a.weight'] is asked['trained', 'a.weight']
    assert result['optimizers'][0]['state'][0]['exp_avg'] is asked['optimizers', '0', 'state', '0', 'exp_avg']


class Trap:
    def __reduce__(self):
        return os.mkdir, ('sprung',)


@pytest.mark.parametrize('damage', ['pickle', 'other', 'cut', 'gone', 'index', 'folder'])
def test_what_is_damaged_or_foreign_is_refused_and_named(written, damage, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = written.parent / '4.1.shards'
    tensors = next(folder.glob('*.distcp'))
    if damage in ('pickle', 'other'):
        (folder / '.metadata').write_bytes(pickle.dumps(Trap() if damage == 'pickle' else {'a': 1}))
    elif damage == 'cut':
        tensors.write_bytes(tensors.read_bytes()[:-1])
    elif damage == 'gone':
        tensors.unlink()
    elif damage == 'index':
        (folder / '.metadata').write_bytes((folder / '.metadata').read_bytes()[:100])
    else:
        folder.rename(written.parent / 'elsewhere')
    named = {'cut': tensors.name, 'gone': tensors.name, 'folder': '4.1.shards'}.get(damage, '.metadata')
    with pytest.raises(ValueError, match=named):
        check_shards(folder)
    with pytest.raises(ConfigError, match=named):
        load_resume_state(opt_of(written))
    assert not (tmp_path / 'sprung').exists()


def test_what_a_killed_run_left_is_removed(written):
    (written.parent / '6.shards.tmp').mkdir()
    remove_leftovers(opt_of(written))
    assert sorted(p.name for p in written.parent.iterdir()) == ['4.1.shards', '4.state']
