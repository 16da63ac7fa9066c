import json

import numpy as np
import pytest

from finpercep_plugin.cli.bench_score import main, make_crops
from finpercep_plugin.images import list_images, read_image, write_png


@pytest.fixture
def photos(tmp_path):
    rng = np.random.default_rng(0)
    for name, shape in (('a', (80, 100, 3)), ('b', (90, 70, 3)), ('small', (40, 200, 3))):
        write_png(tmp_path / 'photos' / f'{name}.png', rng.integers(0, 256, shape, dtype=np.uint8))
    return tmp_path / 'photos'


def test_crops_follow_the_seed(photos, tmp_path):
    for name, seed in (('x', 0), ('y', 0), ('z', 1)):
        make_crops(list_images([photos]), tmp_path / name, 3, 64, seed)
    files = {name: [p.read_bytes() for p in sorted((tmp_path / name).rglob('*.png'))] for name in 'xyz'}
    assert len(files['x']) == 6 and files['x'] == files['y'] != files['z']
    sr, gt = (read_image(tmp_path / 'x' / kind / '0000.png').astype(float) for kind in ('sr', 'gt'))
    assert sr.shape == gt.shape == (64, 64, 3) and np.abs(sr - gt).mean() > 10
    with pytest.raises(ValueError, match='none of 3 photos has sides of 300 or more'):
        make_crops(list_images([photos]), tmp_path / 'n', 1, 300, 0)


@pytest.mark.slow
def test_both_are_timed_and_agree(photos, tmp_path, capsys):
    pytest.importorskip('pyiqa')
    args = [str(photos), '--count', '3', '--side', '64', '--threads', '1', '--json', str(tmp_path / 'b.json')]
    assert main(args) == 0
    figures = json.loads((tmp_path / 'b.json').read_text())
    assert set(figures['pyiqa']) == {'psnr', 'ssim', 'gmsd', 'piqe', 'together'}
    assert figures['times_faster'] > 0 and max(figures['largest_difference'].values()) <= 1e-6
    assert figures['command'].startswith('tools/bench_score.py') and 'seed 0' in figures['crops']
    assert 'finpercep-score, all four and FinPercep-RM' in capsys.readouterr().out
