import json
import logging
import pickle
import shutil

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from finpercep_plugin.config import ConfigError
from finpercep_plugin.data.fgr_format import FGRError, encode_png
from finpercep_plugin.data.lmdb_io import Reader, Writer
from finpercep_plugin.data.preference_dataset import FinPercepPreferenceDataset
from finpercep_plugin.data.preference_writer import make_record, open_set
from finpercep_plugin.data.sampler import PositionDataset
from finpercep_plugin.registry import DATASETS

from .conftest import flip_byte, preference_record


@pytest.fixture
def copy(preferences, tmp_path):
    shutil.copytree(preferences, tmp_path / 'set')
    return tmp_path / 'set'


def dataset(path, **options):
    return FinPercepPreferenceDataset({'dataroot': str(path), **options})


def test_every_pair_of_every_record_is_an_item(preferences):
    data = dataset(preferences)
    assert len(data) == 16
    assert [data[i]['key'] for i in (0, 3, 4, 8, 15)] == [f'{n:08d}' for n in (0, 0, 1, 3, 4)]
    numbers = [(data[i]['winner_number'], data[i]['loser_number'], data[i]['gap'].item()) for i in range(4, 8)]
    assert numbers == [(3, 0, 3.0), (3, 1, 2.0), (2, 0, 2.0), (2, 1, 1.0)]


def test_an_item_is_what_was_written(preferences):
    item, record = dataset(preferences)[5], preference_record(1)
    expected = {'lq': record.lq, 'gt': record.gt, 'winner': record.samples[3], 'loser': record.samples[1]}
    for name, array in expected.items():
        assert item[name].dtype == torch.float32
        assert torch.equal(item[name], torch.from_numpy(array).permute(2, 0, 1) / 255)
    assert item['prompt'] == 'picture 1' and item['gap'].dtype == torch.float32
    assert item['lq_path'] == item['gt_path'] == f'{preferences}/00000001.png'


def test_a_batch_is_stacked(preferences):
    batch = next(iter(DataLoader(dataset(preferences), batch_size=3)))
    assert batch['winner'].shape == (3, 3, 8, 8) and batch['lq'].shape == (3, 3, 4, 4)
    assert batch['gap'].tolist() == [3.0, 2.0, 2.0] and batch['winner_number'].tolist() == [3, 3, 2]
    assert batch['prompt'] == ['picture 0'] * 3


