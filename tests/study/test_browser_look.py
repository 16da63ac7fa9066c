"""How it looks: nothing cut off, over another, or too small, on a phone and on a desk; what opens from disk.

FINPERCEP_SCREENSHOTS=folder keeps what was seen.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from finpercep_plugin.study.votes import read_answers, vote_rows
from tests.study.browser import Server, opened
from tests.study.conftest import OURS, THEIRS, THIRD, study_of, write_pictures

pytest.importorskip('fastapi')
pytest.importorskip('uvicorn')
pytestmark = pytest.mark.slow

SCREENS = {'phone': (390, 844), 'phone on its side': (844, 390), 'desktop': (1440, 900), 'small desktop': (1024, 640)}
SEEN = """() => {
  const box = e => { const b = e.getBoundingClientRect(); return [b.left, b.top, b.right, b.bottom]; };
  const shown = e => e.checkVisibility({visibilityProperty: true}) && e.getBoundingClientRect().width > 0;
  const controls = [...document.querySelectorAll('button, input, a')].filter(shown);
  const texts = [...document.querySelectorAll('body *')].filter(e => shown(e) && [...e.childNodes].some(
    n => n.nodeType === 3 && n.textContent.trim()));
  return {
    width: document.documentElement.scrollWidth,
    controls: controls.map(e => [e.id || e.className, ...box(e), e.scrollWidth - e.clientWidth]),
    small: texts.filter(e => parseFloat(getComputedStyle(e).fontSize) < 12).map(e => e.textContent),
    panes: ['lq', 'a', 'b'].map(r => document.querySelector(`.pane[data-role="${r}"]`)).filter(Boolean).map(box),
    labels: [...document.querySelectorAll('.stage span')].filter(shown).map(e => e.textContent),
    pictures: [...document.querySelectorAll('.stage img')].filter(shown).map(e => [e.naturalWidth, ...box(e)]),
  };
}"""


def keep(page, name: str) -> None:
    if folder := os.environ.get('FINPERCEP_SCREENSHOTS'):
        page.wait_for_timeout(600)  # after what moves
        page.screenshot(path=Path(folder) / f'{name.replace(" ", "_")}.png')


def apart(first, second) -> bool:
    return first[2] <= second[0] or second[2] <= first[0] or first[3] <= second[1] or second[3] <= first[1]


def sound(page, name: str, controls: set[str], whole: bool = True) -> dict:
    """Look at the page; `whole`: nothing of it is below the edge of the screen."""
    keep(page, name)
    seen, (width, height) = page.evaluate(SEEN), (page.viewport_size['width'], page.viewport_size['height'])
    assert seen['width'] == width and seen['small'] == []
    assert {c[0] for c in seen['controls']} >= controls
    for number, (control, left, top, right, bottom, cut) in enumerate(seen['controls']):
        inside = 0 <= left and right <= width and 0 <= top and (bottom <= height or not whole)
        assert inside and bottom - top >= 34 and (cut <= 0 or control == 'link'), (name, control)
        for other, *place in seen['controls'][:number]:
            assert apart((left, top, right, bottom), place), (name, control, other)
    return seen


@pytest.fixture
def server(make):
    """A served study."""
    with Server(make(trials=1, training=0, checks=0, repeats=0, min_seconds=0.2).folder) as server:
        yield server


@pytest.mark.parametrize('screen', SCREENS)
def test_every_step_fits_the_screen(browser, server, screen):
    width, height = SCREENS[screen]
    touch = screen.startswith('phone')
    options = {'has_touch': True, 'is_mobile': True, 'device_scale_factor': 2} if touch else {}
    context = browser.new_context(viewport={'width': width, 'height': height}, **options)
    page = context.new_page()
    page.goto(server.link)
    page.wait_for_selector('#agree')
    sound(page, f'{screen} consent', {'agree'})
    page.click('#agree')
    page.wait_for_selector('#start')
    sound(page, f'{screen} instructions', {'start', 'link'}, whole=height > 700)
    page.click('#start')
    opened(page)
    tools = {'help', 'pause', 'out', 'fit', 'in', 'flip', 'choose-a', 'choose-b'}
    for question, more in (('first question', set()), ('second question', {'back'})):
        panes_are_sound(sound(page, f'{screen} {question}', tools | more), screen)
        assert page.locator('#question-text').bounding_box()['y'] >= 0
        if not more:
            page.click('#choose-b')
    for _ in range(20):
        page.click('#in')
    seen = sound(page, f'{screen} single pixels', tools)
    assert all(right - left >= 48 * 32 / 2 for _, left, _, right, _ in seen['pictures'])
    for key, name in (('p', 'pause'), ('h', 'help')):
        page.keyboard.press(key)
        page.wait_for_timeout(100)
        keep(page, f'{screen} {name}')
        box = page.locator('#dialog').bounding_box()
        assert box['x'] >= 0 <= box['y'] and box['x'] + box['width'] <= width and box['y'] + box['height'] <= height
        page.keyboard.press('Escape')
    page.wait_for_timeout(400)
    page.click('#choose-a')
    page.wait_for_selector('#finished')
    sound(page, f'{screen} end', set())
    context.close()


def panes_are_sound(seen: dict, screen: str) -> None:
    """The reference is in sight, A and B side by side, of one size, and large."""
    lq, a, b = seen['panes']
    width, height = SCREENS[screen]
    assert seen['labels'] == ['Reference', 'A', 'B'] and [p[0] for p in seen['pictures']] == [12, 48, 48]
    assert a[1::2] == b[1::2] and a[2] < b[0] and abs((a[2] - a[0]) - (b[2] - b[0])) < 1
    assert (a[2] - a[0]) * (a[3] - a[1]) > 0.15 * width * height
    if screen == 'phone':
        assert lq[3] < a[1] and lq[0] == a[0] and lq[2] == b[2]
    else:
        assert lq[1::2] == a[1::2] and lq[2] < a[0]
    for (_, left, top, right, bottom), pane in zip(seen['pictures'], seen['panes']):
        assert pane[0] <= left < right <= pane[2] + 1 and pane[1] <= top < bottom <= pane[3] + 1


@pytest.mark.parametrize('screen', ['phone', 'desktop'])
def test_the_report_opens_from_disk_and_asks_for_nothing(browser, tmp_path, screen):
    from finpercep_plugin.study.analysis import analyse
    from finpercep_plugin.study.analysis_page import write_analysis
    from tests.study.test_analysis import rows_of

    study = study_of((OURS, THEIRS, THIRD), items=100, spares=4, trials=40)
    rows = rows_of(study, 20, lambda a, b: 0.801, careless=(4,))
    file = write_analysis(study, analyse(study, rows, range(1, 21)), rows, tmp_path, 'the command')
    assert file.stat().st_size < 15e6
    context = browser.new_context(viewport=dict(zip(('width', 'height'), SCREENS[screen])))
    page, asked, complaints = context.new_page(), [], []
    page.on('request', lambda request: asked.append(request.url))
    page.on('console', lambda message: complaints.append(message.text))
    page.goto(file.as_uri())
    page.wait_for_load_state('networkidle')
    sizes = page.evaluate('[...document.images].map(i => [i.naturalWidth, i.getBoundingClientRect().width])')
    assert len(sizes) == 3 and all(natural > 1000 and width >= 600 for natural, width in sizes)
    assert page.evaluate('document.documentElement.scrollWidth') == SCREENS[screen][0]
    assert complaints == [] and [url for url in asked if not url.startswith('data:')] == [file.as_uri()]
    if folder := os.environ.get('FINPERCEP_SCREENSHOTS'):
        page.screenshot(path=Path(folder) / f'{screen}_report.png', full_page=True)
    context.close()


def test_the_static_export_needs_no_server(browser, make, tmp_path):
    from finpercep_plugin.study.static_export import write_static

    session = make(min_seconds=0.1)
    (file,) = write_static(session, tmp_path / 'site', 1)
    context = browser.new_context(viewport={'width': 390, 'height': 700}, accept_downloads=True)
    page, asked, complaints = context.new_page(), [], []
    page.on('request', lambda request: asked.append(request.url))
    page.on('pageerror', lambda error: complaints.append(str(error)))
    page.goto(f'file://{file}')
    page.click('#agree')
    for number in range(session.length):
        if number in (0, 4):  # half way, the page is opened again
            page.goto(f'file://{file}')
            page.click('#start')
        for key in ('1', '2'):
            opened(page)
            page.keyboard.press(key)
    page.wait_for_selector('#finished')
    with page.expect_download() as download:
        page.click('#finished')
    answers = Path(tmp_path / 'answers.json')
    download.value.save_as(answers)
    context.close()
    assert complaints == [] and all(url.startswith(('file:', 'data:', 'blob:')) for url in asked)
    assert OURS not in answers.read_text() and THEIRS not in answers.read_text()
    votes = read_answers([answers], session.study, session.store)
    assert len(json.loads(answers.read_text())['answers']) == session.length
    assert len(vote_rows(session.study, session.store, votes)) == session.length


def test_real_proportions_fit_too(browser, tmp_path):
    """Wide and tall results, larger than the screen."""
    from finpercep_plugin.study.definition import Rules, Settings
    from finpercep_plugin.study.pictures import create

    for number, size in enumerate(((1600, 400), (400, 1600))):
        sources = write_pictures(tmp_path / str(number), 2, size=size)
        settings = Settings(trials=2, training=0, checks=0, repeats=0, min_seconds=0.1)
        create(tmp_path / f'study{number}', sources, settings, Rules(), 'Which one?', 'You may stop.')
        with Server(tmp_path / f'study{number}') as server:
            page = browser.new_page(viewport={'width': 390, 'height': 844})
            page.goto(server.link)
            page.click('#agree')
            page.click('#start')
            opened(page)
            seen = sound(page, f'phone of {size[0]}x{size[1]}', {'choose-a', 'choose-b'})
            for (_, left, top, right, bottom), pane in zip(seen['pictures'], seen['panes']):
                assert pane[0] <= left + 1 and right <= pane[2] + 1 and pane[1] <= top + 1 and bottom <= pane[3] + 1
            page.close()
