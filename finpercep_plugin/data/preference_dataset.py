"""Reads a preference set: lq, a better and a worse sample of it, augmented alike."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal, Mapping

import numpy as np
import torch
from torch.utils.data import Dataset

from finpercep_plugin.config import parse
from finpercep_plugin.data.fgr_dataset import draw_move, to_tensor
from finpercep_plugin.data.fgr_format import FGRError, sample_key
from finpercep_plugin.data.loader_options import LoaderOptions
from finpercep_plugin.data.preference_format import read_meta, read_pair
from finpercep_plugin.data.set_folder import read_or_skip
from finpercep_plugin.data.shards import open_store
from finpercep_plugin.registry import DATASETS

__all__ = ['FinPercepPreferenceDataset', 'PairNames', 'PreferenceOptions']


@dataclasses.dataclass(frozen=True)
class PreferenceOptions(LoaderOptions):
    """A section under `datasets:`.

    Attributes:
        dataroot: the folder of the set.
        crop_size: side of a random crop of the samples, a multiple of the scale; null for whole ones.
        use_hflip, use_rot: random flips and quarter turns, of all pictures alike.
        limit: use the first so many records only.
        on_error: an unreadable pair: 'raise', or 'skip' to the next good one, logged and counted in `skipped`.
        scale: if given, the set must be of it.
    """

    dataroot: str
    crop_size: int | None = None
    use_hflip: bool = False
    use_rot: bool = False
    limit: int | None = None
    on_error: Literal['raise', 'skip'] = 'raise'
    scale: int | None = None

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise ValueError(f'limit: expected at least 1, got {self.limit}')


class PairNames(Sequence):
    """'<key of the record>/<number of the pair in it>' of every pair, record by record, without a list of them.

    Args:
        pairs_of: number of pairs of each record.

    >>> list(PairNames([2, 0, 1]))
    ['00000000/0', '00000000/1', '00000002/0']
    """

    def __init__(self, pairs_of: Sequence[int]):
        self.ends = np.cumsum(np.asarray(pairs_of, np.int64))

    def __len__(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    def __getitem__(self, index: int) -> str:
        if not 0 <= index < len(self):
            raise IndexError(index)
        record = int(np.searchsorted(self.ends, index, side='right'))
        first = int(self.ends[record - 1]) if record else 0
        return f'{sample_key(record)}/{index - first}'


@DATASETS.register('FinPercepPreferenceDataset')
class FinPercepPreferenceDataset(Dataset):
    """Every pair of every record, one an item: each preference counts once an epoch, as in an online update.

    An item: `lq` (3, h, w), `winner`, `loser` and, where the set has it, `gt` (3, H, W), in [0, 1]; `gap`, the
    winner's score less the loser's, above 0; `winner_number`, `loser_number`, of the samples; `prompt`, which they were
    made with; `key` of the record, `lq_path`, `gt_path`.

    Random draws come from a local generator seeded by torch's global one, which PyTorch seeds in every worker.

    Args:
        opt: a dataset section, as BasicSR passes it; see `PreferenceOptions`.

    Raises:
        ConfigError: unknown keys, wrong types.
        FGRError: no set there, an unfinished one, another scale, no pair left, pictures that do not fit a batch.
    """

    Options = PreferenceOptions
    models = ('FinPercepDPOModel',)
    """Those that can train on it."""

    def __init__(self, opt: Mapping[str, Any]):
        options = parse(PreferenceOptions, opt, f'$.datasets.{opt.get("phase", "train")}')
        self.opt, self.options = dict(opt), options
        self.meta = read_meta(options.dataroot)
        if not self.meta['complete']:
            raise FGRError(
                f'{options.dataroot}: its build has not finished; run finpercep-build-preferences again to continue it'
            )
        self.scale = self.meta['scale']
        if options.scale not in (None, self.scale):
            raise FGRError(f'{options.dataroot}: built at scale {self.scale}, the options say {options.scale}')
        self._check_sizes()
        self.keys = PairNames(self.meta['pairs_of'][: options.limit])
        if not self.keys:
            raise FGRError(f'{options.dataroot}: no pair in its first {len(self.keys.ends)} records')
        self.reader = open_store(options.dataroot)
        self.skipped = 0

    def _check_sizes(self) -> None:
        options, sizes = self.options, [[side * self.scale for side in size] for size in self.meta['lq_sizes']]
        crop, smallest = options.crop_size, min((min(size) for size in sizes), default=0)
        if crop is not None and not (0 < crop <= smallest and crop % self.scale == 0):
            raise FGRError(f'crop_size: expected a multiple of {self.scale} up to {smallest}, got {crop}')
        turned = options.use_rot and any(height != width for height, width in sizes)
        if crop is None and options.batch_size_per_gpu > 1 and (len(sizes) > 1 or turned):
            raise FGRError(
                f'{options.dataroot}: pictures of several shapes do not make a batch; set crop_size, up to {smallest}'
            )

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """
        Raises:
            FGRError: the pair cannot be read, with `on_error: raise`, or none can.
        """
        options = self.options
        name, (arrays, info), skipped = read_or_skip(options.dataroot, self.keys, index, self.read, options.on_error)
        self.skipped += skipped
        move = draw_move(arrays['lq'].shape[:2], self.scale, options)
        key = name.partition('/')[0]
        path = f'{options.dataroot}/{key}.png'
        info['gap'] = torch.tensor(info['gap'], dtype=torch.float32)
        tensors = {name: to_tensor(move(name, array) if move else array) for name, array in arrays.items()}
        return {**tensors, **info, 'key': key, 'lq_path': path, 'gt_path': path}

    def read(self, name: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """The pair before augmentation, see `read_pair`."""
        with self.reader.borrow() as get:
            return read_pair(get, name, self.scale, self.meta['gt'])
