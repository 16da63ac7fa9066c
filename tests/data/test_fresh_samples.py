"""Samples made of another set's lq: their order, their labels, and the set they make."""

import dataclasses

import numpy as np
import pytest

from finpercep_plugin.data import labels
from finpercep_plugin.data.features.gabor import GaborFeatures, gabor_features
from finpercep_plugin.data.fgr_builder import build
from finpercep_plugin.data.fgr_dataset import FinPercepFGRDataset
from finpercep_plugin.data.fgr_format import decode_png, from_json, read_meta, sample_key
from finpercep_plugin.data.fgr_verify import verify
from finpercep_plugin.data.fresh_samples import FreshSamples, build_fresh, is_complete
from finpercep_plugin.data.lmdb_io import Reader
from finpercep_plugin.data.masks import MaskOptions
from finpercep_plugin.registry import FEATURES, SEGMENTS


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
        syn = labels.swap(arrays['sr'], arrays['gt'], arrays['mask'])
        pixel = labels.pixel_term(syn, gt) / base['p99']['pixel']
        features = (gabor_features(syn), gabor_features(gt))
        feature = labels.feature_term(*features, gt.shape[:2], GaborFeatures.eps) / base['p99']['feature']
        expected = 0.5 * np.clip(pixel, 0, 1) + 0.5 * np.clip(feature, 0, 1)
        np.testing.assert_allclose(arrays['map'], expected, atol=1e-3)


def test_regions_and_features_are_by_the_networks_of_the_source(options, tiny_dinov3, tiny_sam, tmp_path):
    segments = {'type': 'sam', 'weights': str(tiny_sam), 'points_per_side': 2, 'overlap': 1.0}
    mask = MaskOptions(kinds={'semantic': 1}, segments=segments, area=(0.02, 0.6), shapes=(1, 1), feather=(0, 0))
    build(dataclasses.replace(options, count=2, batch=2, feature=tiny_dinov3, mask=mask, out=str(tmp_path / 'set')))
    samples = FreshSamples(FinPercepFGRDataset({'dataroot': str(tmp_path / 'set')}), {'type': 'tester'}, seed=7)
    values = samples(0, enlarged(samples, 0))
    gt, sr, mask = (decode_png(values[f'00000000/{part}']) for part in ('gt', 'sr', 'mask'))
    (found,) = SEGMENTS.get('sam')(**{k: v for k, v in segments.items() if k != 'type'})([gt])
    assert from_json(values['00000000/record'])['mask']['kind'] == 'semantic'
    assert any(np.array_equal(mask > 0, segment) for segment in found)
    extractor = FEATURES.get('timm')(**{k: v for k, v in tiny_dinov3.items() if k != 'type'})
    pictures = np.stack([labels.swap(sr, gt, mask), gt.astype(np.float32) / 255])
    term = labels.feature_term(*extractor(pictures), gt.shape[:2], extractor.eps)
    assert term.max() > 1e-3
    np.testing.assert_allclose(decode_png(values['00000000/feature']) * (2 / 65535), term, atol=1e-4)


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
