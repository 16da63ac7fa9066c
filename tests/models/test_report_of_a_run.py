"""What a training by the models leaves behind is read in full: no line of a log or tag has changed unseen."""

import pytest

pytest.importorskip('basicsr')
from finpercep_plugin.report.experiment.page import experiment_page
from finpercep_plugin.report.experiment.panels import find_panels
from finpercep_plugin.report.experiment.record import read_experiment
from finpercep_plugin.train import train_pipeline


def test_a_run_that_was_killed_and_resumed(options, tmp_path):
    opt = options('refl')
    opt['logger']['use_tb_logger'] = True
    opt['train']['monitor'] = {'every': 1, 'samples': 4}
    train_pipeline(str(tmp_path), opt, console=False)
    folder = tmp_path / 'experiments/refl'
    opt = options('refl')
    opt['logger']['use_tb_logger'] = True
    opt['train']['monitor'] = {'every': 1, 'samples': 4}
    opt['path']['resume_state'] = str(folder / 'training_states/2.state')
    train_pipeline(str(tmp_path), opt, console=False)
    record = read_experiment(folder)
    assert all(record.scalars[tag][0] == [1, 2, 3, 4] for tag in ('reward', 'losses/l_total', 'stage', 'learning rate'))
    assert record.stages == {0: 1, 1: 2, 2: 3}
    assert list(record.log.observations) == [1, 2, 3, 4] and 'monitor_safe_step' in record.scalars
    assert [(s.resumed, s.reached, s.over) for s in record.log.sessions] == [(0, 4, True), (2, 4, True)]
    assert {'PyTorch', 'finpercep_plugin', 'Machine', 'GPU'} <= set(record.log.sessions[0].facts)
    assert [(p.name, list(p.frames)) for p in find_panels(record)] == [('val', [4])]
    assert record.settings.options['train']['monitor'] == {'every': 1, 'samples': 4}
    html = experiment_page([record], '').html()
    assert '<span>map of sr</span>' in html and 'Hacking monitor: signs' in html
