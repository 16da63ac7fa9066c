import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import finpercep_plugin
from finpercep_plugin.cli.build_fgr import main
from finpercep_plugin.config import parse
from finpercep_plugin.data.fgr_format import decode_png, read_meta
from finpercep_plugin.data.fgr_options import BuildOptions, identity
from finpercep_plugin.data.lmdb_io import Reader

RECIPE = Path(finpercep_plugin.__file__).parent / 'options' / 'build_fgr.yml'


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


def test_shards_are_built_verified_and_merged(photos, tmp_path, capsys):
    shards = [str(tmp_path / f'shard{n}') for n in range(2)]
    for number, shard in enumerate(shards):
        assert run(photos, shard, '--count', '6', '--batch', '2', '--shard', f'{number}/2', '--verify') == 0
    assert main(['--merge', *shards, '--out', str(tmp_path / 'set'), '--verify']) == 0
    assert '6 samples in' in (told := capsys.readouterr()).out and 'merging' in told.err
    assert run(photos, tmp_path / 'whole', '--count', '6', '--batch', '2', '--devices', 'cpu') == 0
    assert read_meta(tmp_path / 'set') == read_meta(tmp_path / 'whole')
    assert main(['--merge', shards[0], '--out', str(tmp_path / 'part')]) == 2
    assert '2 samples are in no shard, such as 00000002; the shards given: 0/2' in capsys.readouterr().err


def test_ctrl_c_ends_the_workers_too_and_keeps_what_is_made(photos, tmp_path):
    command = [sys.executable, '-m', 'finpercep_plugin.cli.build_fgr', '--photos', photos, '--out', tmp_path / 'set']
    process = subprocess.Popen(
        [*map(str, command), '--count', '100000', '--size', '32', '--workers', '2'],
        stderr=subprocess.PIPE,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # tests in the background ignore it
    )
    told = b''
    while not re.search(rb'\| [1-9]\d*/100000', told):
        told += process.stderr.read1()
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to all of them
    rest = process.communicate(timeout=60)[1].decode()
    assert process.returncode == 130 and 'Traceback' not in rest
    assert rest.endswith('interrupted; the samples so far are stored, run the command again to continue\n')
    stored = sum(key.endswith('/record') for key in Reader(tmp_path / 'set').keys())
    assert int(re.findall(rb'(\d+)/100000', told)[-1]) <= stored


def test_progress_tells_the_rate_and_the_time_left(photos, tmp_path, capsys):
    assert main(['--photos', str(photos), '--out', str(tmp_path / 'set'), '--count', '9', '--size', '32']) == 0
    assert re.search(r'building: 100%.*9/9 \[\d\d:\d\d<\d\d:\d\d, .*sample', capsys.readouterr().err)


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
        (['--out', 'x', '--merge', 'a', '--photos', '.'], '--merge: takes no photos'),
        (['--out', 'x', '--merge', '/nope/a'], '/nope/a: not an FGR set'),
        (['--out', 'x', '--photos', '.', '--shard', '2/2'], 'shard: expected [i, n] with 0 <= i < n'),
    ],
)
def test_wrong_usage(capsys, arguments, message):
    assert main(arguments) == 2
    assert message in capsys.readouterr().err


def test_the_full_recipe_is_two_stage_semantic_and_builds(photos, tmp_path, tiny_dinov3, tiny_sam):
    """With small networks in place of the pretrained ones."""
    recipe = yaml.safe_load(RECIPE.with_name('build_fgr_full.yml').read_text())
    options = parse(BuildOptions, recipe)
    assert (options.count, options.size) == (30000, 224) and options.degradation.second_order
    kinds = options.mask.kinds
    assert kinds.pop('semantic') == sum(kinds.values())
    assert (options.feature['model'], options.mask.segments['type']) == ('vit_small_patch16_dinov3', 'sam')
    recipe['feature'] |= {**tiny_dinov3}
    recipe['mask'] |= {'kinds': {'semantic': 1}, 'area': [0.05, 0.5]}
    recipe['mask']['segments'] |= {'weights': str(tiny_sam), 'points_per_side': 3}
    (tmp_path / 'full.yml').write_text(yaml.safe_dump({**recipe, 'devices': ['cpu']}))
    assert run(photos, tmp_path / 'set', '--opt', str(tmp_path / 'full.yml'), '--workers', '0') == 0
    reader = Reader(tmp_path / 'set')
    record = json.loads(bytes(reader.get('00000000/record')))
    assert {'blur', 'resize', 'noise', 'jpeg'} <= set(record['degradation']['first'])
    assert {'resize', 'noise', 'jpeg'} <= set(record['degradation']['second'])
    assert record['mask']['kind'] == 'semantic'
    assert decode_png(bytes(reader.get('00000000/feature'))).max() > 0


def test_the_full_recipe_states_what_real_esrgan_publishes():
    options = parse(BuildOptions, yaml.safe_load(RECIPE.with_name('build_fgr_full.yml').read_text())).degradation
    weights = {  # options/train_realesrgan_x4plus.yml: kernel_list, kernel_prob
        'iso': 0.45,
        'aniso': 0.25,
        'generalized_iso': 0.12,
        'generalized_aniso': 0.03,
        'plateau_iso': 0.12,
        'plateau_aniso': 0.03,
    }
    for stage in (options.first, options.second):
        assert stage.kernels == weights and stage.sinc_prob == 0.1
        assert stage.kernel_size == (7, 21) and not stage.antialias
        assert stage.beta_generalized == (0.5, 4) and stage.beta_plateau == (1, 2)
        assert (stage.noise_prob, stage.poisson_prob, stage.grey_prob) == (1, 0.5, 0.4)
        assert stage.jpeg_prob == 1 and stage.jpeg_quality == (30, 95) and stage.poisson_kind == 'scaled'
    first, second = options.first, options.second
    assert (first.blur_prob, second.blur_prob) == (1, 0.8)
    assert (first.blur_sigma, second.blur_sigma) == ((0.2, 3), (0.2, 1.5))
    assert (first.resize, first.resize_of, first.resize_prob) == ((0.15, 1.5), 'gt', (0.2, 0.7, 0.1))
    assert (second.resize, second.resize_of, second.resize_prob) == ((0.3, 1.2), 'lq', (0.3, 0.4, 0.3))
    assert (first.noise_sigma, second.noise_sigma) == ((1, 30), (1, 25))
    assert (first.poisson_scale, second.poisson_scale) == ((0.05, 3), (0.05, 2.5))
    assert (options.final.sinc_prob, options.final.jpeg_last_prob, options.final.resize) == (0.8, 0.5, 'random')
    assert options.sharpen


def test_the_shipped_recipe_is_the_defaults():
    options = parse(BuildOptions, yaml.safe_load(RECIPE.read_text()))
    assert identity(options) == identity(BuildOptions())
    given = dataclasses.replace(options, producers=BuildOptions().producers)
    assert given == BuildOptions()


def test_ray_that_is_not_installed_is_named_with_its_extra(photos, tmp_path, capsys, monkeypatch):  # noqa: F811
    monkeypatch.setitem(sys.modules, 'ray', None)
    assert main(['--photos', str(photos), '--out', str(tmp_path / 'set'), '--count', '4', '--ray', 'local']) == 2
    assert 'pip install "finpercep_plugin[ray]"' in capsys.readouterr().err
    assert not (tmp_path / 'set').exists()
