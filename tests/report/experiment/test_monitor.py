import re

import pytest
import torch

from finpercep_plugin.report.experiment.monitor import add_monitor, best_safe_step, last_level, observed
from finpercep_plugin.report.experiment.record import read_experiment
from finpercep_plugin.report.page import Page
from tests.report.experiment.conftest import cells


def text(records):
    page = Page('t')
    add_monitor(page, records)
    return page.html()


def test_an_observation_counts_once_though_it_is_logged_again_and_again(staged):
    record = read_experiment(staged.folder)
    assert len(record.scalars['monitor_rise'][0]) == 36
    assert observed(record)['monitor_rise'][0] == [5.0, 10.0, 15.0, 20.0, 25.0, 30.0, 35.0, 40.0]


def test_the_section_tells_verdicts_signs_and_safe_weights(staged):
    (staged.folder / 'models').mkdir()
    (staged.folder / 'models/net_g_safe.pth').write_bytes(b'x')
    html = text([read_experiment(staged.folder)])
    band = html[html.index('class="strip"') : html.index('</div>', html.index('class="strip"'))]
    assert re.findall(r'class="level (\w+)"', band) == ['ok'] * 2 + ['warn'] * 3 + ['hacked'] * 3
    assert re.findall(r'<b style="left:([\d.]+)%">(RM_\d)', band) == [('0.000', 'RM_0'), ('50.000', 'RM_1')]
    row = cells(html, 'Hacking monitor: outcome')
    assert row[:7] == ['run', '2', '3', '3', '30', 'hacked', '10'] and row[7].startswith('written 20')
    now = cells(html, 'Hacking monitor: now')
    assert now == ['lq_psnr', 'higher', '36.000', '−1.600', '0.010', 'hacked', '−1.600', '40']
    assert 'super-resolved every 5 iterations' in html and '>warn</text>' in html


def test_muted_measures_are_left_out(make_run):
    made = make_run(train={'monitor': {'every': 1, 'units': {'a': float('inf')}}}).begin()
    values = {f'monitor_{name}{end}': 0.5 for name in 'ab' for end in ('', '_z', '_se')}
    made.step(1, monitor_level=0.0, **values)
    assert cells(text([read_experiment(made.folder)]), 'Hacking monitor: now')[0] == 'b'


def test_a_dip_that_is_not_sure_is_no_verdict(make_run):
    made = make_run(train={'monitor': {'every': 1, 'sure': 3.0}}).begin()
    made.step(1, monitor_level=0.0, monitor_a=1.0, monitor_a_z=-2.0, monitor_a_se=0.9)
    row = cells(text([read_experiment(made.folder)]), 'Hacking monitor: now')
    assert row[:6] == ['a', 'held-out reward', '1.000', '−2.000', '0.900', 'ok']


def test_safe_iterations_are_as_logged_or_as_the_newest_state_has_them(make_run):
    made = make_run().begin()
    made.step(1, reward=1.0)
    assert best_safe_step(read_experiment(made.folder)) is None
    (made.folder / 'training_states').mkdir()
    torch.save({'monitor': {'best_safe_step': 7}, 'big': torch.zeros(3)}, made.folder / 'training_states/8.state')
    assert best_safe_step(read_experiment(made.folder)) == 7
    made.step(9, monitor_safe_step=9.0)
    assert best_safe_step(read_experiment(made.folder)) == 9


@pytest.mark.parametrize('content', [b'no state', b''])
def test_a_state_that_cannot_be_read_tells_nothing(make_run, content):
    made = make_run().begin()
    (made.folder / 'training_states').mkdir()
    (made.folder / 'training_states/8.state').write_bytes(content)
    assert best_safe_step(read_experiment(made.folder)) is None


def test_no_monitor_no_section(make_run):
    made = make_run().begin()
    made.step(1, reward=1.0)
    assert 'Hacking' not in text([read_experiment(made.folder)])
    assert last_level(read_experiment(made.folder)) == ''


def test_wrong_options_of_the_monitor_do_not_stop_the_page(make_run):
    made = make_run(train={'monitor': {'every': 'x', 'samples': 1}}).begin()
    made.step(100, monitor_level=2.0, monitor_rise=1.0)
    record = read_experiment(made.folder)
    assert last_level(record) == 'hacked' and observed(record)['monitor_rise'] == ([100.0], [1.0])
