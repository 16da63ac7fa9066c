import re
import subprocess
import sys
import time

import pytest

from finpercep_plugin.cli import report


def test_writes_one_page_beside_where_it_is_called(staged, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert report.main(['run']) == 0
    assert capsys.readouterr().out == 'run.html: run: finished\n'
    assert '<pre>finpercep-report run</pre>' in (tmp_path / 'run.html').read_text()


def test_several_go_into_one_page(staged, make_run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_run('other').begin().step(1, reward=1.0)
    assert report.main(['run', 'experiments/other', '--out', 'deep/both.html']) == 0
    assert '<h1>run, other</h1>' in (tmp_path / 'deep/both.html').read_text()


def test_what_is_no_experiment_is_refused(make_run, tmp_path, capsys):
    assert report.main([str(tmp_path / 'nowhere')]) == 2
    assert 'no experiment; expected a folder such as' in capsys.readouterr().err
    assert report.main([str(make_run().folder), '--out', str(tmp_path / 'x.html')]) == 2
    assert 'no log and no TensorBoard files' in capsys.readouterr().err
    assert not (tmp_path / 'x.html').exists()


@pytest.mark.parametrize('seconds', ['0', '-1', 'nan', 'x'])
def test_wrong_intervals_are_refused(seconds):
    with pytest.raises(SystemExit) as error:
        report.main(['run', '--watch', seconds])
    assert error.value.code == 2


def test_watching_follows_a_run_to_its_end(make_run, tmp_path, monkeypatch):
    made, out, seen = make_run().begin(), tmp_path / 'page.html', []
    made.step(1, reward=1.0)

    def sleep(seconds):
        seen.append((seconds, re.search(r'(\d+) of 40', out.read_text())[1], 'id="refresh"' in out.read_text()))
        made.step(len(seen) + 1, reward=1.0)
        if len(seen) == 3:
            made.end()

    monkeypatch.setattr(time, 'sleep', sleep)
    assert report.main([str(made.folder), '--out', str(out), '--watch', '7']) == 0
    assert seen == [(7.0, '1', True), (7.0, '2', True), (7.0, '3', True)]
    assert '4 of 40' in out.read_text() and 'id="refresh"' not in out.read_text()


def test_watching_ends_with_a_page_that_stays_as_it_is(make_run, tmp_path, monkeypatch):
    made, out = make_run().begin(), tmp_path / 'page.html'
    made.step(1, reward=1.0)

    def interrupt(seconds):
        raise KeyboardInterrupt

    monkeypatch.setattr(time, 'sleep', interrupt)
    assert report.main([str(made.folder), '--out', str(out), '--watch', '2']) == 0
    assert 'id="refresh"' not in out.read_text()


def test_it_starts_without_torch():
    code = 'import sys; import finpercep_plugin.cli.report; sys.exit("torch" in sys.modules)'
    assert subprocess.run([sys.executable, '-c', code], timeout=60).returncode == 0
