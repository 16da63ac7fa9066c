"""Folders into a study: pairing, what is refused, and that no file says what made it."""

import dataclasses
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from finpercep_plugin.images import read_image
from finpercep_plugin.study.definition import GT, SPOILED, Rules, Settings, Study, StudyError
from finpercep_plugin.study.pictures import Sources, create, pair, spoil
from finpercep_plugin.study.session import image_file
from tests.study.conftest import OURS, SIZE, THEIRS, write_pictures


def chunks(data: bytes) -> list[bytes]:
    """The kinds of a PNG's chunks."""
    at, kinds = 8, []
    while at < len(data):
        (length,) = struct.unpack('>I', data[at : at + 4])
        kinds.append(data[at + 4 : at + 8])
        at += 12 + length
    return kinds


def test_pictures_are_pixels_under_names_that_say_nothing(make, sources):
    session = make()
    files = list((session.folder / 'images').iterdir())
    names = {file.stem for file in files}
    assert len(files) == 12 * 3 + 2 * 2 and all(len(n) == 32 and int(n, 16) >= 0 for n in names)
    for file in files:
        data = file.read_bytes()
        assert set(chunks(data)) == {b'IHDR', b'IDAT', b'IEND'}
        assert b'Ours' not in data and b'Theirs' not in data
    item = session.study.items[4]
    stored = read_image(image_file(session.folder, item.images[OURS]))
    assert np.array_equal(stored, read_image(Path(sources.methods[OURS].replace('{name}', item.name) + '.png')))


def test_gt_is_only_kept_for_spare_items(make):
    study = make().study
    assert len(study.spares) == 2
    for item in study.items:
        assert (GT in item.images) == (SPOILED in item.images) == item.spare


def test_the_ids_of_a_second_study_are_others(tmp_path, sources):
    rules, settings = Rules(), Settings(trials=2, training=1, checks=0, repeats=0)
    studies = [create(tmp_path / str(i), sources, settings, rules, 't', 'c') for i in range(2)]
    ids = [{i for item in study.items for i in item.images.values()} for study in studies]
    assert not ids[0] & ids[1]


def test_a_spoiled_copy_keeps_its_size_and_loses_its_detail():
    image = np.random.default_rng(0).integers(0, 255, (50, 70, 3)).astype(np.uint8)
    assert spoil(image).shape == image.shape and spoil(image).std() < 0.2 * image.std()


def test_sets_are_the_folders_of_lq(tmp_path):
    for role in ('lq', 'A', 'B'):
        for group in ('RealSR', 'DRealSR'):
            (tmp_path / role / group).mkdir(parents=True)
            Image.new('RGB', (8, 8)).save(tmp_path / role / group / '1.png')
    files = pair(Sources(str(tmp_path / 'lq'), {m: str(tmp_path / m) for m in 'AB'}))
    assert list(files) == ['DRealSR/1', 'RealSR/1'] and files['RealSR/1']['A'] == tmp_path / 'A/RealSR/1.png'


@pytest.fixture
def own(tmp_path):
    """Pictures to spoil."""
    return tmp_path, write_pictures(tmp_path / 'in', 5)


def test_unmatched_items_are_named_or_left_out(own):
    root, sources = own
    (root / 'in' / THEIRS / f'003_{THEIRS}.png').unlink()
    with pytest.raises(StudyError, match=f'1 items lack pictures .*003: not in {THEIRS}'):
        pair(sources)
    assert list(pair(sources, skip_unmatched=True)) == ['000', '001', '002', '004']


def make_it(root, sources, **settings):
    chosen = Settings(**{'trials': 2, 'training': 1, 'checks': 1, 'repeats': 0, **settings})
    return create(root / 'study', sources, chosen, Rules(), 'title', 'consent')


def test_what_cannot_be_a_study_is_refused_and_leaves_nothing(own):
    root, sources = own
    lq = root / 'in/lq'

    def refused(match, sources=sources, **settings):
        with pytest.raises(StudyError, match=match):
            make_it(root, sources, **settings)
        assert not (root / 'study').exists() and not list(root.glob('.study*'))

    refused('no such file', dataclasses.replace(sources, lq=str(root / 'nowhere')))
    refused('is not a folder', dataclasses.replace(sources, lq=str(lq / '000.png')))
    refused('no pictures in', dataclasses.replace(sources, lq=f'{lq}/{{name}}_x4'))
    refused('letter or digit', dataclasses.replace(sources, methods={'<b>': str(lq), OURS: str(lq)}))
    refused('none is left to vote on', training=5)
    refused('checks need the ground truth', dataclasses.replace(sources, gt=None))
    refused('trials: expected 1 to 4', trials=9)
    (root / f'in/{OURS}/001_{OURS}.jpg').write_bytes((root / f'in/{OURS}/001_{OURS}.png').read_bytes())
    refused('have the same name')
    (root / f'in/{OURS}/001_{OURS}.jpg').unlink()
    Image.new('RGB', (20, 20)).save(root / f'in/{OURS}/001_{OURS}.png')
    refused(f'001: {THEIRS} is {SIZE[0]}x{SIZE[1]}, but {OURS} is 20x20')
    (root / f'in/{OURS}/001_{OURS}.png').write_bytes(b'nothing')
    refused('cannot be read as an image')


def test_a_folder_with_something_in_it_is_left_alone(own):
    root, sources = own
    make_it(root, sources)
    before = Study.read(root / 'study')
    with pytest.raises(StudyError, match='not an empty folder'):
        make_it(root, sources)
    assert Study.read(root / 'study') == before
