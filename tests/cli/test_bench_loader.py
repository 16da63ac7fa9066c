import pytest

from finpercep_plugin.cli.bench_loader import main

from ..data.conftest import fgr, options, photos, preferences  # noqa: F401


def test_the_table_has_every_way_of_reading(fgr, preferences, capsys):  # noqa: F811
    pytest.importorskip('basicsr')
    command = ['--data', str(fgr), '--preferences', str(preferences), '--samples', '5', '--rounds', '2']
    assert main(command) == 0
    out = capsys.readouterr().out
    rows = {line.split('|')[1].strip(): line.split('|')[2:-1] for line in out.splitlines() if line.startswith('| ')}
    assert len(rows) == 12 and "BasicSR's PairedImageDataset, lq and gt" in rows and 'preference pairs' in rows
    for name, (rate, share, lowest, highest) in rows.items():
        if name not in ('what is read', '---'):
            assert float(rate) > 0 and 0 < float(lowest) <= float(share) <= float(highest)
    assert '--rounds 2' in out and 'seed 0' in out


def test_no_set_is_a_mistake_of_the_user(tmp_path, capsys):
    assert main(['--data', str(tmp_path)]) == 2
    assert 'not an FGR set' in capsys.readouterr().err
