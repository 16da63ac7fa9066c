import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

import finpercep_plugin
from finpercep_plugin.cli.build_fgr import main
from finpercep_plugin.config import parse
from finpercep_plugin.data.fgr_format import read_meta
from finpercep_plugin.data.fgr_options import BuildOptions, identity
from finpercep_plugin.data.lmdb_io import Reader

RECIPE = Path(finpercep_plugin.__file__).parent / 'options' / 'build_fgr.yml'


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / 'photos'
    folder.mkdir()
    for seed in range(2):
        noise = np.random.default_rng(seed).integers(0, 255, (40, 48, 3)).astype(np.uint8)
        Image.fromarray(noise).save(folder / f'{seed}.png')
    return folder


def run(photos, out, *more):
    arguments = ['--photos', str(photos), '--out', str(out), '--count', '3', '--size', '32', '--quiet', *more]
    return main(arguments)


def test_builds_verifies_and_continues(photos, tmp_path, capsys):
    assert run(photos, tmp_path / 'set', '--verify') == 0
    assert read_meta(tmp_path / 'set')['count'] == 3
    assert main(['--out', str(tmp_path / 'set'), '--verify']) == 0
    assert 'sound' in capsys.readouterr().out
    assert run(photos, tmp_path / 'set', '--seed', '1') == 2
    assert '$.seed: built with 0, asked for 1' in capsys.readouterr().err


def test_skipped_photos_are_named_and_change_the_exit_code(photos, tmp_path, capsys):
    (photos / '2.png').write_text('no picture')
    assert run(photos, tmp_path / 'set') == 1
    assert 'skipped 2.png: cannot be read as an image' in capsys.readouterr().err


def test_problems_change_the_exit_code(photos, tmp_path, capsys):
    run(photos, tmp_path / 'set')
    file = tmp_path / 'set' / 'data.mdb'
    picture = bytes(Reader(tmp_path / 'set').get('00000001/gt'))
    Reader(tmp_path / 'set').close()
    file.write_bytes(file.read_bytes().replace(picture, picture[:-20] + bytes([picture[-20] ^ 1]) + picture[-19:]))
    assert main(['--out', str(tmp_path / 'set'), '--verify', '--quiet']) == 1
    assert 'fails its checksum' in capsys.readouterr().err


def test_the_command_line_comes_before_the_file(photos, tmp_path):
    recipe = tmp_path / 'my.yml'
    recipe.write_text(f'photos: [{photos}]\nout: {tmp_path / "a"}\ncount: 5\nsize: 32\nalpha: 0.25\n')
    assert main(['--opt', str(recipe), '--count', '2', '--quiet']) == 0
    meta = read_meta(tmp_path / 'a')
    assert (meta['count'], meta['alpha'], meta['options']['size']) == (2, 0.25, 32)


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('sise: 32', "$.sise: unknown key; did you mean 'size'"),
        ('mask: {area: [0.5, 0.1]}', '$.mask: mask area: expected'),
        ('degradation: {first: {blur_sigma: 1}}', '$.degradation.first.blur_sigma: expected'),
        ('producers: [{type: clasical}]', "did you mean 'classical'"),
        ('- a list', 'expected keys and values, got list'),
        ('a: [', 'not YAML'),
    ],
)
def test_a_wrong_file_is_refused(photos, tmp_path, capsys, text, message):
    (tmp_path / 'my.yml').write_text(text)
    assert run(photos, tmp_path / 'set', '--opt', str(tmp_path / 'my.yml')) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / 'set').exists()


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['--photos', '.'], '--out'),
        (['--out', 'x'], '--photos'),
        (['--out', 'x', '--photos', '/nope'], '/nope: no such file or folder'),
        (['--opt', '/nope.yml'], 'nope.yml'),
    ],
)
def test_wrong_usage(capsys, arguments, message):
    assert main(arguments) == 2
    assert message in capsys.readouterr().err


def test_the_full_recipe_is_two_stage_and_builds(photos, tmp_path):
    recipe = RECIPE.with_name('build_fgr_full.yml')
    options = parse(BuildOptions, yaml.safe_load(recipe.read_text()))
    assert (options.count, options.size) == (30000, 224) and options.degradation.second_order
    assert run(photos, tmp_path / 'set', '--opt', str(recipe), '--workers', '0') == 0
    record = json.loads(bytes(Reader(tmp_path / 'set').get('00000000/record')))
    assert {'blur', 'resize', 'noise', 'jpeg'} <= set(record['degradation']['first'])
    assert {'resize', 'noise', 'jpeg'} <= set(record['degradation']['second'])


def test_the_shipped_recipe_is_the_defaults():
    options = parse(BuildOptions, yaml.safe_load(RECIPE.read_text()))
    assert identity(options) == identity(BuildOptions())
    given = dataclasses.replace(options, producers=BuildOptions().producers)
    assert given == BuildOptions()
