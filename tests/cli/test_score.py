import csv
import json
import re

import numpy as np
import pytest
import torch
from PIL import Image

from finpercep_plugin.archs.finpercep_rm_arch import FinPercepRM
from finpercep_plugin.cli import score
from finpercep_plugin.images import read_image, write_png
from finpercep_plugin.scoring.engine import Scorer


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
    assert not list(tmp_path.glob('s.*'))


@pytest.mark.parametrize('wrong', [['--batch', '0'], ['--top', '2'], ['--limit', '-1'], ['--nonsense']])
def test_wrong_options_exit_2(rm_file, wrong, capsys):
    with pytest.raises(SystemExit) as caught:
        score.main(['x', '--rm', str(rm_file), *wrong])
    assert caught.value.code == 2
    assert wrong[0] in capsys.readouterr().err


def test_an_interrupt_keeps_what_is_scored(rm_file, pictures, tmp_path, monkeypatch, capsys):
    for i in range(40):
        write_png(pictures / f'more{i:02d}.png', np.full((24, 32), i, np.uint8))
    window, calls = Scorer._window, []

    def interrupted(self, items):
        calls.append(items)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return window(self, items)

    monkeypatch.setattr(Scorer, '_window', interrupted)
    args = [str(pictures), '--rm', str(rm_file), '--out', str(tmp_path / 's.csv'), '--threads', '1']
    assert score.main(args) == 130
    assert 'interrupted; what is scored is in' in capsys.readouterr().err
    assert not (tmp_path / 's.csv').exists()
    assert len((tmp_path / 's.cache/0of1.jsonl').read_text().splitlines()) == 32
    monkeypatch.setattr(Scorer, '_window', window)
    assert score.main(args) == 0
    assert '44 of 44 images scored, 32 of them before' in capsys.readouterr().out
    keys = [json.loads(line)['key'] for line in (tmp_path / 's.cache/0of1.jsonl').read_text().splitlines()]
    assert len(keys) == len(set(keys)) == 44


def test_an_rm_0_says_that_it_has_no_map(pictures, tmp_path, capsys):
    torch.save(FinPercepRM(stage=0, backbone='small').file(), tmp_path / 'rm_0.pth')
    assert score.main([str(pictures), '--rm', str(tmp_path / 'rm_0.pth'), '--out', str(tmp_path / 's.csv')]) == 0
    assert 'RM_0, which has no map' in capsys.readouterr().err
    assert {row['map_max'] for row in read(tmp_path / 's.csv').values()} == {'0.000000'}


@pytest.fixture
def methods(tmp_path):
    """Two methods of three pictures, their ground truth and inputs; one method lacks a picture, one gt has no sr."""
    rng = np.random.default_rng(1)
    for name in ('a', 'b', 'c', 'd'):
        gt = np.kron(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8), np.ones((8, 8, 1), np.uint8))
        write_png(tmp_path / 'gt' / f'{name}.png', gt)
        write_png(tmp_path / 'lq' / f'{name}x4.png', gt[::4, ::4])
        for method, noise in (('ours', 5), ('theirs', 25)):
            if name != 'd' and (method, name) != ('theirs', 'c'):
                noisy = (gt + rng.normal(0, noise, gt.shape)).clip(0, 255).astype(np.uint8)
                write_png(tmp_path / method / f'{name}_{method}.png', noisy)
    return tmp_path


def compared(methods, rm_file, *more, out='t.csv'):
    return score.main(
        [
            *('--methods', str(methods / 'ours'), str(methods / 'theirs'), '--gt', str(methods / 'gt')),
            *('--lq', str(methods / 'lq'), '--sr-name', '{stem}_{method}', '--lq-name', '{stem}x4'),
            *('--rm', str(rm_file), '--out', str(methods / out), '--device', 'cpu', *more),
        ]
    )


def test_methods_are_compared_in_every_format(rm_file, methods, capsys):
    pytest.importorskip('pyiqa')
    formats = ('csv', 'jsonl', 'md', 'tex', 'html')
    code = compared(
        methods, rm_file, '--metrics', 'psnr', 'sharp=Sharpness', '--protocol', 'seesr', '--formats', *formats
    )
    assert code == 0
    told = capsys.readouterr()
    assert '5 of 5 images scored' in told.out
    assert 'not in theirs: c' in told.err and 'gt without sr: d' in told.err
    with open(methods / 't.csv', newline='') as file:
        rows = list(csv.DictReader(file))
    assert [(r['method'], r['path']) for r in rows] == [
        ('ours', 'a_ours.png'),
        ('theirs', 'a_theirs.png'),
        ('ours', 'b_ours.png'),
        ('theirs', 'b_theirs.png'),
        ('ours', 'c_ours.png'),
    ]
    assert list(rows[0])[3:] == ['height', 'score', 'map_mean', 'map_max', 'psnr', 'sharp', 'error']
    assert float(rows[0]['psnr']) > float(rows[1]['psnr']) + 8
    lines = [json.loads(line) for line in (methods / 't.jsonl').read_text().splitlines()]
    assert (lines[0]['protocol'], lines[0]['gt'], lines[0]['lq']) == ('seesr', 'a.png', 'ax4.png')
    record = json.loads((methods / 't.run.json').read_text())
    assert record['protocol']['metrics']['psnr']['options']['color_space'] == 'ycbcr'
    assert re.search(r'FinPercepRM rm_2.pth@[0-9a-f]{16}', record['metrics'][0]['version'])
    assert record['unmatched'] == {'not in theirs': ['c'], 'gt without sr': ['d'], 'lq without sr': ['d']}
    assert '| theirs | 2 |' in (methods / 't.md').read_text()
    assert '\\begin{tabular}{lrrrrr}' in (methods / 't.tex').read_text()
    page = (methods / 't.html').read_text()
    assert 'Differences from ours' in page and page.count('class="map"') == 5


