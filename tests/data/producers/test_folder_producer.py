import dataclasses
import os

import numpy as np
import pytest
from PIL import Image

from finpercep_plugin.config import ConfigError
from finpercep_plugin.data.fgr_block import BlockMaker
from finpercep_plugin.data.photos import photo_list
from finpercep_plugin.data.producers.base import align, covers, identity, not_covered
from finpercep_plugin.data.producers.folder_producer import FolderProducer

from ..conftest import make_photo
from .conftest import one, wanted

SIZE = (45, 66)  # of a photo: no multiple of 4


@pytest.fixture
def folders(tmp_path):
    """sr of two photos, one cut down to a multiple of 4, and the lq of both."""
    for part, number, name, size in (
        ('sr', 0, 'a_x4.png', (44, 64)),
        ('sr', 1, 'deep/b_x4.bmp', SIZE),
        ('lq', 2, 'a.png', (11, 16)),
        ('lq', 3, 'deep/b.png', (11, 16)),
    ):
        path = tmp_path / part / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(make_photo(number, *size)).save(path)
    return tmp_path


def section(folders, **options):
    return {'type': 'folder', 'sr': str(folders / 'sr'), 'name': '{name}_x4', **options}


def paired(folders):
    return one(section(folders, lq=str(folders / 'lq'), lq_name='{name}'))


def test_boxes_are_cut_from_the_pictures_of_their_photos(folders):
    producer = paired(folders)
    blank = np.zeros((8, 8, 3), np.uint8)
    made = producer([wanted(blank, 0, 'a.jpg', (32, 12, 32)), wanted(blank, 0, 'deep/b.png', (4, 8, 32))], 4)
    assert np.array_equal(made[0].sr, make_photo(0, 44, 64)[12:44, 32:64])
    assert np.array_equal(made[0].lq, make_photo(2, 11, 16)[3:11, 8:16])
    assert np.array_equal(made[1].sr, make_photo(1, *SIZE)[8:40, 4:36])
    assert np.array_equal(made[1].lq, make_photo(3, 11, 16)[2:10, 1:9])
    assert made[0].record == {'sr': 'a_x4.png', 'lq': 'a.png'}
    assert made[1].record == {'sr': 'deep/b_x4.bmp', 'lq': 'deep/b.png'}
    assert align(producer) and all(covers(producer, photo, SIZE, 4) for photo in ('a.jpg', 'deep/b.png'))


def test_without_lq_the_degraded_one_stays(folders):
    (made,) = one(section(folders))([wanted(np.zeros((8, 8, 3), np.uint8), 0, 'a.jpg', (0, 0, 32))], 4)
    assert made.lq is None and made.record == {'sr': 'a_x4.png'}


def test_photos_without_a_picture_are_not_covered(folders):
    producer = paired(folders)
    assert not_covered(producer, 'c.png', SIZE, 4) == 'sr c_x4: no such file'
    assert not_covered(producer, 'b.png', SIZE, 4) == 'sr b_x4: no such file'
    (folders / 'lq/a.png').unlink()
    assert not_covered(paired(folders), 'a.png', SIZE, 4) == 'lq a: no such file'
    with pytest.raises(ValueError, match='c.png: sr c_x4: no such file'):
        producer([wanted(np.zeros((8, 8, 3), np.uint8), 0, 'c.png', (0, 0, 32))], 4)


