import numpy as np
import pytest

from finpercep_plugin.algorithms.preferences import Pair
from finpercep_plugin.data.fgr_format import FGRError, encode_png
from finpercep_plugin.data.fgr_format import read_meta as read_fgr_meta
from finpercep_plugin.data.preference_format import (
    PreferenceRecord,
    pack,
    pack_skipped,
    parts_of,
    read_meta,
    read_pair,
    read_record,
)

RNG = np.random.default_rng(0)
SMALL, LARGE = (4, 6, 3), (8, 12, 3)


def picture(shape):
    return RNG.integers(0, 256, shape, dtype=np.uint8)


def record(**changes):
    parts = {
        'lq': picture(SMALL),
        'samples': {n: picture(LARGE) for n in range(5)},
        'pairs': [Pair(3, 0, 1.5), Pair(3, 1, 0.25), Pair(4, 0, 0.1)],
        'scores': [0.1, 1.35, 0.3, 1.6, 0.2],
        'terms': {'raw': [1, 2, 3, 4, 5]},
        'gt': picture(LARGE),
        'prompt': 'ein Haus, クマ',
        'made': {'seed': 7},
    }
    return PreferenceRecord(**{**parts, **changes})


def test_every_pair_comes_back_bit_for_bit():
    one = record()
    store = pack(12, one, scale=2)
    assert sorted(store) == [f'00000012/{p}' for p in ['gt', 'lq', 'record', *(f'sample_{n}' for n in (0, 1, 3, 4))]]
    assert list(store)[-1] == '00000012/record'
    for number, pair in enumerate(one.pairs):
        arrays, info = read_pair(store.__getitem__, f'00000012/{number}', scale=2, gt=True)
        assert np.array_equal(arrays['lq'], one.lq) and np.array_equal(arrays['gt'], one.gt)
        assert np.array_equal(arrays['winner'], one.samples[pair.winner])
        assert np.array_equal(arrays['loser'], one.samples[pair.loser])
        assert info == {
            'winner_number': pair.winner, 'loser_number': pair.loser, 'gap': pair.gap, 'prompt': one.prompt,
        }  # fmt: skip
    text = read_record(store.__getitem__, 12)
    assert (text['index'], text['scores'], text['terms'], text['made']) == (12, one.scores, one.terms, {'seed': 7})
    assert {f'00000012/{part}' for part in parts_of(text)} == set(store)


def test_a_record_without_gt_or_without_pairs():
    store = pack(0, record(gt=None), scale=2)
    assert '00000000/gt' not in store
    assert set(read_pair(store.__getitem__, '00000000/0', 2, gt=False)[0]) == {'lq', 'winner', 'loser'}
    assert list(pack(0, record(pairs=[]), scale=2)) == ['00000000/record']
    store = pack_skipped(3, 'no picture')
    assert read_record(store.__getitem__, 3)['skipped'] == 'no picture'


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'pairs': [Pair(3, 3, 1.0)]}, 'needs two samples and a gap above 0'),
        ({'pairs': [Pair(3, 0, 0.0)]}, 'leave ties out'),
        ({'pairs': [Pair(3, 0, float('nan'))]}, 'leave ties out'),
        ({'pairs': [Pair(9, 0, 1.0)]}, 'names sample 9, which is not among'),
        ({'pairs': [Pair(1, 0, 1.0), Pair(1, 0, 2.0)]}, 'stands twice'),
        ({'lq': picture((4, 4, 3))}, r'gt is \(8, 12, 3\) uint8, expected \(8, 8, 3\)'),
        ({'samples': dict.fromkeys(range(5), picture((8, 10, 3)))}, r'sample_0 is \(8, 10, 3\)'),
        ({'lq': picture(SMALL).astype(np.uint16)}, 'lq is .* uint16'),
        ({'gt': picture((8, 12))}, r'gt is \(8, 12\)'),
    ],
)
def test_what_cannot_be_a_record_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        pack(0, record(**changes), scale=2)


def test_what_cannot_be_read_is_named():
    store = pack(0, record(), scale=2)
    for changes, message in (
        ({'00000000/sample_3': b'text'}, 'sample_3: not a PNG picture'),
        ({'00000000/sample_3': encode_png(picture((8, 8, 3)))}, r'winner is \(8, 8, 3\) uint8, expected \(8, 12, 3\)'),
        ({'00000000/record': b'{}'}, 'no list of pairs'),
    ):
        with pytest.raises(ValueError, match=message):
            read_pair({**store, **changes}.__getitem__, '00000000/0', 2, gt=True)
    with pytest.raises(ValueError, match='its record has 3 pairs'):
        read_pair(store.__getitem__, '00000000/3', 2, gt=True)


def test_an_fgr_set_is_not_one_and_the_other_way_round(tmp_path):
    with pytest.raises(FGRError, match='not a preference set .* build one with finpercep-build-preferences'):
        read_meta(tmp_path)
    (tmp_path / 'meta.json').write_text('{"format": 1}')
    with pytest.raises(FGRError, match='expected format preferences 1, got 1'):
        read_meta(tmp_path)
    (tmp_path / 'meta.json').write_text('{"format": "preferences 1"}')
    with pytest.raises(FGRError, match='expected format 1, got preferences 1'):
        read_fgr_meta(tmp_path)