def test_another_format_later_scores_nothing_again(rm_file, methods, capsys):
    assert compared(methods, rm_file) == 0
    journal = methods / 't.cache/0of1.jsonl'
    before = journal.read_bytes()
    assert compared(methods, rm_file, '--formats', 'csv', 'md', '--baseline', 'theirs') == 0
    assert journal.read_bytes() == before
    assert '5 of them before' in capsys.readouterr().out
    assert 'Differences from theirs' in (methods / 't.md').read_text()
    assert compared(methods, rm_file, '--fresh') == 0
    assert len(journal.read_bytes().splitlines()) == 5


def test_gt_that_is_missing_is_an_error_of_the_row(rm_file, methods, capsys):
    pytest.importorskip('pyiqa')
    (methods / 'gt/b.png').unlink()
    assert compared(methods, rm_file, '--metrics', 'psnr') == 1
    with open(methods / 't.csv', newline='') as file:
        rows = {row['path']: row for row in csv.DictReader(file)}
    assert rows['b_ours.png']['error'] == 'no gt of this name' and rows['b_ours.png']['psnr'] == ''
    assert rows['b_ours.png']['score'] and not rows['a_ours.png']['error']
    assert 'without gt: b' in capsys.readouterr().err


def test_on_error_fail_stops_and_writes_no_table(rm_file, methods, capsys):
    (methods / 'ours/a_ours.png').write_bytes(b'no picture')
    assert compared(methods, rm_file, '--on-error', 'fail') == 1
    assert 'skipped ours/a_ours.png: cannot be read' in capsys.readouterr().err
    assert not (methods / 't.csv').exists()
    assert compared(methods, rm_file, '--on-error', 'skip') == 1
    assert (methods / 't.csv').exists()


def test_a_dry_run_says_what_it_would_do(rm_file, methods, capsys):
    pytest.importorskip('pyiqa')
    assert compared(methods, rm_file, '--dry-run', '--metrics', 'psnr', '--limit', '2', '--formats', 'html') == 0
    told = capsys.readouterr().out
    assert 'ours: 2\ntheirs: 2' in told
    assert re.search(r'psnr: pyiqa \S+ psnr \(sizes refuse\), needs gt; 4 of 4 to score', told)
    assert f'would write {methods / "t.html"}' in told
    assert not list(methods.glob('t.*'))


def test_maps_of_methods_go_into_their_folders(rm_file, methods):
    assert compared(methods, rm_file, '--maps', str(methods / 'maps')) == 0
    made = sorted(p.relative_to(methods / 'maps').as_posix() for p in (methods / 'maps').rglob('*') if p.is_file())
    assert made[0] == 'ours/a_ours.png.map.png' and len(made) == 5
    assert read_image(methods / 'maps/ours/a_ours.png.map.png').shape == (48 + 16, 48, 3)


def test_offline_looks_up_no_name(rm_file, pictures, tmp_path, monkeypatch, capsys):
    import socket

    pytest.importorskip('pyiqa')
    monkeypatch.setattr(socket, 'getaddrinfo', socket.getaddrinfo)  # put back afterwards
    for name in ('HF_HUB_OFFLINE', 'TRANSFORMERS_OFFLINE', 'HF_DATASETS_OFFLINE'):
        monkeypatch.setenv(name, '0')
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'torch'))
    monkeypatch.setenv('HF_HUB_CACHE', str(tmp_path / 'hub'))
    args = [str(pictures), '--metrics', 'niqe', '--offline', '--out', str(tmp_path / 's.csv')]
    code = score.main(args)
    with pytest.raises(OSError, match='--offline: example.org is not asked'):
        socket.getaddrinfo('example.org', 443)
    assert code == 2 and '--metrics niqe: pyiqa niqe: weights' in capsys.readouterr().err


@pytest.mark.parametrize(
    ('more', 'message'),
    [
        (['--metrics', 'psnr'], '--metrics psnr: give --gt, which is needed'),
        (['--metrics', 'CLIPScore'], '--metrics CLIPScore: give --prompt, which is needed'),
        (['--metrics', 'pnsr'], "did you mean 'psnr'"),
        (['--protocol', 'sesr'], "did you mean 'seesr'"),
        (['--out', 's.xlsx'], 'expected a name that ends in .csv, .jsonl, .md, .tex, .html, got .xlsx'),
        (['--baseline', 'x'], "no method 'x'"),
        (['--methods', 'x'], 'expected either INPUT or --methods'),
        (['--gt', 'empty'], '--gt: no images in'),
        (['--gt-name', 'x'], '--gt-name: expected a name with {stem} once'),
    ],
)
def test_more_usage_errors(rm_file, pictures, tmp_path, monkeypatch, capsys, more, message):
    pytest.importorskip('pyiqa')
    (tmp_path / 'empty').mkdir()
    monkeypatch.chdir(tmp_path)
    assert score.main([str(pictures), '--rm', str(rm_file), '--device', 'cpu', *more]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.glob('s*'))


def test_something_has_to_be_measured(pictures, capsys):
    assert score.main([str(pictures)]) == 2
    assert 'nothing to measure: give --rm, --metrics, or both' in capsys.readouterr().err
    assert score.main([str(pictures), '--metrics', 'Sharpness', '--maps', 'm']) == 2
    assert '--maps needs --rm' in capsys.readouterr().err
