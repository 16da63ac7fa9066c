import hashlib
import json
import shutil

import numpy as np
import pytest

from finpercep_plugin.data.fgr_format import encode_png, from_json, to_json
from finpercep_plugin.data.lmdb_io import Reader, Writer
from finpercep_plugin.data.preference_verify import verify

from .conftest import flip_byte


@pytest.fixture
def copy(preferences, tmp_path):
    shutil.copytree(preferences, tmp_path / 'set')
    return tmp_path / 'set'


def replace(path, **values):
    """Put other values in record 1; its JSON as a function of what it was."""
    old = from_json(Reader(path).get('00000001/record'))
    change = values.pop('record', None)
    with Writer(path) as writer:
        writer.put({f'00000001/{part}': value for part, value in values.items()})
        if change:
            writer.put({'00000001/record': to_json({**old, **change(old)}).encode()})


def test_a_sound_set_has_no_problems(preferences):
    seen = []
    assert verify(preferences, lambda done, total: seen.append((done, total))) == []
    assert seen == [(i, 5) for i in range(1, 6)]


@pytest.mark.parametrize('part', ['lq', 'gt', 'sample_0', 'sample_3', 'record'])
def test_a_flipped_byte_of_any_part_is_found(copy, part):
    flip_byte(copy, f'00000003/{part}')
    problems = verify(copy)
    assert len(problems) == 1 and problems[0].startswith(f'record 00000003: {part}:') and 'checksum' in problems[0]


def test_another_picture_with_a_good_checksum_is_found(copy):
    replace(copy, gt=bytes(Reader(copy).get('00000003/gt')))
    assert verify(copy) == ['record 00000001: gt: not the bytes that its record tells of']


def test_a_wrong_size_is_found_even_when_its_record_agrees(copy):
    data = encode_png(np.zeros((8, 9, 3), np.uint8))
    digest = hashlib.sha256(data).hexdigest()
    replace(copy, sample_3=data, record=lambda old: {'sha256': {**old['sha256'], 'sample_3': digest}})
    problems = verify(copy)
    assert problems[0].startswith('record 00000001: pair 0: winner is (8, 9, 3) uint8') and len(problems) == 2


def test_pairs_that_are_not_of_the_scores_are_found(copy):
    replace(copy, record=lambda old: {'pairs': [[a, b, gap] for b, a, gap in old['pairs']]})
    assert verify(copy) == ['record 00000001: pairs: not the best and worst of its scores']


def test_extra_keys_and_a_wrong_summary_are_found(copy):
    with Writer(copy) as writer:
        writer.put({'00000001/draft_0': b'x'})
    meta = json.loads((copy / 'meta.json').read_text())
    (copy / 'meta.json').write_text(json.dumps({**meta, 'gt': False}))
    assert verify(copy) == [
        '1 keys that belong to no record, such as 00000001/draft_0',
        'meta.json: gt is False, the records give True',
    ]


def test_no_set_is_a_problem(tmp_path):
    assert 'not a preference set' in verify(tmp_path)[0]
