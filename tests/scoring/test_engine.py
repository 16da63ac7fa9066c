import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image

from finpercep_plugin.images import read_image, write_png
from finpercep_plugin.scoring.engine import Scorer, windows_of
from finpercep_plugin.scoring.files import score_files
from finpercep_plugin.scoring.journal import Journal
from finpercep_plugin.scoring.metrics import metric_of, rm_metric
from finpercep_plugin.scoring.protocols import PROTOCOLS, find_protocol
from finpercep_plugin.scoring.requests import resolve
from finpercep_plugin.scoring.sources import Item, plain_items


def items_of(paths, gt=None, method=''):
    items = plain_items(paths, paths[0].parent)
    partners = gt or [None] * len(items)
    return [dataclasses.replace(item, method=method, gt=partner) for item, partner in zip(items, partners)]


def metrics_of(*names, protocol=PROTOCOLS['pyiqa']):
    return [metric_of(resolve(name, protocol), protocol) for name in names]


def run(scorer, items):
    results = sorted(scorer.results(windows_of(items)), key=lambda result: items.index(result.item))
    return [result.values for result in results]


def test_scores_are_those_of_pyiqa(folder_of):
    pyiqa = pytest.importorskip('pyiqa')
    shapes = [(64, 64), (96, 81), (64, 64)]
    gt = folder_of('gt', shapes)
    rng = np.random.default_rng(1)
    sr = []
    for path in gt:
        noisy = read_image(path) * 0.8 + rng.normal(0, 12, read_image(path).shape) + 10
        sr.append(write_png(path.parents[1] / 'sr' / path.name, noisy.clip(0, 255).astype(np.uint8)))
    names = ['psnr', 'ssim', 'gmsd', 'piqe']
    for values, one, other in zip(run(Scorer(metrics_of(*names)), items_of(sr, gt)), sr, gt):
        for name in names:
            metric = pyiqa.create_metric(name, device='cpu')
            expected = metric(str(one), str(other)) if metric.metric_mode == 'FR' else metric(str(one))
            assert values[name] == pytest.approx(expected.item(), rel=1e-6, abs=1e-6)


def test_scores_by_basicsr_are_those_of_basicsr(folder_of):
    metrics = pytest.importorskip('basicsr.metrics')
    protocol = PROTOCOLS['basicsr']
    (one,), (other,) = folder_of('sr', [(200, 200)]), folder_of('gt', [(203, 202)], seed=1)
    (values,) = run(Scorer(metrics_of('psnr', 'ssim', 'niqe', protocol=protocol), protocol), items_of([one], [other]))
    bgr, bgr_gt = (np.array(Image.open(p))[:200, :200, ::-1] for p in (one, other))
    assert values['psnr'] == metrics.calculate_psnr(bgr, bgr_gt, 4, test_y_channel=True)
    assert values['ssim'] == metrics.calculate_ssim(bgr, bgr_gt, 4, test_y_channel=True)
    assert values['niqe'] == pytest.approx(metrics.calculate_niqe(bgr, 4), rel=1e-6)
    (same,) = run(Scorer(metrics_of('psnr', protocol=protocol), protocol), items_of([one], [one]))
    assert same['psnr'] == 100  # infinity there


def test_a_row_of_the_reward_model_by_hand(mean, tmp_path):
    picture = np.zeros((10, 20, 3), np.uint8)
    picture[0, :2, 0] = 255
    write_png(tmp_path / 'a.png', picture)
    (row,) = score_files([tmp_path / 'a.png'], tmp_path, [mean().metric()])
    assert (row.path, row.width, row.height, row.error) == ('a.png', 20, 10, '')
    assert row.values == pytest.approx({'score': 2 / 600, 'map_mean': 2 / 200, 'map_max': 1})


