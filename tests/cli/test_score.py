import csv

import numpy as np
import pytest
import torch
from PIL import Image

from finpercep_plugin import scoring
from finpercep_plugin.archs.finpercep_rm_arch import FinPercepRM
from finpercep_plugin.cli import score
from finpercep_plugin.images import write_png


@pytest.fixture(scope='module')
def rm_file(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp('rm') / 'rm_2.pth'
    torch.save(FinPercepRM(stage=2, backbone='small').file(), path)
    return path


@pytest.fixture
def pictures(tmp_path):
    rng = np.random.default_rng(0)
    folder = tmp_path / 'pictures'
    write_png(folder / 'rgb.png', rng.integers(0, 256, (24, 32, 3), dtype=np.uint8))
    write_png(folder / 'sub/deep/grey.png', rng.integers(0, 256, (24, 32), dtype=np.uint8))
    Image.fromarray(rng.integers(0, 65536, (24, 32), dtype=np.uint16)).save(folder / 'sixteen.png')
    Image.fromarray(rng.integers(0, 256, (24, 32, 4), dtype=np.uint8)).save(folder / 'alpha.png')
    return folder


def read(path):
    with open(path, newline='') as file:
        return {row['path']: row for row in csv.DictReader(file)}


def test_a_folder_is_scored(rm_file, pictures, tmp_path, capsys):
    code = score.main([str(pictures), '--rm', str(rm_file), '--out', str(tmp_path / 'o/s.csv'), '--device', 'cpu'])
    rows = read(tmp_path / 'o/s.csv')
    assert code == 0
    assert list(rows) == ['alpha.png', 'rgb.png', 'sixteen.png', 'sub/deep/grey.png']
    for row in rows.values():
        assert (row['width'], row['height'], row['error']) == ('32', '24', '')
        assert 0 <= float(row['map_mean']) <= float(row['map_max']) <= 1
        assert np.isfinite(float(row['score']))
    assert '4 of 4 images scored' in capsys.readouterr().out


def test_a_broken_image_is_reported_and_skipped(rm_file, pictures, tmp_path, capsys):
    (pictures / 'broken.jpg').write_bytes(b'\xff\xd8\xff\xe0 cut')
    maps = tmp_path / 'maps'
    code = score.main([str(pictures), '--rm', str(rm_file), '--out', str(tmp_path / 's.csv'), '--maps', str(maps)])
    rows = read(tmp_path / 's.csv')
    assert code == 1
    assert len(rows) == 5
    assert 'cannot be read as an image' in rows['broken.jpg']['error']
    assert rows['broken.jpg']['score'] == ''
    error = capsys.readouterr().err
    assert 'skipped broken.jpg: cannot be read' in error
    assert '1 skipped: broken.jpg' in error
    assert len([p for p in maps.rglob('*') if p.is_file()]) == 4


def test_maps_inside_the_folder_are_not_scored_next_time(rm_file, pictures):
    args = [str(pictures), '--rm', str(rm_file), '--out', str(pictures / 's.csv'), '--maps', str(pictures / 'maps')]
    assert score.main(args) == 0
    assert score.main(args) == 0
    assert len(read(pictures / 's.csv')) == 4


def test_the_batch_does_not_change_the_rows(rm_file, pictures, tmp_path):
    for batch in ('1', '3'):
        code = score.main(
            [str(pictures), '--rm', str(rm_file), '--batch', batch, '--out', str(tmp_path / f'{batch}.csv'), '--quiet']
        )
        assert code == 0
    one, three = read(tmp_path / '1.csv'), read(tmp_path / '3.csv')
    assert list(one) == list(three)
    for name, row in one.items():
        assert float(row['score']) == pytest.approx(float(three[name]['score']), abs=1e-5)


def test_limit_and_single_files(rm_file, pictures, tmp_path):
    args = ['--rm', str(rm_file), '--out', str(tmp_path / 's.csv'), '--quiet']
    assert score.main([str(pictures), '--limit', '2', *args]) == 0
    assert list(read(tmp_path / 's.csv')) == ['alpha.png', 'rgb.png']
    assert score.main([str(pictures / 'rgb.png'), str(pictures / 'sub'), *args]) == 0
    assert list(read(tmp_path / 's.csv')) == ['rgb.png', 'sub/deep/grey.png']


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'rm': 'gone.pth'}, 'no reward model at'),
        ({'rm': 'text.pth'}, 'is not a FinPercep-RM file'),
        ({'input': 'empty'}, 'no images in'),
        ({'input': 'nowhere'}, 'no such file or folder'),
        ({'device': 'gpu'}, "unknown device 'gpu'"),
        ({'device': 'meta'}, '--device: meta cannot be used here'),
        ({'device': 'cuda:99'}, 'cuda:99'),
    ],
)
def test_usage_errors_exit_2_and_write_nothing(rm_file, pictures, tmp_path, capsys, change, message):
    (tmp_path / 'empty').mkdir()
    (tmp_path / 'text.pth').write_text('no weights')
    given = {'input': 'pictures', 'rm': str(rm_file), 'device': 'cpu', **change}
    code = score.main(
        [
            str(tmp_path / given['input']),
            '--rm',
            str(tmp_path / given['rm']),
            '--device',
            given['device'],
            '--out',
            str(tmp_path / 's.csv'),
        ]
    )
    assert code == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.glob('s.csv*'))


@pytest.mark.parametrize('wrong', [['--batch', '0'], ['--top', '2'], ['--limit', '-1'], ['--nonsense']])
def test_wrong_options_exit_2(rm_file, wrong, capsys):
    with pytest.raises(SystemExit) as caught:
        score.main(['x', '--rm', str(rm_file), *wrong])
    assert caught.value.code == 2
    assert wrong[0] in capsys.readouterr().err


def test_an_interrupt_keeps_the_rows_so_far(rm_file, pictures, tmp_path, monkeypatch, capsys):
    forward = scoring.Scorer._batch
    calls = []

    def interrupted(self, group):
        calls.append(group)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return forward(self, group)

    monkeypatch.setattr(scoring.Scorer, '_batch', interrupted)
    code = score.main([str(pictures), '--rm', str(rm_file), '--batch', '1', '--out', str(tmp_path / 's.csv')])
    assert code == 130
    assert list(read(tmp_path / 's.csv.part')) == ['alpha.png', 'rgb.png']
    assert not (tmp_path / 's.csv').exists()
    assert 's.csv.part' in capsys.readouterr().err


def test_an_rm_0_says_that_it_has_no_map(pictures, tmp_path, capsys):
    torch.save(FinPercepRM(stage=0, backbone='small').file(), tmp_path / 'rm_0.pth')
    assert score.main([str(pictures), '--rm', str(tmp_path / 'rm_0.pth'), '--out', str(tmp_path / 's.csv')]) == 0
    assert 'RM_0, which has no map' in capsys.readouterr().err
    assert {row['map_max'] for row in read(tmp_path / 's.csv').values()} == {'0.000000'}
