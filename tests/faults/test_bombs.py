"""Pictures made to exhaust the memory, given to everything that reads pictures."""

import csv
import json
import re
from pathlib import Path

import pytest
from PIL import Image

pytest.importorskip('diffusers')
from finpercep_plugin.cli import build_fgr, check_data, score, super_resolve, user_study
from finpercep_plugin.data.fgr_format import decode_png
from finpercep_plugin.data.photo_dataset import FinPercepPhotoDataset
from finpercep_plugin.images import ImageError, read_image
from tests.bad_input.tools import plain, run
from tests.data.conftest import make_photo
from tests.faults.bombs import BOMBS, png
from tests.models.conftest import GENERATOR

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
MOST = 300
"""MB more than before, at any time."""


class Memory:
    """The most memory that this process has had since, in MB beyond what it had."""

    def __init__(self):
        Path('/proc/self/clear_refs').write_text('5')
        self.before = self._field('VmRSS')

    @staticmethod
    def _field(name):
        return int(re.search(rf'{name}:\s+(\d+)', Path('/proc/self/status').read_text())[1]) / 1024

    def grown(self):
        return self._field('VmHWM') - self.before


@pytest.fixture(scope='module')
def pictures(tmp_path_factory):
    """A folder of all of them, and of a few photos."""
    folder = tmp_path_factory.mktemp('bombs') / 'pictures'
    folder.mkdir()
    for seed in range(3):
        Image.fromarray(make_photo(seed, 32, 40)).save(folder / f'p{seed}.png')
    for bomb in BOMBS:
        bomb.make(folder / bomb.name)
    return folder


def score_all(pictures, tmp_path, rm):
    where = ('--out', tmp_path / 's.csv', '--device', 'cpu', '--quiet')
    assert run(score.main, pictures, '--rm', rm, *where).code == 1
    with open(tmp_path / 's.csv', newline='') as file:
        return {row['path']: row['error'] for row in csv.DictReader(file)}


def build_all(pictures, tmp_path, rm):
    out = ('--out', tmp_path / 'set', '--size', 16, '--count', 14, '--quiet')
    assert run(build_fgr.main, '--photos', pictures, *out).code == 1
    return dict(json.loads((tmp_path / 'set/meta.json').read_text())['skipped'])


def check_all(pictures, tmp_path, rm):
    given = ('--crop', 16, '--json', tmp_path / 'c.json', '--quiet', '--threads', 0)
    assert run(check_data.main, pictures, *given).code == 1
    (report,) = json.loads((tmp_path / 'c.json').read_text())['reports']
    return {problem['where']: problem['text'] for problem in report['problems']}


def dataset_all(pictures, tmp_path, rm):
    said = {}
    for bomb in BOMBS:
        with pytest.raises(ValueError) as caught:
            FinPercepPhotoDataset({'dataroot': str(pictures / bomb.name), 'size': 16})[0]
        said[bomb.name] = str(caught.value)
    return said


def study_all(pictures, tmp_path, rm):
    said = {}
    for bomb in BOMBS:
        for role in ('a', 'b', 'lq'):
            folder = tmp_path / bomb.what / role
            folder.mkdir(parents=True)
            (folder / 'p0.png').symlink_to(pictures / 'p0.png')
            (folder / 'q.png').symlink_to(pictures / (bomb.name if role == 'b' else 'p1.png'))
        folders = [('--method', f'{m}={tmp_path / bomb.what / m}') for m in 'ab']
        words = [word for pair in folders for word in pair]
        seen = run(
            user_study.main, 'create', tmp_path / 'study', '--lq', tmp_path / bomb.what / 'lq', *words, '--training', 0
        )
        assert seen.code == 2 and not (tmp_path / 'study').exists()
        said[bomb.name] = seen.text
    return said


TOOLS = {
    'finpercep-score': score_all,
    'finpercep-build-fgr': build_all,
    'finpercep-check-data': check_all,
    'FinPercepPhotoDataset': dataset_all,
    'finpercep-user-study create': study_all,
}


@pytest.mark.parametrize('tool', TOOLS)
def test_refused(tool, pictures, tiny_rms, told, tmp_path):
    memory = Memory()
    said = TOOLS[tool](pictures, tmp_path, tiny_rms[2])
    assert memory.grown() < MOST
    for bomb in BOMBS:
        assert bomb.says in said[bomb.name], (bomb.name, said[bomb.name])
    assert tool.startswith(('FinPercep', 'finpercep-user')) or {n for n in said if said[n]} == {b.name for b in BOMBS}
    _tell(told, tool, said, tmp_path, pictures)


def test_super_resolving(pictures, generator_file, told, tmp_path):
    sets = [word for key, value in GENERATOR.items() for word in ('--set', f'{key}={json.dumps(value)}')]
    memory = Memory()
    out = ('--out', tmp_path / 'sr', '--weights', generator_file, '--device', 'cpu', '--quiet')
    assert run(super_resolve.main, pictures, *out, *sets).code == 1
    assert memory.grown() < MOST
    said = {Path(row['image']).name: row['error'] for row in json.loads((tmp_path / 'sr/failures.json').read_text())}
    assert said.keys() == {bomb.name for bomb in BOMBS}
    assert all(bomb.says in said[bomb.name] for bomb in BOMBS)
    _tell(told, 'finpercep-super-resolve', said, tmp_path, pictures)


def test_the_limit_is_our_own(pictures, monkeypatch):
    """Libraries switch Pillow's off, for all that runs beside them."""
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', None)
    for name, count in (('header1.png', 10_000), ('header2.png', 225), ('header3.tif', 2500), ('header5.jpg', 4225)):
        with pytest.raises(ImageError, match=f'{count} megapixels, more than the limit of 179'):
            read_image(pictures / name)


def test_in_a_set(told):
    memory = Memory()
    with pytest.raises(ValueError, match='225 megapixels, more than the limit of 179') as caught:
        decode_png(png(15_000, 15_000, 1))
    assert memory.grown() < MOST
    told.add('bombs', BOMBS[1].what + ', in an FGR set', 'FinPercepFGRDataset', str(caught.value), f'{MOST} MB')


def _tell(told, tool, said, *folders):
    for bomb in BOMBS:
        text = plain(said[bomb.name], *folders)
        text = next(part for part in re.split(r'[^ ]*/?' + re.escape(bomb.name) + ': ', text)[::-1] if part)
        told.add('bombs', bomb.what, f'`{tool}`', text, f'{MOST} MB')
