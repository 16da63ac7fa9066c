"""Samples and their scores -> the records of a preference set; appended, whole or not at all, resumed by index."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any, Iterator, Mapping, NamedTuple, Sequence, Union

import numpy as np
import torch
from torch import Tensor

from finpercep_plugin.algorithms.preferences import best_worst_pairs
from finpercep_plugin.data.card import write_card
from finpercep_plugin.data.fgr_format import (
    FGRError,
    decode_png,
    encode_png,
    from_json,
    sample_key,
    to_json,
    write_meta,
)
from finpercep_plugin.data.lmdb_io import Reader, Writer, exists
from finpercep_plugin.data.preference_format import (
    FORMAT,
    PreferenceRecord,
    pack,
    pack_skipped,
    read_meta,
    read_record,
)
from finpercep_plugin.data.producers.torch_tools import to_uint8
from finpercep_plugin.data.set_folder import differences, exclusive

__all__ = ['Draft', 'PreferenceWriter', 'make_record', 'open_set', 'summarise']


Picture = Union[Tensor, np.ndarray]


class Draft(NamedTuple):
    """A sample whose record is not complete.

    Args:
        image: (H, W, 3) uint8.
        score: of the reward.
        terms: what the score is made of.
    """

    image: np.ndarray
    score: float
    terms: dict[str, float]


def make_record(
    lq: Picture,
    samples: Sequence[Picture] | Tensor,
    scores: Sequence[float] | Tensor,
    best: int = 2,
    min_gap: float = 0.0,
    gt: Picture | None = None,
    **more: Any,
) -> PreferenceRecord:
    """The record of one low-quality image: each of the `best` best of its samples beats each of the `best` worst.

    Ties are no preference and are left out, as are pairs that are closer than `min_gap`. Pictures are tensors (3, h, w)
    in [0, 1], which are rounded to 8 bits, or arrays (h, w, 3) uint8.

    Args:
        lq: a picture.
        samples: M pictures, M >= 2 best; (M, 3, H, W) will do.
        scores: M, higher better.
        best: N.
        min_gap: smallest difference of score that counts.
        gt: a picture.
        more: `prompt`, `terms` and `made` of `PreferenceRecord`.

    Raises:
        ValueError: another number of scores than of samples, one that is not finite, or too few of them.

    >>> record = make_record(torch.zeros(3, 2, 2), torch.rand(3, 3, 4, 4), [1.0, 4.0, 2.5], best=1)
    >>> record.pairs
    [Pair(winner=1, loser=0, gap=3.0)]
    """
    values = torch.as_tensor(scores, dtype=torch.float64).flatten().cpu()
    if len(values) != len(samples) or not bool(torch.isfinite(values).all()):
        raise ValueError(f'expected {len(samples)} finite scores, one a sample, got {values.tolist()}')
    pairs = best_worst_pairs(values, [0] * len(values), best, min_gap)
    images = {number: _uint8(sample) for number, sample in enumerate(samples)}
    return PreferenceRecord(_uint8(lq), images, pairs, values.tolist(), gt=None if gt is None else _uint8(gt), **more)


def _uint8(picture: Picture) -> np.ndarray:
    return picture if isinstance(picture, np.ndarray) else to_uint8(picture[None])


class PreferenceWriter:
    """Adds to a preference set; made by `open_set`.

    Args:
        store: of the set.
        scale: size of the samples / size of lq.
        count: records that the set is to have; None: as many as are put.

    Raises:
        FGRError: the set has more records than that.
    """

    def __init__(self, store: Writer, scale: int, count: int | None):
        self.store, self.scale, self.count, self.reader = store, scale, count, Reader(store.path)
        keys = [key.split('/') for key in self.reader.keys()]
        self.present = {int(key) for key, part in keys if part == 'record'}
        self._drafts: dict[int, list[str]] = {}
        for key, part in keys:
            if part.startswith('draft_'):
                self._drafts.setdefault(int(key), []).append(part)
        if count is not None and self.present and max(self.present) >= count:
            held = max(self.present) + 1
            raise FGRError(f'{store.path} holds {held} records already; count can grow, not shrink to {count}')

    def missing(self) -> list[int]:
        """Indices that have no record yet."""
        total = len(self.present) if self.count is None else self.count
        return [index for index in range(total) if index not in self.present]

    def append(self, record: PreferenceRecord) -> int:
        """Store a record behind the last one; its index."""
        index = max(self.present, default=-1) + 1
        self.put(index, record)
        return index

    def put(self, index: int, record: PreferenceRecord) -> None:
        """Store record `index`, on disk when this returns; its drafts go.

        Raises:
            ValueError: see `pack`.
            StoreError: the disk is full or cannot be written.
        """
        self._put(index, pack(index, record, self.scale))

    def skip(self, index: int, reason: str) -> None:
        """Store why record `index` could not be made."""
        self._put(index, pack_skipped(index, reason))

    def _put(self, index: int, values: dict[str, bytes]) -> None:
        key = sample_key(index)
        self.store.put(values, remove=[f'{key}/{part}' for part in self._drafts.pop(index, [])])
        self.present.add(index)

    def put_drafts(self, index: int, drafts: Mapping[int, Draft]) -> None:
        """Store samples of record `index`, by number, before all of them are made; on disk when this returns."""
        values = {}
        for number, draft in drafts.items():
            values[f'draft_{number}'] = encode_png(draft.image)
            values[f'draft_{number}_scores'] = to_json({'score': draft.score, 'terms': draft.terms}).encode()
        self.store.put({f'{sample_key(index)}/{part}': value for part, value in values.items()})
        self._drafts.setdefault(index, []).extend(values)

    def drafts(self, index: int) -> dict[int, Draft]:
        """The samples of record `index` that are stored, by number."""
        key, found = sample_key(index), {}
        for part in self._drafts.get(index, []):
            if part.endswith('_scores'):
                scores = from_json(self.reader.get(f'{key}/{part}'))
                image = decode_png(self.reader.get(f'{key}/{part.removesuffix("_scores")}'))
                found[int(part.split('_')[1])] = Draft(image, scores['score'], scores['terms'])
        return dict(sorted(found.items()))


@contextlib.contextmanager
def open_set(
    out: str | Path, options: Mapping[str, Any], scale: int, count: int | None = None
) -> Iterator[PreferenceWriter]:
    """A preference set to add to; when all is there at the end, meta.json says so.

    Args:
        out: its folder; made when absent.
        options: what decides what record i is, JSON-ready; a set with others is refused.
        scale: size of the samples / size of lq.
        count: records that it is to have; None: as many as are put.

    Raises:
        FGRError: the folder holds something else or a set made otherwise, another process writes it, the set has more
            than `count` records, or (without `count`) indices were left out.
    """
    Path(out).mkdir(parents=True, exist_ok=True)
    with exclusive(out):
        options = from_json(to_json(options))
        _refuse_other(out, {**options, 'scale': scale})
        meta = {'format': FORMAT, 'complete': False, 'options': options, 'scale': scale}
        with Writer(out) as store:
            writer = PreferenceWriter(store, scale, count)
            if count is None or writer.missing() or not Path(out, 'meta.json').exists():
                write_meta(out, meta)
            yield writer
            gaps = writer.missing()
            if gaps and count is None:
                raise FGRError(
                    f'{out}: the records of indices {gaps[:5]} are missing; indices count from 0 without gaps'
                )
            if not gaps:
                summary = summarise(writer.reader, len(writer.present))
                write_meta(out, {**meta, **summary, 'complete': True})
                write_card(out, {**meta, **summary})


def summarise(reader: Reader, count: int) -> dict[str, Any]:
    """What meta.json tells about the records as a whole.

    Raises:
        FGRError: some records have gt and some have none.
    """
    pairs_of, skipped, sizes, gt = [], [], set(), set()
    for index in range(count):
        record = read_record(reader.get, index)
        pairs_of.append(len(record['pairs']))
        if 'skipped' in record:
            skipped.append([sample_key(index), record['skipped']])
        elif record['pairs']:
            sizes.add(tuple(record['size']))
            gt.add('gt' in record['sha256'])
    if len(gt) > 1:
        raise FGRError(f'{reader.path}: some records have gt and some have none')
    return {
        'count': count,
        'pairs_of': pairs_of,
        'skipped': skipped,
        'lq_sizes': sorted(map(list, sizes)),
        'gt': gt == {True},
    }


def _refuse_other(out: str | Path, options: dict[str, Any]) -> None:
    """Refuse to add to what is not a set of these options."""
    if not Path(out, 'meta.json').exists():
        if exists(out) and next(Reader(out).keys(), None):
            raise FGRError(f'{out}: a store without meta.json; it is not a preference set, choose another folder')
        return
    old = read_meta(out)
    problems = list(differences({**old['options'], 'scale': old['scale']}, options))
    if problems:
        raise FGRError(f'{out} was built otherwise and cannot be continued:\n  ' + '\n  '.join(problems))
