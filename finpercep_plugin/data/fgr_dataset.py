"""Reads FGR sets: lq, gt, sr, syn, mask and the degradation map, augmented alike."""

from __future__ import annotations

import dataclasses
import fnmatch
from typing import Any, Callable, Iterator, Literal, Mapping, Sequence

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from finpercep_plugin.config import parse
from finpercep_plugin.data import labels
from finpercep_plugin.data.fgr_format import PARTS, FGRError, decode_png
from finpercep_plugin.data.loader_options import LoaderOptions
from finpercep_plugin.data.set_folder import read_or_skip
from finpercep_plugin.data.shards import Shards
from finpercep_plugin.registry import DATASETS, nearest
from finpercep_plugin.rng import keyed_numpy

__all__ = [
    'FIELDS',
    'FGROptions',
    'FinPercepFGRDataset',
    'draw_move',
    'draw_number',
    'local_rng',
    'split_photos',
    'to_tensor',
]

FIELDS = ('lq', 'gt', 'sr', 'syn', 'map', 'mask')
_MOVED: tuple[Callable[[np.ndarray], np.ndarray], ...] = (
    lambda a: a,
    lambda a: cv2.flip(a, 1),
    lambda a: cv2.rotate(a, cv2.ROTATE_90_COUNTERCLOCKWISE),
    cv2.transpose,  # a flip, then a quarter turn
    lambda a: cv2.flip(a, -1),
    lambda a: cv2.flip(a, 0),
    lambda a: cv2.rotate(a, cv2.ROTATE_90_CLOCKWISE),
    lambda a: cv2.flip(cv2.transpose(a), -1),
)
"""Twice the number of quarter turns, and 1 for a flip before them."""

Move = Callable[[str, np.ndarray], np.ndarray]
"""(name, (h, w) or (h, w, C)) -> a part of the array, perhaps flipped or turned."""


@dataclasses.dataclass(frozen=True)
class FGROptions(LoaderOptions):
    """A section under `datasets:`.

    Attributes:
        dataroot: the folder of the set; or several, as a list or a pattern such as 'fgr/shard_*', read as one set.
        shard_by_rank: of several folders, each process reads only those whose number is its rank modulo the number of
            processes; the order of the samples then depends on how many there are.
        fields: what items hold of lq, gt, sr, syn, map and mask; what is not needed for them is not decoded.
        dtype: 'float32'; or 'uint8', which leaves lq, gt, sr and mask as they are stored, 0 to 255, and gives in place
            of syn what it is made of: a quarter of the bytes to copy. This project's models take either.
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

    dataroot: list[str] | str
    shard_by_rank: bool = False
    fields: list[Literal['lq', 'gt', 'sr', 'syn', 'map', 'mask']] = dataclasses.field(
        default_factory=lambda: list(FIELDS)
    )
    dtype: Literal['float32', 'uint8'] = 'float32'
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
        if not self.fields:
            raise ValueError('fields: expected at least one')
        if self.phase != 'train' and (self.shard_by_rank or self.dtype == 'uint8'):
            raise ValueError('shard_by_rank, dtype: uint8: for training only')


@DATASETS.register('FinPercepFGRDataset')
class FinPercepFGRDataset(Dataset):
    """FGR samples as tensors.

    An item: `lq` (3, h / scale, w / scale), `gt`, `sr`, `syn` (3, h, w) in [0, 1]; `map` (1, h, w), 1 = fully
    degraded; `mask` (1, h, w), 1 = sr; of these, those in `fields`. And `key`, `lq_path`, `gt_path`.

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
        self.shards = Shards(options.dataroot, *(ranks() if options.shard_by_rank else (0, 1)))
        self.root = options.dataroot if isinstance(options.dataroot, str) else ', '.join(options.dataroot)
        self.meta = self.shards.meta
        built = self.meta['options']
        if options.scale not in (None, built['scale']):
            raise FGRError(f'{self.root}: built at scale {built["scale"]}, the options say {options.scale}')
        self.scale, self.size = built['scale'], built['size']
        crop = options.crop_size
        if crop is not None and not (0 < crop <= self.size and crop % self.scale == 0):
            raise FGRError(f'crop_size: expected a multiple of {self.scale} up to {self.size}, got {crop}')
        if built['feature'] == 'none' and options.alpha not in (None, 1.0):
            raise FGRError(f'{self.root}: built without a feature term; alpha must be 1, not {options.alpha}')
        self.alpha = self.meta['alpha'] if options.alpha is None else options.alpha
        if self.alpha is None:
            raise FGRError(f'{self.root}: built with several values of alpha; say which')
        self.keys = _choose(self.shards, options)
        self._wanted = self._parts(options.fields)
        self.skipped = 0

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> dict[str, Tensor | str]:
        """
        Raises:
            FGRError: the sample cannot be read, with `on_error: raise`, or none can.
        """
        options, small = self.options, self.size // self.scale
        move = draw_move((small, small), self.scale, options)
        key, item, skipped = read_or_skip(
            self.root, self.keys, index, lambda key: self._tensors(key, move), options.on_error
        )
        self.skipped += skipped
        item['key'] = key
        item['lq_path'] = item['gt_path'] = f'{self.shards.folder(key)}/{key}.png'
        return item

    def _tensors(self, key: str, move: Move | None) -> dict[str, Any]:
        fields, whole, made = self.options.fields, self.options.dtype == 'float32', {}
        make = to_tensor if whole else to_planes
        for name, array in self._arrays(key, fields):
            made[name] = make(array if move is None else move(name, array))
        if not whole:
            return made
        if 'syn' in fields:
            made['syn'] = torch.lerp(made['gt'], made['sr'], made['mask'])
        return {name: made[name] for name in fields}

    def photo(self, key: str) -> str:
        """The name of the photo that a sample was cut from."""
        return self.shards.photo(key)

    def read(self, key: str, fields: Sequence[str] | None = None) -> dict[str, np.ndarray]:
        """The sample before augmentation: lq, gt, sr (H, W, 3), mask (H, W), uint8; map (H, W) float32 in [0, 1].

        Args:
            key: of the sample.
            fields: what is wanted, those of the options by default; for syn, what it is made of is given.

        Raises:
            CorruptValueError: a checksum fails.
            MissingKeyError: a part is missing.
            ValueError: a part has the wrong size.
        """
        return dict(self._arrays(key, self.options.fields if fields is None else fields))

    def _arrays(self, key: str, fields: Sequence[str]) -> Iterator[tuple[str, np.ndarray]]:
        """As `read`, one by one: what becomes of a picture is done while it is in the processor's cache."""
        options = self.options
        pictures, others = self._wanted if fields is options.fields else self._parts(fields)
        store, prefix = self.shards.place(key)
        with store.borrow() as get:
            used = {}
            for part in (*others, *pictures):
                array = used[part] = decode_png(get(prefix + part))
                side = self.size // self.scale if part == 'lq' else self.size
                if array.shape[:2] != (side, side):
                    raise ValueError(f'{part} is {array.shape[1]}x{array.shape[0]} pixels')
                if part in pictures:
                    yield part, array
            if 'map' in fields:
                mask = used['mask'] if options.inside_mask else None
                terms = used.get('pixel'), used.get('feature')
                yield 'map', labels.combine(*terms, self.alpha, self.meta['p99'], mask, options.dilate, options.smooth)

    def _parts(self, fields: Sequence[str]) -> tuple[list[str], list[str]]:
        """What is to be decoded: what `read` gives, and what else the map is made of."""
        wanted = {*fields, *(('gt', 'sr', 'mask') if 'syn' in fields else ())}
        pictures = [part for part in PARTS if part in wanted]
        if 'map' not in fields:
            return pictures, []
        used = {'pixel': self.alpha > 0, 'feature': self.alpha < 1, 'mask': self.options.inside_mask}
        return pictures, [part for part in used if used[part] and part not in pictures]


