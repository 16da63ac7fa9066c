import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from finpercep_plugin.config import ConfigError
from finpercep_plugin.data.degradation import bicubic
from finpercep_plugin.data.fgr_format import FGRError
from finpercep_plugin.data.photo_dataset import FinPercepPhotoDataset

from .conftest import make_photo


def dataset(root, **options):
    return FinPercepPhotoDataset({'dataroot': str(root), 'size': 32, **options})


def to_uint8(tensor):
    return tensor.mul(255).round().byte().permute(1, 2, 0).numpy()


def test_pairs_fit_and_follow_torch(photos):
    data = dataset(photos, use_hflip=True, use_rot=True)
    assert len(data) == 6
    torch.manual_seed(0)
    item, other = data[1], data[1]
    torch.manual_seed(0)
    again = data[1]
    assert item['gt'].shape == (3, 32, 32) and item['lq'].shape == (3, 8, 8)
    assert torch.equal(item['lq'], again['lq']) and not torch.equal(item['gt'], other['gt'])


def test_gt_is_a_crop_and_lq_its_reduction(photos):
    item = dataset(photos, degradation={'kind': 'bicubic'})[2]
    photo, gt = np.asarray(Image.open(photos / 'p2.png')), to_uint8(item['gt'])
    places = [
        (y, x) for y in range(60 - 31) for x in range(70 - 31) if np.array_equal(photo[y : y + 32, x : x + 32], gt)
    ]
    assert len(places) == 1
    assert np.array_equal(to_uint8(item['lq']), bicubic(gt, (8, 8)))


def test_a_seed_fixes_every_item(photos):
    data = dataset(photos, seed=5, per_photo=3)
    assert len(data) == 18
    assert torch.equal(data[4]['lq'], dataset(photos, seed=5, per_photo=3)[4]['lq'])
    assert not torch.equal(data[4]['gt'], data[10]['gt'])  # the same photo, another crop
    assert len({data[i]['lq_path'] for i in range(18)}) == 18


def test_split_by_photo(photos):
    val = dataset(photos, photos='val', val_photos=['p3.png'])
    assert [photo.name for photo in val.cache.photos] == ['p3.png']
    assert len(dataset(photos, photos='train', val_photos=['p3.png'])) == 5


def test_a_bad_photo_is_named_or_skipped(tmp_path):
    Image.fromarray(make_photo(0)).save(tmp_path / 'b.png')
    (tmp_path / 'a.png').write_text('no picture')
    with pytest.raises(FGRError, match='a.png: cannot be read as an image'):
        dataset(tmp_path)[0]
    data = dataset(tmp_path, on_error='skip')
    assert data[0]['gt_path'].endswith('b.png') and data.skipped == 1
    (tmp_path / 'b.png').unlink()
    with pytest.raises(FGRError, match='none of the 1 photos can be used'):
        dataset(tmp_path, on_error='skip')[0]


def test_pickled_after_use(photos):
    data = dataset(photos, seed=1)
    first = data[0]['gt']
    assert torch.equal(pickle.loads(pickle.dumps(data))[0]['gt'], first)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'size': 30}, 'size: expected a multiple of scale 4'),
        ({'per_photo': 0}, 'per_photo: expected at least 1'),
        (
            {'degradation': {'first': {'blur_sigm': [1, 2]}}},
            r'degradation\.first\.blur_sigm: unknown key; did you mean',
        ),
    ],
)
def test_bad_options_are_refused(photos, options, message):
    with pytest.raises(ConfigError, match=message):
        dataset(photos, **options)
