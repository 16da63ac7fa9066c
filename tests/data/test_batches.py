import pytest
import torch
from torch.utils.data import default_collate

from finpercep_plugin.data.batches import stack_floats, to_floats
from finpercep_plugin.data.fgr_dataset import FinPercepFGRDataset

NAMES = ('sr', 'syn', 'gt', 'map', 'mask')


def batch(fgr, **options):
    data = FinPercepFGRDataset({'dataroot': str(fgr), 'fields': list(NAMES), **options})
    return default_collate([data[i] for i in range(3)])


def test_uint8_batches_become_what_float_batches_are(fgr):
    stored, whole = batch(fgr, dtype='uint8'), batch(fgr)
    assert stored['gt'].dtype == torch.uint8 and stored['map'].dtype == torch.float32 and 'syn' not in stored
    made = to_floats(stored, NAMES, 'cpu')
    assert list(made) == list(NAMES)
    for name in NAMES:
        assert torch.equal(made[name], whole[name])


def test_items_are_stacked_as_floats(fgr):
    data = FinPercepFGRDataset({'dataroot': str(fgr), 'fields': ['lq', 'gt'], 'dtype': 'uint8'})
    lq, gt = stack_floats([data[i] for i in range(3)], ('lq', 'gt'), 'cpu')
    assert torch.equal(gt, batch(fgr)['gt']) and lq.dtype == torch.float32 and lq.max() <= 1 < 255 * lq.max()


def test_floats_stay_as_they_are(fgr):
    whole = batch(fgr)
    assert all(torch.equal(tensor, whole[name]) for name, tensor in to_floats(whole, NAMES, 'cpu').items())


@pytest.mark.parametrize(
    ('fields', 'message'), [(['gt', 'sr', 'map', 'mask'], None), (['gt', 'map'], 'a batch without sr, mask')]
)
def test_what_is_lacking_is_made_or_named(fgr, fields, message):
    data = batch(fgr, fields=fields)
    if message is None:
        torch.testing.assert_close(to_floats(data, NAMES, 'cpu')['syn'], batch(fgr)['syn'])
    else:
        with pytest.raises(ValueError, match=message):
            to_floats(data, NAMES, 'cpu')
