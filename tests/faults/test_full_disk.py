"""A disk that is full while a checkpoint is written: what was kept before stays, and the run goes on from it."""

import contextlib
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
import yaml

pytest.importorskip('basicsr')
pytest.importorskip('diffusers')
from tests.bad_input.tools import plain
from tests.models.test_kill_inside_iteration import same

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
TOTAL, EVERY = 8, 2


@contextlib.contextmanager
def small_disk(folder, size):
    """A file system of so many bytes."""
    folder.mkdir()
    mounted = shutil.which('mount') and subprocess.run(
        ['mount', '-t', 'tmpfs', '-o', f'size={size}', 'tmpfs', str(folder)], capture_output=True
    )
    if not mounted or mounted.returncode:
        pytest.skip('a file system can be mounted by root alone')
    try:
        yield
    finally:
        subprocess.run(['umount', '-l', str(folder)], check=True)


@pytest.mark.parametrize('kind', ['refl', 'rm'])
@pytest.mark.parametrize('room', [0.2, 0.6, 1.2, 1.8])
def test_while_a_checkpoint_is_written(kind, room, options, forks, told, tmp_path):
    """Room for the first checkpoint, and for a part of the second: of its weights, or of its state."""
    opt = options(kind)
    opt['train']['total_iter'], opt['logger']['save_checkpoint_freq'], opt['val'] = TOTAL, EVERY, None
    if kind != 'rm':
        opt['train']['monitor'] = {'every': 0}
    (tmp_path / 'opt.yml').write_text(yaml.safe_dump(opt, sort_keys=False))
    command = ('finpercep_plugin.train', '-opt', tmp_path / 'opt.yml', '--auto_resume')
    states = Path('experiments') / kind / 'training_states'
    (tmp_path / 'whole').mkdir()
    forks.run(*command, cwd=tmp_path / 'whole', log=tmp_path / 'whole.log')
    weights = tmp_path / f'whole/experiments/{kind}/models/net_g_{EVERY}.pth'
    one = sum(file.stat().st_size for file in (weights, tmp_path / 'whole' / states / f'{EVERY}.state'))
    disk, log = tmp_path / 'disk', tmp_path / 'full.log'
    with small_disk(disk, int((1 + room / 2) * one) + (256 << 10)):
        (disk / 'ballast').write_bytes(bytes(160 << 10))
        forks.start(*command, cwd=disk, log=log)
        assert forks.wait() == 2, log.read_text()[-3000:]
        said = [line for line in log.read_text().splitlines() if line.startswith('error: ')]
        assert len(said) == 1 and 'cannot be written' in said[0] and 'Traceback' not in log.read_text()
        kept = {f.name: torch.load(f, weights_only=True) for f in (disk / states).glob('*.state')}
        whole = {f.name: torch.load(f, weights_only=True) for f in (tmp_path / 'whole' / states).glob('*.state')}
        assert f'{EVERY}.state' in kept and len(kept) < len(whole) and all(same(kept[n], whole[n]) for n in kept)
        assert not list(disk.rglob('*.tmp'))
        subprocess.run(['mount', '-o', 'remount,size=64m', str(disk)], check=True)
        forks.run(*command, cwd=disk, log=tmp_path / 'resumed.log')
        assert (
            f'Resuming training from iter {max(int(Path(n).stem) for n in kept)}.'
            in (tmp_path / 'resumed.log').read_text()
        )
        last = torch.load(disk / states / f'{TOTAL}.state', weights_only=True)
        assert same(last, whole[f'{TOTAL}.state'])
    what = f'{kind}, {room:g} of two files of a checkpoint fit'
    told.add('disk', what, 2, plain(said[0], disk, tmp_path), 'whole', 'to the bit')
