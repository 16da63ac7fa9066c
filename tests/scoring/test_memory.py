import logging

import numpy as np
import pytest
import torch

from finpercep_plugin.rewards.base import robust_max
from finpercep_plugin.scoring.memory import Runner, tiles_of
from finpercep_plugin.scoring.metrics import Batch, Metric, Scores


def test_out_of_memory_halves_the_batch_for_the_rest(mean, tensor, caplog):
    metric = mean(room=2 * 64)
    runner = Runner(batch=8)
    with caplog.at_level(logging.WARNING):
        outcomes = runner.run(metric.metric(), Batch(tensor(12, 3, 8, 8)))
    assert [shape[0] for shape in metric.batches] == [8, 4, 2, 2, 4, 2, 2, 2, 2]
    assert [o.values['score'] for o in outcomes] == pytest.approx(tensor(12, 3, 8, 8).mean((1, 2, 3)).tolist())
    metric.batches.clear()
    runner.run(metric.metric(), Batch(tensor(4, 3, 8, 8)))
    assert [shape[0] for shape in metric.batches] == [2, 2]
    assert 'out of memory with 8 pictures at once; going on with 4' in caplog.text


def test_a_picture_too_large_is_scored_in_tiles(mean, tensor):
    image = tensor(1, 3, 512, 600)
    metric = mean(room=200 * 250)
    (outcome,) = Runner().run(metric.metric(), Batch(image))
    assert outcome.tiles == 16 and not outcome.error
    assert np.array_equal(outcome.map, image[0, 0].numpy())
    assert outcome.values['map_mean'] == pytest.approx(image[:, 0].mean().item(), abs=1e-6)
    assert outcome.values['map_max'] == pytest.approx(robust_max(image[:, :1]).item(), abs=1e-6)
    assert outcome.values['score'] == pytest.approx(image.mean().item(), abs=2e-3)  # of tiles that overlap
    assert max(shape[2] * shape[3] for shape in metric.batches[5:]) <= 290 * 340


@pytest.mark.parametrize(('changes', 'size'), [({'tiles': False}, 512), ({}, 200)])
def test_what_cannot_be_cut_is_an_error(mean, tensor, changes, size):
    (outcome,) = Runner().run(mean(room=0).metric(**changes), Batch(tensor(1, 3, size, size)))
    assert outcome.error == f'mean: out of memory on cpu at {size} x {size}'
    assert outcome.values == {}


def test_tiles_cover_a_picture_once():
    count = np.zeros((300, 257), int)
    for box, inner in tiles_of(300, 257):
        count[inner] += 1
        for b, i in zip(box, inner):
            assert b.start <= i.start < i.stop <= b.stop
            assert i.start - b.start in (0, 32) and b.stop - i.stop in (0, 32)
    assert (count == 1).all()


def test_the_one_that_fails_does_not_take_the_others_with_it(tensor):
    def forward(batch):
        if (batch.sr[:, 0, 0, 0] > 2).any():
            raise AssertionError('Input must be normalized\nto [0, 1]')
        return Scores({'m': batch.sr.mean((1, 2, 3)).tolist()})

    images = tensor(3, 3, 8, 9)
    images[1, 0, 0, 0] = 3
    images[2] = float('nan')
    metric = Metric('m', {'m': True}, 'v', frozenset(), lambda device: forward)
    good, failed, nan = Runner(batch=4).run(metric, Batch(images))
    assert good.values['m'] == pytest.approx(images[0].mean().item())
    assert failed.error == 'm failed at 9 x 8: Input must be normalized to [0, 1]'
    assert nan.error == 'm gave m nan'


def test_formulas_see_one_picture_at_a_time(mean, tensor):
    metric = mean()
    Runner(batch=8).run(metric.metric(alone=True), Batch(tensor(3, 3, 8, 8)))
    assert [shape[0] for shape in metric.batches] == [1, 1, 1]


def test_gradients_are_not_kept():
    weight = torch.ones(1, requires_grad=True)
    seen = []

    def forward(batch):
        seen.append((batch.sr.mean((1, 2, 3)) * weight).requires_grad)
        return Scores({'m': [0.0]})

    Runner().run(Metric('m', {'m': True}, 'v', frozenset(), lambda device: forward), Batch(torch.rand(1, 3, 4, 4)))
    assert seen == [False]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
def test_the_batch_follows_the_memory(mean, tensor):
    metric = mean()
    Runner('cuda').run(metric.metric(), Batch(tensor(64, 3, 64, 64).cuda()))
    assert metric.batches[0][0] == 1
    assert max(shape[0] for shape in metric.batches) > 8
