from finpercep_plugin.report.experiment.decisions import add_decisions
from finpercep_plugin.report.experiment.record import read_experiment
from finpercep_plugin.report.page import Page
from tests.report.experiment.conftest import cells


def text(records):
    page = Page('t')
    add_decisions(page, records)
    return page.html()


def test_decisions_and_their_evidence(staged):
    html = text([read_experiment(staged.folder)])
    row = cells(html, 'Adaptive curriculum: decisions')
    assert row[:4] == ['iteration 20', 'RM_0', 'left', 'hacked']
    assert row[4:7] == ['\u2013', '+0.5 ± 0.1', 'lq_psnr \u22120.6 ± 0.05']
    assert 'hacked: the reward rises while such a measure falls' in html and 'flat: ' not in html
    assert '<summary>4 decisions</summary>' in html and '>-drop</text>' in html
    every = cells(html, 'Adaptive curriculum: every decision')
    assert every[:7] == ['5', 'RM_0', 'stays', 'rising', '0', '0', '0']


def test_several_experiments_are_named(staged, make_run):
    other = make_run('other').begin()
    other.step(1, reward=1.0)
    html = text([read_experiment(staged.folder), read_experiment(other.folder)])
    assert 'run, iteration 20' in html and 'every decision' not in html


def test_no_decisions_no_section(make_run):
    made = make_run().begin()
    made.step(1, reward=1.0)
    assert '<section>' not in text([read_experiment(made.folder)])
