import logging

import numpy as np
import pytest
import torch
from torch import nn

from finpercep_plugin.archs.finpercep_rm_arch import FinPercepRM
from finpercep_plugin.images import read_image, write_png
from finpercep_plugin.scoring import Row, RowWriter, Scorer, common_root, map_path


class MeanRM(nn.Module):
    """Score: the mean of the picture; map: its red channel. Counts its batches; runs out of memory above `room` pictures."""

    def __init__(self, room=1000):
        super().__init__()
        self.room, self.batches = room, []

    def forward(self, sr):
        self.batches.append(len(sr))
        if len(sr) > self.room:
            raise RuntimeError('DefaultCPUAllocator: not enough memory: you tried to allocate; out of memory')
        return sr.mean((1, 2, 3)), sr[:, :1]


def folder_of(tmp_path, shapes, seed=0):
    rng = np.random.default_rng(seed)
    return [
        write_png(tmp_path / f'{i:02d}.png', rng.integers(0, 256, (*shape, 3), dtype=np.uint8))
        for i, shape in enumerate(shapes)
    ]


def test_a_row_by_hand(tmp_path):
    picture = np.zeros((10, 20, 3), np.uint8)
    picture[0, :2, 0] = 255
    write_png(tmp_path / 'a.png', picture)
    (row,) = Scorer(MeanRM(), top=0.02).rows([tmp_path / 'a.png'], tmp_path)
    assert (row.path, row.width, row.height, row.error) == ('a.png', 20, 10, '')
    assert row.score == pytest.approx(2 / 600)
    assert row.map_mean == pytest.approx(2 / 200)
    assert row.map_max == pytest.approx(2 / 4)


def test_equal_sizes_share_a_batch_and_order_is_kept(tmp_path):
    paths = folder_of(tmp_path, [(8, 8), (8, 9), (8, 8), (8, 8), (8, 9)])
    rm = MeanRM()
    rows = list(Scorer(rm, batch=4).rows(paths, tmp_path))
    assert rm.batches == [3, 2]
    assert [r.path for r in rows] == [p.name for p in paths]
    assert [r.score for r in rows] == pytest.approx([read_image(p).mean() / 255 for p in paths])


def test_scores_do_not_depend_on_the_batch(tmp_path):
    torch.manual_seed(0)
    rm = FinPercepRM(stage=2, backbone='small')
    for p in rm.parameters():  # the branches are born with zero last layers; make them count
        p.data.add_(0.02 * torch.randn_like(p))
    paths = folder_of(tmp_path, [(40, 33), (24, 24), (40, 33), (40, 33), (24, 24)])
    one, many = (list(Scorer(rm, batch=n).rows(paths, tmp_path)) for n in (1, 4))
    for a, b in zip(one, many):
        assert (a.path, a.width, a.height) == (b.path, b.width, b.height)
        assert [a.score, a.map_mean, a.map_max] == pytest.approx([b.score, b.map_mean, b.map_max], abs=1e-5)
    assert len({round(r.score, 4) for r in one}) > 1


def test_out_of_memory_halves_the_batch_for_the_rest(tmp_path, caplog):
    paths = folder_of(tmp_path, [(8, 8)] * 12)
    rm = MeanRM(room=2)
    scorer = Scorer(rm, batch=8)
    with caplog.at_level(logging.WARNING):
        rows = list(scorer.rows(paths, tmp_path))
    assert not any(r.error for r in rows)
    assert rm.batches == [8, 4, 2, 2, 4, 2, 2, 2, 2]
    assert scorer.batch == 2
    assert 'going on with 2' in caplog.text


def test_a_picture_too_large_alone_is_skipped(tmp_path):
    paths = folder_of(tmp_path, [(8, 8), (4, 4)])
    rows = list(Scorer(MeanRM(room=0)).rows(paths, tmp_path))
    assert rows[0] == Row('00.png', 8, 8, error='out of memory on cpu at 8 x 8')
    assert rows[1].error


def test_a_failing_model_or_a_nan_is_an_error_row(tmp_path):
    class Nan(MeanRM):
        def forward(self, sr):
            if sr.shape[-1] < 8:
                raise RuntimeError('kernel size is larger\nthan the input')
            return sr.mean((1, 2, 3)) * float('nan'), sr[:, :1]

    rows = list(Scorer(Nan()).rows(folder_of(tmp_path, [(8, 8), (4, 4)]), tmp_path))
    assert rows[0].error.startswith('the model gave score nan')
    assert rows[0].score is None
    assert rows[1].error == 'the model failed at 4 x 4: kernel size is larger than the input'


def test_overlays_do_not_collide(tmp_path):
    picture = np.full((64, 64, 3), 128, np.uint8)
    for name in ('a.png', 'a.bmp', 'sub/a.png'):
        write_png(tmp_path / 'in' / name, picture)
    paths = [tmp_path / 'in' / n for n in ('a.png', 'a.bmp', 'sub/a.png')]
    list(Scorer(MeanRM(), maps=tmp_path / 'maps').rows(paths, tmp_path / 'in'))
    made = sorted(p.relative_to(tmp_path / 'maps').as_posix() for p in (tmp_path / 'maps').rglob('*') if p.is_file())
    assert made == ['a.bmp.map.png', 'a.png.map.png', 'sub/a.png.map.png']
    assert read_image(map_path(tmp_path / 'maps', 'sub/a.png')).shape == (80, 64, 3)


def test_common_root(tmp_path):
    for name in ('x/a', 'x/b'):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / 'x/a/f.png').touch()
    assert common_root([tmp_path / 'x/a']) == tmp_path / 'x/a'
    assert common_root([tmp_path / 'x/a/f.png']) == tmp_path / 'x/a'
    assert common_root([tmp_path / 'x/a', tmp_path / 'x/b']) == tmp_path / 'x'


def test_rows_are_on_disk_as_they_come(tmp_path):
    (tmp_path / 'out.csv').write_text('earlier run')
    writer = RowWriter(tmp_path / 'out.csv')
    writer(Row('a,b.png', 4, 3, 0.5, 0.25, 1.0))
    writer(Row('c.png', error='no'))
    partial = (tmp_path / 'out.csv.part').read_text().splitlines()
    assert partial == [
        'path,width,height,score,map_mean,map_max,error',
        '"a,b.png",4,3,0.500000,0.250000,1.000000,',
        'c.png,,,,,,no',
    ]
    assert (tmp_path / 'out.csv').read_text() == 'earlier run'
    writer.close()
    assert (tmp_path / 'out.csv').read_text().splitlines() == partial
    assert not (tmp_path / 'out.csv.part').exists()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
def test_scores_do_not_depend_on_the_device(tmp_path):
    torch.manual_seed(0)
    rm = FinPercepRM(stage=2, backbone='small')
    paths = folder_of(tmp_path, [(40, 33), (24, 24)])
    cpu, gpu = ([r.score for r in Scorer(rm, d).rows(paths, tmp_path)] for d in ('cpu', 'cuda'))
    assert cpu == pytest.approx(gpu, abs=1e-4)
