"""Samples made of another set's lq: their order, their labels, and the set they make."""

import numpy as np
import pytest

from finpercep_plugin.data import labels
from finpercep_plugin.data.fgr_dataset import FinPercepFGRDataset
from finpercep_plugin.data.fgr_format import from_json, read_meta, sample_key
from finpercep_plugin.data.fgr_verify import verify
from finpercep_plugin.data.fresh_samples import FreshSamples, build_fresh, is_complete
from finpercep_plugin.data.lmdb_io import Reader


@pytest.fixture
def source(fgr):
    return FinPercepFGRDataset({'dataroot': str(fgr), 'photos': 'train'})


@pytest.fixture
def samples(source):
    return FreshSamples(source, {'type': 'tester', 'stage': 1}, seed=7)


def enlarged(samples, index):
    """A poor sr: every pixel of lq four times as wide and high."""
    return samples.lq(index).repeat(4, 0).repeat(4, 1)


def made(samples, count, batch=3):
    for first in range(0, count, batch):
        indices = range(first, first + batch)
        yield indices, np.stack([enlarged(samples, i) for i in indices])


def test_every_sample_of_the_source_comes_once_before_any_again(source, samples):
    keys = [samples.key(i) for i in range(2 * len(source))]
    assert sorted(keys[: len(source)]) == sorted(keys[len(source) :]) == sorted(source.keys)
    assert keys[: len(source)] != source.keys and keys[len(source) :] != keys[: len(source)]
    other = FreshSamples(source, {'type': 'tester'}, seed=8)
    assert [other.key(i) for i in range(len(source))] != keys[: len(source)]


def test_the_set_is_sound_and_its_labels_are_on_the_scale_of_the_source(source, samples, fgr, tmp_path):
    out = tmp_path / 'fresh'
    assert not is_complete(out)
    build_fresh(out, samples, 10, made(samples, 10))
    assert is_complete(out) and verify(out) == []
    meta, base = read_meta(out), read_meta(fgr)
    assert meta['p99'] == base['p99'] and meta['p99_of'] == str(fgr) and meta['produced_by'] == {'tester': 10}
    fresh = FinPercepFGRDataset({'dataroot': str(out), 'inside_mask': False})
    for i in range(10):
        arrays, origin = fresh.read(sample_key(i)), source.read(samples.key(i))
        assert np.array_equal(arrays['gt'], origin['gt']) and np.array_equal(arrays['lq'], origin['lq'])
        assert np.array_equal(arrays['sr'], enlarged(samples, i))
        gt = origin['gt'].astype(np.float32) / 255
        pixel = labels.pixel_term(arrays['syn'], gt) / base['p99']['pixel']
        feature = labels.feature_term(arrays['syn'], gt, labels.gabor_features) / base['p99']['feature']
        expected = 0.5 * np.clip(pixel, 0, 1) + 0.5 * np.clip(feature, 0, 1)
        np.testing.assert_allclose(arrays['map'], expected, atol=1e-3)


def test_a_photo_stays_on_its_side(source, samples, fgr, tmp_path):
    build_fresh(tmp_path / 'fresh', samples, 12, made(samples, 12))
    meta, base = read_meta(tmp_path / 'fresh'), read_meta(fgr)
    of_the_source = {base['photos'][base['photo_of'][int(key)]][0] for key in source.keys}
    assert {name for name, _ in meta['photos']} == of_the_source != {name for name, _ in base['photos']}
    records = [from_json(Reader(tmp_path / 'fresh').get(f'{sample_key(i)}/record')) for i in range(12)]
    assert [r['photo'] for r in records] == [meta['photos'][n][0] for n in meta['photo_of']]
    assert [r['source'] for r in records] == [samples.key(i) for i in range(12)]


def test_building_again_replaces_what_is_there(samples, tmp_path):
    out = tmp_path / 'fresh'
    build_fresh(out, samples, 9, made(samples, 9))
    whole = {key: bytes(Reader(out).get(key)) for key in Reader(out).keys()}
    build_fresh(out, samples, 4, made(samples, 4))
    assert verify(out) == [] and read_meta(out)['count'] == 4
    assert {key: bytes(Reader(out).get(key)) for key in Reader(out).keys()} == {
        key: value for key, value in whole.items() if int(key.split('/')[0]) < 4
    }
    assert len({value for key, value in whole.items() if key.endswith('/mask')}) == 9, 'regions of their own'
