"""tools/soak.py: the slopes and their verdicts by hand, what /proc tells, and (slow) seconds of the whole."""

import json
import mmap
import os
import random
import sys
import threading

import pytest

from finpercep_plugin.cli.soak import judge, main, sample, slope

pytestmark = pytest.mark.skipif(sys.platform != 'linux', reason='/proc of Linux')
HOUR = range(0, 3600, 10)


def test_a_line_by_hand():
    mean, rise, low, high = slope(HOUR, [5 + t / 3600 for t in HOUR])
    assert rise == pytest.approx(1) and low == pytest.approx(1) and high == pytest.approx(1)
    assert mean == pytest.approx(5.5, abs=0.01)


def test_the_interval_holds_the_true_slope_in_95_of_100():
    rng, held = random.Random(0), 0
    for _ in range(400):
        _, _, low, high = slope(HOUR, [100 + 3 * t / 3600 + rng.gauss(0, 2) for t in HOUR])
        held += low <= 3 <= high
    assert 0.92 < held / 400 < 0.98


@pytest.mark.parametrize(
    ('name', 'growth', 'noise', 'verdict'),
    [
        ('memory_mb', 1, 0.1, 'flat'),
        ('memory_mb', 100, 0.1, 'not flat'),
        ('memory_mb', -100, 0.1, 'flat'),
        ('memory_mb', 0, 200, 'undecided'),
        ('files', 0, 0, 'flat'),
        ('files', 5, 0, 'not flat'),
        ('speed', -100, 0.1, 'not flat'),
        ('speed', 100, 0.1, 'flat'),
    ],
)
def test_verdicts(name, growth, noise, verdict):
    rng = random.Random(1)
    assert judge(name, HOUR, [500 + growth * t / 3600 + rng.gauss(0, noise) for t in HOUR]).verdict == verdict


def test_too_few_samples_are_refused():
    with pytest.raises(ValueError, match='19 samples; a slope needs 20 or more'):
        slope(range(19), range(19))


def test_what_a_process_takes_is_seen():
    before, done = sample(os.getpid()), threading.Event()
    files = [open(os.devnull) for _ in range(7)]
    held = mmap.mmap(-1, 64 << 20)  # never memory that the process had already
    held.write(os.urandom(64 << 20))
    thread = threading.Thread(target=done.wait)
    thread.start()
    after = sample(os.getpid())
    done.set()
    thread.join()
    for file in files:
        file.close()
    size = len(held)
    held.close()
    assert after['files'] - before['files'] == 7 and after['threads'] - before['threads'] == 1
    assert 60 < after['memory_mb'] - before['memory_mb'] < 80 and size


@pytest.mark.slow
def test_seconds_of_the_whole(tmp_path, capsys):
    pytest.importorskip('basicsr')
    pytest.importorskip('diffusers')
    words = ['--minutes', '0.25', '--every', '0.2', '--json', str(tmp_path / 's.json')]
    assert main(words) in (0, 1)
    said = capsys.readouterr().out
    told = json.loads((tmp_path / 's.json').read_text())
    for work in ('scoring', 'training'):
        assert f'{work}: ' in said and told[work]['samples'][-1]['done'] > told[work]['samples'][0]['done']
        assert told[work]['slopes'].keys() == {'memory_mb', 'files', 'threads', 'speed', 'work_cpu'}
    assert not list(tmp_path.glob('soak_*'))
