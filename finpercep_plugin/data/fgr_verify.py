"""Checks an FGR set from end to end."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Callable

import numpy as np

from finpercep_plugin.data import labels
from finpercep_plugin.data.fgr_builder import summarise
from finpercep_plugin.data.fgr_format import (
    PARTS,
    FGRError,
    decode_png,
    from_json,
    read_meta,
    sample_indices,
    sample_key,
)
from finpercep_plugin.data.lmdb_io import CorruptValueError, MissingKeyError, Reader, StoreError
from finpercep_plugin.data.shards import open_store
from finpercep_plugin.data.tar_store import TarReader

__all__ = ['verify']


def verify(path: str | Path, progress: Callable[[int, int], None] | None = None) -> list[str]:
    """Every problem of an FGR set, or of one shard of it; empty when it is sound.

    Checked: meta.json, that each sample has all its parts and no others, checksums, sizes and types, that the stored
    pixel term is |syn - gt| of the stored pictures, the histograms, and the figures that meta.json takes from the
    records.

    Args:
        path: the folder of the set.
        progress: called with (samples checked, samples) after each sample.
    """
    try:
        meta = read_meta(path)
        reader = open_store(path)
        keys = set(reader.keys())
    except (FGRError, StoreError) as error:
        return [str(error)]
    indices = sample_indices(meta)
    problems = (
        []
        if meta['complete']
        else ['meta.json: the build has not finished; run finpercep-build-fgr again to continue it']
    )
    wanted = {f'{sample_key(i)}/{part}' for i in indices for part in (*PARTS, 'record')}
    extra = sorted(keys - wanted)
    if extra:
        problems.append(f'{len(extra)} keys that belong to no sample, such as {extra[0]}')
    sound = True
    for done, index in enumerate(indices, 1):
        found = _sample_problems(reader, sample_key(index), meta)
        problems += [f'sample {sample_key(index)}: {problem}' for problem in found]
        sound = sound and not found
        if progress:
            progress(done, len(indices))
    if sound and meta['complete']:
        problems += _summary_problems(reader, meta)
    return problems


def _sample_problems(reader: Reader | TarReader, key: str, meta: dict[str, Any]) -> list[str]:
    arrays, problems = {}, []
    try:
        record = from_json(reader.get(f'{key}/record'))
    except (MissingKeyError, CorruptValueError, ValueError) as error:
        return [f'record: {error}']
    for part in PARTS:
        try:
            data = reader.get(f'{key}/{part}')
            if hashlib.sha256(data).hexdigest() != record['sha256'][part]:
                problems.append(f'{part}: not the bytes that its record tells of')
            arrays[part] = decode_png(data)
        except (MissingKeyError, CorruptValueError, ValueError) as error:
            problems.append(f'{part}: {error}')
    if not problems:
        problems += _shape_problems(arrays, meta['options']) or _label_problems(arrays, record)
    if record['index'] != int(key):
        problems.append(f'record: it is of sample {record["index"]}')
    return problems


def _shape_problems(arrays: dict[str, np.ndarray], options: dict[str, Any]) -> list[str]:
    size, small = options['size'], options['size'] // options['scale']
    expected = {
        'lq': ((small, small, 3), 'uint8'),
        'gt': ((size, size, 3), 'uint8'),
        'sr': ((size, size, 3), 'uint8'),
        'mask': ((size, size), 'uint8'),
        'pixel': ((size, size), 'uint16'),
        'feature': ((size, size), 'uint16'),
    }
    return [
        f'{part}: expected {shape} {kind}, got {arrays[part].shape} {arrays[part].dtype}'
        for part, (shape, kind) in expected.items()
        if (arrays[part].shape, str(arrays[part].dtype)) != (shape, kind)
    ]


def _label_problems(arrays: dict[str, np.ndarray], record: dict[str, Any]) -> list[str]:
    problems = []
    truth = arrays['gt'].astype(np.float32) / 255
    syn = labels.swap(arrays['sr'], arrays['gt'], arrays['mask'])
    pixel = labels.to_uint16(labels.pixel_term(syn, truth), labels.SCALES['pixel'])
    if np.abs(pixel.astype(int) - arrays['pixel']).max() > 1:  # 1: another numpy may round the other way
        problems.append('pixel: not |syn - gt| of its pictures')
    if not arrays['mask'].any():
        problems.append('mask: empty')
    for term in labels.TERMS:
        bins, counts = record['histograms'][term]
        histogram = labels.histogram(arrays[term])
        if not np.array_equal(np.flatnonzero(histogram), bins) or not np.array_equal(histogram[bins], counts):
            problems.append(f'{term}: not the histogram in its record')
    return problems


def _summary_problems(reader: Reader | TarReader, meta: dict[str, Any]) -> list[str]:
    try:
        summary = summarise(reader, sample_indices(meta), [name for name, _ in meta['photos']])
    except KeyError as error:
        return [f'a record names the photo {error}, which meta.json does not list']
    return [
        f'meta.json: {name} is {meta.get(name)}, the records give {value}'
        for name, value in summary.items()
        if meta.get(name) != value
        and not (name == 'p99' and 'p99_of' in meta)
        and not (name == 'histograms' and name not in meta)  # sets of an earlier version have none
    ]
