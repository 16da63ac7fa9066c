import os

import pytest

from finpercep_plugin.report.experiment.record import find_experiment, read_experiment


def test_stages_begin_where_the_log_says_though_numbers_come_later(make_run):
    made = make_run().begin()
    for i in (10, 20, 30):
        if i == 20:
            made.say('iter 13: CCL stage 1')
        made.step(i, stage=float(i > 10))
    assert read_experiment(made.folder).stages == {0: 1, 1: 13}


def test_stages_without_a_log_begin_where_the_numbers_change(make_run):
    made = make_run().begin()
    for i in (10, 20, 30):
        made.step(i, stage=float(i // 15))
    made.file.unlink()
    record = read_experiment(made.folder)
    assert record.stages == {0: 1, 1: 20, 2: 30} and record.state() == 'no training log'
    assert [record.stage_at(i) for i in (0, 19, 20, 99)] == [None, 0, 1, 2]


def test_a_resume_names_the_stage_anew_which_moves_nothing(make_run):
    made = make_run().begin()
    made.step(1, stage=0.0)
    made.say('iter 2: CCL stage 1')
    for i in (2, 3, 4):
        made.step(i, stage=1.0)
    made.begin(resumed=3)
    made.say('iter 4: CCL stage 1')
    made.step(4, stage=1.0)
    assert read_experiment(made.folder).stages == {0: 1, 1: 2}


def test_curves_come_from_the_log_where_there_is_no_tensorboard(make_run):
    made = make_run().begin()
    made.step(7, l_map=0.25, reward=1.0)
    made.writer.close()
    for file in made.logs.iterdir():
        file.unlink()
    scalars = read_experiment(made.folder).scalars
    assert scalars['losses/l_map'] == ([7.0], [0.25]) and scalars['reward'] == ([7.0], [1.0])


def test_where_a_run_stands(make_run):
    made = make_run().begin()
    made.step(5, reward=1.0)
    record = read_experiment(made.folder)
    assert (record.iteration, record.total, record.over) == (5, 40, False)
    assert record.state(now=record.written + 10) == 'running'
    assert record.state(now=record.written + 3 * 3600) == 'no news for 3 h'
    made.end()
    record = read_experiment(made.folder)
    assert record.over and record.state(now=record.written + 1e6) == 'finished'


def test_long_pauses_that_a_run_has_made_are_no_silence(make_run):
    made = make_run().begin()
    made.clock = made.clock.replace(hour=15)
    made.step(5, reward=1.0)
    record = read_experiment(made.folder)
    assert record.state(now=record.written + 4 * 3600) == 'running'


@pytest.mark.parametrize('stop', [True, False])
def test_a_run_that_its_monitor_stopped(make_run, stop):
    made = make_run(train={'total_iter': 40, 'monitor': {'every': 5, 'stop': stop}}).begin()
    made.step(4, reward=1.0)
    made.say('iter 5: hacked: reward 1')
    record = read_experiment(made.folder)
    assert record.over == stop
    assert record.state(now=record.written) == ('stopped: the reward is hacked' if stop else 'running')


def test_experiments_are_found_by_path_and_by_name(make_run, tmp_path, monkeypatch):
    made = make_run()
    monkeypatch.chdir(tmp_path)
    assert find_experiment('run').resolve() == find_experiment(str(made.folder)) == made.folder
    os.makedirs('experiments/empty')
    for name in ('empty', 'nowhere'):
        with pytest.raises(FileNotFoundError, match=f'{name}: no experiment'):
            find_experiment(name)
