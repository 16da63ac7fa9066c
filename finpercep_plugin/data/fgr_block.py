"""A block of FGR samples, in three steps: a pure function of (photos, options, number of the block).

Block k is the samples k * batch to (k + 1) * batch - 1. It is always computed whole, so that networks see the same
pictures in one batch whoever makes it, when, or how often; only what is wanted of it is finished. The steps give and
take what can be pickled::

    prepare  CPU     photo, crop, lq, the choice of a producer; sr and segments by what needs no device
    compute  device  sr and segments by networks, the mask, features by a network
    finish   CPU     features by what needs no device, labels, PNG, checksums, records
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from typing import Any, Collection, Iterator, Sequence

import numpy as np

from finpercep_plugin.data.degradation import degrade
from finpercep_plugin.data.fgr_format import FGRError
from finpercep_plugin.data.fgr_options import BuildOptions, Part, build_producers, has_device
from finpercep_plugin.data.fgr_sample import Labeller, draw_crop
from finpercep_plugin.data.photos import Photo, PhotoCache
from finpercep_plugin.data.producers import base
from finpercep_plugin.data.producers.base import Produced, Request
from finpercep_plugin.rng import keyed_numpy

__all__ = ['BlockMaker', 'Computed', 'Prepared']


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A sample whose sr may not be there yet.

    Attributes:
        index: of the sample.
        photo: its name.
        skipped: (name, reason) of the photos whose turn it was, but that cannot be used.
        box: (x, y, side) of gt in the photo.
        gt: (H, W, 3) uint8; lq: (h, w, 3) uint8.
        degradation: how lq was made.
        producer: number of the one that was drawn.
        semantic: its mask is to be of segments.
        produced: None where the producer needs a device.
        segments: (n, H, W) bool, where the mask is to be of some and they need no device.
    """

    index: int
    photo: str
    skipped: list[list[str]]
    box: tuple[int, int, int]
    gt: np.ndarray
    lq: np.ndarray
    degradation: dict[str, Any]
    producer: int
    semantic: bool
    produced: Produced | None = None
    segments: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class Computed:
    """A sample with everything that it takes a device to make.

    Attributes:
        prepared: what it was.
        produced: its sr.
        mask: (H, W) uint8; region: its record.
        feature: (H, W) uint16, the feature term as stored; None where it needs no device.
    """

    prepared: Prepared
    produced: Produced
    mask: np.ndarray
    region: dict[str, Any]
    feature: np.ndarray | None = None

    @property
    def index(self) -> int:
        return self.prepared.index


