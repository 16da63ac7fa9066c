"""Studies of small pictures, whose methods have names that cannot come from anywhere else."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from finpercep_plugin.study.definition import Rules, Settings, Study
from finpercep_plugin.study.pictures import Sources, create
from finpercep_plugin.study.session import Session

OURS, THEIRS, THIRD = 'OursZebra', 'TheirsYak', 'ThirdXerus'
SIZE = (48, 36)


class Clock:
    """Time that goes on by hand."""

    def __init__(self):
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(scope='module')
def browser():
    """Chromium."""
    from tests.study.browser import chromium

    options = chromium()
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(**options)
        yield browser
        browser.close()


def write_pictures(root: Path, items: int, methods=(OURS, THEIRS), size=SIZE, name='{:03d}') -> Sources:
    """lq, gt and results of noise; files named after their method, which also stands in EXIF and text chunks."""
    width, height = size
    folders = {'lq': (width // 4, height // 4), 'gt': size, **{m: size for m in methods}}
    for seed, (role, (w, h)) in enumerate(folders.items()):
        (root / role / name).parent.mkdir(parents=True)
        for i in range(items):
            pixels = np.random.default_rng(1000 * seed + i).integers(0, 255, (h, w, 3)).astype(np.uint8)
            info, exif = PngInfo(), Image.Exif()
            info.add_text('Software', role)
            exif[0x0131] = role
            suffix = '' if role in ('lq', 'gt') else f'_{role}'
            Image.fromarray(pixels).save(root / role / f'{name.format(i)}{suffix}.png', pnginfo=info, exif=exif)
    return Sources(str(root / 'lq'), {m: f'{root / m}/{{name}}_{m}' for m in methods}, str(root / 'gt'))


@pytest.fixture(scope='session')
def sources(tmp_path_factory) -> Sources:
    """Two methods on twelve pictures."""
    return write_pictures(tmp_path_factory.mktemp('pictures'), 12)


@pytest.fixture(scope='session')
def made(tmp_path_factory, sources):
    """The folder of a study of given settings, each made once."""
    folders = {}

    def made(settings: Settings, rules: Rules) -> Path:
        if (settings, rules) not in folders:
            folder = tmp_path_factory.mktemp('made') / 'study'
            create(folder, sources, settings, rules, 'Which one?', 'You may stop.')
            folders[settings, rules] = folder
        return folders[settings, rules]

    return made


@pytest.fixture
def make(tmp_path, made):
    """A study of its own with these settings, and a session of it, under a clock."""

    def make(rules=None, **settings) -> Session:
        chosen = {'trials': 6, 'training': 1, 'checks': 2, 'repeats': 1, 'min_seconds': 0.0, **settings}
        folder = tmp_path / f'study_{len(list(tmp_path.iterdir()))}'
        shutil.copytree(made(Settings(**chosen), rules or Rules()), folder)
        return Session(folder, Clock())

    return make


def study_of(methods=(OURS, THEIRS), items=10, spares=2, **settings) -> Study:
    """A definition without files."""
    from finpercep_plugin.study.definition import GT, SPOILED, Item

    def item(i: int) -> Item:
        spare = i >= items
        extra = {GT: 'g', SPOILED: 's'} if spare else {}
        return Item(f'{"ab"[i % 2]}/{i:03d}', 48, 36, {'lq': 'l', **{m: m for m in methods}, **extra}, spare)

    chosen = {'trials': 6, 'training': 1, 'checks': 2, 'repeats': 1, **settings}
    all_items = tuple(item(i) for i in range(items + spares))
    return Study('t', 'c', tuple(methods), all_items, Settings(**chosen), Rules())
