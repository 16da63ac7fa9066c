"""The whole of it at the least budget: shared parts, two cells, one of them killed and continued, the report (slow)."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip('basicsr')
pytest.importorskip('diffusers')
pytest.importorskip('matplotlib')
from finpercep_plugin.cli.replicate import main

TOOL = Path(__file__).resolve().parents[2] / 'tools' / 'replicate.py'


def photo(file, seed):
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (24, 24, 3), dtype=np.uint8)).resize(
        (160, 120), Image.Resampling.BICUBIC
    )
    fine = rng.normal(0, 12, (120, 160, 3))
    Image.fromarray(np.clip(np.asarray(coarse) + fine, 0, 255).astype(np.uint8)).save(file)


@pytest.mark.slow
def test_two_cells_of_which_one_is_killed(tmp_path, capsys):
    for name in ('train', 'test'):
        (tmp_path / name).mkdir()
        for number in range(3):
            photo(tmp_path / name / f'{name}{number}.png', number + 10 * (name == 'test'))
    out = tmp_path / 'out'
    words = [
        '--photos',
        str(tmp_path / 'train'),
        '--held-out',
        str(tmp_path / 'test'),
        '--out',
        str(out),
        '--seeds',
        '0',
    ]
    assert main([*words, '--budget', '1']) == 2
    least = re.search(r'expected (\d+) minutes', capsys.readouterr().err)[1]
    words += ['--budget', str(int(least) + 1)]

    states = out / 'experiments' / 'refl-ccl-0' / 'training_states'
    run = subprocess.Popen([sys.executable, str(TOOL), *words, '--only', 'refl-ccl-0'], start_new_session=True)
    while run.poll() is None and not list(states.glob('*.state')):
        time.sleep(0.05)
    os.killpg(run.pid, signal.SIGKILL)
    run.wait()
    assert not (out / 'results' / 'refl-ccl-0.json').exists()

    assert main([*words, '--only', 'refl-[cg]*l-0', '--jobs', '1']) == 0
    assert 'Resuming training from iter' in ''.join(f.read_text() for f in states.parent.glob('*.log'))
    results = {name: json.loads((out / f'results/{name}.json').read_text()) for name in ('refl-ccl-0', 'refl-global-0')}
    for result in results.values():
        steps = result['steps']
        assert result['training']['reward']['step'] == list(range(1, steps + 1))
        assert (
            result['curve']['step'][0] == 0
            and result['curve']['step'][-1] == steps
            and len(result['curve']['step']) >= 12
        )
        assert all(np.isfinite(v).all() for v in result['images'].values())
    assert results['refl-ccl-0']['training']['stage']['value'][-1] == 2
    assert set(results['refl-global-0']['training']['stage']['value']) == {0}
    assert results['refl-ccl-0']['curve']['reward'][0] == results['refl-global-0']['curve']['reward'][0]
    assert not list(states.parent.glob('training_states/*'))

    capsys.readouterr()
    assert main([*words, '--only', 'refl-[cg]*l-0', '--jobs', '1']) == 0
    assert '2 of 2 cells are there already' in capsys.readouterr().out
    assert main(['--out', str(out), '--report', str(tmp_path / 'page.md')]) == 0
    assert 'refl-rm_2-0' in (tmp_path / 'page.md').read_text()
