"""The score page in a real browser, from disk and without a network.

Needs Chromium (`apt-get install chromium`) and Playwright (`pip install playwright`).
"""

import shutil

import numpy as np
import pytest
from PIL import Image

from finpercep_plugin.report.score_page import MOST_BYTES, Looks, ScorePage, write_score_page
from finpercep_plugin.scoring.statistics import compare
from finpercep_plugin.scoring.table import Row

pytestmark = pytest.mark.slow

COLUMNS = {'score': True, 'psnr': True}
FLAGS = '--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-sync'


@pytest.fixture(scope='module')
def page_file(tmp_path_factory, shared):
    """100 photos of two methods, with ground truth and maps."""
    photos = sorted((shared / 'data/bsd100/hr').glob('*.png'))
    keys = [f'{i:03d}' for i in range(100)]
    rng = np.random.default_rng(0)
    pictures = {key: np.asarray(Image.open(photos[i % len(photos)]).convert('RGB')) for i, key in enumerate(keys)}
    sizes = {key: image.shape[1::-1] for key, image in pictures.items()}
    rows = [
        Row(m, f'{key}.png', key, *sizes[key], {'score': float(rng.normal(i)), 'psnr': float(rng.normal(27 + i))})
        for key in keys
        for i, m in enumerate(('ours', 'theirs'))
    ]

    def values(row):
        h, w = pictures[row.key].shape[:2]
        return np.fromfunction(lambda y, x: 255 * np.exp(-((x - w / 3) ** 2 + (y - h / 2) ** 2) / 4000), (h, w)).astype(
            'u1'
        )

    looks = Looks(lambda row: pictures[row.key], values, {'gt': lambda row: pictures[row.key]})
    told = ScorePage(rows, compare(rows, COLUMNS, draws=500), 'pyiqa', 'finpercep-score', {}, {})
    return write_score_page(tmp_path_factory.mktemp('page') / 'p.html', told, looks)


@pytest.fixture(scope='module')
def browser():
    playwright = pytest.importorskip('playwright.sync_api', reason='pip install playwright')
    program = shutil.which('chromium')
    if program is None:
        pytest.skip('no Chromium (apt-get install chromium)')
    with playwright.sync_playwright() as p:
        chromium = p.chromium.launch(executable_path=program, args=FLAGS.split())
        yield chromium
        chromium.close()


def opened(browser, page_file, width, **more):
    page = browser.new_context(viewport={'width': width, 'height': 900}, offline=True, **more).new_page()
    page.complaints = []
    page.on('console', lambda message: page.complaints.append(message.text))
    page.on('pageerror', lambda error: page.complaints.append(str(error)))
    page.on(
        'request', lambda request: request.url.startswith(('file:', 'data:')) or page.complaints.append(request.url)
    )
    page.goto(page_file.as_uri())
    return page


def names(page):
    return page.eval_on_selector_all(
        '.pictures tbody tr:not([hidden])', 'rows => rows.map(r => r.querySelector("b").textContent)'
    )


def test_100_pictures_of_two_methods_fit(page_file):
    assert 3_000_000 < page_file.stat().st_size <= MOST_BYTES < 15_000_000


def test_tables_sort_and_narrow(browser, page_file):
    page = opened(browser, page_file, 1400)
    shown = 'rows => rows.map(r => Number(r.cells[r.cells.length - 1].dataset.v))'
    page.click('.pictures thead button:has-text("psnr")')
    values = page.eval_on_selector_all('.pictures tbody tr', shown)
    assert len(values) == 200 and values == sorted(values)
    page.click('#turn')
    assert page.eval_on_selector_all('.pictures tbody tr', shown) == values[::-1]
    page.select_option('#sort', label='name')
    assert names(page)[:3] == ['000.png', '000.png', '001.png']
    page.select_option('#method', 'theirs')
    page.fill('#find', '09')
    assert names(page) == ['009.png', *(f'09{i}.png' for i in range(10))]
    assert page.text_content('#shown') == '11 of 200 shown'
    page.click('.means thead button:has-text("psnr")')
    page.click('.means thead button:has-text("psnr")')
    assert page.get_attribute('.means thead th:has-text("psnr")', 'aria-sort') == 'descending'
    assert page.text_content('.means tbody th >> nth=0') == 'theirs'
    assert page.complaints == []


def test_maps_are_laid_over_by_hover_tap_and_key(browser, page_file):
    opacity = 'map => Number(getComputedStyle(map).opacity)'
    page = opened(browser, page_file, 1400)
    shot, overlay = page.locator('button.shot').first, page.locator('button.shot .map').first
    assert overlay.evaluate(opacity) == 0
    shot.hover()
    page.wait_for_timeout(300)
    assert overlay.evaluate(opacity) == 1
    page.mouse.move(0, 0)
    shot.focus()
    page.keyboard.press('Enter')
    page.wait_for_timeout(300)
    assert overlay.evaluate(opacity) == 1 and shot.get_attribute('aria-pressed') == 'true'
    page.click('#maps')
    page.wait_for_timeout(300)
    assert page.locator('button.shot .map').nth(150).evaluate(opacity) == 1
    phone = opened(browser, page_file, 390, has_touch=True, is_mobile=True)
    phone.locator('button.shot').first.tap()
    phone.wait_for_timeout(300)
    assert phone.locator('button.shot .map').first.evaluate(opacity) == 1
    assert page.complaints == phone.complaints == []


@pytest.mark.parametrize('width', [1400, 390])
def test_nothing_sticks_out(browser, page_file, width):
    page = opened(browser, page_file, width)
    assert page.evaluate('document.documentElement.scrollWidth') <= width
    assert page.evaluate('[...document.images].every(image => image.complete && image.naturalWidth > 0)')
