"""One set, however its making is divided: in this process, over workers, around devices, in shards, with stops."""

import dataclasses
import os
import signal
import threading
import time

import pytest
import torch

from finpercep_plugin.data import fgr_runs
from finpercep_plugin.data.fgr_builder import build
from finpercep_plugin.data.fgr_format import FGRError, from_json, read_meta
from finpercep_plugin.data.fgr_merge import merge
from finpercep_plugin.data.fgr_options import BuildOptions
from finpercep_plugin.data.fgr_verify import verify
from finpercep_plugin.data.lmdb_io import Reader
from finpercep_plugin.data.masks import MaskOptions
from finpercep_plugin.data.photos import photo_list

from .conftest import contents


def in_shards(options: BuildOptions, folder, shards: int) -> str:
    for number in range(shards):
        build(dataclasses.replace(options, out=str(folder / f'shard{number}'), shard=(number, shards)))
    merge([str(folder / f'shard{n}') for n in reversed(range(shards))], str(folder / 'merged'))
    return str(folder / 'merged')


@pytest.mark.parametrize('devices', [['cpu'], ['cpu', 'cpu']])
def test_around_devices_it_is_the_same_set(options, fgr, tmp_path, devices):
    seen = []
    staged = dataclasses.replace(options, out=str(tmp_path / 'staged'), devices=devices)
    build(staged, lambda done, total: seen.append(done))
    assert contents(staged.out) == contents(fgr) and seen == list(range(13))


def test_in_shards_it_is_the_same_set(options, fgr, tmp_path):
    small = dataclasses.replace(options, batch=2)
    build(dataclasses.replace(small, out=str(tmp_path / 'whole')))
    assert contents(in_shards(small, tmp_path, 3)) == contents(tmp_path / 'whole')
    assert {k: v for k, v in contents(tmp_path / 'whole')[0].items() if not k.endswith('record')} == {
        k: v for k, v in contents(fgr)[0].items() if not k.endswith('record')
    }  # without networks the size of the blocks is of no account


@pytest.fixture(scope='module')
def networks(photos, tmp_path_factory, tiny_dinov3, tiny_sam) -> BuildOptions:
    """A build with a network, beside `classical`, semantic masks beside random ones, and features of a transformer."""
    pytest.importorskip('spandrel')
    from spandrel.architectures.Compact import Compact

    torch.manual_seed(0)
    weights = tmp_path_factory.mktemp('compact') / 'compact.pth'
    torch.save({'params_ema': Compact(num_feat=8, num_conv=2, upscale=4).state_dict()}, weights)
    segments = {'type': 'sam', 'weights': str(tiny_sam), 'points_per_side': 3, 'overlap': 1.0, 'stability': 0.5}
    return BuildOptions(
        photos=[str(photos)],
        count=10,
        size=48,
        batch=4,
        seed=1,
        feature=tiny_dinov3,
        mask=MaskOptions(kinds={'blob': 1.0, 'semantic': 1.0}, area=(0.05, 0.6), segments=segments),
        producers=[{'type': 'classical'}, {'type': 'spandrel', 'weights': str(weights)}],
    )


@pytest.fixture(scope='module')
def with_networks(networks, tmp_path_factory) -> str:
    """The set of `networks`, made in this process; not to be written to."""
    out = str(tmp_path_factory.mktemp('networks') / 'set')
    build(dataclasses.replace(networks, out=out))
    return out


def test_networks_have_their_part_in_the_set(with_networks):
    reader = Reader(with_networks)
    records = [from_json(reader.get(f'{i:08d}/record')) for i in range(10)]
    assert {r['producer']['type'] for r in records} == {'classical', 'spandrel'}
    assert {r['mask']['kind'] for r in records} == {'blob', 'semantic'}
    assert verify(with_networks) == [] and read_meta(with_networks)['p99']['feature'] > 0


