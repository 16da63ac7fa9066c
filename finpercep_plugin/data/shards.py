"""FGR sets that lie in one folder or in many, as an LMDB store or as tars, read as one."""

from __future__ import annotations

import collections
import glob
import os
from pathlib import Path
from typing import Any, Iterator, Sequence

import numpy as np

from finpercep_plugin.data import labels
from finpercep_plugin.data.fgr_format import FGRError, from_json, read_meta, sample_indices, sample_key
from finpercep_plugin.data.lmdb_io import Reader, StoreError, exists
from finpercep_plugin.data.tar_store import TarReader, tar_files

__all__ = ['Shards', 'folders_of', 'open_store']

_ALIKE = ('scale', 'size', 'feature')
"""Options that sets read as one must have in common."""


def open_store(folder: str | Path) -> Reader | TarReader:
    """The store of a set: data.mdb, else the tars in the folder; it is read at the first use.

    Raises:
        StoreError: neither is there.
    """
    if exists(folder):
        return Reader(folder)
    if tar_files(folder):
        return TarReader(folder)
    raise StoreError(f'{folder}: no store here (data.mdb or .tar files are expected)')


def folders_of(dataroot: str | Sequence[str]) -> list[Path]:
    """The folders that a data set's `dataroot` names: one, or a list, each perhaps a pattern such as 'fgr/shard_*'.

    What fits a pattern and is no set is passed over.

    Raises:
        FGRError: a pattern that fits no set, a folder named twice.
    """
    found: list[Path] = []
    for entry in [dataroot] if isinstance(dataroot, str) else dataroot:
        fitting = [Path(entry)]
        if glob.has_magic(entry) and not os.path.isdir(entry):
            fitting = [Path(p) for p in sorted(glob.glob(entry)) if os.path.isfile(os.path.join(p, 'meta.json'))]
        if not fitting:
            raise FGRError(f'{entry}: no folder of an FGR set fits this pattern')
        found += fitting
    if not found:
        raise FGRError('dataroot: expected a folder, a pattern or a list of them, got an empty list')
    twice = [str(p) for p, n in collections.Counter(p.resolve() for p in found).items() if n > 1]
    if twice:
        raise FGRError(f'dataroot: named twice: {twice[0]}')
    return found


class Shards:
    """The samples of one or several FGR sets.

    The shards of one build are read as what they are parts of: same names, same order, same 99th percentiles. Samples
    of sets that were built apart stand one set after the other and are called `<number of the set>-<key>`; the 99th
    percentiles are of all their pixels together.

    Args:
        dataroot: see `folders_of`.
        rank, world: give this one only the sets whose number is `rank` modulo `world`; their 99th percentiles are
            still of all sets, so that labels are the same on every rank.

    Attributes:
        meta: as of a set's meta.json; without `photo_of` where there are several sets.
        names: of the samples.

    Raises:
        FGRError: no set there, an unfinished one, sets that do not go together, fewer sets than ranks.
        StoreError: a set without a store.
    """

    def __init__(self, dataroot: str | Sequence[str], rank: int = 0, world: int = 1):
        self.folders = folders_of(dataroot)
        if len(self.folders) < world:
            raise FGRError(f'{len(self.folders)} sets cannot be dealt out to {world} processes')
        metas = [_finished(folder) for folder in self.folders]
        _refuse_unlike(self.folders, metas)
        self._stores = [open_store(folder) for folder in self.folders]
        indices = [sample_indices(meta) for meta in metas]
        one_build = _is_one_build(metas, indices)
        own = range(rank, len(metas), world)
        if one_build:
            placed = sorted((i, n, j) for n in own for j, i in enumerate(indices[n]))
        else:
            placed = [(i, n, j) for n in own for j, i in enumerate(indices[n])]
        self._set_of = [n for _, n, _ in placed]
        self._photo_of = [(n, metas[n]['photo_of'][j]) for _, n, j in placed]
        self._photos = [[name for name, _ in meta['photos']] for meta in metas]
        prefix = '' if one_build else '{}-'
        self.names = [prefix.format(n) + sample_key(i) for i, n, _ in placed]
        self._number = {name: k for k, name in enumerate(self.names)}
        self.meta = metas[0] if len(metas) == 1 else self._merged(metas, indices)

    def photo(self, name: str) -> str:
        """The name of the photo that the sample `name` was cut from."""
        number, photo = self._photo_of[self._number[name]]
        return self._photos[number][photo]

    def folder(self, name: str) -> Path:
        """Where the sample lies."""
        return self.folders[self._set_of[self._number[name]]]

    def place(self, name: str) -> tuple[Reader | TarReader, str]:
        """The store that has the sample, and what its parts' names are preceded by there."""
        return self._stores[self._set_of[self._number[name]]], f'{name.rpartition("-")[2]}/'

    def close(self) -> None:
        for store in self._stores:
            store.close()

    def _merged(self, metas: list[dict[str, Any]], indices: list[list[int]]) -> dict[str, Any]:
        totals = {term: np.zeros(labels.BINS, np.int64) for term in labels.TERMS}
        for meta, store, own in zip(metas, self._stores, indices):
            for term, (bins, counts) in _histograms(meta, store, own):
                np.add.at(totals[term], bins, counts)
        photos = {name: [name, size] for meta in metas for name, size in meta['photos']}
        alphas = {meta['alpha'] for meta in metas}
        sections = metas[0].get('label_sections', {})
        return {
            **({'label_sections': sections} if sections else {}),
            'complete': True,
            'count': sum(map(len, indices)),
            'options': metas[0]['options'],
            'alpha': alphas.pop() if len(alphas) == 1 else None,
            'photos': list(photos.values()),
            'p99': {t: labels.percentile(totals[t], 0.99, labels.SCALES[t]) for t in labels.TERMS},
        }


def _finished(folder: Path) -> dict[str, Any]:
    meta = read_meta(folder)
    if not meta['complete']:
        raise FGRError(f'{folder}: its build has not finished; run finpercep-build-fgr again to continue it')
    return meta


def _refuse_unlike(folders: Sequence[Path], metas: Sequence[dict[str, Any]]) -> None:
    for folder, meta in zip(folders, metas):
        for name in _ALIKE:
            first, here = metas[0]['options'][name], meta['options'][name]
            if first != here:
                raise FGRError(f'{folder}: built with {name} {here}, but {folders[0]} with {first}')


def _is_one_build(metas: Sequence[dict[str, Any]], indices: Sequence[Sequence[int]]) -> bool:
    """Same options and photos, and no sample twice."""
    whole = [i for own in indices for i in own]
    alike = all(meta['options'] == metas[0]['options'] and meta['photos'] == metas[0]['photos'] for meta in metas)
    return alike and len(set(whole)) == len(whole)


def _histograms(
    meta: dict[str, Any], store: Reader | TarReader, indices: Sequence[int]
) -> Iterator[tuple[str, tuple[list[int], list[int]]]]:
    """(term, (bins, counts)) that add up to those of the whole set: its own sums, or those of all its records."""
    if 'histograms' in meta:
        yield from meta['histograms'].items()
        return
    for index in indices:
        yield from from_json(store.get(f'{sample_key(index)}/record'))['histograms'].items()
