"""Built sets, photos, and the sections of a YAML file that name them."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import yaml
from PIL import Image

from finpercep_plugin.data.check.fgr import check_fgr
from finpercep_plugin.data.check.leaks import compare, leaks
from finpercep_plugin.data.check.photos import check_photos
from finpercep_plugin.data.check.preferences import check_preferences
from finpercep_plugin.data.check.report import Work
from finpercep_plugin.data.check.sections import check_options
from finpercep_plugin.data.check.sets import check_set, is_set
from finpercep_plugin.data.fgr_builder import build
from finpercep_plugin.data.fgr_format import encode_png
from finpercep_plugin.data.lmdb_io import Reader, Writer
from tests.data.conftest import flip_byte, preference_record


def lines(report):
    return [(p.where, p.kind, p.text) for p in report.problems]


@pytest.mark.parametrize('threads', [0, 2])
def test_a_sound_set(fgr, threads):
    report = check_fgr(fgr, Work(threads))
    assert (report.findings, report.checked, report.what) == ([], 12, 'FGR samples')
    assert sorted(report.photos.values()) == [f'p{n}.png' for n in range(6)]


def test_a_shard_is_checked_by_its_own_samples(options, tmp_path):
    build(dataclasses.replace(options, out=str(tmp_path / 'set'), batch=2, shard=(1, 3)))
    report = check_set(tmp_path / 'set')
    assert (report.problems, report.checked) == ([], 4)


def test_what_verify_finds_has_its_sample_and_the_others_are_still_checked(fgr, tmp_path):
    shutil.copytree(fgr, tmp_path / 'set')
    flip_byte(tmp_path / 'set', '00000004/gt')
    values = {part: bytes(Reader(tmp_path / 'set').get(f'00000002/{part}')) for part in ('lq', 'gt', 'sr', 'mask')}
    other = {part: bytes(Reader(tmp_path / 'set').get(f'00000002/{part}')) for part in ('pixel', 'feature')}
    record = json.loads(bytes(Reader(tmp_path / 'set').get('00000002/record')))
    record['index'] = 7
    with Writer(tmp_path / 'set') as writer:
        writer.put({f'00000007/{part}': value for part, value in {**values, **other}.items()})
        writer.put({'00000007/record': json.dumps(record).encode()})
    found = lines(check_fgr(tmp_path / 'set'))
    assert [f[:2] for f in found] == [('sample 00000004', 'record'), ('sample 00000007', 'copy')]
    assert 'fails its checksum' in found[0][2] and found[1][2] == 'the same sample as 00000002'


def test_samples_without_content(fgr, tmp_path, monkeypatch):
    """Sets whose records are sound, and yet there is nothing to learn from."""
    shutil.copytree(fgr, tmp_path / 'set')
    reader = Reader(tmp_path / 'set')
    same = bytes(reader.get('00000001/gt'))
    flat = encode_png(np.full((32, 32, 3), 7, np.uint8))
    with Writer(tmp_path / 'set') as writer:
        writer.put({'00000001/sr': same, '00000003/gt': flat})
    meta = json.loads((tmp_path / 'set/meta.json').read_text())
    meta['p99']['feature'] = 0.0
    (tmp_path / 'set/meta.json').write_text(json.dumps(meta))
    monkeypatch.setattr('finpercep_plugin.data.check.fgr.verify', lambda folder, tell: [])
    assert lines(check_fgr(tmp_path / 'set')) == [
        ('sample 00000001', 'enlarged', 'sr is gt inside the mask: nothing is degraded'),
        ('sample 00000003', 'blank', 'gt is one colour all over'),
        ('meta.json', 'record', 'p99 of the feature term is 0: it is 0 in every map'),
    ]


def test_preferences(preferences, tmp_path):
    report = check_set(preferences)
    assert (report.findings, report.checked, report.what) == ([], 5, 'preference records')
    shutil.copytree(preferences, tmp_path / 'set')
    flip_byte(tmp_path / 'set', '00000001/lq')
    assert [f[:2] for f in lines(check_preferences(tmp_path / 'set'))] == [('record 00000001', 'record')]


def test_preferences_that_are_there_twice(tmp_path):
    from finpercep_plugin.data.preference_writer import open_set

    with open_set(tmp_path / 'set', {'best': 2, 'min_gap': 0.0}, scale=2) as writer:
        for index in (0, 1, 0):
            writer.append(preference_record(index))
    assert lines(check_preferences(tmp_path / 'set')) == [('record 00000002', 'copy', 'the same pictures as 00000000')]


def test_kinds_of_folders(fgr, preferences, photos):
    assert is_set(fgr) and is_set(preferences) and not is_set(photos)


def test_photos_and_links_to_folders(photos, tmp_path):
    (tmp_path / 'in').mkdir()
    (tmp_path / 'in/linked').symlink_to(photos)
    shutil.copy(photos / 'p0.png', tmp_path / 'in/a.png')
    report = check_photos([tmp_path / 'in'], smallest=64)
    assert lines(report) == [('a.png', 'small', '70x60 pixels, less than the crop of 64')]
    assert [n.text for n in report.notes] == ['a link to a folder, which is not followed; name it as a source']


def test_leaks_by_pixels_and_by_name_and_size(fgr, photos, tmp_path):
    (tmp_path / 'val').mkdir()
    Image.open(photos / 'p1.png').save(tmp_path / 'val/renamed.bmp')
    Image.fromarray(np.random.default_rng(9).integers(0, 256, (60, 70, 3), dtype=np.uint8)).save(
        tmp_path / 'val/new.png'
    )
    held_out = check_photos([tmp_path / 'val'])
    found = leaks(check_photos([photos]), held_out)
    assert [(p.where, p.text.endswith('as p1.png')) for p in found] == [('renamed.bmp', True)]
    assert leaks(check_fgr(fgr), held_out) == []  # the set keeps no pixels of its photos
    shutil.copy(photos / 'p2.png', tmp_path / 'val/p2.png')
    report = compare('x', [check_fgr(fgr)], [check_photos([tmp_path / 'val'])])
    assert [p.where for p in report.problems] == ['p2.png'] and report.checked == 3


def write(tmp_path, **datasets):
    (tmp_path / 'x.yml').write_text(yaml.safe_dump({'scale': 4, 'datasets': datasets}))
    return tmp_path / 'x.yml'


def test_train_and_val_photos_of_one_set_do_not_leak(fgr, tmp_path):
    section = {'type': 'FinPercepFGRDataset', 'dataroot': str(fgr)}
    file = write(tmp_path, train={**section, 'photos': 'train'}, val={**section, 'photos': 'val'})
    reports = check_options(file)
    assert [r.problems for r in reports] == [[], [], []]
    file = write(tmp_path, train=section, val={**section, 'photos': 'val', 'val_photos': ['p4*']})
    assert [(p.where, p.kind) for p in check_options(file)[-1].problems] == [('p4.png', 'leak')]


def test_a_set_that_two_sections_name_is_told_of_once(fgr, tmp_path):
    shutil.copytree(fgr, tmp_path / 'set')
    flip_byte(tmp_path / 'set', '00000004/gt')
    section = {'type': 'FinPercepFGRDataset', 'dataroot': str(tmp_path / 'set')}
    reports = check_options(write(tmp_path, train={**section, 'photos': 'train'}, val={**section, 'photos': 'val'}))
    assert [len(r.problems) for r in reports] == [1, 0, 0]


def test_sections_of_every_kind(fgr, preferences, photos, tmp_path):
    """Each is checked as what it is; every problem of every section is listed."""
    gt = tmp_path / 'gt'
    shutil.copytree(photos, gt)
    (tmp_path / 'lq').mkdir()
    file = write(
        tmp_path,
        train={'type': 'FinPercepPhotoDataset', 'dataroot': str(photos), 'size': 64, 'sise': 1},
        val={'type': 'PairedImageDataset', 'dataroot_gt': str(gt), 'dataroot_lq': str(tmp_path / 'lq')},
        val_2={'type': 'SingleImageDataset', 'dataroot_lq': str(gt)},
        val_3={'type': 'FinPercepPreferenceDataset', 'dataroot': str(preferences)},
        val_4={'type': 'REDSDataset', 'dataroot_gt': 'x', 'num_frame': 5},
        val_5='nothing',
    )
    reports = check_options(file)
    problems = [[p.kind for p in r.problems] for r in reports]
    assert problems[0] == ['small'] * 6 + ['options']
    assert problems[1] == ['partner'] * 7
    assert problems[2] == []
    assert problems[3] == ['options'] and 'built at scale 2' in reports[3].problems[0].text
    assert problems[4] == [] and reports[4].notes[0].kind == 'not checked'
    assert problems[5] == ['options']
    assert [p.kind for p in reports[6].problems] == ['leak'] * 6  # val_2 has the training photos


def test_a_file_without_datasets(tmp_path):
    (tmp_path / 'x.yml').write_text('name: x\n')
    with pytest.raises(ValueError, match='no section `datasets:`'):
        check_options(tmp_path / 'x.yml')
    (tmp_path / 'x.yml').write_text('a: [')
    with pytest.raises(ValueError, match='not YAML'):
        check_options(tmp_path / 'x.yml')
