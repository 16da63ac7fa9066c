"""Reads an FGR set: lq, gt, sr, syn, mask and the degradation map, augmented alike."""

from __future__ import annotations

import dataclasses
import fnmatch
from typing import Any, Literal, Mapping

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from finpercep_plugin.config import parse
from finpercep_plugin.data import labels
from finpercep_plugin.data.fgr_format import PARTS, FGRError, decode_png, read_meta, sample_key
from finpercep_plugin.data.lmdb_io import Reader
from finpercep_plugin.data.loader_options import LoaderOptions
from finpercep_plugin.data.set_folder import read_or_skip
from finpercep_plugin.registry import DATASETS, nearest
from finpercep_plugin.rng import keyed_numpy

__all__ = ['FGROptions', 'FinPercepFGRDataset', 'augment', 'local_rng', 'split_photos', 'to_tensor']


@dataclasses.dataclass(frozen=True)
class FGROptions(LoaderOptions):
    """A section under `datasets:`.

    Attributes:
        dataroot: the folder of the set.
        photos: 'all', or the samples of the training or validation photos; a photo is wholly in one of the two.
        val_fraction: share of the photos that are validation, drawn from their names; unused with `val_photos`.
        val_photos: names of the validation photos, or patterns such as '09?.png'.
        alpha: weight of the pixel term in the map; null takes the build's.
        inside_mask: make the map 0 beyond `dilate` pixels outside the mask.
        dilate: pixels.
        smooth: standard deviation in pixels of a blur of the map, for reward models too coarse to follow single
            pixels; 0 leaves the map as the paper defines it.
        crop_size: side of a random crop of gt, a multiple of the scale; null for whole samples.
        use_hflip, use_rot: random flips and quarter turns, of the pictures, mask and map alike.
        limit: use the first so many samples only.
        on_error: an unreadable sample: 'raise', or 'skip' to the next good one, logged and counted in `skipped`.
    """

    dataroot: str
    photos: Literal['all', 'train', 'val'] = 'all'
    val_fraction: float = 0.2
    val_photos: list[str] | None = None
    alpha: float | None = None
    inside_mask: bool = True
    dilate: int = 2
    smooth: float = 0.0
    crop_size: int | None = None
    use_hflip: bool = False
    use_rot: bool = False
    limit: int | None = None
    on_error: Literal['raise', 'skip'] = 'raise'
    scale: int | None = None

    def __post_init__(self) -> None:
        if not 0 < self.val_fraction < 1:
            raise ValueError(f'val_fraction: expected between 0 and 1, got {self.val_fraction}')
        if self.alpha is not None and not 0 <= self.alpha <= 1:
            raise ValueError(f'alpha: expected 0 to 1, got {self.alpha}')
        if self.dilate < 0 or self.smooth < 0:
            raise ValueError(f'dilate, smooth: expected at least 0, got {self.dilate}, {self.smooth}')
        if self.limit is not None and self.limit < 1:
            raise ValueError(f'limit: expected at least 1, got {self.limit}')


