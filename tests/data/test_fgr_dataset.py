import json
import logging
import pickle
import shutil

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from finpercep_plugin.config import ConfigError
from finpercep_plugin.data import fgr_dataset, labels
from finpercep_plugin.data.fgr_dataset import FinPercepFGRDataset, split_photos
from finpercep_plugin.data.fgr_format import FGRError, decode_png, read_meta
from finpercep_plugin.data.lmdb_io import Reader, Writer
from finpercep_plugin.registry import DATASETS

from .conftest import flip_byte


@pytest.fixture
def copy(fgr, tmp_path):
    shutil.copytree(fgr, tmp_path / 'set')
    return tmp_path / 'set'


def dataset(path, **options):
    return FinPercepFGRDataset({'dataroot': str(path), **options})


def test_an_item_has_the_promised_shapes_and_ranges(fgr):
    item = dataset(fgr)[3]
    shapes = {k: tuple(v.shape) for k, v in item.items() if isinstance(v, torch.Tensor)}
    large = (3, 32, 32)
    assert shapes == {'lq': (3, 8, 8), 'gt': large, 'sr': large, 'syn': large, 'map': (1, 32, 32), 'mask': (1, 32, 32)}
    for name in shapes:
        assert item[name].dtype == torch.float32 and 0 <= item[name].min() and item[name].max() <= 1
    assert item['key'] == '00000003' and item['lq_path'] == item['gt_path'] == f'{fgr}/00000003.png'


def test_syn_and_map_are_the_formulas(fgr):
    item, meta = dataset(fgr, alpha=0.3, inside_mask=False)[3], read_meta(fgr)
    m, sr, gt = item['mask'], item['sr'], item['gt']
    torch.testing.assert_close(item['syn'], m * sr + (1 - m) * gt)
    pixel = (item['syn'] - gt).abs().mean(0, keepdim=True)
    feature = torch.from_numpy(decode_png(Reader(fgr).get('00000003/feature')).astype(np.float32))[None] * 2 / 65535
    expected = 0.3 * (pixel / meta['p99']['pixel']).clamp(max=1) + 0.7 * (feature / meta['p99']['feature']).clamp(max=1)
    torch.testing.assert_close(item['map'], expected, atol=3e-4, rtol=0)


def test_alpha_is_the_builds_unless_set(fgr):
    default, half, pixel = (dataset(fgr, **o)[0]['map'] for o in ({}, {'alpha': 0.5}, {'alpha': 1.0}))
    assert torch.equal(default, half) and not torch.equal(default, pixel)


def test_inside_mask_clears_the_map_beyond_the_dilated_mask(fgr):
    tight, wide, free = (dataset(fgr, **o)[1] for o in ({'dilate': 0}, {'dilate': 3}, {'inside_mask': False}))
    outside = tight['mask'] == 0
    assert tight['map'][outside].max() == 0 and free['map'][outside].max() > 0
    assert tight['map'].sum() < wide['map'].sum() < free['map'].sum()


def test_augmentation_moves_pictures_and_map_alike(fgr):
    data = dataset(fgr, alpha=1.0, inside_mask=False, use_hflip=True, use_rot=True, crop_size=16)
    p99, seen = read_meta(fgr)['p99']['pixel'], set()
    for seed in range(40):
        torch.manual_seed(seed)
        item = data[2]
        assert item['gt'].shape == (3, 16, 16) and item['lq'].shape == (3, 4, 4) and item['map'].shape == (1, 16, 16)
        pixel = (item['syn'] - item['gt']).abs().mean(0, keepdim=True)
        torch.testing.assert_close(item['map'], (pixel / p99).clamp(max=1), atol=3e-4, rtol=0)
        seen.add(item['gt'].numpy().tobytes())
    assert len(seen) > 25


