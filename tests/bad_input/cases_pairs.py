"""Pairs as BasicSR reads them."""

import shutil
from pathlib import Path

import cv2
import lmdb
import numpy as np
from PIL import Image

from tests.bad_input.pictures import grain
from tests.bad_input.tools import Seen
from tests.bad_input.world import CHECK, World, case, check, put, truncate


def write_pairs(w: World) -> tuple[Path, Path]:
    """Two sound pairs."""
    gt, lq = w.folder / 'gt', w.folder / 'lq'
    for number in range(2):
        large = np.asarray(Image.open(w.photos / f'p{number}.png'))[:32, :40]
        for folder, picture in ((gt, large), (lq, cv2.resize(large, (10, 8), interpolation=cv2.INTER_AREA))):
            folder.mkdir(exist_ok=True)
            Image.fromarray(picture).save(folder / f'{number}.png')
    return gt, lq


def check_pairs(w: World, *more: object, scale: int = 4) -> Seen:
    return check('--gt', w.folder / 'gt', '--lq', w.folder / 'lq', '--scale', scale, *more)


@case('gt without lq', CHECK, 1, 'gt 1.png: no lq called 1.png')
def _(w):
    _, lq = write_pairs(w)
    (lq / '1.png').unlink()
    return check_pairs(w)


@case('lq without gt', CHECK, 1, 'lq 1.png: no gt for it')
def _(w):
    gt, _ = write_pairs(w)
    (gt / '1.png').unlink()
    return check_pairs(w)


@case('lq and gt with other suffixes', CHECK, 1, 'no lq called 1.jpg')
def _(w):
    gt, _ = write_pairs(w)
    (gt / '1.png').rename(gt / '1.jpg')
    return check_pairs(w)


@case('another scale', CHECK, 1, 'gt is 40x32, lq 10x8: not 2 times')
def _(w):
    write_pairs(w)
    return check_pairs(w, scale=2)


@case('gt of odd size, in training', CHECK, 1, 'gt is 39x31, lq 10x8: not 4 times')
def _(w):
    gt, _ = write_pairs(w)
    Image.open(gt / '0.png').crop((0, 0, 39, 31)).save(gt / '0.png')
    return check_pairs(w, '--crop', 16)


@case('gt less than `gt_size`', CHECK, 1, '40x32 pixels, less than the crop of 36')
def _(w):
    write_pairs(w)
    return check_pairs(w, '--crop', 36)


@case('lq of another picture', CHECK, 1, 'lq is not this picture')
def _(w):
    _, lq = write_pairs(w)
    Image.fromarray(grain(7, height=8, width=10)).save(lq / '0.png')
    return check_pairs(w)


@case('gt that is lq enlarged', CHECK, 1, 'gt is lq enlarged (bicubic)')
def _(w):
    gt, lq = write_pairs(w)
    Image.open(lq / '0.png').resize((40, 32), Image.Resampling.BICUBIC).save(gt / '0.png')
    return check_pairs(w)


@case('pictures of one colour', CHECK, 1, 'white all over')
def _(w):
    gt, lq = write_pairs(w)
    Image.new('RGB', (40, 32), 'white').save(gt / '0.png')
    Image.new('RGB', (10, 8), 'white').save(lq / '0.png')
    return check_pairs(w)


@case('truncated gt, which OpenCV would fill up with grey', CHECK, 1, 'gt 0.jpg: cannot be read')
def _(w):
    gt, lq = write_pairs(w)
    Image.open(gt / '0.png').save(gt / '0.jpg', quality=95)
    truncate(gt / '0.jpg')
    (gt / '0.png').unlink()
    (lq / '0.png').rename(lq / '0.jpg')
    return check_pairs(w)


@case('Thumbs.db among the pairs, which BasicSR would take for a picture', CHECK, 1, 'gt Thumbs.db: no lq')
def _(w):
    gt, _ = write_pairs(w)
    put(gt / 'Thumbs.db', 'x')
    return check_pairs(w)


@case('list of names with a picture that is not there', CHECK, 1, '7.png: no such file')
def _(w):
    _, lq = write_pairs(w)
    shutil.copy(lq / '1.png', lq / '7.png')
    put(w.folder / 'names.txt', '0.png (32,40,3)\n7.png (32,40,3)\n')
    return check_pairs(w, '--meta-info', w.folder / 'names.txt')


@case('--gt without --lq', CHECK, 2, '--lq: pairs need both')
def _(w):
    write_pairs(w)
    return check('--gt', w.folder / 'gt')


def write_stores(w: World) -> tuple[Path, Path]:
    """Two pairs in LMDBs as BasicSR makes them."""
    for side, folder in zip(('gt', 'lq'), write_pairs(w)):
        store = w.folder / f'{side}.lmdb'
        environment = lmdb.open(str(store), map_size=1 << 20)
        with environment.begin(write=True) as transaction:
            for file in sorted(folder.iterdir()):
                transaction.put(file.stem.encode(), file.read_bytes())
        environment.close()
        lines = [f'{n}.png ({"32,40" if side == "gt" else "8,10"},3) 1\n' for n in range(2)]
        put(store / 'meta_info.txt', ''.join(lines))
    return w.folder / 'gt.lmdb', w.folder / 'lq.lmdb'


@case('truncated LMDB of BasicSR', CHECK, 1, 'data.mdb is truncated')
def _(w):
    gt, lq = write_stores(w)
    truncate(gt / 'data.mdb')
    return check('--gt', gt, '--lq', lq)


@case('LMDB of BasicSR without meta_info.txt', CHECK, 1, 'meta_info.txt')
def _(w):
    gt, lq = write_stores(w)
    (lq / 'meta_info.txt').unlink()
    return check('--gt', gt, '--lq', lq)


@case('LMDB of BasicSR without one of the pictures that it lists', CHECK, 1, 'the store has no 5')
def _(w):
    gt, lq = write_stores(w)
    put(gt / 'meta_info.txt', '0.png (32,40,3) 1\n5.png (32,40,3) 1\n')
    return check('--gt', gt, '--lq', lq)