@DATASETS.register('FinPercepFGRDataset')
class FinPercepFGRDataset(Dataset):
    """FGR samples as tensors.

    An item: `lq` (3, h / scale, w / scale), `gt`, `sr`, `syn` (3, h, w) in [0, 1]; `map` (1, h, w), 1 = fully
    degraded; `mask` (1, h, w), 1 = sr; `key`, `lq_path`, `gt_path`.

    Random draws come from a local generator seeded by torch's global one, which PyTorch seeds in every worker.

    Args:
        opt: a dataset section, as BasicSR passes it; see `FGROptions`.

    Raises:
        ConfigError: unknown keys, wrong types.
        FGRError: no set there, an unfinished one, another scale, no sample left.
    """

    Options = FGROptions

    def __init__(self, opt: Mapping[str, Any]):
        options = parse(FGROptions, opt, f'$.datasets.{opt.get("phase", "train")}')
        self.opt, self.options = dict(opt), options
        self.meta = read_meta(options.dataroot)
        built = self.meta['options']
        if not self.meta['complete']:
            raise FGRError(
                f'{options.dataroot}: its build has not finished; run finpercep-build-fgr again to continue it'
            )
        if options.scale not in (None, built['scale']):
            raise FGRError(f'{options.dataroot}: built at scale {built["scale"]}, the options say {options.scale}')
        self.scale, self.size = built['scale'], built['size']
        crop = options.crop_size
        if crop is not None and not (0 < crop <= self.size and crop % self.scale == 0):
            raise FGRError(f'crop_size: expected a multiple of {self.scale} up to {self.size}, got {crop}')
        if built['feature'] == 'none' and options.alpha not in (None, 1.0):
            raise FGRError(f'{options.dataroot}: built without a feature term; alpha must be 1, not {options.alpha}')
        self.alpha = self.meta['alpha'] if options.alpha is None else options.alpha
        self.keys = _choose(self.meta, options)
        self.reader = Reader(options.dataroot)
        self.skipped = 0

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> dict[str, Tensor | str]:
        """
        Raises:
            FGRError: the sample cannot be read, with `on_error: raise`, or none can.
        """
        options = self.options
        key, arrays, skipped = read_or_skip(options.dataroot, self.keys, index, self.read, options.on_error)
        self.skipped += skipped
        arrays = augment(arrays, self.scale, options, local_rng)
        path = f'{options.dataroot}/{key}.png'
        return {**{k: to_tensor(v) for k, v in arrays.items()}, 'key': key, 'lq_path': path, 'gt_path': path}

    def read(self, key: str) -> dict[str, np.ndarray]:
        """The sample before augmentation: lq, gt, sr uint8; syn, map, mask float32 in [0, 1].

        Raises:
            CorruptValueError: a checksum fails.
            MissingKeyError: a part is missing.
            ValueError: a part has the wrong size.
        """
        parts = {part: decode_png(self.reader.get(f'{key}/{part}')) for part in PARTS}
        small, full = (self.size // self.scale,) * 2, (self.size,) * 2
        for part, array in parts.items():
            if array.shape[:2] != (small if part == 'lq' else full):
                raise ValueError(f'{part} is {array.shape[1]}x{array.shape[0]} pixels')
        terms = {t: labels.from_uint16(parts[t], labels.SCALES[t]) for t in labels.TERMS}
        label = labels.combine(
            **terms,
            alpha=self.alpha,
            p99=self.meta['p99'],
            mask=parts['mask'] if self.options.inside_mask else None,
            dilate=self.options.dilate,
            smooth=self.options.smooth,
        )
        return {
            'lq': parts['lq'],
            'gt': parts['gt'],
            'sr': parts['sr'],
            'syn': labels.swap(parts['sr'], parts['gt'], parts['mask']),
            'map': label,
            'mask': parts['mask'].astype(np.float32) / 255,
        }


def augment(arrays: dict[str, np.ndarray], scale: int, options: Any, make_rng: Any) -> dict[str, np.ndarray]:
    """The same crop, flip and quarter turn of every array; `make_rng()` is called only when something is to be drawn.

    Args:
        arrays: (h, w) or (h, w, C); 'lq' is smaller by `scale`.
        scale: see above.
        options: with `crop_size`, `use_hflip` and `use_rot`, see `FGROptions`.
        make_rng: makes a numpy generator.
    """
    if not (options.crop_size or options.use_hflip or options.use_rot):
        return arrays
    rng = make_rng()
    if options.crop_size:
        side = options.crop_size // scale
        height, width = arrays['lq'].shape[:2]
        y, x = int(rng.integers(0, height - side + 1)), int(rng.integers(0, width - side + 1))
        for name, array in arrays.items():
            unit = 1 if name == 'lq' else scale
            arrays[name] = array[y * unit : (y + side) * unit, x * unit : (x + side) * unit]
    flip = options.use_hflip and rng.random() < 0.5
    turns = int(rng.integers(4)) if options.use_rot else 0
    return {k: np.rot90(v[:, ::-1] if flip else v, turns) for k, v in arrays.items()}


def split_photos(photos: list[str], val_fraction: float, val_photos: list[str] | None) -> set[str]:
    """The validation photos.

    By `val_photos`, names or patterns, each of which must fit a photo; else `val_fraction` of the photos, at least
    one, chosen by a hash of their names: the same photo stays on its side in every set with the same photos.

    Raises:
        FGRError: a pattern that fits no photo, or nothing left to train on.
    """
    if val_photos is not None:
        chosen = set()
        for pattern in val_photos:
            found = fnmatch.filter(photos, pattern)
            if not found:
                raise FGRError(f'val_photos: no photo is called {pattern!r}{nearest(pattern, photos[:1000])}')
            chosen.update(found)
        return chosen
    if len(photos) < 2:
        raise FGRError(f'{len(photos)} photo cannot be split into training and validation photos')
    order = sorted(photos, key=lambda name: keyed_numpy('split', name).integers(2**62))
    return set(order[: min(len(photos) - 1, max(1, round(val_fraction * len(photos))))])


def _choose(meta: dict[str, Any], options: FGROptions) -> list[str]:
    names = [name for name, _ in meta['photos']]
    indices = range(meta['count'])
    if options.photos != 'all':
        used = {names[meta['photo_of'][i]] for i in indices}
        validation = split_photos([n for n in names if n in used], options.val_fraction, options.val_photos)
        indices = [i for i in indices if (names[meta['photo_of'][i]] in validation) == (options.photos == 'val')]
    keys = [sample_key(i) for i in indices][: options.limit]
    if not keys:
        raise FGRError(f'{options.dataroot}: no sample left with photos: {options.photos}')
    return keys


def local_rng() -> np.random.Generator:
    return np.random.default_rng(int(torch.randint(2**62, ())))


def to_tensor(array: np.ndarray) -> Tensor:
    """(H, W[, C]) uint8 or float32 -> (C, H, W) float32, uint8 scaled to [0, 1]."""
    planes = array[None] if array.ndim == 2 else array.transpose(2, 0, 1)
    tensor = torch.from_numpy(np.ascontiguousarray(planes))
    return tensor.float().div_(255) if tensor.dtype == torch.uint8 else tensor
