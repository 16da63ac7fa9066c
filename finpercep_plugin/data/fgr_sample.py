"""One FGR sample: a pure function of (photos, options, index), whichever process makes it, when, or how often."""

from __future__ import annotations

import collections
import functools
import hashlib
import os
from pathlib import Path
from typing import Any, Mapping, Sequence

import cv2
import numpy as np

from finpercep_plugin.data import labels
from finpercep_plugin.data.degradation import degrade
from finpercep_plugin.data.fgr_format import PARTS, FGRError, encode_png, sample_key, to_json
from finpercep_plugin.data.fgr_options import BuildOptions, build_producers
from finpercep_plugin.data.masks import draw_mask
from finpercep_plugin.images import ImageError, list_images, read_image
from finpercep_plugin.rng import keyed_numpy

__all__ = ['PhotoCache', 'SampleMaker', 'draw_crop', 'label_sample', 'photo_list']

_TRIES = 8
_CACHED_BYTES = 192 << 20


class PhotoCache:
    """Decoded photos, the latest used ones kept, and why others cannot be used.

    Args:
        photos: (name, path) of each.
        smallest: the least side in pixels.
    """

    def __init__(self, photos: Sequence[tuple[str, str]], smallest: int):
        self.photos, self.smallest = photos, smallest
        self._kept: collections.OrderedDict[int, np.ndarray] = collections.OrderedDict()
        self._bad: dict[int, str] = {}

    def get(self, index: int) -> np.ndarray | str:
        """(H, W, 3) uint8, or the reason why there is none."""
        if index in self._bad:
            return self._bad[index]
        if index not in self._kept:
            try:
                self._kept[index] = self._read(index)
            except ImageError as error:
                self._bad[index] = error.reason
                return error.reason
            while len(self._kept) > 1 and sum(p.nbytes for p in self._kept.values()) > _CACHED_BYTES:
                self._kept.popitem(last=False)
        self._kept.move_to_end(index)
        return self._kept[index]

    def _read(self, index: int) -> np.ndarray:
        path = self.photos[index][1]
        photo = read_image(path)
        if min(photo.shape[:2]) < self.smallest:
            raise ImageError(path, f'{photo.shape[1]}x{photo.shape[0]} pixels, less than the crop of {self.smallest}')
        return photo


