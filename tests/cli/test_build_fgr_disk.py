"""Builds on a disk that is full or read-only: a small tmpfs in a mount namespace of its own."""

import os
import shutil
import subprocess
import sys

import pytest

from finpercep_plugin.data.fgr_builder import build
from finpercep_plugin.data.fgr_format import read_meta
from finpercep_plugin.data.fgr_options import BuildOptions
from finpercep_plugin.data.fgr_verify import verify
from finpercep_plugin.data.lmdb_io import Reader

COUNT = 150


def in_a_mount(script: str, disk) -> subprocess.CompletedProcess:
    """Run a shell script that may mount on `disk`, which nobody outside sees; skip where that is not allowed."""
    command = ['unshare', '--user', '--map-root-user', '--mount', 'sh', '-ec']
    disk.mkdir()
    if (
        shutil.which('unshare') is None
        or subprocess.run([*command, f'mount -t tmpfs -o size=1m t {disk}'], capture_output=True).returncode
    ):
        pytest.skip('no mount namespaces here')
    return subprocess.run([*command, script], capture_output=True, text=True, timeout=200, env={**os.environ})


def command(photos, out, *more) -> str:
    given = ['--photos', photos, '--out', out, '--count', COUNT, '--size', 64, '--quiet', *more]
    return ' '.join(map(str, [sys.executable, '-m', 'finpercep_plugin.cli.build_fgr', *given]))


def test_a_full_disk_keeps_what_is_stored_and_with_room_the_build_goes_on(photos, tmp_path):
    disk, out = tmp_path / 'disk', tmp_path / 'disk' / 'set'
    done = in_a_mount(
        f'mount -t tmpfs -o size=3m t {disk}\n'
        f'{command(photos, out)} && exit 90\n'
        f'[ $? = 2 ] || exit 91\n'
        f'cp -r {out} {tmp_path}/full\n'
        f'mount -o remount,size=64m {disk}\n'
        f'{command(photos, out)}\n'
        f'cp -r {out} {tmp_path}/more\n',
        disk,
    )
    assert done.returncode == 0, (done.returncode, done.stderr)
    assert done.stderr.count('\n') == 1 and 'the disk is full' in done.stderr
    full, more = Reader(tmp_path / 'full'), Reader(tmp_path / 'more')
    there = list(full.keys())
    assert read_meta(tmp_path / 'full')['complete'] is False and 0 < len(there) < 7 * COUNT
    build(BuildOptions(photos=[str(photos)], out=str(tmp_path / 'whole'), count=COUNT, size=64))
    whole = Reader(tmp_path / 'whole')
    assert list(more.keys()) == list(whole.keys())
    assert all(bytes(more.get(key)) == bytes(whole.get(key)) for key in whole.keys())
    assert all(bytes(full.get(key)) == bytes(whole.get(key)) for key in there) and verify(tmp_path / 'more') == []


def test_a_read_only_place_is_refused_in_a_sentence_and_a_set_there_stays(photos, tmp_path):
    disk, out = tmp_path / 'disk', tmp_path / 'disk' / 'set'
    small = command(photos, out, '--count', 2)
    done = in_a_mount(
        f'mount -t tmpfs -o size=64m t {disk}\n'
        f'{small}\n'
        f'mount -o remount,ro {disk}\n'
        f'{command(photos, out)} && exit 90\n'
        f'[ $? = 2 ] || exit 91\n'
        f'{command(photos, disk / "new")} && exit 92\n'
        f'[ $? = 2 ] || exit 93\n'
        f'{sys.executable} -m finpercep_plugin.cli.build_fgr --verify --out {out}\n',
        disk,
    )
    assert done.returncode == 0, (done.returncode, done.stderr)
    lines = [line for line in done.stderr.splitlines() if line.startswith('finpercep-build-fgr')]
    assert lines == [
        f'finpercep-build-fgr: {p}: cannot be written (Read-only file system)' for p in (out, disk / 'new')
    ]
    assert 'sound' in done.stdout
