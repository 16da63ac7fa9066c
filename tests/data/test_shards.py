import dataclasses
import json
import pickle
import shutil

import numpy as np
import pytest
import torch

from finpercep_plugin.data import labels
from finpercep_plugin.data.fgr_builder import build
from finpercep_plugin.data.fgr_dataset import FinPercepFGRDataset
from finpercep_plugin.data.fgr_export import export
from finpercep_plugin.data.fgr_format import FGRError, from_json, read_meta, write_meta
from finpercep_plugin.data.lmdb_io import Reader, StoreError
from finpercep_plugin.data.sampler import PositionDataset, PositionSampler
from finpercep_plugin.data.shards import Shards, folders_of, open_store


@pytest.fixture(scope='session')
def apart(options, tmp_path_factory):
    """A set of 5 samples, built with another seed."""
    out = tmp_path_factory.mktemp('apart') / 'set'
    build(dataclasses.replace(options, out=str(out), seed=8, count=5))
    return out


@pytest.fixture(scope='session')
def tars(fgr, tmp_path_factory):
    """The set `fgr` in tars of 5 samples."""
    out = tmp_path_factory.mktemp('tars') / 'set'
    export(fgr, out, 'tar', shard_size=5)
    return out


def dataset(root, **options):
    return FinPercepFGRDataset({'dataroot': root if isinstance(root, list) else str(root), **options})


def same_items(one, other):
    assert len(one) == len(other)
    for a, b in zip(one, other):
        assert a.keys() == b.keys() and a['key'] == b['key']
        assert all(torch.equal(a[k], b[k]) for k in a if isinstance(a[k], torch.Tensor))


def test_folders_by_name_list_and_pattern(halves, fgr):
    names = [halves / 'shard_0', halves / 'shard_1']
    (halves / 'other').mkdir(exist_ok=True)  # fits the pattern, but is no set
    assert folders_of(f'{halves}/*') == folders_of([str(n) for n in names]) == names
    assert folders_of([str(fgr), f'{halves}/shard_[1]']) == [fgr, names[1]]
    with pytest.raises(FGRError, match='no folder of an FGR set fits this pattern'):
        folders_of(f'{halves}/none_*')
    with pytest.raises(FGRError, match='named twice: .*shard_0'):
        folders_of([f'{halves}/shard_*', str(names[0])])
    with pytest.raises(FGRError, match='an empty list'):
        folders_of([])


@pytest.mark.parametrize('turned', [False, True])
def test_the_shards_of_a_build_are_the_set_they_are_parts_of(fgr, halves, turned):
    folders = [str(halves / f'shard_{n}') for n in ((1, 0) if turned else (0, 1))]
    whole, parts = dataset(fgr), dataset(folders)
    assert parts.keys == whole.keys and parts.meta['p99'] == whole.meta['p99']
    same_items(parts, whole)
    assert [parts.photo(k) for k in parts.keys] == [whole.photo(k) for k in whole.keys]
    for side in ('train', 'val'):
        assert dataset(folders, photos=side).keys == dataset(fgr, photos=side).keys
    assert parts[9]['lq_path'] == f'{halves}/shard_1/00000009.png'


def test_sets_built_apart_stand_one_after_the_other(fgr, apart):
    both = dataset([str(fgr), str(apart)])
    assert len(both) == 17 and both.keys[0] == '0-00000000' and both.keys[12] == '1-00000000'
    assert torch.equal(both[3]['gt'], dataset(fgr)[3]['gt']) and torch.equal(both[14]['sr'], dataset(apart)[2]['sr'])
    assert both[14]['lq_path'] == f'{apart}/1-00000002.png'


def test_labels_are_on_the_scale_of_all_sets_together(fgr, apart):
    both = dataset([str(fgr), str(apart)], inside_mask=False)
    totals = {term: np.zeros(labels.BINS, np.int64) for term in labels.TERMS}
    for root, count in ((fgr, 12), (apart, 5)):
        for i in range(count):
            for term, (bins, counts) in from_json(Reader(root).get(f'{i:08d}/record'))['histograms'].items():
                totals[term][bins] += counts
    p99 = {t: labels.percentile(totals[t], 0.99, labels.SCALES[t]) for t in labels.TERMS}
    assert both.meta['p99'] == p99 != read_meta(fgr)['p99']
    one = dataset(fgr, inside_mask=False, alpha=1.0)[3]['map'] * read_meta(fgr)['p99']['pixel'] / p99['pixel']
    again = dataset([str(fgr), str(apart)], inside_mask=False, alpha=1.0)[3]['map']
    below = (one < 0.9) & (again < 0.9)
    torch.testing.assert_close(one[below], again[below])


