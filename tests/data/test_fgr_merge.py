import dataclasses
import json
import shutil

import pytest

from finpercep_plugin.data.fgr_builder import build
from finpercep_plugin.data.fgr_format import FGRError, read_meta, sample_indices
from finpercep_plugin.data.fgr_merge import merge
from finpercep_plugin.data.fgr_verify import verify
from finpercep_plugin.data.lmdb_io import CorruptValueError, Reader

from .conftest import contents, flip_byte


@pytest.fixture(scope='module')
def shards(options, tmp_path_factory):
    """The two shards of 20 samples, in blocks of 8; not to be written to."""
    folder = tmp_path_factory.mktemp('shards')
    for number in range(2):
        build(dataclasses.replace(options, out=str(folder / str(number)), count=20, shard=(number, 2)))
    return [str(folder / str(number)) for number in range(2)]


@pytest.fixture(scope='module')
def whole(options, tmp_path_factory):
    out = tmp_path_factory.mktemp('whole') / 'set'
    build(dataclasses.replace(options, out=str(out), count=20))
    return out


@pytest.fixture
def copies(shards, tmp_path):
    return [shutil.copytree(shard, tmp_path / f'copy{n}') for n, shard in enumerate(shards)]


def edit(path, **changes):
    meta = json.loads((path / 'meta.json').read_text())
    (path / 'meta.json').write_text(json.dumps({**meta, **changes}))


def test_a_shard_is_sound_by_itself(shards):
    meta = read_meta(shards[1])
    assert meta['shard'] == [1, 2] and meta['count'] == 20
    assert sample_indices(meta) == list(range(8, 16)) and len(meta['photo_of']) == 8
    assert {int(k[:8]) for k in Reader(shards[1]).keys()} == set(range(8, 16))
    seen = []
    assert verify(shards[1], lambda done, total: seen.append((done, total))) == []
    assert seen == [(n, 8) for n in range(1, 9)]


def test_merged_shards_are_the_set_and_it_grows_as_one(options, shards, whole, tmp_path):
    seen = []
    out = str(tmp_path / 'set')
    report = merge(shards[::-1], out, lambda done, total: seen.append((done, total)))
    assert (report.count, report.added) == (20, 20) and seen == [(n, 20) for n in range(21)]
    assert contents(out) == contents(whole) and verify(out) == []
    assert merge(shards, out).added == 0
    assert build(dataclasses.replace(options, out=out, count=22)).added == 2


def test_a_stopped_merge_goes_on(shards, whole, tmp_path):
    def stop(done, total):
        if done == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        merge(shards, str(tmp_path / 'set'), stop)
    assert read_meta(tmp_path / 'set')['complete'] is False
    assert merge(shards, str(tmp_path / 'set')).added == 13
    assert contents(tmp_path / 'set') == contents(whole)


def test_missing_and_double_samples_are_refused(shards, tmp_path):
    out = str(tmp_path / 'set')
    with pytest.raises(FGRError, match='12 samples are in no shard, such as 00000000; the shards given: 1/2'):
        merge(shards[1:], out)
    with pytest.raises(FGRError, match='8 samples are in two shards, such as 00000008 in .*1 and .*1'):
        merge([*shards, shards[1]], out)
    assert not (tmp_path / 'set').exists()


def test_shards_of_other_builds_are_refused(copies, tmp_path):
    edit(copies[1], alpha=0.1, options={**read_meta(copies[1])['options'], 'seed': 9})
    with pytest.raises(FGRError, match=r'copy1: not of the same build as .*copy0: \$\.options\.seed: (.|\n)*\$\.alpha'):
        merge(list(map(str, copies)), str(tmp_path / 'set'))
    edit(copies[1], **{k: read_meta(copies[0])[k] for k in ('alpha', 'options')}, photos=[])
    with pytest.raises(FGRError, match=r'\$\.photos: other ones'):
        merge(list(map(str, copies)), str(tmp_path / 'set'))
    edit(copies[1], photos=read_meta(copies[0])['photos'], complete=False)
    with pytest.raises(FGRError, match='copy1: its build has not finished'):
        merge(list(map(str, copies)), str(tmp_path / 'set'))


def test_another_set_in_the_place_is_refused(shards, options, tmp_path):
    build(dataclasses.replace(options, out=str(tmp_path / 'set'), count=2, seed=8))
    with pytest.raises(FGRError, match=r'\$\.seed: built with 8, asked for 3'):
        merge(shards, str(tmp_path / 'set'))


def test_a_spoilt_value_is_not_copied(copies, tmp_path):
    flip_byte(copies[1], '00000009/gt')
    with pytest.raises(CorruptValueError, match="'00000009/gt' fails its checksum"):
        merge(list(map(str, copies)), str(tmp_path / 'set'))


def test_a_shard_that_cannot_have_samples_is_refused(options, tmp_path):
    with pytest.raises(FGRError, match='shard 3 of 4 is empty with 20 samples'):
        build(dataclasses.replace(options, out=str(tmp_path / 'set'), count=20, shard=(3, 4)))