class BlockMaker:
    """Makes any block of a build.

    Args:
        photos: the order counts.
        options: of the build.
        part: 'all'; 'cpu' can `prepare` and `finish`; 'device' can `compute`.
        device: of the networks, in place of their sections' own.

    Raises:
        ConfigError: from the sections of the producers, features and segments.
    """

    def __init__(self, photos: Sequence[Photo], options: BuildOptions, part: Part = 'all', device: str | None = None):
        self.options = options
        self.photos = PhotoCache(photos, options.size)
        self.names, self.weights, self.producers = build_producers(options, part, device)
        self.labeller = Labeller(options, part, device)

    def __call__(self, block: int, wanted: Collection[int] | None = None) -> dict[str, bytes]:
        """The three steps in one; see `finish` for the arguments."""
        return self.finish(self.compute(self.prepare(block)), wanted)

    def prepare(self, block: int) -> list[Prepared]:
        """
        Raises:
            FGRError: no photo can be used, or a producer failed.
        """
        first = block * self.options.batch
        samples = [self._prepare(index) for index in range(first, first + self.options.batch)]
        return self._segment(self._produce(samples, on_device=False), on_device=False)

    def compute(self, samples: Sequence[Prepared]) -> list[Computed]:
        """
        Args:
            samples: of `prepare`, all of a block.

        Raises:
            FGRError: a network failed.
        """
        whole = self._segment(self._produce(samples, on_device=True), on_device=True)
        computed = []
        for sample in whole:
            assert sample.produced is not None
            mask, region = self.labeller.region(sample.index, sample.produced.sr, sample.gt, sample.segments)
            computed.append(Computed(dataclasses.replace(sample, segments=None), sample.produced, mask, region))
        if self.labeller.features is None or not has_device(self.labeller.features):
            return computed
        with _blamed('the features', samples):
            terms = self.labeller.feature_terms([_pictures(sample) for sample in computed])
        return [dataclasses.replace(sample, feature=term) for sample, term in zip(computed, terms)]

    def finish(self, samples: Sequence[Computed], wanted: Collection[int] | None = None) -> dict[str, bytes]:
        """All values of the samples by key, the record of each last.

        Args:
            samples: of `compute`.
            wanted: indices of the samples to be finished; None for all.
        """
        values: dict[str, bytes] = {}
        for sample in samples:
            if wanted is None or sample.index in wanted:
                values |= self._finish(sample)
        return values

    def _prepare(self, index: int) -> Prepared:
        options = self.options
        number, photo, weights, skipped = self._photo(index)
        choice = int(self._rng(index, 'choice').choice(len(weights), p=weights))
        step = options.scale if base.align(self.producers[choice]) else 1
        box = draw_crop(photo, options.size, options.min_detail, self._rng(index, 'crop'), step)
        x, y, side = box
        gt = np.ascontiguousarray(photo[y : y + side, x : x + side])
        lq, degradation = degrade(gt, options.scale, options.degradation, self._rng(index, 'degradation'))
        name = self.photos.photos[number].name
        return Prepared(
            index, name, skipped, box, gt, lq, degradation, choice, semantic=self.labeller.wants_segments(index)
        )

    def _produce(self, samples: Sequence[Prepared], on_device: bool) -> list[Prepared]:
        """The samples with sr by the producers that need a device, or by those that need none; one call each."""
        done = list(samples)
        for number, producer in enumerate(self.producers):
            places = [i for i, sample in enumerate(done) if sample.producer == number]
            if not places or has_device(producer) != on_device:
                continue
            requests = [
                Request(done[i].lq, self._rng(done[i].index, 'producer'), done[i].photo, done[i].box) for i in places
            ]
            with _blamed(f'producer {self.names[number]}', [done[i] for i in places]):
                made = producer(requests, self.options.scale)
            for i, produced in zip(places, made, strict=True):
                _check(self.names[number], produced, done[i])
                done[i] = dataclasses.replace(done[i], produced=produced)
        return done

    def _segment(self, samples: Sequence[Prepared], on_device: bool) -> list[Prepared]:
        """The samples with segments where they want them and the segmenter needs a device, or needs none."""
        done, places = list(samples), [i for i, sample in enumerate(samples) if sample.semantic]
        if not places or has_device(self.labeller.segmenter) != on_device:
            return done
        with _blamed('the segments', [done[i] for i in places]):
            found = self.labeller.segmenter([done[i].gt for i in places])
        for i, segments in zip(places, found, strict=True):
            done[i] = dataclasses.replace(done[i], segments=segments)
        return done

    def _finish(self, sample: Computed) -> dict[str, bytes]:
        before, produced = sample.prepared, sample.produced
        feature = self.labeller.feature_terms([_pictures(sample)])[0] if sample.feature is None else sample.feature
        given = produced.lq is not None
        pictures = {'lq': produced.lq if given else before.lq, 'gt': before.gt, 'sr': produced.sr, 'mask': sample.mask}
        x, y, side = before.box
        record = {
            'photo': before.photo,
            'skipped': before.skipped,
            'crop': [x, y, side, side],
            'degradation': {'kind': 'given'} if given else before.degradation,
            'producer': {'type': self.names[before.producer], 'number': before.producer, **produced.record},
            'mask': sample.region,
        }
        return self.labeller.values(before.index, pictures, feature, record)

    def _rng(self, index: int, purpose: str) -> np.random.Generator:
        return keyed_numpy(self.options.seed, index, purpose)

    def _photo(self, index: int) -> tuple[int, np.ndarray, np.ndarray, list[list[str]]]:
        """Number, picture, weights of the producers, and what was skipped.

        Every photo comes once, in a random order, before any comes again; in place of a bad one, another.
        """
        skipped = []
        for number in self._turns(index):
            photo = self.photos.get(number)
            weights = self._covering(number, photo) if isinstance(photo, np.ndarray) else photo
            if isinstance(photo, np.ndarray) and isinstance(weights, np.ndarray):
                return number, photo, weights, skipped
            skipped.append([self.photos.photos[number].name, weights])
        reasons = '; '.join(f'{name}: {reason}' for name, reason in skipped[:3])
        raise FGRError(f'none of the {len(self.photos.photos)} photos can be used ({reasons})')

    def _turns(self, index: int) -> Iterator[int]:
        count = len(self.photos.photos)
        first = _order(self.options.seed, index // count, count)[index % count]
        yield first
        yield from (int(n) for n in self._rng(index, 'photo').permutation(count) if n != first)

    def _covering(self, number: int, photo: np.ndarray) -> np.ndarray | str:
        """Weights of the producers that have an sr of a photo, summing to 1, or why there is none."""
        weights, reasons = np.array(self.weights), []
        for i, producer in enumerate(self.producers):
            reason = base.not_covered(producer, self.photos.photos[number].name, photo.shape[:2], self.options.scale)
            if reason is not None:
                reasons, weights[i] = [*reasons, reason], 0.0
        return weights / weights.sum() if weights.any() else '; '.join(reasons)


def _pictures(sample: Computed) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return sample.produced.sr, sample.prepared.gt, sample.mask


def _check(name: str, produced: Produced, sample: Prepared) -> None:
    for what, picture, like in (('sr', produced.sr, sample.gt), ('lq', produced.lq, sample.lq)):
        if picture is not None and (picture.shape != like.shape or picture.dtype != np.uint8):
            raise FGRError(f'producer {name}: {what}: expected {like.shape} uint8, got {picture.shape} {picture.dtype}')


@contextlib.contextmanager
def _blamed(what: str, samples: Sequence[Prepared]) -> Iterator[None]:
    """Whatever goes wrong inside is said to be a failure of `what` at these samples."""
    try:
        yield
    except FGRError:
        raise
    except Exception as error:  # a network may raise anything
        numbers = ', '.join(str(sample.index) for sample in samples)
        raise FGRError(f'{what} failed at samples {numbers}: {type(error).__name__}: {error}') from error


@functools.lru_cache(maxsize=4)
def _order(seed: int, epoch: int, count: int) -> list[int]:
    return keyed_numpy(seed, epoch, 'photos').permutation(count).tolist()
