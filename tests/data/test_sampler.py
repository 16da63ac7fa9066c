import pickle
import random

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from finpercep_plugin.data.sampler import PositionDataset, PositionSampler


class Draws(Dataset):
    """Items that show their index and what each global generator gave."""

    def __init__(self, size):
        self.size = size

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        return torch.tensor([index, random.random(), np.random.rand(), torch.rand(()).item()], dtype=torch.float64)


def read(size, batch, world=1, start=0, total=6, workers=0, **loader):
    """(iterations, global batch, 4): what all ranks read, put together."""
    ranks = []
    for rank in range(world):
        sampler = PositionSampler(batch, rank, world, start, total)
        data = PositionDataset(Draws(size), seed=5)
        ranks.append(
            torch.stack(list(DataLoader(data, batch // world, sampler=sampler, num_workers=workers, **loader)))
        )
    return torch.cat(ranks, dim=1)


def test_positions_of_two_ranks_by_hand():
    assert list(PositionSampler(4, 0, 2, 0, 2)) == [0, 1, 4, 5]
    assert list(PositionSampler(4, 1, 2, 0, 2)) == [2, 3, 6, 7]


def test_length_is_the_number_of_positions_left():
    sampler = PositionSampler(4, 1, 2, 3, 5)
    assert len(sampler) == len(list(sampler)) == 4
    assert len(PositionSampler(4, 0, 1, 7, 5)) == 0


def test_batch_that_does_not_split_is_refused():
    with pytest.raises(ValueError, match='batch of 3 cannot be split over 2'):
        PositionSampler(3, 0, 2)


def test_two_ranks_read_what_one_reads():
    assert torch.equal(read(7, 4, world=2), read(7, 4, world=1))


def test_resumed_reading_goes_on_where_it_was():
    assert torch.equal(read(7, 4, start=2), read(7, 4)[2:])


def test_workers_change_nothing():
    assert torch.equal(read(7, 4, workers=2), read(7, 4))


def test_every_epoch_is_another_permutation():
    data = PositionDataset(Draws(50), seed=0)
    first, second = ([data.index(e * 50 + i) for i in range(50)] for e in (0, 1))
    assert sorted(first) == sorted(second) == list(range(50))
    assert first != second != list(range(50))


def test_the_same_item_is_augmented_anew_in_the_next_epoch():
    data = PositionDataset(Draws(1), seed=0)
    assert not torch.equal(data[0], data[1])
    assert torch.equal(data[1], PositionDataset(Draws(1), seed=0)[1])


def test_set_smaller_than_a_batch_wraps():
    batches = read(3, 4, total=3)
    assert batches.shape == (3, 4, 4)
    counts = np.bincount(batches[..., 0].flatten().numpy().astype(int))
    assert counts.tolist() == [4, 4, 4]


def test_without_shuffle_the_order_is_the_data_sets():
    data = PositionDataset(Draws(3), seed=0, shuffle=False)
    assert [data.index(p) for p in range(5)] == [0, 1, 2, 0, 1]


def test_global_generators_are_left_as_they_were():
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    expected = random.random(), np.random.rand(), torch.rand(1)
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    PositionDataset(Draws(3), seed=0)[1]
    assert (random.random(), np.random.rand(), torch.rand(1)) == expected


def test_an_item_that_fails_leaves_them_too():
    class Broken(Draws):
        def __getitem__(self, index):
            random.seed(9)
            raise OSError('truncated')

    before = random.getstate()
    with pytest.raises(OSError, match='truncated'):
        PositionDataset(Broken(3), seed=0)[1]
    assert random.getstate() == before


def test_empty_set_is_refused():
    with pytest.raises(ValueError, match='is empty'):
        PositionDataset(Draws(0), seed=0)


def test_pickles_with_its_position():
    data = PositionDataset(Draws(9), seed=2)
    assert torch.equal(pickle.loads(pickle.dumps(data))[11], data[11])
