"""Crops of plain photos with lq made on the fly: pairs for generators, without an FGR set."""

from __future__ import annotations

import dataclasses
import logging
from typing import Any, Literal, Mapping

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset

from finpercep_plugin.config import parse
from finpercep_plugin.data.degradation import DegradationOptions, degrade
from finpercep_plugin.data.fgr_dataset import local_rng, split_photos, to_tensor
from finpercep_plugin.data.fgr_format import FGRError
from finpercep_plugin.data.fgr_sample import draw_crop
from finpercep_plugin.data.loader_options import LoaderOptions
from finpercep_plugin.data.photos import MetaInfo, PhotoCache, photo_list
from finpercep_plugin.registry import DATASETS
from finpercep_plugin.rng import keyed_numpy

__all__ = ['FinPercepPhotoDataset', 'PhotoOptions']

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class PhotoOptions(LoaderOptions):
    """A section under `datasets:`.

    Attributes:
        dataroot: as `photos` in BuildOptions; one, or a list.
        scale: gt size / lq size.
        size: side of the gt crop, a multiple of `scale`.
        per_photo: items a photo.
        seed: None draws anew every time, from torch's generator; with a number, item i is always the same crop.
        photos, val_fraction, val_photos: as in FGROptions.
        min_detail, degradation: as in BuildOptions.
        use_hflip, use_rot: random flips and quarter turns of gt, before lq is made.
        on_error: an unreadable or too small photo: 'raise', or 'skip' to the next good one, logged and counted in
            `skipped`.
    """

    dataroot: list[str | MetaInfo] | str | MetaInfo
    scale: int = 4
    size: int = 96
    per_photo: int = 1
    seed: int | None = None
    photos: Literal['all', 'train', 'val'] = 'all'
    val_fraction: float = 0.2
    val_photos: list[str] | None = None
    min_detail: float = 0.0
    degradation: DegradationOptions = DegradationOptions()
    use_hflip: bool = False
    use_rot: bool = False
    on_error: Literal['raise', 'skip'] = 'raise'

    def __post_init__(self) -> None:
        if self.size < self.scale or self.size % self.scale:
            raise ValueError(f'size: expected a multiple of scale {self.scale}, got {self.size}')
        if self.per_photo < 1:
            raise ValueError(f'per_photo: expected at least 1, got {self.per_photo}')
        if not 0 < self.val_fraction < 1:
            raise ValueError(f'val_fraction: expected between 0 and 1, got {self.val_fraction}')


@DATASETS.register('FinPercepPhotoDataset')
class FinPercepPhotoDataset(Dataset):
    """Items: `lq` (3, size / scale, size / scale) and `gt` (3, size, size) in [0, 1]; `key`, `lq_path`, `gt_path`.

    Args:
        opt: a dataset section, as BasicSR passes it; see `PhotoOptions`.

    Raises:
        ConfigError: unknown keys, wrong types.
        FGRError: no photo there, or none left after the split.
    """

    Options = PhotoOptions

    def __init__(self, opt: Mapping[str, Any]):
        options = parse(PhotoOptions, opt, f'$.datasets.{opt.get("phase", "train")}')
        self.opt, self.options, self.scale = dict(opt), options, options.scale
        roots = options.dataroot if isinstance(options.dataroot, list) else [options.dataroot]
        photos = photo_list(roots)
        if options.photos != 'all':
            validation = split_photos([photo.name for photo in photos], options.val_fraction, options.val_photos)
            photos = [photo for photo in photos if (photo.name in validation) == (options.photos == 'val')]
        if not photos:
            raise FGRError(f'{", ".join(map(str, roots))}: no photo left with photos: {options.photos}')
        self.cache = PhotoCache(photos, options.size)
        self.skipped = 0

    def __len__(self) -> int:
        return len(self.cache.photos) * self.options.per_photo

    def __getitem__(self, index: int) -> dict[str, Tensor | str]:
        """
        Raises:
            FGRError: the photo cannot be used, with `on_error: raise`, or none can.
        """
        options = self.options
        rng = local_rng() if options.seed is None else keyed_numpy(options.seed, index, 'pair')
        number, photo = self._photo(index % len(self.cache.photos))
        x, y, side = draw_crop(photo, options.size, options.min_detail, rng)
        gt = photo[y : y + side, x : x + side]
        if options.use_hflip and rng.random() < 0.5:
            gt = gt[:, ::-1]
        if options.use_rot:
            gt = np.rot90(gt, int(rng.integers(4)))
        gt = np.ascontiguousarray(gt)
        lq, _ = degrade(gt, options.scale, options.degradation, rng)
        path = self.cache.photos[number].path
        key = f'{index:08d}'
        return {'lq': to_tensor(lq), 'gt': to_tensor(gt), 'key': key, 'lq_path': f'{path}.{key}.png', 'gt_path': path}

    def _photo(self, number: int) -> tuple[int, np.ndarray]:
        count = len(self.cache.photos)
        for step in range(count):
            candidate = (number + step) % count
            photo = self.cache.get(candidate)
            if isinstance(photo, np.ndarray):
                return candidate, photo
            message = f'{self.cache.photos[candidate].path}: {photo}'
            if self.options.on_error == 'raise':
                raise FGRError(message)
            self.skipped += 1
            logger.warning('photo skipped: %s', message)
        raise FGRError(f'none of the {count} photos can be used')
