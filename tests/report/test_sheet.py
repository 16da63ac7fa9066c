import re

import numpy as np
import pytest

from finpercep_plugin.data.fgr_format import encode_png
from finpercep_plugin.report.page import Page
from finpercep_plugin.report.sheet import Card, Shot, add_cards, outline

PNG = encode_png(np.zeros((4, 6, 3), np.uint8))


def html(cards, **where):
    return add_cards(Page('sheet', extra='sheet'), 'samples', cards, **where).html()


def test_an_outline_follows_the_edges_of_the_pixels():
    mask = np.zeros((6, 8), np.uint8)
    mask[2:5, 3:7] = 255
    assert outline(mask) == 'M3 2V5H7V2Z'
    assert outline(np.full((6, 8), 255, np.uint8)) == 'M0 0V6H8V0Z'
    assert outline(np.full((6, 8), 127, np.uint8)) == ''


def test_a_hole_has_its_own_outline():
    mask = np.full((5, 5), 255, np.uint8)
    mask[2, 2] = 0
    edge = outline(mask)
    assert edge.count('M') == 2 and edge.startswith('M0 0V5H5V0Z')
    corners = {tuple(map(int, p)) for p in re.findall(r'[ML](\d) (\d)', edge.split('Z')[1] + 'Z')}
    assert corners and all(x in (2, 3) and y in (2, 3) for x, y in corners)


def test_a_card_has_its_pictures_tags_and_facts():
    card = Card(
        '7',
        [Shot('lq', PNG), Shot('mask', PNG, outlined=True)],
        (8, 12),
        'M0 0Z',
        {'mask': 'blob'},
        'map 0.1',
        {'a': '<b>'},
    )
    text = html([card])
    assert text.count('data:image/png;base64,') == 2
    assert 'width="12" height="8" alt="lq"' in text
    assert text.count('class="outline on"') == 1 and text.count('class="outline"') == 1
    assert '<dt>a</dt><dd>&lt;b&gt;</dd>' in text and 'data-tags="mask=blob"' in text
    assert 'data-name="7"' in text and 'map 0.1' in text


def test_menus_are_for_what_differs():
    cards = [Card(str(n), tags={'producer': 'one', 'mask': kind}) for n, kind in enumerate(['blob', 'ellipse'])]
    text = html(cards)
    assert '<select data-kind="mask"><option value="">all</option><option>blob</option><option>ellipse</option>' in text
    assert 'data-kind="producer"' not in text


def test_pictures_as_files(tmp_path):
    text = html([Card('1-7', [Shot('lq', PNG)])], folder=tmp_path / 'a b_files', relative='a b_files')
    assert 'src="a%20b_files/1-7.lq.png"' in text and 'base64' not in text
    assert [f.name for f in (tmp_path / 'a b_files').iterdir()] == ['1-7.lq.png']
    assert (tmp_path / 'a b_files/1-7.lq.png').read_bytes() == PNG


def test_an_error_stands_in_place_of_pictures():
    text = html([Card('7', error='cannot be read: <x>')])
    assert '<p class="error">cannot be read: &lt;x&gt;</p>' in text and '<img' not in text


@pytest.mark.parametrize('text', [html([Card('7', [Shot('lq', PNG)])])])
def test_nothing_is_loaded_from_elsewhere(text):
    assert not re.search(r'(src|href)="(?!data:)', text)
    assert not re.search(r'https?://|@import|url\(|fetch\(|XMLHttpRequest', text)
    assert '<script>' in text and 'showModal' in text and text.count('<style>') == 1