def test_neither_batch_nor_order_nor_threads_change_a_score(folder_of, tiny_rms):
    paths = folder_of('sr', [(40, 33), (24, 24), (40, 33), (40, 33), (24, 24)])
    items = items_of(paths)
    metrics = [rm_metric(tiny_rms[2]), *metrics_of('Sharpness')]
    first = run(Scorer(metrics, threads=1), items)
    assert len({round(values['score'], 5) for values in first}) == 5
    assert run(Scorer(metrics, threads=3), items) == first
    assert run(Scorer(metrics), items[::-1]) == first[::-1]
    for values, batched in zip(first, run(Scorer(metrics, batch=4), items)):
        assert batched == pytest.approx(values, rel=1e-5, abs=1e-6)


def test_windows_do_not_follow_the_order(folder_of):
    items = items_of(folder_of('sr', [(8, 8), (8, 9)] * 20))
    windows = windows_of(items)
    assert windows == windows_of(items[::-1])
    assert [len(window) for window in windows] == [16, 4, 16, 4]
    assert {item for window in windows for item in window} == set(items)


def test_pictures_of_equal_size_share_a_batch(folder_of, mean):
    metric = mean()
    items = items_of(folder_of('sr', [(8, 8), (8, 9), (8, 8), (8, 8), (8, 9)]))
    run(Scorer([metric.metric()], batch=8), items)
    assert sorted(shape[0] for shape in metric.batches) == [2, 3]


def test_nothing_is_scored_twice(folder_of, mean, tmp_path):
    metric = mean()
    items = items_of(folder_of('sr', [(8, 8)] * 3))
    scorer = Scorer([metric.metric()], journal=Journal(tmp_path / 'c'))
    scorer.journal.open()
    first = run(scorer, items)
    assert len(metric.batches) == 3
    again = Scorer([metric.metric()], journal=Journal(tmp_path / 'c'))
    assert again.missing(windows_of(items)) == {'mean': 0}
    assert run(again, items) == first and len(metric.batches) == 3
    renamed = dataclasses.replace(items[0], name='z.png', sr=items[0].sr.rename(items[0].sr.with_name('z.png')))
    assert run(again, [renamed]) == first[:1] and len(metric.batches) == 3
    other = dataclasses.replace(metric.metric(), version='mean 2')
    assert Scorer([other], journal=Journal(tmp_path / 'c')).missing(windows_of([renamed])) == {'mean': 1}


def test_only_what_is_new_is_scored(folder_of, mean, tmp_path):
    items = items_of(folder_of('sr', [(8, 8)] * 3))
    one, two = mean(), mean()
    scorer = Scorer([one.metric()], journal=Journal(tmp_path / 'c'))
    scorer.journal.open()
    run(scorer, items)
    second = dataclasses.replace(
        two.metric(), label='other', columns={'other': True}, version='other 1', gives_map=False
    )
    both = Scorer([one.metric(), second], journal=scorer.journal)
    run(both, items)
    assert (len(one.batches), len(two.batches)) == (3, 3)
    write_png(items[1].sr, np.zeros((8, 8), np.uint8))
    run(both, items)
    assert (len(one.batches), len(two.batches)) == (4, 4)


def test_a_map_that_is_missing_is_made_again(folder_of, mean, tmp_path):
    items = items_of(folder_of('sr', [(8, 9)]))
    metric = mean()
    scorer = Scorer([metric.metric()], journal=Journal(tmp_path / 'c'), keep_maps=True)
    scorer.journal.open()
    (result,) = scorer.results([items])
    kept = scorer.journal.map_path(result.keys['mean'])
    assert np.array_equal(np.asarray(Image.open(kept)), read_image(items[0].sr)[..., 0])
    kept.unlink()
    list(scorer.results([items]))
    assert kept.is_file() and len(metric.batches) == 2


