import pytest

pytest.importorskip('basicsr')

from finpercep_plugin.data.loaders import train_loader  # noqa: E402
from finpercep_plugin.integrations.basicsr import install  # noqa: E402


def batches(root, rank, start, monkeypatch, **section):
    """Keys and flipped pictures of the iterations from `start`, of one of two ranks."""
    install()
    monkeypatch.setattr('finpercep_plugin.data.fgr_dataset.ranks', lambda: (rank, 2))
    train = {'type': 'FinPercepFGRDataset', 'name': 'fgr', 'phase': 'train', 'dataroot': str(root), 'scale': 4}
    opt = {
        'datasets': {'train': {**train, 'batch_size_per_gpu': 2, 'use_hflip': True, 'use_rot': True, **section}},
        'train': {'total_iter': 9},
        'dist': True,
        'num_gpu': 1,
        'manual_seed': 4,
        'rank': rank,
        'world_size': 2,
    }
    return [(batch['key'], batch['gt'].numpy().tobytes()) for batch in train_loader(opt, start)]


@pytest.mark.parametrize('rank', [0, 1])
def test_a_rank_goes_through_its_own_shards_and_on_where_it_was(halves, monkeypatch, rank):
    given = {'root': f'{halves}/shard_*', 'rank': rank, 'monkeypatch': monkeypatch, 'shard_by_rank': True}
    whole = batches(start=0, **given)
    own = {0: set(range(8)), 1: set(range(8, 12))}[rank]
    keys = [int(key) for names, _ in whole for key in names]
    assert len(keys) == 18 and set(keys) == own
    assert sorted(keys[: len(own)]) == sorted(own)  # each once before any comes again
    assert batches(start=4, **given) == whole[4:]


def test_ranks_share_all_shards_otherwise(halves, monkeypatch):
    both = [batches(f'{halves}/shard_*', rank, 0, monkeypatch) for rank in range(2)]
    epoch = [int(key) for turn in range(3) for rank in range(2) for key in both[rank][turn][0]]
    assert sorted(epoch) == list(range(12))
    assert batches(f'{halves}/shard_*', 1, 5, monkeypatch) == both[1][5:]