def test_flips_turns_and_crops_move_all_pictures_alike(preferences):
    plain, data, found = dataset(preferences)[5], dataset(preferences, use_hflip=True, use_rot=True), set()
    moves = {
        (flip, turns): lambda x, f=flip, k=turns: torch.rot90(x.flip(-1) if f else x, k, (-2, -1))
        for flip in (0, 1)
        for turns in range(4)
    }
    for seed in range(60):
        torch.manual_seed(seed)
        item = data[5]
        (move,) = [m for m, f in moves.items() if torch.equal(item['winner'], f(plain['winner']))]
        assert all(torch.equal(item[name], moves[move](plain[name])) for name in ('lq', 'gt', 'loser'))
        found.add(move)
    assert found == set(moves)
    item = dataset(preferences, crop_size=4)[5]
    (place,) = [(y, x) for y in (0, 2, 4) for x in (0, 2, 4)
                if torch.equal(item['loser'], plain['loser'][:, y : y + 4, x : x + 4])]  # fmt: skip
    y, x = place
    assert torch.equal(item['lq'], plain['lq'][:, y // 2 : y // 2 + 2, x // 2 : x // 2 + 2])


def test_draws_are_keyed_on_the_position_in_the_run(preferences):
    def run(order):
        data = PositionDataset(dataset(preferences, use_hflip=True, use_rot=True), seed=3)
        items = {position: data[position] for position in order}
        return [items[p]['winner'].numpy().tobytes() + items[p]['key'].encode() for p in sorted(items)]

    torch.manual_seed(0)
    first = run(range(40))
    torch.manual_seed(1)
    assert run(reversed(range(40))) == first and len(set(first)) > 30
    state = torch.get_rng_state()
    dataset(preferences)[0]
    assert torch.equal(torch.get_rng_state(), state)


def test_loader_workers_read_what_this_process_reads(preferences):
    data = dataset(preferences)
    expected = torch.stack([data[i]['loser'] for i in range(16)])  # opened here first, then in the workers
    loader = DataLoader(data, batch_size=8, num_workers=2, multiprocessing_context='fork')
    assert torch.equal(torch.cat([batch['loser'] for batch in loader]), expected)
    assert torch.equal(pickle.loads(pickle.dumps(data))[3]['loser'], expected[3])


def test_a_limit_is_of_records(preferences):
    assert [len(dataset(preferences, limit=n)) for n in (1, 2, 3, 4, 9)] == [4, 8, 8, 12, 16]


@pytest.mark.parametrize('part', ['lq', 'gt', 'sample_3', 'record'])
def test_a_corrupt_record_is_named_or_skipped(copy, caplog, part):
    flip_byte(copy, f'00000001/{part}')
    with pytest.raises(FGRError, match=f"sample 00000001/0: .*'00000001/{part}' fails its checksum"):
        dataset(copy)[4]
    data = dataset(copy, on_error='skip')
    with caplog.at_level(logging.WARNING):
        assert data[5]['key'] == ('00000001' if part == 'sample_3' else '00000003')
    assert data.skipped >= 1 and 'sample 00000001/1 skipped' in caplog.text
    assert data[3]['key'] == '00000000' and data[8]['key'] == '00000003'


def test_a_missing_part_and_a_wrong_size_are_named(copy):
    with Writer(copy) as writer:
        writer.put({'00000001/gt': encode_png(np.zeros((8, 6, 3), np.uint8))}, remove=['00000003/sample_0'])
    with pytest.raises(FGRError, match=r'sample 00000001/0: gt is \(8, 6, 3\) uint8, expected \(8, 8, 3\) uint8'):
        dataset(copy)[4]
    with pytest.raises(FGRError, match="sample 00000003/0: .*no key '00000003/sample_0'"):
        dataset(copy)[8]
    assert dataset(copy, on_error='skip')[4]['key'] == '00000003'  # its pair 1, without sample 0


def test_nothing_readable_is_an_error_not_an_endless_loop(copy):
    with Writer(copy) as writer:
        writer.put({f'{i:08d}/lq': b'' for i in range(5)})
    with pytest.raises(FGRError, match='none of the 16 samples can be read'):
        dataset(copy, on_error='skip')[0]


@pytest.mark.parametrize(
    ('wrong', 'error', 'message'),
    [
        ({'use_flip': True}, ConfigError, r"\$\.datasets\.train\.use_flip: unknown key; did you mean 'use_hflip'"),
        ({'limit': 0}, ConfigError, 'limit: expected at least 1'),
        ({'scale': 4}, FGRError, 'built at scale 2, the options say 4'),
        ({'crop_size': 3}, FGRError, 'crop_size: expected a multiple of 2 up to 8, got 3'),
        ({'crop_size': 10}, FGRError, 'crop_size'),
        ({'dataroot': '/nope'}, FGRError, 'not a preference set'),
    ],
)
def test_bad_options_are_refused(preferences, wrong, error, message):
    with pytest.raises(error, match=message):
        dataset(preferences, **{'phase': 'train', **wrong})


def test_an_unfinished_set_and_one_without_pairs_are_refused(copy, tmp_path):
    meta = json.loads((copy / 'meta.json').read_text())
    (copy / 'meta.json').write_text(json.dumps({**meta, 'complete': False}))
    with pytest.raises(FGRError, match='has not finished; run finpercep-build-preferences again'):
        dataset(copy)
    with open_set(tmp_path / 'tied', {}, scale=2) as writer:
        writer.append(preference_record(2))
    with pytest.raises(FGRError, match='no pair in its first 1 records'):
        dataset(tmp_path / 'tied')


def test_pictures_of_several_shapes_need_a_crop_to_make_a_batch(tmp_path):
    with open_set(tmp_path, {}, scale=2) as writer:
        for index, width in enumerate((4, 6)):
            rng = torch.Generator().manual_seed(index)
            samples = torch.rand(2, 3, 8, 2 * width, generator=rng)
            writer.append(make_record(torch.rand(3, 4, width, generator=rng), samples, [0.0, 1.0], best=1))
    assert dataset(tmp_path)[1]['winner'].shape == (3, 8, 12) and 'gt' not in dataset(tmp_path)[0]
    with pytest.raises(FGRError, match='several shapes do not make a batch; set crop_size, up to 8'):
        dataset(tmp_path, batch_size_per_gpu=2)
    with pytest.raises(FGRError, match='several shapes'):
        dataset(tmp_path, batch_size_per_gpu=2, limit=1, use_rot=True)
    data = dataset(tmp_path, batch_size_per_gpu=2, crop_size=6, use_rot=True)
    assert next(iter(DataLoader(data, batch_size=2)))['loser'].shape == (2, 3, 6, 6)


def test_it_is_registered_with_basicsrs_loader_keys(preferences):
    opt = {
        'name': 'pairs', 'type': 'FinPercepPreferenceDataset', 'dataroot': str(preferences), 'phase': 'train',
        'scale': 2, 'batch_size_per_gpu': 4, 'num_worker_per_gpu': 2, 'use_shuffle': True, 'prefetch_mode': 'cuda',
    }  # fmt: skip
    data = DATASETS.get('FinPercepPreferenceDataset')(opt)
    assert data.opt == opt and len(data) == 16 and bytes(Reader(preferences).get('00000000/lq'))
