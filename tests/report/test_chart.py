import json
import re
from xml.etree import ElementTree

import pytest

from finpercep_plugin.report.chart import Chart, Mark, smooth, svg, ticks


def points(text):
    line = re.search(r'points="([^"]*)"', text).group(1)
    return [tuple(map(float, p.split(','))) for p in line.split()]


def test_ticks_are_round_and_inside():
    assert ticks(0, 1) == [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert ticks(-3, 17) == [0.0, 5.0, 10.0, 15.0]
    assert ticks(24.2, 24.3) == [24.2, 24.22, 24.24, 24.26, 24.28, 24.3]


def test_a_line_runs_where_the_numbers_say():
    drawn = points(svg(Chart('t', {'a': ([0, 5, 10], [0.0, 1.0, 2.0])})))
    (x0, y0), (x1, y1), (x2, y2) = drawn
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.11) and x0 < x1
    assert y1 - y0 == pytest.approx(y2 - y1, abs=0.11) and y0 > y1  # up is less in SVG


def test_smoothing_by_hand():
    # Weight 1/2: (1/2 * 4) / (1/2), then (1/4 * 4 + 1/2 * 1) / (3/4).
    assert smooth([4.0, 1.0], 0.5) == [4.0, 2.0]


def test_values_that_are_not_finite_are_left_out():
    assert len(points(svg(Chart('t', {'a': ([0, 1, 2, 3], [0.0, float('nan'), float('inf'), 1.0])})))) == 2


@pytest.mark.parametrize('ys', [[], [float('nan')], [3.0], [2.0, 2.0], [0.0, 0.0], [-1e-9, 1e9]])
def test_degenerate_series_still_draw(ys):
    text = svg(Chart('a < b & c', {'<s>': (range(len(ys)), ys)}, marks={'RM_1 <': 1} if len(ys) > 1 else {}))
    root = ElementTree.fromstring(text)
    assert root.attrib['aria-label'] == 'a < b & c'
    assert 'nan' not in text


def test_long_series_are_thinned_and_keep_their_end():
    drawn = points(svg(Chart('t', {'a': (range(10_001), range(10_001))})))
    assert 500 < len(drawn) < 700
    assert drawn[-1][0] == pytest.approx(384.0)


def test_series_of_unequal_length_are_refused():
    with pytest.raises(ValueError, match='2 x and 1 y'):
        svg(Chart('t', {'a': ([0, 1], [0.0])}))


def test_marks_of_their_own_colours_and_labels_that_do_not_overlap():
    marks = [Mark(0, 'RM_0'), Mark(1, 'RM_1', '#123456'), Mark(99, 'RM_2'), Mark(50)]
    root = ElementTree.fromstring(svg(Chart('t', {'a': ([0, 100], [0.0, 1.0])}, marks=marks)))
    places = [float(t.attrib['x']) for t in root.iter('text') if (t.text or '').startswith('RM_')]
    assert len(places) == 3 and places[0] + 30 < places[1] and places[1] + 30 < places[2] < 400 - 30
    assert [line.attrib['stroke'] for line in root.iter('line') if line.attrib.get('stroke-dasharray') == '4 4'] == [
        '#8a919c',
        '#123456',
        '#8a919c',
        '#8a919c',
    ]


def test_levels_are_always_inside():
    text = svg(Chart('t', {'a': ([0, 1], [0.0, 0.1])}, levels={'warn <': -5.0}))
    level = next(
        line for line in ElementTree.fromstring(text).iter('line') if line.attrib.get('stroke-dasharray') == '2 3'
    )
    assert 24 < float(level.attrib['y1']) < 260 - 44 and 'warn &lt;' in text


def test_numbers_can_be_read_off():
    chart = Chart('t', {'<a>': ([0, 10], [1 / 3, float('nan')]), 'b': ([0, 10], [2.0, 3.0])}, readout=True)
    root = ElementTree.fromstring(svg(chart))
    assert json.loads(root.attrib['data-lines']) == {'<a>': [[0, 0.3333]], 'b': [[0, 2], [10, 3]]}
    assert json.loads(root.attrib['data-axis']) == [66, 384, 24, 216, 0, 10]
    assert 'data-lines' not in svg(Chart('t', chart.series))