def test_flips_and_turns_are_the_eight_symmetries_of_every_array(fgr):
    plain = dataset(fgr)[2]
    data, found = dataset(fgr, use_hflip=True, use_rot=True), set()
    moves = {
        (flip, turns): lambda x, f=flip, k=turns: torch.rot90(x.flip(-1) if f else x, k, (-2, -1))
        for flip in (0, 1)
        for turns in range(4)
    }
    for seed in range(60):
        torch.manual_seed(seed)
        item = data[2]
        (move,) = [m for m, f in moves.items() if torch.equal(item['gt'], f(plain['gt']))]
        for name in ('lq', 'sr', 'syn', 'map', 'mask'):
            assert torch.equal(item[name], moves[move](plain[name]))
        found.add(move)
    assert found == set(moves)


def test_lq_keeps_to_the_crop_of_gt(fgr):
    plain, data = dataset(fgr)[2], dataset(fgr, crop_size=16)
    for seed in range(10):
        torch.manual_seed(seed)
        item = data[2]
        places = [
            (y, x)
            for y in range(0, 17, 4)
            for x in range(0, 17, 4)
            if torch.equal(plain['gt'][:, y : y + 16, x : x + 16], item['gt'])
        ]
        ((y, x),) = places
        assert torch.equal(item['lq'], plain['lq'][:, y // 4 : y // 4 + 4, x // 4 : x // 4 + 4])


def test_draws_follow_torch_and_leave_other_generators_alone(fgr):
    data = dataset(fgr, use_hflip=True, use_rot=True)
    numpy_before = np.random.get_state()[1].copy()
    torch.manual_seed(1)
    first = data[0]['gt']
    torch.manual_seed(1)
    assert torch.equal(first, data[0]['gt'])
    assert np.array_equal(np.random.get_state()[1], numpy_before)
    state = torch.get_rng_state()
    dataset(fgr)[0]
    assert torch.equal(torch.get_rng_state(), state)


def test_only_what_is_asked_for_is_read(fgr, monkeypatch):
    whole, read = dataset(fgr)[4], []
    original = fgr_dataset.decode_png
    monkeypatch.setattr(fgr_dataset, 'decode_png', lambda data: read.append(len(data)) or original(data))
    for fields, count in (
        (['lq', 'gt'], 2),
        (['gt'], 1),
        (['syn'], 3),
        (['map'], 3),
        (['sr', 'syn', 'gt', 'map', 'mask'], 5),
        (['mask', 'lq'], 2),
    ):
        read.clear()
        item = dataset(fgr, fields=fields)[4]
        assert list(item) == [*fields, 'key', 'lq_path', 'gt_path'] and len(read) == count
        assert all(torch.equal(item[name], whole[name]) for name in fields)
    for alpha, inside, count in ((1.0, True, 2), (0.0, True, 2), (1.0, False, 1), (0.5, False, 2)):
        read.clear()
        item = dataset(fgr, fields=['map'], alpha=alpha, inside_mask=inside)[4]
        assert len(read) == count
        assert torch.equal(item['map'], dataset(fgr, alpha=alpha, inside_mask=inside)[4]['map'])


def test_the_map_is_the_formula_on_raw_terms(fgr):
    meta, reader = read_meta(fgr), Reader(fgr)
    terms = {t: labels.from_uint16(decode_png(reader.get(f'00000003/{t}')), labels.SCALES[t]) for t in labels.TERMS}
    clipped = {t: np.clip(terms[t].astype(np.float64) / meta['p99'][t], 0, 1) for t in labels.TERMS}
    made = dataset(fgr, alpha=0.3, inside_mask=False)[3]['map'][0].numpy()
    np.testing.assert_allclose(made, 0.3 * clipped['pixel'] + 0.7 * clipped['feature'], atol=1e-6)


@pytest.mark.parametrize('moves', [{}, {'use_hflip': True, 'use_rot': True, 'crop_size': 16}])
def test_uint8_items_are_what_is_stored(fgr, moves):
    for seed in range(8):
        torch.manual_seed(seed)
        item = dataset(fgr, dtype='uint8', **moves)[2]
        torch.manual_seed(seed)
        whole = dataset(fgr, **moves)[2]
        assert 'syn' not in item and torch.equal(item['map'], whole['map'])
        for name in ('lq', 'gt', 'sr', 'mask'):
            assert item[name].dtype == torch.uint8 and item[name].is_contiguous()
            assert torch.equal(item[name].float() / 255, whole[name])
    assert list(dataset(fgr, dtype='uint8', fields=['syn'])[2])[:3] == ['gt', 'sr', 'mask']


def test_what_is_given_out_is_nobody_elses(fgr):
    data = dataset(fgr)
    item = data[1]
    before = {k: v.clone() for k, v in item.items() if isinstance(v, torch.Tensor)}
    for value in before:
        item[value].zero_()
    assert all(torch.equal(data[1][k], v) for k, v in before.items())


def test_split_is_by_photo(fgr):
    meta = read_meta(fgr)
    photo = {f'{i:08d}': n for i, n in enumerate(meta['photo_of'])}
    train, val = dataset(fgr, photos='train'), dataset(fgr, photos='val')
    assert sorted(train.keys + val.keys) == dataset(fgr).keys
    assert not {photo[k] for k in train.keys} & {photo[k] for k in val.keys}
    assert len(val) == 2  # 0.2 of 6 photos is 1, with 2 samples


def test_split_by_names_and_patterns(fgr):
    meta = read_meta(fgr)
    val = dataset(fgr, photos='val', val_photos=['p[01].png', 'p5.png'])
    assert {meta['photos'][meta['photo_of'][int(k)]][0] for k in val.keys} == {'p0.png', 'p1.png', 'p5.png'}
    with pytest.raises(FGRError, match=r"no photo is called 'p9.png'"):
        dataset(fgr, photos='val', val_photos=['p9.png'])
    with pytest.raises(FGRError, match='no sample left with photos: train'):
        dataset(fgr, photos='train', val_photos=['*'])


def test_split_of_a_fraction():
    names = [f'{i}.png' for i in range(10)]
    assert len(split_photos(names, 0.3, None)) == 3
    assert split_photos(names, 0.3, None) == split_photos(names[::-1], 0.3, None)
    assert len(split_photos(names, 0.01, None)) == 1 and len(split_photos(names, 0.99, None)) == 9
    with pytest.raises(FGRError, match='cannot be split'):
        split_photos(['a.png'], 0.5, None)


def test_a_corrupt_sample_is_named(copy):
    flip_byte(copy, '00000005/sr')
    with pytest.raises(FGRError, match="sample 00000005: .*'00000005/sr' fails its checksum"):
        dataset(copy)[5]


def test_a_corrupt_sample_is_skipped_counted_and_logged(copy, caplog):
    flip_byte(copy, '00000005/sr')
    data = dataset(copy, on_error='skip')
    with caplog.at_level(logging.WARNING):
        assert data[5]['key'] == '00000006'
    assert data.skipped == 1 and 'sample 00000005 skipped' in caplog.text
    assert data[4]['key'] == '00000004' and data.skipped == 1


def test_a_wrong_size_is_named(copy):
    with Writer(copy) as writer:
        writer.put({'00000001/gt': bytes(Reader(copy).get('00000001/lq'))})
    with pytest.raises(FGRError, match='sample 00000001: gt is 8x8 pixels'):
        dataset(copy)[1]


def test_nothing_readable_is_an_error_not_an_endless_loop(copy):
    with Writer(copy) as writer:
        writer.put({f'{i:08d}/gt': b'' for i in range(12)})
    with pytest.raises(FGRError, match='none of the 12 samples can be read'):
        dataset(copy, on_error='skip')[0]


def test_pickled_after_use(fgr):
    data = dataset(fgr)
    first = data[0]
    again = pickle.loads(pickle.dumps(data))[0]
    assert torch.equal(first['map'], again['map'])


@pytest.mark.parametrize('method', ['fork', 'spawn'])
def test_loader_workers_read_what_this_process_reads(fgr, method):
    data = dataset(fgr)
    expected = torch.stack([data[i]['map'] for i in range(12)])  # opened here first, then in the workers
    loader = DataLoader(data, batch_size=6, num_workers=2, multiprocessing_context=method)
    assert torch.equal(torch.cat([batch['map'] for batch in loader]), expected)
    assert torch.equal(data[11]['map'], expected[11])


def test_training_and_validation_sets_share_one_store(fgr):
    train, val = dataset(fgr, photos='train'), dataset(fgr, photos='val', phase='val')
    assert train[0]['key'] != val[0]['key']


@pytest.mark.parametrize(
    ('wrong', 'error', 'message'),
    [
        ({'use_flip': True}, ConfigError, r"\$\.datasets\.val\.use_flip: unknown key; did you mean 'use_hflip'"),
        ({'alpha': 'high'}, ConfigError, r'\$\.datasets\.val\.alpha: expected float, got str'),
        ({'alpha': 2}, ConfigError, 'alpha: expected 0 to 1'),
        ({'val_fraction': 0}, ConfigError, 'val_fraction: expected between 0 and 1'),
        ({'photos': 'test'}, ConfigError, "expected 'all' | 'train' | 'val', got 'test'"),
        ({'scale': 2}, FGRError, 'built at scale 4, the options say 2'),
        ({'fields': ['gt', 'hr']}, ConfigError, r'fields.*hr'),
        ({'fields': []}, ConfigError, 'fields: expected at least one'),
        ({'shard_by_rank': True}, ConfigError, 'for training only'),
        ({'dtype': 'uint8'}, ConfigError, 'for training only'),
        ({'crop_size': 18}, FGRError, 'crop_size: expected a multiple of 4 up to 32, got 18'),
        ({'crop_size': 36}, FGRError, 'crop_size'),
        ({'dataroot': '/nope'}, FGRError, 'not an FGR set'),
    ],
)
def test_bad_options_are_refused(fgr, wrong, error, message):
    with pytest.raises(error, match=message):
        FinPercepFGRDataset({'dataroot': str(fgr), 'phase': 'val', **wrong})


def test_an_unfinished_set_is_refused(copy):
    meta = json.loads((copy / 'meta.json').read_text())
    (copy / 'meta.json').write_text(json.dumps({**meta, 'complete': False}))
    with pytest.raises(FGRError, match='has not finished'):
        dataset(copy)


def test_basicsr_loader_keys_are_allowed(fgr):
    opt = {
        'name': 'FGR',
        'type': 'FinPercepFGRDataset',
        'dataroot': str(fgr),
        'phase': 'train',
        'scale': 4,
        'io_backend': {'type': 'lmdb'},
        'batch_size_per_gpu': 4,
        'num_worker_per_gpu': 2,
        'use_shuffle': True,
        'dataset_enlarge_ratio': 100,
        'prefetch_mode': 'cuda',
        'num_prefetch_queue': 2,
        'pin_memory': True,
        'persistent_workers': True,
    }
    data = DATASETS.get('FinPercepFGRDataset')(opt)
    assert data.opt == opt and len(data) == 12


def test_limit_and_smooth(fgr):
    assert dataset(fgr, limit=3).keys == ['00000000', '00000001', '00000002']
    sharp, soft = dataset(fgr, inside_mask=False)[0]['map'], dataset(fgr, inside_mask=False, smooth=2.0)[0]['map']
    assert soft.std() < sharp.std() and soft.mean() == pytest.approx(sharp.mean().item(), rel=0.1)


def test_labels_of_a_perfect_picture_are_black():
    zero = np.zeros((4, 4), np.float32)
    assert labels.combine(zero, zero, 0.5, {'pixel': 0.2, 'feature': 0.4}).max() == 0
