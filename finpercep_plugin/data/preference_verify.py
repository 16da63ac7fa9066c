"""Checks a preference set from end to end."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Callable

import torch

from finpercep_plugin.algorithms.preferences import best_worst_pairs
from finpercep_plugin.data.fgr_format import FGRError, sample_key
from finpercep_plugin.data.lmdb_io import CorruptValueError, MissingKeyError, Reader, StoreError
from finpercep_plugin.data.preference_format import parts_of, read_meta, read_pair, read_record
from finpercep_plugin.data.preference_writer import summarise

__all__ = ['verify']


def verify(path: str | Path, progress: Callable[[int, int], None] | None = None) -> list[str]:
    """Every problem of a preference set; empty when it is sound.

    Checked: meta.json, that each record has all its parts and no others, checksums, sizes, that the pairs are those of
    the best and worst scores where the options tell `best` and `min_gap`, and the figures that meta.json takes from the
    records.

    Args:
        path: the folder of the set.
        progress: called with (records checked, records) after each record.
    """
    try:
        meta, reader = read_meta(path), Reader(path)
        keys = set(reader.keys())
    except (FGRError, StoreError) as error:
        return [str(error)]
    if not meta['complete']:
        return ['meta.json: the build has not finished; run finpercep-build-preferences again to continue it']
    problems, wanted = [], set()
    for index in range(meta['count']):
        found, parts = _record_problems(reader, index, meta)
        problems += [f'record {sample_key(index)}: {problem}' for problem in found]
        wanted |= {f'{sample_key(index)}/{part}' for part in parts}
        if progress:
            progress(index + 1, meta['count'])
    if problems:
        return problems
    extra = sorted(keys - wanted)
    if extra:
        problems.append(f'{len(extra)} keys that belong to no record, such as {extra[0]}')
    figures = summarise(reader, meta['count'])
    return problems + [
        f'meta.json: {name} is {meta.get(name)}, the records give {value}'
        for name, value in figures.items()
        if meta.get(name) != value
    ]


def _record_problems(reader: Reader, index: int, meta: dict[str, Any]) -> tuple[list[str], list[str]]:
    """What is wrong with a record, and the parts it should have."""
    key, problems = sample_key(index), []
    try:
        record = read_record(reader.get, index)
    except (MissingKeyError, CorruptValueError, ValueError) as error:
        return [f'record: {error}'], []
    if record['index'] != index:
        problems.append(f'record: it is of record {record["index"]}')
    for part, digest in record['sha256'].items():
        try:
            if hashlib.sha256(reader.get(f'{key}/{part}')).hexdigest() != digest:
                problems.append(f'{part}: not the bytes that its record tells of')
        except (MissingKeyError, CorruptValueError) as error:
            problems.append(f'{part}: {error}')
    for number in range(0 if problems else len(record['pairs'])):
        try:
            read_pair(reader.get, f'{key}/{number}', meta['scale'], meta['gt'])
        except (MissingKeyError, ValueError) as error:
            problems.append(f'pair {number}: {error}')
    if {'best', 'min_gap'} <= meta['options'].keys() and 'skipped' not in record:
        scores = torch.tensor(record['scores'], dtype=torch.float64)
        pairs = best_worst_pairs(scores, [0] * len(scores), meta['options']['best'], meta['options']['min_gap'])
        if record['pairs'] != [[pair.winner, pair.loser, pair.gap] for pair in pairs]:
            problems.append('pairs: not the best and worst of its scores')
    return problems, parts_of(record)
