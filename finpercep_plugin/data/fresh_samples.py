"""FGR samples whose sr a generator in training makes of the lq of a set that is there (METHOD.md §4, `at_switch`)."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, Iterable, Mapping, Sequence

import numpy as np

from finpercep_plugin.config import parse
from finpercep_plugin.data.fgr_builder import summarise
from finpercep_plugin.data.fgr_dataset import FinPercepFGRDataset
from finpercep_plugin.data.fgr_format import read_meta, write_meta
from finpercep_plugin.data.fgr_options import BuildOptions
from finpercep_plugin.data.fgr_sample import Labeller, label_sample
from finpercep_plugin.data.lmdb_io import Reader, Writer
from finpercep_plugin.data.sampler import PositionDataset

__all__ = ['FreshSamples', 'build_fresh', 'is_complete']


class FreshSamples:
    """Makes sample i of a new set from lq and gt of a sample of another, and an sr that is given.

    Regions are drawn and labels made as in the other set, whose 99th percentiles scale the labels of both: they stay
    comparable.

    Args:
        source: the other set; only the samples that it gives are used.
        producer: what makes sr, for the records: `type`, and whatever tells it from others.
        seed: of the order of the samples and of their regions.
    """

    def __init__(self, source: FinPercepFGRDataset, producer: Mapping[str, Any], seed: int):
        self.source, self.producer = source, dict(producer)
        sections = source.meta.get('label_sections', {})
        built = {**source.meta['options'], 'seed': seed, 'alpha': source.meta['alpha']}
        built['feature'] = sections.get('feature', built['feature'])
        built['mask'] = {**built['mask'], 'segments': sections.get('segments')}
        self.options = parse(
            BuildOptions, {k: v for k, v in built.items() if k != 'producers'}, source.options.dataroot
        )
        self.labeller = Labeller(self.options)
        self._positions = PositionDataset(source, seed)

    def key(self, index: int) -> str:
        """Of the source's sample: every one once, in a random order, before any comes again."""
        return self.source.keys[self._positions.index(index)]

    def lq(self, index: int) -> np.ndarray:
        """(h, w, 3) uint8."""
        return self.source.read(self.key(index), ['lq'])['lq']

    def __call__(self, index: int, sr: np.ndarray) -> dict[str, bytes]:
        """All values of sample `index` by key, its record last.

        Args:
            index: of the sample.
            sr: (H, W, 3) uint8, of `lq(index)`.
        """
        key = self.key(index)
        pictures = self.source.read(key, ['lq', 'gt'])
        record = {'photo': self._photo(key), 'skipped': [], 'source': key, 'producer': self.producer}
        return label_sample(index, {**pictures, 'sr': sr}, self.labeller, record)

    def meta(self, out: Path, count: int) -> dict[str, Any]:
        """What meta.json says of the finished set in `out`."""
        source, root = self.source.meta, self.source.options.dataroot
        used = {self._photo(self.key(index)) for index in range(count)}
        photos = [photo for photo in source['photos'] if photo[0] in used]
        summary = summarise(Reader(out), range(count), [name for name, _ in photos])
        options = {**source['options'], 'seed': self.options.seed, 'producers': [self.producer]}
        return {
            'complete': True,
            'count': count,
            'alpha': source['alpha'],
            'options': options,
            'photos': photos,
            **summary,
            'p99': source['p99'],
            'p99_of': root,
        }

    def _photo(self, key: str) -> str:
        return self.source.photo(key)


def build_fresh(out: Path, samples: FreshSamples, count: int, made: Iterable[tuple[Sequence[int], np.ndarray]]) -> None:
    """Write an FGR set of `count` samples; what lies in `out` already is deleted.

    Args:
        out: folder of the set.
        samples: label the pictures.
        count: of the samples.
        made: (indices, sr (n, H, W, 3) uint8) of 0 .. count - 1 and perhaps beyond, which is left out.
    """
    shutil.rmtree(out, ignore_errors=True)
    with Writer(out) as writer:
        for indices, pictures in made:
            values: dict[str, bytes] = {}
            for index, sr in zip(indices, pictures):
                if index < count:
                    values.update(samples(index, sr))
            writer.put(values)
    write_meta(out, samples.meta(out, count))


def is_complete(out: Path) -> bool:
    """Whether `build_fresh` came to its end there."""
    return Path(out, 'meta.json').is_file() and bool(read_meta(out)['complete'])
