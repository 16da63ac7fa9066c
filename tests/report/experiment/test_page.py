import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest

from finpercep_plugin.report.experiment.page import experiment_page, read_all

VOID = {'meta', 'img', 'line', 'circle', 'polyline', 'input', 'br'}


class Page(HTMLParser):
    """Fails on a tag that is closed out of turn or never."""

    def __init__(self, html):
        super().__init__()
        self.open, self.seen = [], []
        self.feed(html)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag


def headings(html):
    return re.findall(r'<h2>(.*?)</h2>', html)


def test_the_page_of_one_run_is_whole_and_needs_nothing_else(staged, tmp_path):
    html = experiment_page(read_all([staged.folder]), 'finpercep-report run').write(tmp_path / 'run.html').read_text()
    page = Page(html)
    links = [v for _, attrs in page.seen for k, v in attrs.items() if k in ('src', 'href')]
    assert len(links) == 2 and all(link.startswith('data:image/png') for link in links)
    assert 'url(' not in html and '@import' not in html and 'http-equiv' not in html
    assert 'https://' not in html and 'id="refresh" data-seconds' not in html
    assert headings(html) == [
        'At a glance',
        'Reward',
        'Pictures over time',
        'Losses',
        'Validation',
        'Algorithm and optimiser',
        'Hacking monitor: verdicts',
        'Hacking monitor: outcome',
        'Hacking monitor: signs',
        'Hacking monitor: now',
        'Adaptive curriculum: decisions',
        'Adaptive curriculum: evidence',
        'Adaptive curriculum: every decision',
        'Configuration',
        'Environment',
        'How this was made',
    ]
    glance = dict(re.findall(r'<dt>(.*?)</dt><dd>(.*?)</dd>', html[: html.index('<h2>Reward')]))
    assert glance == {
        'state': 'finished',
        'iteration': '40 of 40 (100 %)',
        'model': 'FinPercepReFLModel',
        'stage': 'RM_1',
        'reward, first to last tenth': '0.25 \u2192 3.85',
        'validation': 'psnr 24, held 4',
        'monitor': 'hacked',
    }


def test_charts_carry_their_numbers(staged):
    html = experiment_page(read_all([staged.folder]), '').html()
    lines = [json.loads(attrs['data-lines']) for tag, attrs in Page(html).seen if 'data-lines' in attrs]
    reward = next(line for line in lines if set(line) == {'mean', 'spread'})
    assert reward['mean'][:2] == [[1, 0.1], [2, 0.2]] and reward['mean'][-1] == [40, 4]


def test_settings_that_differ_from_the_shipped_file_are_marked(staged):
    html = experiment_page(read_all([staged.folder]), '').html()
    assert 'Compared with the shipped <b>' in html and 'FinPercepReFLModel)' in html
    assert re.search(r'<tr class="changed"><th scope="row">train.total_iter</th><td>40</td>', html)
    assert re.search(r'<tr class=""><th scope="row">model_type</th><td>FinPercepReFLModel</td>', html)


def test_sessions_and_versions_are_told(make_run):
    made = make_run().begin()
    made.step(3, reward=1.0)
    made.say('something odd', 'WARNING')
    made.begin(resumed=2)
    made.step(3, reward=1.0)
    html = experiment_page(read_all([made.folder]), '').html()
    assert '<dt>BasicSR</dt><dd>1.4.2</dd>' in html and '<pre>train.py -opt run.yml</pre>' in html
    assert re.findall(r'<td>(the start|2)</td><td>3</td>.*?<td>(.*?)</td></tr>', html)[0][0] == 'the start'
    assert 'interrupted' in html and '<summary>1 warnings</summary>' in html


def test_text_of_a_run_is_escaped(make_run):
    evil = '<script>alert(1)</script>'
    made = make_run(model_type=evil, **{evil: evil}).begin()
    made.step(1, **{'reward_"><script>': 1.0})
    made.say(f'iter 1: hacked: {evil}')
    made.say(evil, 'WARNING')
    made.writer.add_image(f'panel/{evil}', __import__('numpy').zeros((8, 8, 3), 'uint8'), 1, dataformats='HWC')
    made.writer.flush()
    html = experiment_page(read_all([made.folder]), evil).html()
    Page(html)
    assert html.count('<script') == 1  # the page's own


def test_several_experiments_side_by_side(staged, make_run):
    other = make_run('other', train={'total_iter': 30}).begin()
    other.step(1, reward=9.0)
    other.picture(1)
    html = experiment_page(read_all([staged.folder, other.folder]), '').html()
    Page(html)
    assert headings(html)[0] == 'At a glance' and headings(html)[-3:] == [
        'Environment: run',
        'Environment: other',
        'How this was made',
    ]
    assert re.findall(r'<h3>(\w+: val) <output>', html) == ['run: val', 'other: val']
    differs = html[html.index('Configuration: what differs') :]
    assert '<th scope="row">train.total_iter</th><td>40</td><td>30</td>' in differs
    assert 'model_type' not in differs[: differs.index('</table>')]


def test_experiments_of_one_name_get_the_name_of_their_place(staged, tmp_path):
    shutil.copytree(staged.folder, tmp_path / 'elsewhere/experiments/run')
    records = read_all([staged.folder, tmp_path / 'elsewhere/experiments/run'])
    assert [r.label for r in records] == [f'{tmp_path.name}/run', 'elsewhere/run']


def test_an_empty_folder_is_refused(make_run):
    with pytest.raises(ValueError, match='run: no log and no TensorBoard files'):
        experiment_page(read_all([make_run().folder]), '')


@pytest.mark.slow
def test_the_page_works_in_a_browser(staged, tmp_path):
    """Chromium (Debian: apt-get install chromium) runs the script, from disk: one frame at a time, numbers beside the keys."""
    browser = shutil.which('chromium') or shutil.which('chromium-browser') or shutil.which('google-chrome')
    if not browser:
        pytest.skip('no Chromium: apt-get install chromium')
    page = experiment_page(read_all([staged.folder]), '')
    page.content(
        'test', '<script>addEventListener("load", () => document.querySelector("[data-by=\'-1\']").click())</script>'
    )
    file = page.write(tmp_path / 'page.html')
    flags = '--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking --virtual-time-budget=3000'
    command = [browser, *flags.split(), f'--user-data-dir={tmp_path / "profile"}', '--dump-dom', file.as_uri()]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=100).stdout
    assert 'class="live"' in dom
    assert re.findall(r'class="frame( now)?" data-step="(\d+)"', dom) == [(' now', '20'), ('', '40')]
    assert 'iteration 20, RM_0' in dom
    assert re.search(r'class="read">last, 40</p>.*?mean<b>4</b>.*?spread<b>0.5</b>', dom)
