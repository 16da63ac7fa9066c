"""Folders of photos."""

import shutil
from pathlib import Path

from PIL import Image

from finpercep_plugin.cli import score
from finpercep_plugin.data.photo_dataset import FinPercepPhotoDataset
from tests.bad_input.pictures import grain
from tests.bad_input.tools import run
from tests.bad_input.world import BUILD, CHECK, SCORE, as_nobody, build, case, check, put, read, readable_folder


@case('empty folder', BUILD, 2, 'no image files in')
def _(w):
    (w.folder / 'photos').mkdir()
    return build(w, photos=w.folder / 'photos')


@case('folder of other files alone', SCORE, 2, 'no images in')
def _(w):
    put(w.folder / 'photos/notes.txt', 'x')
    return run(score.main, w.folder / 'photos', '--rm', w.rm, '--out', w.folder / 's.csv')


@case('folder that is not there', BUILD, 2, 'nowhere: no such file or folder')
def _(w):
    return build(w, photos=w.folder / 'nowhere')


@case('folder that is not there', CHECK, 2, 'nowhere: no such file or folder')
def _(w):
    return check(w.folder / 'nowhere')


@case('no photo of the folder can be read', BUILD, 2, 'none of the 2 photos can be used')
def _(w):
    for name in 'ab':
        put(w.folder / f'photos/{name}.png', 'x')
    return build(w, photos=w.folder / 'photos')


@case('no photo is as large as the crop', BUILD, 2, 'less than the crop of 96')
def _(w):
    return build(w, '--size', 96)


@case('one photo of six cannot be read', BUILD, 1, 'skipped bad.png')
def _(w):
    photos = Path(shutil.copytree(w.photos, w.folder / 'photos'))
    put(photos / 'bad.png', b'')
    return build(w, '--count', 7, photos=photos)


@case('photo without permission to read', CHECK, 1, 'permission denied')
def _(w):
    with readable_folder() as folder:
        Image.fromarray(grain(1)).save(folder / 'closed.png')
        (folder / 'closed.png').chmod(0)
        with as_nobody():
            return check(folder)


@case('folder without permission to list', BUILD, 2, 'cannot be listed (Permission denied)')
def _(w):
    with readable_folder() as folder:
        Image.fromarray(grain(1)).save(folder / 'open.png')
        (folder / 'closed').mkdir(mode=0)
        with as_nobody():
            return build(w, photos=folder)


@case('the same photo under two names', CHECK, 1, 'the same file as')
def _(w):
    photos = Path(shutil.copytree(w.photos, w.folder / 'photos'))
    shutil.copy(photos / 'p0.png', photos / 'p9.png')
    return check(photos)


@case('validation photo among the training photos, under another name', CHECK, 1, 'is also in')
def _(w):
    held_out = w.folder / 'val'
    held_out.mkdir()
    Image.open(w.photos / 'p3.png').save(held_out / 'other.bmp')
    return check(w.photos, '--val', held_out)


@case('photo that cannot be read, `on_error: raise`', 'FinPercepPhotoDataset', 1, 'p0.png: cannot be read')
def _(w):
    photos = Path(shutil.copytree(w.photos, w.folder / 'photos'))
    put(photos / 'p0.png', 'x')
    return read(FinPercepPhotoDataset, {'dataroot': str(photos), 'size': 16})


@case('photo that cannot be read, `on_error: skip`', 'FinPercepPhotoDataset', 0, '1 skipped')
def _(w):
    photos = Path(shutil.copytree(w.photos, w.folder / 'photos'))
    put(photos / 'p0.png', 'x')
    return read(FinPercepPhotoDataset, {'dataroot': str(photos), 'size': 16, 'on_error': 'skip'})
