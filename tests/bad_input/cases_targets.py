"""Where results are written."""

import fcntl
import shutil

from PIL import Image

from finpercep_plugin.cli import score
from finpercep_plugin.data.lmdb_io import Writer
from tests.bad_input.pictures import grain
from tests.bad_input.tools import run
from tests.bad_input.world import BUILD, SCORE, as_nobody, build, case, file_limit, put, readable_folder


@case('target is a file', BUILD, 2, 'File exists')
def _(w):
    return build(w, out=put(w.folder / 'out', 'x'))


@case('target without permission to write', BUILD, 2, 'Permission denied')
def _(w):
    with readable_folder() as folder:
        Image.fromarray(grain(1)).save(folder / 'photo.png')
        folder.chmod(0o555)
        with as_nobody():
            return build(w, photos=folder, out=folder / 'out')


@case('target without permission to write', SCORE, 2, '--out: cannot write')
def _(w):
    with readable_folder() as folder:
        Image.fromarray(grain(1)).save(folder / 'photo.png')
        shutil.copy(w.rm, folder / 'rm.pth')
        (folder / 'rm.pth').chmod(0o644)
        folder.chmod(0o555)
        with as_nobody():
            files = ('--rm', folder / 'rm.pth', '--out', folder / 's.csv')
            return run(score.main, folder / 'photo.png', *files, '--device', 'cpu', '--quiet')


@case('disk is full', BUILD, 2, 'cannot be written')
def _(w):
    with file_limit(16384):
        return build(w, '--count', 6)


@case('disk was full, and the build is run again', BUILD, 0, '')
def _(w):
    with file_limit(16384):
        assert build(w, '--count', 6).code == 2
    return build(w, '--count', 6, '--verify')


@case('another build writes the set', BUILD, 2, 'another build is writing this set')
def _(w):
    (w.folder / 'out').mkdir()
    with open(w.folder / 'out/.build.lock', 'w') as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        return build(w)


@case('lock file left by a killed build', BUILD, 0, '')
def _(w):
    put(w.folder / 'out/.build.lock', '')
    return build(w)


@case('set that was built with other options', BUILD, 2, '$.seed: built with 0, asked for 1')
def _(w):
    assert build(w).code == 0
    return build(w, '--seed', 1)


@case('set that has more samples than asked for', BUILD, 2, 'count can grow, not shrink')
def _(w):
    assert build(w).code == 0
    return build(w, '--count', 1)


@case('LMDB of something else at the target', BUILD, 2, 'a store without meta.json')
def _(w):
    with Writer(w.folder / 'out') as writer:
        writer.put({'x': b'y'})
    return build(w)
