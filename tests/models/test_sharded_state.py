"""Training states in folders: written whole, read by any number of processes, and no pickle of others."""

import os
import pickle
import shutil

import pytest
import torch
import torch.distributed as dist
from torch.distributed.checkpoint.metadata import BytesStorageMetadata

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
def group(tmp_path):
    dist.init_process_group('gloo', init_method=f'file://{tmp_path / "store"}', rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.fixture
def written(tmp_path, group):
    """The file of a state, written twice."""
    file = tmp_path / 'training_states/4.state'
    write_state(state(1.0), file)
    write_state(state(5.0), file)
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


def altered(folder, change) -> None:
    index = pickle.loads((folder / '.metadata').read_bytes())
    change(index, next(key for key in index.storage_data if key.fqn == 'trained/a.weight'))
    (folder / '.metadata').write_bytes(pickle.dumps(index))


@pytest.mark.parametrize('change', ['bytes', 'huge', 'large', 'outside', 'no place'])
def test_an_index_of_other_things_than_the_tensors_of_its_folder_is_refused(written, change):
    """torch opens what is marked as bytes without any care, and makes tensors as large as the index says."""

    def alter(index, key):
        entry = index.state_dict_metadata['trained/a.weight']
        if change == 'bytes':
            index.state_dict_metadata['trained/a.weight'] = BytesStorageMetadata()
        elif change == 'huge':
            entry.size = torch.Size([10**9, 10**9])
        elif change == 'large':
            entry.size = entry.chunks[0].sizes = torch.Size([10**9, 10**9])
        elif change == 'outside':
            index.storage_data[key].relative_path = '../4.state'
        else:
            del index.storage_data[key]

    altered(written.parent / '4.1.shards', alter)
    with pytest.raises(ConfigError, match=r'\.metadata') as refused:
        load_resume_state(opt_of(written))
    assert len(str(refused.value).splitlines()) == 1
    with pytest.raises(ValueError, match=r'\.metadata'):
        read(written)


@pytest.mark.parametrize('content', ['nothing', 'trap'])
def test_files_with_another_content_are_refused_in_one_line(written, content, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = written.parent / '4.1.shards'
    file = next(folder.glob('*.distcp'))
    if content == 'nothing':
        file.write_bytes(bytes(file.stat().st_size))
    else:

        def alter(index, key):
            trap = tmp_path / 'trap'
            torch.save(Trap(), trap)
            place = index.storage_data[key]
            place.offset, place.length = file.stat().st_size, trap.stat().st_size
            file.write_bytes(file.read_bytes() + trap.read_bytes())

        altered(folder, alter)
    with pytest.raises(ValueError, match='4.1.shards cannot be read: ') as refused:
        read(written)
    assert len(str(refused.value).splitlines()) == 1 and not (tmp_path / 'sprung').exists()


def test_the_folder_of_another_state_is_refused(written):
    other = written.with_name('6.state')
    write_state(state(7.0), other)
    shutil.rmtree(written.parent / '4.1.shards')
    (written.parent / '6.0.shards').rename(written.parent / '4.1.shards')
    with pytest.raises(ValueError, match='4.1.shards was not written with this state'):
        read(written)


def test_a_full_disk_leaves_the_state_before_it(written):
    """Files may not grow beyond 600 bytes."""
    resource = pytest.importorskip('resource')
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (600, hard))
    try:
        with pytest.raises(OSError, match='4.state: its tensors cannot be written: ') as refused:
            write_state(state(7.0), written)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert len(str(refused.value).splitlines()) == 1
    assert sorted(p.name for p in written.parent.iterdir()) == ['4.1.shards', '4.state'] and same(
        read(written), state(5.0)
    )


def test_what_a_killed_run_left_is_removed(written):
    (written.parent / '6.shards.tmp').mkdir()
    remove_leftovers(opt_of(written))
    assert sorted(p.name for p in written.parent.iterdir()) == ['4.1.shards', '4.state']
