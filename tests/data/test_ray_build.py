"""Builds on a local Ray cluster of several processes: what comes out is what one process makes."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from finpercep_plugin.data.fgr_builder import build
from finpercep_plugin.data.fgr_format import FGRError, read_meta
from finpercep_plugin.data.lmdb_io import Reader

ray = pytest.importorskip('ray')

from finpercep_plugin.data.ray_build import on_ray  # noqa: E402

QUICK = {'RAY_USAGE_STATS_ENABLED': '0', 'RAY_worker_niceness': '0'}

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope='module')
def cluster():
    """Two cores on this machine; never one that happens to run here."""
    os.environ.update(QUICK)
    ray.init(address='local', num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def content(path: Path) -> dict[str, bytes]:
    reader = Reader(path)
    return {key: bytes(reader.get(key)) for key in reader.keys()}


def processes_of_this_one(title: str) -> list[int]:
    """Descendants whose command line has the title."""
    parents, found = {}, []
    for entry in Path('/proc').iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / 'stat').read_text().rpartition(')')[2].split()[1])
                if title in (entry / 'cmdline').read_text():
                    found.append(int(entry.name))
            except OSError:  # it has ended meanwhile
                continue

    def ours(pid: int) -> bool:
        while pid in parents and pid != os.getpid():
            pid = parents[pid]
        return pid == os.getpid()

    return [pid for pid in found if ours(pid)]


def test_the_command_starts_a_cluster_of_its_own(options, tmp_path):
    given = ['--photos', options.photos[0], '--count', '40', '--size', '32', '--seed', '3', '--workers', '2', '--quiet']
    for out, more in (('here', []), ('ray', ['--ray', 'local'])):
        command = [sys.executable, '-m', 'finpercep_plugin.cli.build_fgr', *given, '--out', str(tmp_path / out), *more]
        subprocess.run(command, check=True, timeout=400, env={**os.environ, **QUICK})
    same(tmp_path / 'ray', tmp_path / 'here')


@pytest.fixture(scope='module')
def plain(options, tmp_path_factory):
    """What one process makes."""
    out = tmp_path_factory.mktemp('plain') / 'set'
    build(dataclasses.replace(options, out=str(out), count=240))
    return out


def same(one: Path, other: Path) -> None:
    assert content(one) == content(other)
    assert read_meta(one) == read_meta(other)
    assert (one / 'README.md').read_text() == (other / 'README.md').read_text()


def test_a_killed_worker_changes_nothing(cluster, options, plain, tmp_path):
    killed = []

    def kill_one(done: int, total: int) -> None:
        if done and not killed:
            assert done < total
            pid = processes_of_this_one('ray::MapWorker')[0]
            os.kill(pid, signal.SIGKILL)
            killed.append(pid)

    given = dataclasses.replace(options, out=str(tmp_path / 'set'), count=240, workers=2)
    report = build(given, kill_one, on_ray('local'))
    assert killed and report.added == 240
    same(tmp_path / 'set', plain)


def test_an_interrupted_job_goes_on(cluster, options, plain, tmp_path):
    class Stop(Exception):
        pass

    def stop(done: int, total: int) -> None:
        if done >= 60:
            raise Stop

    given = dataclasses.replace(options, out=str(tmp_path / 'set'), count=240, workers=2)
    with pytest.raises(Stop):
        build(given, stop, on_ray('local'))
    assert not json.loads((tmp_path / 'set' / 'meta.json').read_text())['complete']
    report = build(given, None, on_ray('local'))
    assert 0 < report.added <= 181
    same(tmp_path / 'set', plain)


def test_stages_apart_make_the_same(cluster, options, plain, tmp_path):
    given = dataclasses.replace(options, out=str(tmp_path / 'set'), count=240, workers=1, devices=['cpu'])
    build(given, None, on_ray('local'))
    assert content(tmp_path / 'set') == content(plain)


@pytest.mark.parametrize('devices', [[], ['cpu']])
def test_what_goes_wrong_in_a_worker_is_told(cluster, options, tmp_path, devices):
    photos = tmp_path / 'photos'
    photos.mkdir()
    (photos / 'none.png').write_bytes(b'no picture')
    with pytest.raises(FGRError, match=r'^none of the 1 photos can be used .none.png'):
        given = {'photos': [str(photos)], 'out': str(tmp_path / 'set'), 'workers': 1, 'devices': devices}
        build(dataclasses.replace(options, **given), None, on_ray('local'))