def test_what_is_wrong_with_a_picture_is_said_once_and_the_rest_is_scored(folder_of, tmp_path):
    pytest.importorskip('pyiqa')
    sr = folder_of('sr', [(32, 32)] * 4)
    gt = folder_of('gt', [(32, 32), (32, 30), (32, 32), (32, 32)], seed=1)
    gt[2].write_bytes(b'no picture')
    sr[3].write_bytes(b'\xff\xd8\xff\xe0 cut')
    items = [*items_of(sr, gt), Item('', 'gone.png', 'gone', tmp_path / 'gone.png')]
    scorer = Scorer(metrics_of('psnr', 'ssim', 'Sharpness'))
    good, size, broken_gt, broken, gone = sorted(scorer.results(windows_of(items)), key=lambda r: items.index(r.item))
    assert not good.errors and set(good.values) == {'psnr', 'ssim', 'Sharpness'}
    assert size.errors == ('sr is 32 x 32, gt 30 x 32 (see --sizes)',) and set(size.values) == {'Sharpness'}
    assert broken_gt.errors[0].startswith('gt: cannot be read as an image') and len(broken_gt.errors) == 1
    assert broken.errors[0].startswith('cannot be read as an image') and not broken.values and broken.size is None
    assert gone.errors == ('no such file',)
    (alone,) = scorer.results([items_of(sr[:1])])
    assert alone.errors == ('no gt of this name',) and set(alone.values) == {'Sharpness'}


def test_a_protocol_changes_what_is_compared(folder_of):
    pytest.importorskip('pyiqa')
    sr, gt = folder_of('sr', [(40, 40)]), folder_of('gt', [(40, 40)], seed=1)
    (plain,) = run(Scorer(metrics_of('psnr')), items_of(sr, gt))
    bordered = find_protocol('pyiqa', border=8)
    (cut,) = run(Scorer(metrics_of('psnr', protocol=bordered), bordered), items_of(sr, gt))
    a, b = (torch.from_numpy(read_image(p[0])[8:-8, 8:-8] / 255.0) for p in (sr, gt))
    assert cut['psnr'] == pytest.approx(10 * torch.log10(1 / ((a - b).square().mean() + 1e-8)).item(), rel=1e-5)
    assert cut['psnr'] != plain['psnr']


def test_a_picture_is_decoded_once_for_all_metrics(folder_of, monkeypatch):
    pytest.importorskip('pyiqa')
    from finpercep_plugin.scoring import pictures

    decoded = []
    monkeypatch.setattr(pictures, 'read_image', lambda file: decoded.append(1) or read_image(file))
    sr, gt = folder_of('sr', [(32, 32)] * 2), folder_of('gt', [(32, 32)] * 2, seed=1)
    items = [*items_of(sr, gt, 'a'), *items_of(folder_of('other', [(32, 32)] * 2, seed=2), gt, 'b')]
    run(Scorer(metrics_of('psnr', 'ssim', 'gmsd', 'Sharpness')), items)
    assert len(decoded) == 6


def test_rewards_that_need_lq_or_a_text_get_them(folder_of):
    sr, lq = folder_of('sr', [(16, 16)] * 2), folder_of('lq', [(4, 4), (4, 5)])
    items = [dataclasses.replace(item, lq=partner, prompt='abc') for item, partner in zip(items_of(sr), lq)]
    request = resolve(f'f=Function:function={__name__}:width_of_lq', PROTOCOLS['pyiqa'])
    section = {**request.section, 'needs': ['lq', 'prompt']}
    metric = metric_of(
        dataclasses.replace(request, section=section, needs=frozenset({'lq', 'prompt'})), PROTOCOLS['pyiqa']
    )
    assert [values['f'] for values in run(Scorer([metric]), items)] == [4 + 3, 5 + 3]
    (result,) = Scorer([metric]).results([[dataclasses.replace(items[0], prompt='')]])
    assert result.errors == ('no prompt',)


def width_of_lq(sr, lq, prompt):
    return torch.tensor([float(lq.shape[-1] + len(text)) for text in prompt])
