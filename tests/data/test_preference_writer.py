import json

import numpy as np
import pytest
import torch

from finpercep_plugin.algorithms.preferences import Pair
from finpercep_plugin.data.fgr_format import FGRError
from finpercep_plugin.data.lmdb_io import Reader, Writer
from finpercep_plugin.data.preference_format import read_meta, read_record
from finpercep_plugin.data.preference_verify import verify
from finpercep_plugin.data.preference_writer import Draft, make_record, open_set

from .conftest import preference_record

OPTIONS = {'best': 2, 'min_gap': 0.0}


def contents(path):
    reader = Reader(path)
    return {key: bytes(reader.get(key)) for key in reader.keys()}, read_meta(path)


def test_best_and_worst_are_paired_ties_and_small_gaps_are_not():
    lq, samples = torch.rand(3, 2, 2), torch.rand(6, 3, 4, 4)
    scores = [3.0, 1.0, 2.0, 3.0, 1.5, 1.0]
    wide = make_record(lq, samples, scores, best=2)
    assert wide.pairs == [Pair(3, 1, 2.0), Pair(3, 5, 2.0), Pair(0, 1, 2.0), Pair(0, 5, 2.0)]
    assert make_record(lq, samples, scores, best=3, min_gap=1.2).pairs == [
        Pair(3, 1, 2.0), Pair(3, 5, 2.0), Pair(3, 4, 1.5), Pair(0, 1, 2.0), Pair(0, 5, 2.0), Pair(0, 4, 1.5),
    ]  # fmt: skip
    assert make_record(lq, samples, [1.0] * 6, best=3).pairs == []
    assert np.array_equal(wide.samples[4], (samples[4] * 255).round().byte().permute(1, 2, 0).numpy())
    again = make_record(wide.lq, list(wide.samples.values()), scores, best=2)
    assert np.array_equal(again.samples[4], wide.samples[4]) and np.array_equal(again.lq, wide.lq)
    for wrong, message in (([1.0] * 5, '6 finite scores'), ([float('nan')] * 6, '6 finite scores')):
        with pytest.raises(ValueError, match=message):
            make_record(lq, samples, wrong, best=2)
    with pytest.raises(ValueError, match='too few for the 4 best'):
        make_record(lq, samples, scores, best=4)


def test_meta_sums_up_the_records(preferences):
    meta = read_meta(preferences)
    assert meta == {
        'format': 'preferences 1', 'complete': True, 'options': OPTIONS, 'scale': 2, 'count': 5,
        'pairs_of': [4, 4, 0, 4, 4], 'skipped': [], 'lq_sizes': [[4, 4]], 'gt': True,
    }  # fmt: skip
    assert read_record(Reader(preferences).get, 3)['scores'] == [3.0, 4.0, 5.0, 6.0]
    assert verify(preferences) == []


def test_records_by_index_in_any_order_and_runs_are_the_same_set(preferences, tmp_path):
    out = tmp_path / 'set'
    for indices in ([3, 0], [4], [1, 2]):
        with open_set(out, OPTIONS, scale=2, count=5) as writer:
            assert set(indices) <= set(writer.missing())
            for index in indices:
                writer.put(index, preference_record(index))
        assert read_meta(out)['complete'] == (indices == [1, 2])
    assert contents(out) == contents(preferences)


def test_a_set_grows_and_does_not_shrink(tmp_path):
    for count in (2, 3):
        with open_set(tmp_path, OPTIONS, scale=2, count=count) as writer:
            for index in writer.missing():
                writer.put(index, preference_record(index + 7))
        assert read_meta(tmp_path)['count'] == count
    with pytest.raises(FGRError, match='holds 3 records already; count can grow, not shrink to 2'):
        with open_set(tmp_path, OPTIONS, scale=2, count=2):
            pass
    with open_set(tmp_path, OPTIONS, scale=2) as writer:
        assert writer.append(preference_record(1)) == 3
    assert read_meta(tmp_path)['count'] == 4 and verify(tmp_path) == []


def test_what_was_put_before_an_error_is_kept(preferences, tmp_path):
    with pytest.raises(RuntimeError, match='stop'):
        with open_set(tmp_path, OPTIONS, scale=2) as writer:
            writer.append(preference_record(0))
            raise RuntimeError('stop')
    assert read_meta(tmp_path)['complete'] is False
    assert verify(tmp_path) == [
        'meta.json: the build has not finished; run finpercep-build-preferences again to continue it'
    ]
    with open_set(tmp_path, OPTIONS, scale=2) as writer:
        for index in range(1, 5):
            assert writer.append(preference_record(index)) == index
    assert contents(tmp_path) == contents(preferences)


def test_drafts_are_kept_until_their_record_is_there(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
    with open_set(tmp_path, OPTIONS, scale=2, count=1) as writer:
        writer.put_drafts(0, {0: Draft(images[0], 1.5, {'a': 0.1})})
        writer.put_drafts(0, {1: Draft(images[1], 2.5, {'a': 0.2}), 2: Draft(images[2], 0.5, {})})
    with open_set(tmp_path, OPTIONS, scale=2, count=1) as writer:
        found = writer.drafts(0)
        assert [(n, d.score, d.terms) for n, d in found.items()] == [
            (0, 1.5, {'a': 0.1}),
            (1, 2.5, {'a': 0.2}),
            (2, 0.5, {}),
        ]
        assert all(np.array_equal(d.image, images[n]) for n, d in found.items()) and writer.missing() == [0]
        writer.put(0, preference_record(0))
    assert not [key for key in Reader(tmp_path).keys() if 'draft' in key] and verify(tmp_path) == []


def test_a_record_that_could_not_be_made_is_told(tmp_path):
    with open_set(tmp_path, OPTIONS, scale=2, count=2) as writer:
        writer.put(0, preference_record(0))
        writer.skip(1, 'no picture')
    meta = read_meta(tmp_path)
    assert meta['skipped'] == [['00000001', 'no picture']] and meta['pairs_of'] == [4, 0] and meta['complete']
    assert verify(tmp_path) == []


def test_sets_made_otherwise_are_refused(preferences, tmp_path):
    with pytest.raises(FGRError, match=r'cannot be continued:\n  \$\.best: built with 2, asked for 1'):
        with open_set(preferences, {**OPTIONS, 'best': 1}, scale=2):
            pass
    with pytest.raises(FGRError, match=r'\$\.scale: built with 2, asked for 4'):
        with open_set(preferences, OPTIONS, scale=4):
            pass
    with Writer(tmp_path / 'other') as writer:
        writer.put({'key': b'value'})
    with pytest.raises(FGRError, match='not a preference set, choose another folder'):
        with open_set(tmp_path / 'other', OPTIONS, scale=2):
            pass
    with open_set(tmp_path / 'mine', OPTIONS, scale=2):
        with pytest.raises(FGRError, match='another build is writing'):
            with open_set(tmp_path / 'mine', OPTIONS, scale=2):
                pass


def test_gaps_and_a_mixture_with_and_without_gt_are_refused(tmp_path):
    with pytest.raises(FGRError, match=r'indices \[0\] are missing'):
        with open_set(tmp_path / 'a', OPTIONS, scale=2) as writer:
            writer.put(1, preference_record(1))
    with pytest.raises(FGRError, match='some records have gt and some have none'):
        with open_set(tmp_path / 'b', OPTIONS, scale=2) as writer:
            for index in range(2):
                writer.append(preference_record(index, gt=bool(index)))
    assert json.loads((tmp_path / 'b/meta.json').read_text())['complete'] is False
