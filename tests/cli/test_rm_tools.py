"""The two measuring tools: wrong usage, and a run at toy size."""

import json

import numpy as np
import pytest
from PIL import Image

from finpercep_plugin.cli import rm_quality, rm_size


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
    rng = np.random.default_rng(0)
    for i in range(4):
        Image.fromarray(rng.integers(0, 255, (128, 128, 3), dtype=np.uint8)).save(tmp_path / f'{i}.png')
    command = ['--data', str(tmp_path), '--test', '2', '--out', str(tmp_path / 'out'), '--effort', '0.002']
    command += ['--triplets', '16', '--measured', '4', '--gate', 'concat', '--start', start]
    assert rm_quality.main(command) == 0
    figures = json.loads((tmp_path / 'out/figures.json').read_text())
    assert {'order_sr_syn', 'order_syn_gt', 'map_corr', 'map_ratio'} <= set(figures)
    assert figures['gate'] == 'concat' and figures['start'] == start
    assert '| concat |' in capsys.readouterr().out