def draw_move(size: tuple[int, int], scale: int, options: Any) -> Move | None:
    """A crop, flip and quarter turn for every array alike; None where there is none.

    Args:
        size: of 'lq', which is smaller by `scale` than the others.
        scale: see above.
        options: with `crop_size`, `use_hflip` and `use_rot`, see `FGROptions`.
    """
    if not (options.crop_size or options.use_hflip or options.use_rot):
        return None
    number, (height, width) = draw_number(), size  # and not a generator, which takes longer to make than to use
    number, flip = divmod(number, 2) if options.use_hflip else (number, 0)
    number, turns = divmod(number, 4) if options.use_rot else (number, 0)
    y, x = 0, 0
    if options.crop_size:
        side = options.crop_size // scale
        number, y = divmod(number, height - side + 1)
        number, x = divmod(number, width - side + 1)
        height, width = side, side
    moved = _MOVED[2 * turns + flip]

    def move(name: str, array: np.ndarray) -> np.ndarray:
        unit = 1 if name == 'lq' else scale
        return moved(array[y * unit : (y + height) * unit, x * unit : (x + width) * unit])

    return move


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


def _choose(shards: Shards, options: FGROptions) -> list[str]:
    names = shards.names
    if options.photos != 'all':
        used = {shards.photo(name) for name in names}
        validation = split_photos(sorted(used), options.val_fraction, options.val_photos)
        names = [name for name in names if (shards.photo(name) in validation) == (options.photos == 'val')]
    if not names:
        raise FGRError(f'{", ".join(map(str, shards.folders))}: no sample left with photos: {options.photos}')
    return names[: options.limit]


def ranks() -> tuple[int, int]:
    """(rank, number of processes) of a distributed run, else (0, 1)."""
    distributed = torch.distributed
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


def draw_number() -> int:
    """Of 0 to 2**62 - 1, by torch's global generator."""
    return int(torch.randint(2**62, ()))


def local_rng() -> np.random.Generator:
    return np.random.default_rng(draw_number())


def to_tensor(array: np.ndarray) -> Tensor:
    """(H, W[, C]) uint8 or float32 -> (C, H, W) float32, uint8 scaled to [0, 1]."""
    planes = to_planes(array)
    if planes.dtype != torch.uint8:
        return planes
    return torch.from_numpy(np.divide(planes.numpy(), np.float32(255), dtype=np.float32))


def to_planes(array: np.ndarray) -> Tensor:
    """(H, W[, C]) -> (C, H, W) of the same type."""
    if array.ndim == 2:
        return torch.from_numpy(np.ascontiguousarray(array[None]))
    planes = np.empty((array.shape[2], *array.shape[:2]), array.dtype)
    cv2.split(array, list(planes))  # several times as fast as numpy's transpose
    return torch.from_numpy(planes)
