import json
import shutil

import numpy as np
import pytest

from finpercep_plugin.data.fgr_format import decode_png, encode_png, from_json, to_json
from finpercep_plugin.data.fgr_verify import verify
from finpercep_plugin.data.lmdb_io import Reader, Writer

from .conftest import flip_byte


@pytest.fixture
def copy(fgr, tmp_path):
    shutil.copytree(fgr, tmp_path / 'set')
    return tmp_path / 'set'


def test_a_sound_set_has_no_problems(fgr):
    seen = []
    assert verify(fgr, lambda done, total: seen.append(done)) == []
    assert seen == list(range(1, 13))


@pytest.mark.parametrize('part', ['lq', 'gt', 'sr', 'mask', 'pixel', 'feature', 'record'])
def test_a_flipped_byte_of_any_part_is_found(copy, part):
    flip_byte(copy, f'00000004/{part}')
    problems = verify(copy)
    assert len(problems) == 1 and problems[0].startswith(f'sample 00000004: {part}:') and 'checksum' in problems[0]


def replace(path, key, value):
    with Writer(path) as writer:
        writer.put({key: value})


def test_another_picture_with_a_good_checksum_is_found(copy):
    replace(copy, '00000002/gt', bytes(Reader(copy).get('00000003/gt')))
    assert verify(copy) == ['sample 00000002: gt: not the bytes that its record tells of']


def test_a_wrong_label_is_found_even_when_its_record_agrees(copy):
    import hashlib

    pixel = encode_png(decode_png(Reader(copy).get('00000002/pixel')) // 2)
    record = from_json(Reader(copy).get('00000002/record'))
    record['sha256']['pixel'] = hashlib.sha256(pixel).hexdigest()
    replace(copy, '00000002/pixel', pixel)
    replace(copy, '00000002/record', to_json(record).encode())
    assert verify(copy) == [
        'sample 00000002: pixel: not |syn - gt| of its pictures',
        'sample 00000002: pixel: not the histogram in its record',
    ]


def test_a_wrong_size_is_found(copy):
    import hashlib

    lq = encode_png(np.zeros((8, 9, 3), np.uint8))
    record = from_json(Reader(copy).get('00000001/record'))
    record['sha256']['lq'] = hashlib.sha256(lq).hexdigest()
    replace(copy, '00000001/lq', lq)
    replace(copy, '00000001/record', to_json(record).encode())
    assert verify(copy) == ['sample 00000001: lq: expected (8, 8, 3) uint8, got (8, 9, 3) uint8']


def edit_meta(path, **changes):
    meta = json.loads((path / 'meta.json').read_text())
    (path / 'meta.json').write_text(json.dumps({**meta, **changes}))


def test_meta_that_disagrees_with_the_samples_is_found(copy):
    edit_meta(copy, p99={'pixel': 0.5, 'feature': 0.5})
    (problem,) = verify(copy)
    assert problem.startswith("meta.json: p99 is {'pixel': 0.5, 'feature': 0.5}, the records give")


def test_missing_and_surplus_samples_are_found(copy):
    edit_meta(copy, count=13)
    assert any("no key '00000012/record'" in p for p in verify(copy))
    edit_meta(copy, count=11)
    assert '7 keys that belong to no sample, such as 00000011/feature' in verify(copy)


def test_an_unfinished_set_says_so(copy):
    edit_meta(copy, complete=False)
    assert verify(copy) == ['meta.json: the build has not finished; run finpercep-build-fgr again to continue it']


def test_no_set_and_a_future_format(tmp_path, copy):
    assert 'not an FGR set (no meta.json)' in verify(tmp_path / 'nope')[0]
    edit_meta(copy, format=99)
    assert 'expected format 1, got 99' in verify(copy)[0]
    (copy / 'meta.json').write_text('{')
    assert 'cannot be read' in verify(copy)[0]
