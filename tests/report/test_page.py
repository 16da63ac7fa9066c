import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from finpercep_plugin.report.bootstrap import Interval
from finpercep_plugin.report.chart import Chart
from finpercep_plugin.report.page import Page, PictureRow


class Balanced(HTMLParser):
    """Fails on a tag that is closed out of turn or never."""

    VOID = {'meta', 'img', 'br', 'line', 'polyline', 'circle'}

    def __init__(self):
        super().__init__()
        self.open, self.seen = [], []

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag


def parse(html):
    parser = Balanced()
    parser.feed(html)
    assert not parser.open
    return parser.seen


def picture(seed=0, size=(6, 5)):
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def full_page():
    return (
        Page('Title <1>')
        .intro('One & two.', 'Three.')
        .table('Figures', ['what', 'value'], [['gain', Interval(0.5, -0.25, 1.0, 8, 2)], ['none', None]], note='small')
        .curves('Curves', [Chart('Loss', {'map': ([0, 1], [1.0, 0.5]), 'rank': ([0, 1], [2.0, 0.1])})])
        .pictures('Photos', ['lq', 'sr'], [PictureRow('cat', [picture(), None], ['score 1'])], map_scale=True)
        .made('finpercep-quickstart --seed 3', {'Seed': 3, 'Machine': 'a < b'})
    )


def test_the_page_is_whole_and_needs_no_network(tmp_path):
    html = full_page().write(tmp_path / 'deep/page.html').read_text(encoding='utf-8')
    tags = parse(html)
    assert [p.name for p in (tmp_path / 'deep').iterdir()] == ['page.html']
    assert 'script' not in {tag for tag, _ in tags}
    links = [v for _, attrs in tags for k, v in attrs.items() if k in ('src', 'href')]
    assert links and all(link.startswith('data:') for link in links)
    assert 'url(' not in html and '@import' not in html
    assert [t for t in re.findall(r'<h2>(.*?)</h2>', html)] == ['Figures', 'Curves', 'Photos', 'How this was made']


def test_text_is_escaped():
    html = full_page().html()
    assert '<h1>Title &lt;1&gt;</h1>' in html
    assert 'One &amp; two.' in html
    assert '<dd>a &lt; b</dd>' in html


def test_pictures_are_embedded_exactly():
    html = full_page().html()
    coded = re.search(r'src="data:image/png;base64,([^"]+)"', html).group(1)
    assert (np.asarray(Image.open(io.BytesIO(base64.b64decode(coded)))) == picture()).all()
    assert 'width="5" height="6"' in html


def test_large_pictures_become_jpeg():
    html = Page('t', jpeg_above=10).pictures('p', ['a'], [PictureRow('x', [picture()])]).html()
    assert 'data:image/jpeg;base64,' in html and 'data:image/png' not in html


def test_numbers_in_tables():
    html = (
        Page('t').table('f', ['', 'a', 'b', 'c', 'd'], [['r', 1.23456, 7, None, Interval(0.5, -0.25, 1, 8, 2)]]).html()
    )
    cells = re.findall(r'<td>(.*?)</td>', html)
    assert cells == ['1.235', '7', '\u2013', '0.500 <small>[\u22120.250, 1.000]</small>']


def test_rows_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"table 'f': 2 columns, but a row of 1: \['x'\]"):
        Page('t').table('f', ['a', 'b'], [['x']])
    with pytest.raises(ValueError, match='pictures of cat: 2 columns, but 1 images'):
        Page('t').pictures('p', ['a', 'b'], [PictureRow('cat', [picture()])])
