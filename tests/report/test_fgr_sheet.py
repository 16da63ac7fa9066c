import dataclasses
import re
import shutil

import numpy as np
import pytest

from finpercep_plugin.cli import show_fgr
from finpercep_plugin.data.fgr_builder import build
from finpercep_plugin.data.fgr_dataset import FinPercepFGRDataset
from finpercep_plugin.data.fgr_format import FGRError
from finpercep_plugin.report.fgr_sheet import Choice, choose, read_entries, words, write_sheet
from tests.data.conftest import flip_byte


@pytest.fixture(scope='module')
def entries(fgr):
    return read_entries(FinPercepFGRDataset({'dataroot': str(fgr)}))


def keys(chosen):
    return [int(entry.key) for entry in chosen]


def test_the_level_is_the_mean_of_the_map(fgr, entries):
    """But for the bins of the histograms, and for what lies beyond the mask."""
    dataset = FinPercepFGRDataset({'dataroot': str(fgr), 'inside_mask': False})
    for entry in entries:
        assert entry.level == pytest.approx(dataset.read(entry.key)['map'].mean(), abs=0.004)


def test_a_random_choice_is_of_the_seed(entries):
    first, again, other = (keys(choose(entries, Choice(5, seed))) for seed in (0, 0, 1))
    assert first == again != other and len(set(first)) == 5 and first == sorted(first)


def test_sorting(entries):
    levels = [entry.level for entry in choose(entries, Choice(5, sort='map'))]
    assert levels == sorted((e.level for e in entries), reverse=True)[:5]
    assert choose(entries, Choice(1, sort='map-low'))[0].level == min(e.level for e in entries)
    areas = [entry.record['mask']['area'] for entry in choose(entries, Choice(12, sort='area'))]
    assert areas == sorted(areas, reverse=True)
    assert keys(choose(entries, Choice(3, sort='index'))) == [0, 1, 2]


def test_only_one_kind_of_mask_or_producer(entries):
    kind = entries[0].mask
    chosen = choose(entries, Choice(99, mask=kind))
    assert keys(chosen) == [int(e.key) for e in entries if e.mask == kind]
    with pytest.raises(FGRError, match="--mask: no sample has 'blub'; did you mean 'blob'"):
        choose(entries, Choice(mask='blub'))
    with pytest.raises(FGRError, match='--producer: no sample has'):
        choose(entries, Choice(producer='x'))


def test_the_page(fgr, tmp_path):
    seen = []
    shown, unread = write_sheet(str(fgr), tmp_path / 'x.html', Choice(4), tell=lambda *now: seen.append(now))
    text = (tmp_path / 'x.html').read_text()
    assert (shown, unread, seen[-1]) == (4, [], (4, 4))
    assert text.count('<article') == 4 and text.count('<img') == 24 and text.count('class="outline on"') == 4
    assert '12 samples of 6 photos, 32x32 pixels, scale x4; map = 0.5 pixel + 0.5 feature' in text
    assert '4 of 12 samples, drawn at random (seed 0)' in text
    masks = re.search(r'<h2>Masks</h2>.*?</section>', text)[0]
    assert sum(map(int, re.findall(r'</th><td>(\d+)</td>', masks))) == 12
    assert text.count('>p99</text>') == 2
    assert [f.name for f in tmp_path.iterdir()] == ['x.html']


def test_large_sheets_have_a_folder_of_pictures(fgr, tmp_path):
    write_sheet(str(fgr), tmp_path / 'x.html', Choice(4), inline=0.01)
    assert len(list((tmp_path / 'x_files').iterdir())) == 24
    sources = re.findall(r'<img src="([^"]+)"', (tmp_path / 'x.html').read_text())
    assert len(sources) == 24 and all((tmp_path / source).is_file() for source in sources)


def test_broken_samples_are_named_and_the_rest_is_shown(fgr, tmp_path, capsys):
    shutil.copytree(fgr, tmp_path / 'set')
    flip_byte(tmp_path / 'set', '00000001/gt')
    flip_byte(tmp_path / 'set', '00000002/record')
    arguments = [str(tmp_path / 'set'), '--out', str(tmp_path / 'x.html'), '--sort', 'index', '--count', '5', '--quiet']
    assert show_fgr.main(arguments) == 1
    said = capsys.readouterr().err.splitlines()
    assert [line.split(':')[0] for line in said] == ['00000001', '00000002']
    text = (tmp_path / 'x.html').read_text()
    assert text.count('class="error"') == 2 and text.count('<img') == 18
    assert '1 records cannot be read' in text


def test_shards_are_shown_as_one_set(options, tmp_path, monkeypatch, capsys):
    for number in range(2):
        build(dataclasses.replace(options, out=str(tmp_path / f's{number}'), batch=2, shard=(number, 2)))
    monkeypatch.chdir(tmp_path)
    assert show_fgr.main(['s0', 's1', '--count', '3']) == 0
    assert capsys.readouterr().out == '3 samples in s0.html\n'
    assert '3 of 12 samples' in (tmp_path / 's0.html').read_text()


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [(['nowhere'], 'not an FGR set'), (['SET', '--mask', 'x'], '--mask: no sample has')],
)
def test_refusals_write_nothing(fgr, tmp_path, capsys, arguments, message):
    given = [str(fgr) if a == 'SET' else a for a in arguments]
    assert show_fgr.main([*given, '--out', str(tmp_path / 'x.html'), '--quiet']) == 2
    assert message in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_records_in_words():
    record = {
        'kind': 'random',
        'first': {'blur': {'sigma': [0.5586, 0.3738]}, 'noise': {'kind': 'poisson', 'grey': True}},
    }
    assert words(record) == 'random; first: blur (sigma 0.559, 0.374), noise poisson (grey yes)'
    assert words({'type': 'x', 'artifacts': [], 'steps': 20, 'name': None}) == 'x; steps 20'
    assert words(np.float64(0.25)) == '0.25'
