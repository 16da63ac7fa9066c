"""What a sample is made of besides its pictures: a crop, a region, labels, and the bytes that are stored."""

from __future__ import annotations

import hashlib
from typing import Any, Mapping, Sequence

import cv2
import numpy as np

from finpercep_plugin.data import labels
from finpercep_plugin.data.fgr_format import PARTS, FGRError, encode_png, sample_key, to_json
from finpercep_plugin.data.fgr_options import BuildOptions, Part, build_features, build_segmenter
from finpercep_plugin.data.masks import draw_mask, wants_segments
from finpercep_plugin.rng import keyed_numpy

__all__ = ['Labeller', 'draw_crop', 'label_sample', 'sparse']

_TRIES = 8


class Labeller:
    """Draws the regions and makes the labels of a build's samples.

    Args:
        options: of the build.
        part: which components are made; what needs one that is not cannot be asked for.
        device: of the networks, in place of their sections' own.

    Raises:
        ConfigError: from the sections of the features and of the segments.
    """

    def __init__(self, options: BuildOptions, part: Part = 'all', device: str | None = None):
        self.options = options
        self.features = build_features(options, part, device)
        self.segmenter = build_segmenter(options, part, device)

    def wants_segments(self, index: int) -> bool:
        """Whether the mask of sample `index` is to be of segments."""
        return wants_segments(self.options.mask, keyed_numpy(self.options.seed, index, 'kind'))

    def region(
        self, index: int, sr: np.ndarray, gt: np.ndarray, segments: np.ndarray | None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """The first of 8 masks inside which sr differs enough from gt, else where it differs most, and its record.

        Args:
            index: of the sample.
            sr, gt: (H, W, 3) uint8.
            segments: (n, H, W) bool of gt, for a mask of them.
        """
        rng = keyed_numpy(self.options.seed, index, 'mask')
        change = np.abs(sr.astype(np.float32) - gt).mean(-1) / 255
        best, most = None, -1.0
        for _ in range(_TRIES):
            mask, record = draw_mask(*gt.shape[:2], self.options.mask, rng, segments)
            inside = float((change * mask).sum() / max(mask.sum(), 1))
            if inside > most:
                best, most = (mask, {**record, 'change': round(inside, 5)}), inside
            if most >= self.options.min_change:
                break
        assert best is not None
        return best

    def feature_terms(self, samples: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> list[np.ndarray]:
        """1 - cos of the features of syn and gt, as stored, of samples (sr, gt, mask): (H, W) uint16 each.

        Raises:
            FGRError: a feature is not finite.
        """
        if self.features is None:
            return [np.zeros(mask.shape, np.uint16) for _, _, mask in samples]
        syn = self.features(np.stack([labels.swap(*sample) for sample in samples]))
        truth = self.features(np.stack([gt.astype(np.float32) / 255 for _, gt, _ in samples]))
        if not (np.isfinite(syn).all() and np.isfinite(truth).all()):
            raise FGRError('the features have values that are not finite')
        terms = (
            labels.feature_term(a, b, mask.shape, self.features.eps) for a, b, (_, _, mask) in zip(syn, truth, samples)
        )
        return [labels.to_uint16(term, labels.SCALES['feature']) for term in terms]

    def values(
        self, index: int, pictures: Mapping[str, np.ndarray], feature: np.ndarray, record: Mapping[str, Any]
    ) -> dict[str, bytes]:
        """All values of a sample by key, its record last.

        Args:
            index: of the sample.
            pictures: 'lq' (h, w, 3), 'gt' and 'sr' (H, W, 3), 'mask' (H, W), uint8, colours RGB.
            feature: (H, W) uint16, of `feature_terms`.
            record: where the pictures come from: photo, skipped, crop, degradation, producer, mask.
        """
        sr, gt = pictures['sr'], pictures['gt']
        pixel = labels.pixel_term(labels.swap(sr, gt, pictures['mask']), gt.astype(np.float32) / 255)
        stored = {'pixel': labels.to_uint16(pixel, labels.SCALES['pixel']), 'feature': feature}
        histograms = {t: sparse(labels.histogram(v)) for t, v in stored.items()}
        key, arrays = sample_key(index), {**pictures, **stored}
        values = {f'{key}/{part}': encode_png(arrays[part]) for part in PARTS}
        sums = {part: hashlib.sha256(values[f'{key}/{part}']).hexdigest() for part in PARTS}
        whole = {**record, 'index': index, 'seed': self.options.seed, 'histograms': histograms, 'sha256': sums}
        return {**values, f'{key}/record': to_json(whole).encode()}


def label_sample(
    index: int, pictures: Mapping[str, np.ndarray], labeller: Labeller, record: Mapping[str, Any]
) -> dict[str, bytes]:
    """All values of a sample by key, its record last: the region is drawn and the labels are made here.

    Args:
        index: of the sample.
        pictures: 'lq' (h, w, 3), 'gt' and 'sr' (H, W, 3), uint8 RGB.
        labeller: with all its parts.
        record: where the pictures come from: photo, skipped, crop, degradation, producer.
    """
    sr, gt = pictures['sr'], pictures['gt']
    segments = labeller.segmenter([gt])[0] if labeller.wants_segments(index) else None
    mask, region = labeller.region(index, sr, gt, segments)
    (feature,) = labeller.feature_terms([(sr, gt, mask)])
    return labeller.values(index, {**pictures, 'mask': mask}, feature, {**record, 'mask': region})


def draw_crop(
    photo: np.ndarray, size: int, min_detail: float, rng: np.random.Generator, step: int = 1
) -> tuple[int, int, int]:
    """(x, y, size) of the first of 8 random crops with enough detail, else of the one with most.

    Args:
        photo: (H, W, 3) uint8.
        size: side of the crop.
        min_detail: the least mean gradient of luma in [0, 1], per pixel.
        rng: of every draw.
        step: x and y are multiples of this.
    """
    best, most = (0, 0, size), -1.0
    for _ in range(_TRIES):
        x = step * int(rng.integers(0, (photo.shape[1] - size) // step + 1))
        y = step * int(rng.integers(0, (photo.shape[0] - size) // step + 1))
        luma = cv2.cvtColor(np.ascontiguousarray(photo[y : y + size, x : x + size]), cv2.COLOR_RGB2GRAY).astype(
            np.float32
        )
        detail = float(np.abs(np.diff(luma, axis=0)).mean() + np.abs(np.diff(luma, axis=1)).mean()) / 510
        if detail > most:
            best, most = (x, y, size), detail
        if most >= min_detail:
            break
    return best


def sparse(counts: np.ndarray) -> list[list[int]]:
    """[bins that are not empty, their counts].

    >>> sparse(np.array([0, 3, 0, 1]))
    [[1, 3], [3, 1]]
    """
    bins = np.flatnonzero(counts)
    return [bins.tolist(), counts[bins].tolist()]
