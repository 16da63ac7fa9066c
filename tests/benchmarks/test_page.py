import dataclasses
import json
import subprocess

import pytest

from benchmarks import common, page, run
from benchmarks.common import Figure, Result, Series, figure, in_turn, peak_memory


def test_a_ratio_is_the_median_over_rounds():
    slower = figure('a', 'b', [3.0, 2.0, 8.0], [1.0, 2.0, 2.0])
    assert (slower.ours, slower.theirs, slower.ratio, slower.low, slower.high) == (3.0, 2.0, 3.0, 1.0, 4.0)
    assert figure('a', 'b', [2.0], [8.0], faster=True).ratio == 4.0


@pytest.mark.parametrize(
    ('goal', 'met'), [('<= 1.5', True), ('<= 1.4', False), ('>= 2', False), ('<= 2 us', False), ('', None)]
)
def test_goals(goal, met):
    assert Figure('a', 'b', 'us', 3.0, 2.0, 1.5, 1.5, 1.5, goal).met is met


def test_rounds_take_turns_and_the_first_does_not_count(monkeypatch):
    calls, now = [], [0.0]
    monkeypatch.setattr(common, 'clock', lambda device: now[0])

    def work(name, seconds):
        calls.append(name)
        now[0] += seconds

    seconds = in_turn({'a': lambda: work('a', 1.0), 'b': lambda: work('b', 2.0)}, 2)
    assert calls == ['b', 'a', 'a', 'b', 'b', 'a'] and seconds == {'a': [1.0, 1.0], 'b': [2.0, 2.0]}


def test_peak_memory_by_hand():
    """Two MiB live at the worst moment: the first is released before the third comes."""
    torch = pytest.importorskip('torch')

    def work():
        first, second = torch.ones(2**18), torch.ones(2**18)
        del first
        third = torch.ones(2**18)
        return second + 0 * third[0]  # and a third at the same time as two others

    assert 3 * 2**20 <= peak_memory(work) < 3.1 * 2**20


def test_the_page_holds_figures_goals_plots_and_the_hand_written_part(tmp_path):
    pytest.importorskip('matplotlib')
    figures = [
        figure('f', 'the peer', [1.0], [2.0], goal='<= 0.4'),
        figure('g', 'the peer', [90.0], [1.0], 'us', '<= 100 us'),
    ]
    series = [Series('Side', 'plain', 'px', y, [1.0, 2.0], [3.0, 4.0]) for y in ('time (s)', 'MiB')]
    found = {
        'title': 'T',
        'words': 'W.',
        'machine': 'M',
        'command': 'C',
        'took': 3,
        **dataclasses.asdict(Result(figures, series, 'S')),
    }
    page.write({'benchmarks': {'one': json.loads(json.dumps(found))}}, tmp_path)
    text = (tmp_path / 'performance.md').read_text()
    assert '| f | the peer | 1 s | 2 s | **0.5** | <= 0.4, **missed** |' in text
    assert '| one | g | <= 100 us, met | 90 us |' in text
    assert '`C`: 3 s; S; M.' in text and page.CHANGES.read_text().splitlines()[0] in text
    assert '![Side](performance/one_0.png)' in text and (tmp_path / 'performance/one_0.png').stat().st_size > 5000


def test_every_benchmark_says_what_it_is():
    import importlib

    for name in run.NAMES:
        module = importlib.import_module(f'benchmarks.{name}')
        assert module.TITLE and module.WORDS and callable(module.run)


def test_the_command_measures_in_a_process_and_keeps_what_others_found(tmp_path, capsys):
    out = tmp_path / 'r.json'
    out.write_text(json.dumps({'benchmarks': {}}))
    assert run.main(['startup', '--quick', '--rounds', '1', '--out', str(out), '--docs', str(tmp_path)]) == 0
    found = json.loads(out.read_text())['benchmarks']['startup']
    assert [one['unit'] for one in found['figures']] == ['us'] * 3 and 'torch' in found['machine']
    assert (
        found['command'].startswith('python benchmarks/run.py startup')
        and 'the least finder' in capsys.readouterr().out
    )
    assert '## Start of an unrelated Python process' in (tmp_path / 'performance.md').read_text()
    assert run.main(['--page', '--out', str(out), '--docs', str(tmp_path / 'again')]) == 0
    assert (tmp_path / 'again/performance.md').is_file()


def test_a_benchmark_that_fails_is_named(tmp_path, capsys):
    out = tmp_path / 'r.json'
    command = ['loaders', '--quick', '--photos', str(tmp_path / 'nowhere'), '--out', str(out), '--docs', str(tmp_path)]
    assert run.main(command) == 1
    assert 'failed: loaders' in capsys.readouterr().err and not out.exists()


def test_the_startup_of_a_kind_is_what_an_environment_runs(tmp_path):
    from benchmarks import startup

    first = {}
    for number, kind in enumerate((startup.NONE, startup.PLUGIN, *startup.PEERS)):
        python = startup._environment(tmp_path / str(number), kind)
        code = 'import sys; print(getattr(sys.meta_path[0], "__name__", "none"), len(sys.meta_path))'
        told = subprocess.run([python, '-c', code], capture_output=True, text=True, check=True, timeout=60)
        first[kind] = told.stdout.split()
    assert [first[kind][0] for kind in (startup.NONE, startup.PLUGIN)] == ['BuiltinImporter', 'BasicSRFinder']
    added = [int(count) - int(first[startup.NONE][1]) for _, count in first.values()]
    assert added[0] == 0 and min(added[1:4]) > 0 and added[4] == 0  # a virtual environment runs a .pth twice
