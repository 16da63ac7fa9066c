import re

import numpy as np
import pytest

from finpercep_plugin.report import score_page
from finpercep_plugin.report.score_charts import distribution
from finpercep_plugin.report.score_page import Looks, ScorePage, write_score_page
from finpercep_plugin.report.score_pictures import map_png, shot_of, worst_region
from finpercep_plugin.scoring.statistics import compare
from finpercep_plugin.scoring.table import Row

COLUMNS = {'score': True, 'psnr': True}


def photo(seed, side=64):
    """Smooth enough to be packed as photos are."""
    rng = np.random.default_rng(seed)
    coarse = np.kron(rng.integers(0, 256, (side // 8, side // 8, 3)), np.ones((8, 8, 1)))
    return (coarse + rng.normal(0, 8, coarse.shape)).clip(0, 255).astype(np.uint8)


def looks_of(gt=True, side=64):
    def values(row):
        table = np.zeros((side, side), np.uint8)
        table[10:20, 5:15] = 200
        return table

    return Looks(lambda row: photo(int(row.key), side), values, {'gt': lambda row: photo(1, side)} if gt else {})


def told_of(methods, count, **more):
    rows = [
        Row(m, f'{k}.png', str(k), 64, 64, {'score': k + i / 10, 'psnr': 20.0 + k - i})
        for k in range(count)
        for i, m in enumerate(methods)
    ]
    values = {'protocol': 'seesr: Y', 'command': 'finpercep-score x', 'facts': {'seed': 0}, 'unmatched': {}, **more}
    return ScorePage(rows, compare(rows, COLUMNS, draws=200), **values)


def test_the_page_stands_alone(tmp_path):
    page = write_score_page(
        tmp_path / 'p.html', told_of(['a', '<b>'], 3, unmatched={'without gt': ['x<y']}), looks_of()
    )
    text = page.read_text(encoding='utf-8')
    assert not re.findall(r'(?:src|href)="(?!data:)|url\((?!data:)|@import|https?://(?!www.w3.org)', text)
    for heading in (
        'Means',
        'Differences from a',
        'Spread',
        'Worst regions',
        'Pictures',
        'Left out',
        'How this was made',
    ):
        assert f'<h2>{heading}</h2>' in text
    assert '<b>b</b>' not in text and '&lt;b&gt;' in text and 'x&lt;y' in text
    assert text.count('class="map"') == 6 and text.count('class="box"') == 6
    assert len(re.findall(r'\.gt-\d\{', text)) == 3
    assert text.count('data-method="a"') == 3


def test_without_maps_and_partners_there_is_less(tmp_path):
    looks = Looks(looks_of().sr, lambda row: None, {})
    text = write_score_page(tmp_path / 'p.html', told_of([''], 2), looks).read_text(encoding='utf-8')
    assert '<h2>Worst regions</h2>' not in text and '<h2>Differences' not in text and '<h2>Left out</h2>' not in text
    assert 'class="map"' not in text and 'aria-label="show the map"' not in text
    assert text.count('alt="picture"') == 2


def test_the_regions_of_one_method_are_in_the_table_alone(tmp_path):
    text = write_score_page(tmp_path / 'p.html', told_of([''], 2), looks_of(gt=False)).read_text(encoding='utf-8')
    assert '<h2>Worst regions</h2>' not in text and text.count('alt="worst region"') == 2
    assert '<h2>Worst regions</h2>' in write_score_page(tmp_path / 'q.html', told_of([''], 2), looks_of()).read_text()


def test_of_many_pictures_the_worst_are_shown(tmp_path):
    text = write_score_page(tmp_path / 'p.html', told_of(['a', 'b'], 6, pictures=2), looks_of()).read_text(
        encoding='utf-8'
    )
    assert 'The 2 of 6 pictures with the worst score.' in text
    assert set(re.findall(r'data-v="(\d\.png)"', text)) == {'0.png', '1.png'}


def test_rows_that_could_not_be_scored_are_there(tmp_path):
    told = told_of(['a'], 2)
    broken = Row('a', 'x\udcff.png', 'x', None, None, {'score': None, 'psnr': None}, 'no picture')
    told = ScorePage([*told.rows, broken], compare([*told.rows, broken], COLUMNS, draws=200), *['', '', {}, {}])
    looks = looks_of(gt=False)
    found = Looks(
        lambda row: None if row.error else looks.sr(row), lambda row: None if row.error else looks.map(row), {}
    )
    text = write_score_page(tmp_path / 'p.html', told, found).read_text(encoding='utf-8')
    assert 'x\\udcff.png' in text and 'a: no picture (1)' in text
    assert text.count('data-label="psnr">\u2013</td>') == 1


def test_thumbnails_shrink_until_the_page_fits(tmp_path, monkeypatch):
    told, looks = told_of(['a'], 4), looks_of(gt=False, side=320)
    large = write_score_page(tmp_path / 'l.html', told, looks).stat().st_size
    most = large - 20_000
    monkeypatch.setattr(score_page, 'MOST_BYTES', most)
    assert write_score_page(tmp_path / 's.html', told, looks).stat().st_size <= most
    monkeypatch.setattr(score_page, 'MOST_BYTES', 1000)
    with pytest.raises(ValueError, match='4 pictures do not fit into 0.0 MB; show fewer'):
        write_score_page(tmp_path / 'n.html', told, looks)


def test_the_worst_region_is_found():
    values = np.zeros((40, 50), np.uint8)
    values[25:35, 30:45] = 90
    top, left, height, width = worst_region(values, 10)
    assert (height, width) == (10, 10) and values[top : top + 10, left : left + 10].min() == 90
    assert worst_region(values, 100) == (0, 0, 40, 50)


def test_a_shot_has_its_frame_in_shares():
    values = np.zeros((200, 400), np.uint8)
    values[104:200, 304:400] = 255
    shot = shot_of(photo(0, 400)[:200], values, 100)
    assert shot.size == (400, 200)
    assert shot.box == (304 / 400, 104 / 200, 96 / 400, 96 / 200)
    assert shot_of(photo(0), None, 100).map == ''


def test_a_map_is_transparent_where_clean():
    import base64
    import io

    from PIL import Image

    values = np.repeat(np.array([[0, 255]], np.uint8), 20, axis=0).repeat(10, axis=1)
    data = base64.b64decode(map_png(values, 20).partition(',')[2])
    pixels = np.asarray(Image.open(io.BytesIO(data)).convert('RGBA'))
    assert pixels[5, 2, 3] == 0 and pixels[5, 17, 3] == round(0.85 * 255)
    assert tuple(pixels[5, 17, :3]) == (247, 248, 160)


def test_a_spread_has_a_lane_a_method():
    told = told_of(['a', 'b'], 5).comparison
    drawn = distribution({'a': [1.0, 2.0], 'b': [3.0], 'c': []}, {m: told.means[m]['psnr'] for m in 'ab'}, 'x')
    assert drawn.count('<rect') == 2 and drawn.count('<circle') == 2 and '>c<' not in drawn
    assert 'nan' not in distribution({'a': [2.0, 2.0]}, {}, 'x')
    assert distribution({'a': []}, {}, 'x').startswith('<svg') and '<rect' not in distribution({'a': []}, {}, 'x')