def test_sets_of_before_there_were_sums_are_read_by_their_records(fgr, apart, tmp_path):
    shutil.copytree(fgr, tmp_path / 'old')
    write_meta(tmp_path / 'old', {k: v for k, v in read_meta(fgr).items() if k != 'histograms'})
    roots = ([str(tmp_path / 'old'), str(apart)], [str(fgr), str(apart)])
    assert 'histograms' in read_meta(fgr) and Shards(roots[0]).meta['p99'] == Shards(roots[1]).meta['p99']


@pytest.mark.parametrize('change', [{'scale': 2}, {'size': 48}, {'feature': 'none'}])
def test_sets_that_do_not_go_together_are_refused(fgr, apart, tmp_path, change):
    shutil.copytree(apart, tmp_path / 'set')
    meta = read_meta(apart)
    write_meta(tmp_path / 'set', {**meta, 'options': {**meta['options'], **change}})
    with pytest.raises(FGRError, match=f'built with {next(iter(change))} .*, but .* with'):
        dataset([str(fgr), str(tmp_path / 'set')])


def test_alpha_must_be_said_where_the_builds_differ(fgr, apart, tmp_path):
    shutil.copytree(apart, tmp_path / 'set')
    write_meta(tmp_path / 'set', {**read_meta(apart), 'alpha': 0.9})
    with pytest.raises(FGRError, match='several values of alpha'):
        dataset([str(fgr), str(tmp_path / 'set')])
    assert dataset([str(fgr), str(tmp_path / 'set')], alpha=0.7).alpha == 0.7


def test_an_unfinished_shard_is_refused(halves, tmp_path):
    shutil.copytree(halves, tmp_path / 'set')
    file = tmp_path / 'set' / 'shard_1' / 'meta.json'
    file.write_text(json.dumps({**json.loads(file.read_text()), 'complete': False}))
    with pytest.raises(FGRError, match='shard_1: its build has not finished'):
        dataset(tmp_path / 'set' / 'shard_*')


def test_a_rank_reads_its_own_shards_with_everybodys_scale(halves, monkeypatch):
    folders, whole = [str(halves / f'shard_{n}') for n in range(2)], dataset(f'{halves}/shard_*')
    found = []
    for rank in range(2):
        monkeypatch.setattr('finpercep_plugin.data.fgr_dataset.ranks', lambda rank=rank: (rank, 2))
        own = dataset(folders, shard_by_rank=True)
        assert own.meta['p99'] == whole.meta['p99'] and own.shards.folder(own.keys[0]).name == f'shard_{rank}'
        found += own.keys
    assert found == whole.keys
    monkeypatch.setattr('finpercep_plugin.data.fgr_dataset.ranks', lambda: (0, 3))
    with pytest.raises(FGRError, match='2 sets cannot be dealt out to 3 processes'):
        dataset(folders, shard_by_rank=True)


def test_tars_are_read_as_the_store_they_were_made_of(fgr, tars):
    assert not (tars / 'data.mdb').exists() and len(list(tars.glob('*.tar'))) == 3
    same_items(dataset(tars, alpha=0.3), dataset(fgr, alpha=0.3))
    assert torch.equal(pickle.loads(pickle.dumps(dataset(tars)))[7]['map'], dataset(fgr)[7]['map'])


def test_no_store_is_one_clear_error(tmp_path):
    with pytest.raises(StoreError, match='no store here .data.mdb or .tar files are expected'):
        open_store(tmp_path)


def test_webdataset_reads_the_tars(fgr, tars):
    wds = pytest.importorskip('webdataset')
    files = [str(file) for file in sorted(tars.glob('*.tar'))]
    samples = list(wds.WebDataset(files, shardshuffle=False, empty_check=False))
    assert [s['__key__'] for s in samples] == [f'{i:08d}' for i in range(12)]
    for sample in samples:
        for part in ('gt', 'feature'):
            assert sample[f'{part}.png'] == bytes(Reader(fgr).get(f'{sample["__key__"]}/{part}'))
        assert from_json(sample['record.json'])['index'] == int(sample['__key__'])


def _items(root, rank, start, total=7):
    """(key, flipped gt) of the iterations from `start` of one of two ranks, as a run reads them."""
    positions = PositionDataset(dataset(root, use_hflip=True, use_rot=True), seed=5)
    sampler = PositionSampler(4, rank, 2, start, total)
    return [(positions[p]['key'], positions[p]['gt'].numpy().tobytes()) for p in sampler]


@pytest.mark.parametrize('rank', [0, 1])
def test_the_position_is_exact_after_a_restart_whatever_the_store(fgr, tars, halves, rank):
    whole = _items(fgr, rank, 0)
    assert len(whole) == 14  # more than an epoch of 12 over both ranks
    for root in (tars, f'{halves}/shard_*'):
        assert _items(root, rank, 0) == whole and _items(root, rank, 3) == whole[6:]
