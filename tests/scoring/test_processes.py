"""The command as users run it: killed in the middle, and by several processes."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from finpercep_plugin.images import write_png

ROOT = Path(__file__).resolve().parents[2]
COUNT = 48
# Slow enough to be killed in the middle, and different for each picture.
SLOW = 'import time\n\ndef slow(sr):\n    time.sleep(0.05 * len(sr))\n    return sr.square().mean((1, 2, 3))\n'
FORMATS = ('csv', 'jsonl', 'md', 'tex', 'html', 'run.json')

pytestmark = pytest.mark.slow


@pytest.fixture(scope='module')
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp('world')
    rng = np.random.default_rng(0)
    for i in range(COUNT):
        shape = (48, 40 + 8 * (i % 3), 3)
        gt = rng.integers(0, 256, shape, dtype=np.uint8)
        write_png(folder / 'gt' / f'{i:02d}.png', gt)
        write_png(folder / 'sr' / f'{i:02d}.png', (gt * 0.9).astype(np.uint8))
    (folder / 'slow_metric.py').write_text(SLOW)
    return folder


def command(world, tiny_rms):
    return [
        *('-m', 'finpercep_plugin.cli.score', str(world / 'sr'), '--gt', str(world / 'gt'), '--rm', tiny_rms[2]),
        *('--metrics', 'psnr', 'piqe', 'slow=Function:function=slow_metric:slow', '--device', 'cpu', '--quiet'),
        *('--out', 's.csv', '--formats', 'csv', 'jsonl', 'md', 'tex', 'html'),
    ]


def start(arguments, folder, world):
    folder.mkdir(exist_ok=True)
    paths = os.pathsep.join([str(ROOT), str(world)])
    environment = {**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONPATH': paths}
    return subprocess.Popen([sys.executable, *arguments], cwd=folder, env=environment, start_new_session=True)


def entries(folder):
    lines = [line for file in folder.glob('s.cache/*.jsonl') for line in file.read_text().splitlines()]
    return [json.loads(line) for line in lines]


@pytest.fixture(scope='module')
def whole(world, tiny_rms, tmp_path_factory):
    """The folder of a run that nothing happened to."""
    pytest.importorskip('pyiqa')
    folder = tmp_path_factory.mktemp('whole')
    assert start(command(world, tiny_rms), folder, world).wait(500) == 0
    assert len(entries(folder)) == 4 * COUNT
    return folder


def test_a_run_killed_at_half_goes_on_and_scores_nothing_twice(world, tiny_rms, whole, tmp_path):
    process = start(command(world, tiny_rms), tmp_path, world)
    journal, deadline = tmp_path / 's.cache/0of1.jsonl', time.monotonic() + 400
    while not journal.exists() or journal.read_bytes().count(b'\n') < 4 * COUNT // 2:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait(30)
    done = entries(tmp_path)
    assert 4 * COUNT // 2 <= len(done) < 4 * COUNT
    assert not list(tmp_path.glob('s.csv'))
    assert start(command(world, tiny_rms), tmp_path, world).wait(500) == 0
    after = entries(tmp_path)
    assert after[: len(done)] == done
    assert len({(e['name'], e['metric']) for e in after}) == len(after) == 4 * COUNT
    for suffix in FORMATS:
        assert (tmp_path / f's.{suffix}').read_bytes() == (whole / f's.{suffix}').read_bytes()


def test_several_processes_write_the_same_files(world, tiny_rms, whole, tmp_path):
    launch = ['-m', 'torch.distributed.run', '--standalone', '--nproc_per_node', '2']
    assert start([*launch, *command(world, tiny_rms)], tmp_path, world).wait(600) == 0
    found = entries(tmp_path)
    assert len({(e['name'], e['metric']) for e in found}) == len(found) == 4 * COUNT
    shares = [len(file.read_text().splitlines()) for file in sorted(tmp_path.glob('s.cache/*.jsonl'))]
    assert len(shares) == 2 and min(shares) > 0
    for suffix in FORMATS:
        assert (tmp_path / f's.{suffix}').read_bytes() == (whole / f's.{suffix}').read_bytes()
