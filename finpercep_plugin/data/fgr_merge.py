"""Shards of one build -> the set that one machine would have built."""

from __future__ import annotations

import collections
from typing import Any, Callable, Iterator, Sequence

from finpercep_plugin.data.fgr_builder import BuildReport, fill
from finpercep_plugin.data.fgr_format import PARTS, FGRError, read_meta, sample_indices, sample_key
from finpercep_plugin.data.set_folder import differences
from finpercep_plugin.data.shards import open_store

__all__ = ['merge']

_OF_A_SHARD = ('shard', 'histograms', 'p99', 'skipped', 'produced_by', 'photo_of')
"""What meta.json says about a shard's own samples."""


def merge(shards: Sequence[str], out: str, progress: Callable[[int, int], None] | None = None) -> BuildReport:
    """Copy the samples of all shards into the set `out`; run again after an interruption, it continues.

    Args:
        shards: their folders, finished, in any order.
        out: the folder of the set.
        progress: called with (samples in the set, samples in all) at the start and after each sample.

    Raises:
        FGRError: a shard is unfinished or of another build, samples are missing or in two shards, or `out` holds a
            set made otherwise.
        CorruptValueError: a value of a shard fails its checksum.
        StoreError: a store cannot be read or written, or another build is writing `out`.
    """
    metas = [read_meta(shard) for shard in shards]
    _refuse_unlike(shards, metas)
    owner = _owners(shards, metas)
    readers = {shard: open_store(shard) for shard in shards}

    def make(missing: list[int]) -> Iterator[dict[str, bytes]]:
        for index in missing:
            keys = (f'{sample_key(index)}/{part}' for part in (*PARTS, 'record'))
            yield {key: bytes(readers[owner[index]].get(key)) for key in keys}

    meta = {key: value for key, value in metas[0].items() if key not in _OF_A_SHARD}
    return fill(out, {**meta, 'complete': False}, make, progress)


def _refuse_unlike(shards: Sequence[str], metas: Sequence[dict[str, Any]]) -> None:
    problems = []
    for shard, meta in zip(shards, metas):
        if not meta['complete']:
            problems.append(f'{shard}: its build has not finished; run finpercep-build-fgr again to continue it')
        for name in ('options', 'photos', 'alpha', 'count'):
            same = meta[name] == metas[0][name]
            lines = (
                ['$.photos: other ones'] if name == 'photos' else differences(metas[0][name], meta[name], f'$.{name}')
            )
            problems += [] if same else [f'{shard}: not of the same build as {shards[0]}: {line}' for line in lines]
    if problems:
        raise FGRError('\n  '.join(['these shards cannot be merged:', *problems]))


def _owners(shards: Sequence[str], metas: Sequence[dict[str, Any]]) -> dict[int, str]:
    """{index of a sample: its shard}, of all samples of the set."""
    found = collections.defaultdict(list)
    for shard, meta in zip(shards, metas):
        for index in sample_indices(meta):
            found[index].append(shard)
    twice = [index for index, where in found.items() if len(where) > 1]
    if twice:
        where = ' and '.join(found[twice[0]])
        raise FGRError(f'{len(twice)} samples are in two shards, such as {sample_key(twice[0])} in {where}')
    missing = [index for index in range(metas[0]['count']) if index not in found]
    if missing:
        given = ', '.join('{}/{}'.format(*meta['shard']) for meta in metas)
        raise FGRError(
            f'{len(missing)} samples are in no shard, such as {sample_key(missing[0])}; the shards given: {given}'
        )
    return {index: where[0] for index, where in found.items()}
