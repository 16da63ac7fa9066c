"""The loaders of a run, from the `datasets:` of its options."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch.utils.data import DataLoader

from finpercep_plugin.data.sampler import PositionDataset, PositionSampler
from finpercep_plugin.integrations.entry import blame
from finpercep_plugin.rng import key_seed

__all__ = ['train_loader', 'val_loaders']


def train_loader(opt: dict[str, Any], start_iter: int) -> DataLoader:
    """The batches of the iterations after `start_iter`, of this rank, in one pass.

    Raises:
        ConfigError: the data set is empty, or cannot be built as the options say.
    """
    from basicsr.data import build_dataset

    section = opt['datasets']['train']
    gpus = 1 if opt['dist'] else max(int(opt['num_gpu']), 1)
    batch = section['batch_size_per_gpu'] * gpus
    total = int(opt['train']['total_iter'])
    if section.get('prefetch_mode'):
        logging.getLogger('basicsr').info('datasets.train.prefetch_mode: not used here; num_worker_per_gpu reads ahead')
    rank, world, seed = opt['rank'], opt['world_size'], opt['manual_seed']
    with blame('$.datasets.train'):
        own = build_dataset(section)
        if section.get('shard_by_rank'):  # then every rank goes through samples of its own
            seed, rank, world = key_seed(seed, 'rank', rank), 0, 1
        dataset = PositionDataset(own, seed, section.get('use_shuffle', True) is not False)
    sampler = PositionSampler(batch * world, rank, world, start_iter, total)
    return DataLoader(
        dataset,
        batch_size=batch,
        sampler=sampler,
        num_workers=section.get('num_worker_per_gpu', 0) * gpus,
        pin_memory=section.get('pin_memory', False),
        generator=torch.Generator(),  # or it draws from the global one, which a resumed run would do once more
    )


def val_loaders(opt: dict[str, Any]) -> list[DataLoader]:
    """One loader for each `datasets.val*`.

    Raises:
        ConfigError: a data set cannot be built as the options say.
    """
    from basicsr.data import build_dataloader, build_dataset

    loaders = []
    for phase, section in opt['datasets'].items():
        if phase.split('_')[0] == 'val':
            with blame(f'$.datasets.{phase}'):
                dataset = build_dataset(section)
            loaders.append(build_dataloader(dataset, section, num_gpu=opt['num_gpu'], dist=opt['dist']))
    return loaders