class SampleMaker:
    """Makes any sample of a build.

    Args:
        photos: (name, path) of each photo; the order counts.
        options: of the build.

    Raises:
        ConfigError: from the producers' sections.
    """

    def __init__(self, photos: Sequence[tuple[str, str]], options: BuildOptions):
        self.options = options
        self.photos = PhotoCache(photos, options.size)
        self.names, self.weights, self.producers = build_producers(options)

    def __call__(self, index: int) -> dict[str, bytes]:
        """All values of sample `index` by key, its record last.

        Raises:
            FGRError: no photo can be used, or a producer returned something else than asked.
        """
        options = self.options
        number, photo, skipped = self._photo(index)
        box = draw_crop(photo, options.size, options.min_detail, self._rng(index, 'crop'))
        x, y, side = box
        gt = np.ascontiguousarray(photo[y : y + side, x : x + side])
        lq, degradation = degrade(gt, options.scale, options.degradation, self._rng(index, 'degradation'))
        choice = int(self._rng(index, 'choice').choice(len(self.producers), p=self.weights))
        sr, how = self._produce(choice, lq, index)
        record = {
            'photo': self.photos.photos[number][0],
            'skipped': skipped,
            'crop': [x, y, side, side],
            'degradation': degradation,
            'producer': {'type': self.names[choice], 'number': choice, **how},
        }
        return label_sample(index, {'lq': lq, 'gt': gt, 'sr': sr}, options, record)

    def _produce(self, choice: int, lq: np.ndarray, index: int) -> tuple[np.ndarray, dict[str, Any]]:
        scale, name = self.options.scale, self.names[choice]
        try:
            sr, how = self.producers[choice](lq, scale, self._rng(index, 'producer'))
        except Exception as error:
            message = f'producer {name} failed at sample {index}: {type(error).__name__}: {error}'
            raise FGRError(message) from error
        expected = (lq.shape[0] * scale, lq.shape[1] * scale, 3)
        if sr.shape != expected or sr.dtype != np.uint8:
            raise FGRError(f'producer {name}: expected {expected} uint8, got {sr.shape} {sr.dtype}')
        return sr, how

    def _rng(self, index: int, purpose: str) -> np.random.Generator:
        return keyed_numpy(self.options.seed, index, purpose)

    def _photo(self, index: int) -> tuple[int, np.ndarray, list[list[str]]]:
        """Every photo once, in a random order, before any comes again; in place of a bad one, another."""
        count = len(self.photos.photos)
        first = _order(self.options.seed, index // count, count)[index % count]
        skipped = []
        rest = (int(n) for n in self._rng(index, 'photo').permutation(count))
        for number in (first, *(n for n in rest if n != first)):
            photo = self.photos.get(number)
            if isinstance(photo, np.ndarray):
                return number, photo, skipped
            skipped.append([self.photos.photos[number][0], photo])
        reasons = '; '.join(f'{name}: {reason}' for name, reason in skipped[:3])
        raise FGRError(f'none of the {count} photos can be used ({reasons})')


def label_sample(
    index: int, pictures: Mapping[str, np.ndarray], options: BuildOptions, record: Mapping[str, Any]
) -> dict[str, bytes]:
    """All values of a sample by key, its record last: the region is drawn and the labels are made here.

    Args:
        index: of the sample.
        pictures: 'lq' (h, w, 3), 'gt' and 'sr' (H, W, 3), uint8 RGB.
        options: of the build.
        record: where the pictures come from: photo, skipped, crop, degradation, producer.
    """
    sr, gt = pictures['sr'], pictures['gt']
    mask, region = _draw_region(sr, gt, options, keyed_numpy(options.seed, index, 'mask'))
    terms = _terms(sr, gt, mask, options.feature)
    stored = {t: labels.to_uint16(terms[t], labels.SCALES[t]) for t in labels.TERMS}
    histograms = {t: _sparse(labels.histogram(v)) for t, v in stored.items()}
    whole = {**record, 'index': index, 'seed': options.seed, 'mask': region, 'histograms': histograms}
    return _pack(index, {**pictures, 'mask': mask, **stored}, whole)


def draw_crop(photo: np.ndarray, size: int, min_detail: float, rng: np.random.Generator) -> tuple[int, int, int]:
    """(x, y, size) of the first of 8 random crops with enough detail, else of the one with most."""
    best, most = (0, 0, size), -1.0
    for _ in range(_TRIES):
        x = int(rng.integers(0, photo.shape[1] - size + 1))
        y = int(rng.integers(0, photo.shape[0] - size + 1))
        luma = cv2.cvtColor(np.ascontiguousarray(photo[y : y + size, x : x + size]), cv2.COLOR_RGB2GRAY).astype(
            np.float32
        )
        detail = float(np.abs(np.diff(luma, axis=0)).mean() + np.abs(np.diff(luma, axis=1)).mean()) / 510
        if detail > most:
            best, most = (x, y, size), detail
        if most >= min_detail:
            break
    return best


def _draw_region(
    sr: np.ndarray, gt: np.ndarray, options: BuildOptions, rng: np.random.Generator
) -> tuple[np.ndarray, dict[str, Any]]:
    """The first of 8 masks inside which sr differs enough from gt, else where it differs most, and its record."""
    change = np.abs(sr.astype(np.float32) - gt).mean(-1) / 255
    best, most = None, -1.0
    for _ in range(_TRIES):
        mask, record = draw_mask(*gt.shape[:2], options.mask, rng)
        inside = float((change * mask).sum() / max(mask.sum(), 1))
        if inside > most:
            best, most = (mask, {**record, 'change': round(inside, 5)}), inside
        if most >= options.min_change:
            break
    assert best is not None
    return best


@functools.lru_cache(maxsize=4)
def _order(seed: int, epoch: int, count: int) -> list[int]:
    return keyed_numpy(seed, epoch, 'photos').permutation(count).tolist()


def _terms(sr: np.ndarray, gt: np.ndarray, mask: np.ndarray, feature: str) -> dict[str, np.ndarray]:
    syn, truth = labels.swap(sr, gt, mask), gt.astype(np.float32) / 255
    extractor = labels.EXTRACTORS[feature]
    pixel = labels.pixel_term(syn, truth)
    return {
        'pixel': pixel,
        'feature': np.zeros_like(pixel) if extractor is None else labels.feature_term(syn, truth, extractor),
    }


def _sparse(counts: np.ndarray) -> list[list[int]]:
    """[bins that are not empty, their counts]."""
    bins = np.flatnonzero(counts)
    return [bins.tolist(), counts[bins].tolist()]


def _pack(index: int, arrays: dict[str, np.ndarray], record: dict[str, Any]) -> dict[str, bytes]:
    key = sample_key(index)
    values = {f'{key}/{part}': encode_png(arrays[part]) for part in PARTS}
    record['sha256'] = {part: hashlib.sha256(values[f'{key}/{part}']).hexdigest() for part in PARTS}
    values[f'{key}/record'] = to_json(record).encode()
    return values


def photo_list(sources: Sequence[str | Path]) -> list[tuple[str, str]]:
    """(name, path) of every image file in `sources`.

    Names are relative to the folder that the sources have in common, with / between folders.

    Raises:
        FGRError: none there.
        FileNotFoundError: a source that is not there.
    """
    paths = list_images([Path(s).expanduser() for s in sources])
    if not paths:
        raise FGRError(f'no image files in {", ".join(map(str, sources)) or "photos (an empty list)"}')
    folders = [p if p.is_dir() else p.parent for p in (Path(s).expanduser().absolute() for s in sources)]
    root = os.path.commonpath(folders)
    return [(Path(os.path.relpath(p, root)).as_posix(), str(p)) for p in paths]
