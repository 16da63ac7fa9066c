import re

import pytest

from finpercep_plugin.cli.bench_fgr import main


def test_both_ways_are_measured_on_the_same_set(photos, capsys):
    small = ['--count', '9', '--size', '32', '--rounds', '1', '--workers', '1', '--seed', '4']
    assert main(['--photos', str(photos), *small]) == 0
    told = capsys.readouterr().out
    rates = re.search(r'round 1: builder ([\d.]+) samples/s, loop ([\d.]+) samples/s, ratio ([\d.]+)', told)
    builder, loop, ratio = map(float, rates.groups())
    assert ratio == pytest.approx(builder / loop, rel=0.1, abs=0.02)
    assert f'builder / loop: {ratio:.2f} (median of 1), seed 4' in told
    assert 'machine: ' in told and '--count 9' in told


def test_sets_that_differ_are_no_measurement(photos, capsys, monkeypatch):
    from finpercep_plugin.data.fgr_block import BlockMaker

    def spoilt(self, block, wanted):
        return {f'{index:08d}/record': b'' for index in wanted}

    monkeypatch.setattr(BlockMaker, '__call__', spoilt)  # in this process, not in the workers
    monkeypatch.setattr('finpercep_plugin.data.fgr_builder.summarise', lambda *_: {'skipped': [], 'p99': {}})
    assert main(['--photos', str(photos), '--count', '2', '--size', '32', '--rounds', '1', '--workers', '1']) == 2
    assert 'the two sets differ' in capsys.readouterr().err


def test_wrong_options_are_refused(photos, capsys):
    assert main(['--photos', str(photos), '--size', '30']) == 2
    assert 'size: expected a multiple of scale 4' in capsys.readouterr().err
