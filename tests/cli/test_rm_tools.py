"""The two measuring tools: wrong usage, and a run at toy size."""

import json

import numpy as np
import pytest
from PIL import Image

from finpercep_plugin.cli import rm_labels, rm_quality, rm_size


def test_rm_size_of_the_small_preset(capsys):
    assert rm_size.main(['--backbone', 'small', '--sizes', '24']) == 0
    table = capsys.readouterr().out
    assert (
        [f'| RM_{k} |' in table for k in range(3)] == [True] * 3 and '| 1 -> 2 | ' in table and 'peak memory' in table
    )


def test_rm_size_of_an_unknown_backbone(capsys):
    pytest.importorskip('open_clip')
    assert rm_size.main(['--backbone', 'ViT-nope']) == 2
    assert 'ViT-nope' in capsys.readouterr().err


def test_rm_quality_needs_enough_photos(tmp_path, capsys):
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(tmp_path / 'one.png')
    assert rm_quality.main(['--data', str(tmp_path), '--out', str(tmp_path / 'out')]) == 2
    assert 'expected more than 20 photos, found 1' in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize('start', ['grown', 'scratch'])
def test_rm_quality_trains_and_measures(tmp_path, capsys, start):
    pytest.importorskip('basicsr')
    rng, photos = np.random.default_rng(0), tmp_path / 'photos'
    photos.mkdir()
    for i in range(4):
        Image.fromarray(rng.integers(0, 255, (128, 128, 3), dtype=np.uint8)).save(photos / f'{i}.png')
    command = ['--data', str(photos), '--test', '2', '--out', str(tmp_path / 'out'), '--effort', '0.002']
    command += ['--triplets', '16', '--measured', '4', '--gate', 'concat', '--start', start]
    assert rm_quality.main(command) == 0
    figures = json.loads((tmp_path / 'out/figures.json').read_text())
    assert {'order_sr_syn', 'order_syn_gt', 'map_corr', 'map_ratio'} <= set(figures)
    assert figures['gate'] == 'concat' and figures['start'] == start
    assert '| concat |' in capsys.readouterr().out


def test_rm_labels_needs_photos_to_train_on(tmp_path, capsys):
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(tmp_path / 'one.png')
    assert rm_labels.main(['--data', str(tmp_path), '--test', '1']) == 2
    assert '--test: expected 1 to 0 of the photos' in capsys.readouterr().err


def test_rm_labels_makes_what_each_reward_model_needs_first(tmp_path):
    plan = rm_labels.Plan(('a.png',), ('b.png',), tmp_path, seeds=2)
    made: set[str] = set()
    for task in rm_labels.tasks(plan):
        assert made >= set(task.needs)
        made.add(task.name)
    assert len(made) == 2 + 2 * (2 + 2 + 3)
    (tmp_path / 'results').mkdir()
    for seed, value in ((0, 0.5), (1, 0.7)):
        (tmp_path / 'results' / f'pixel_{seed}.json').write_text(json.dumps({'order': value}))
    lines = rm_labels.report(plan).splitlines()
    assert lines[0] == '| Trained on | Seeds | order |'
    assert lines[2:] == ['| mixed | 0 |  |', '| pixel | 2 | 0.600 (0.500 to 0.700) |', '| semantic | 0 |  |']


@pytest.mark.slow
def test_rm_labels_trains_and_measures(tmp_path, capsys):
    for package in ('basicsr', 'skimage'):
        pytest.importorskip(package)
    rng, photos = np.random.default_rng(0), tmp_path / 'photos'
    photos.mkdir()
    for i in range(4):
        Image.fromarray(rng.integers(0, 255, (128, 128, 3), dtype=np.uint8)).save(photos / f'{i}.png')
    command = ['--data', str(photos), '--test', '2', '--out', str(tmp_path / 'out'), '--effort', '0.001']
    assert rm_labels.main([*command, '--seeds', '1', '--jobs', '1']) == 0
    figures = [json.loads(file.read_text()) for file in (tmp_path / 'out' / 'results').glob('*.json')]
    assert len(figures) == 3 and all(len(run) == 8 and np.isfinite([*run.values()]).all() for run in figures)
    capsys.readouterr()
    assert rm_labels.main([*command, '--seeds', '1', '--jobs', '1']) == 0  # nothing is made again
    assert '| semantic | 1 | ' in capsys.readouterr().out