@pytest.mark.parametrize('devices', [['cpu'], ['cpu', 'cpu']])
def test_with_networks_around_devices_it_is_the_same_set(networks, with_networks, tmp_path, devices):
    build(dataclasses.replace(networks, out=str(tmp_path / 'set'), devices=devices))
    assert contents(tmp_path / 'set') == contents(with_networks)


def test_with_networks_in_shards_it_is_the_same_set(networks, with_networks, tmp_path):
    assert contents(in_shards(networks, tmp_path, 2)) == contents(with_networks)


def test_with_networks_stopped_in_a_block_it_is_the_same_set(networks, with_networks, tmp_path):
    def stop(done, total):
        if done == 6:
            raise KeyboardInterrupt

    mine = dataclasses.replace(networks, out=str(tmp_path / 'set'), count=7)
    with pytest.raises(KeyboardInterrupt):
        build(mine, stop)
    build(mine)
    build(dataclasses.replace(mine, count=10))
    assert contents(mine.out) == contents(with_networks)


@pytest.mark.slow
@pytest.mark.parametrize('devices', [[], ['cpu']])
def test_with_networks_over_workers_it_is_the_same_set(networks, with_networks, tmp_path, devices):
    build(dataclasses.replace(networks, out=str(tmp_path / 'set'), workers=2, devices=devices))
    assert contents(tmp_path / 'set') == contents(with_networks)


def test_torch_has_its_threads_back(networks, tmp_path):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        build(dataclasses.replace(networks, out=str(tmp_path / 'set'), count=1, devices=['cpu']))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_only_so_many_blocks_are_ahead():
    started = []

    def job(number):
        started.append(number)
        future = fgr_runs.Future()
        future.set_result(number)
        return future

    results = fgr_runs._in_order((lambda n=n: job(n) for n in range(20)), 4)
    assert next(results) == 0 and len(started) <= 5
    assert list(results) == list(range(1, 20))


def test_a_killed_worker_ends_the_build_and_loses_nothing(options, fgr, tmp_path):
    mine = dataclasses.replace(options, out=str(tmp_path / 'set'), count=400, workers=1, batch=2)

    def kill(done, total):
        if done == 10:
            import multiprocessing

            for child in multiprocessing.active_children():
                os.kill(child.pid, signal.SIGKILL)

    with pytest.raises(FGRError, match='a worker process was killed'):
        build(mine, kill)
    stored = sum(k.endswith('/record') for k in Reader(mine.out).keys())
    assert 10 <= stored < 400
    assert build(dataclasses.replace(mine, workers=0)).added == 400 - stored and verify(mine.out) == []


def test_a_failing_device_ends_the_build_without_waiting(options, tmp_path, monkeypatch):
    def fail(self, samples):
        raise FGRError('out of memory')

    monkeypatch.setattr(fgr_runs.BlockMaker, 'compute', fail)
    since = time.monotonic()
    with pytest.raises(FGRError, match='out of memory'):
        build(dataclasses.replace(options, out=str(tmp_path / 'set'), devices=['cpu']))
    assert time.monotonic() - since < 20 and threading.active_count() < 20


def test_what_is_wrong_with_the_options_is_said_before_any_work(options):
    from finpercep_plugin.config import ConfigError

    wrong = dataclasses.replace(options, producers=[{'type': 'classicl'}])
    for change in ({}, {'workers': 2}, {'devices': ['cpu']}):
        with pytest.raises(ConfigError, match="did you mean 'classical'"):
            fgr_runs.run_here(photo_list(options.photos), dataclasses.replace(wrong, **change))


def test_workers_keep_one_thread_and_the_environment_is_as_it_was(monkeypatch):
    monkeypatch.setenv('OMP_NUM_THREADS', '7')
    monkeypatch.delenv('MKL_NUM_THREADS', raising=False)
    with fgr_runs._one_thread_each():
        assert all(os.environ[name] == '1' for name in fgr_runs._THREADS)
    assert os.environ['OMP_NUM_THREADS'] == '7' and 'MKL_NUM_THREADS' not in os.environ