def test_pictures_that_cannot_be_used_are_not_covered_with_the_reason(folders):
    Image.fromarray(make_photo(0, 44, 60)).save(folders / 'sr/narrow_x4.png')
    whole = (folders / 'sr/a_x4.png').read_bytes()
    (folders / 'sr/half_x4.png').write_bytes(whole[: len(whole) // 2])
    Image.fromarray(make_photo(0, 44, 64)).save(folders / 'sr/a_x4.jpg')
    producer = one(section(folders))
    reasons = {name: not_covered(producer, f'{name}.png', SIZE, 4) for name in ('narrow', 'half', 'a')}
    assert reasons['narrow'] == 'sr narrow_x4.png: 60x44 pixels, expected 64x44 or 66x45'
    assert reasons['half'].startswith('sr half_x4.png: cannot be read as an image (')
    assert reasons['a'] == 'sr a_x4: several files, a_x4.jpg, a_x4.png'
    assert str(folders) not in str(reasons)


def test_lq_must_be_the_size_divided_by_the_scale(folders):
    Image.fromarray(make_photo(2, 12, 17)).save(folders / 'lq/a.png')
    assert not_covered(paired(folders), 'a.png', SIZE, 4) == 'lq a.png: 17x12 pixels, expected 16x11'


def test_identity_follows_the_files_and_not_their_place(folders, tmp_path_factory):
    def of(root, **options):
        return identity(FolderProducer, {'sr': root / 'sr', 'lq': None, 'name': '{name}', 'lq_name': None, **options})

    before = of(folders)
    assert before['sr'].startswith('2 files sha256:') and before['lq'] is None
    assert of(folders, lq=folders / 'lq')['lq'].startswith('2 files')
    moved = tmp_path_factory.mktemp('moved') / 'set'
    os.rename(folders, moved)
    assert of(moved) == before
    (moved / 'sr/notes.txt').write_text('no picture')
    assert of(moved) == before
    with open(moved / 'sr/a_x4.png', 'ab') as file:
        file.write(b'0')
    assert of(moved) != before
    os.rename(moved / 'sr/a_x4.png', moved / 'sr/c_x4.png')
    (moved / 'sr/deep/b_x4.bmp').unlink()
    assert of(moved)['sr'].startswith('1 files')


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'sr': '/nope'}, r'\$\.producers\[0\]\.sr: no such folder: /nope'),
        ({'lq': '/nope'}, r'\.lq: no such folder'),
        ({'name': 'x4'}, r"\.name: expected a pattern such as '\{name\}_x4', got 'x4'"),
        ({'lq_name': '{nam}'}, r'\.lq_name: expected a pattern'),
        ({'nmae': '{name}'}, r"\.nmae: unknown key; did you mean 'name'"),
    ],
)
def test_bad_options_are_refused(folders, options, message):
    with pytest.raises(ConfigError, match=message):
        one(section(folders, **options))


def test_a_folder_without_pictures_is_refused(folders, tmp_path_factory):
    empty = tmp_path_factory.mktemp('empty')
    with pytest.raises(ConfigError, match=r'\.sr: no image files in'):
        one(section(folders, sr=str(empty)))


def test_a_build_takes_it_for_the_photos_that_it_covers(photos, options, tmp_path):
    for number in (0, 1):
        photo = Image.open(photos / f'p{number}.png').crop((0, 0, 68, 60))
        for part, size in (('sr', (68, 60)), ('lq', (17, 15))):
            (tmp_path / part).mkdir(exist_ok=True)
            photo.resize(size, Image.Resampling.BOX).save(tmp_path / part / f'p{number}.png')
    ready = {'type': 'folder', 'sr': str(tmp_path / 'sr'), 'lq': str(tmp_path / 'lq'), 'weight': 1000}
    mixed = dataclasses.replace(options, producers=[ready, {'type': 'classical', 'weight': 1e-9}], batch=12)
    maker = BlockMaker(photo_list(options.photos), mixed)
    samples = maker.compute(maker.prepare(0))
    covered = [sample for sample in samples if sample.prepared.photo in ('p0.png', 'p1.png')]
    assert len(covered) == 4 and all((sample in covered) == (sample.prepared.producer == 0) for sample in samples)
    for sample in covered:
        x, y, side = sample.prepared.box
        assert x % 4 == y % 4 == 0 and np.array_equal(sample.produced.sr, sample.prepared.gt)  # sr is gt here
        whole = np.asarray(Image.open(tmp_path / 'lq' / sample.prepared.photo))
        assert np.array_equal(sample.produced.lq, whole[y // 4 : (y + side) // 4, x // 4 : (x + side) // 4])
