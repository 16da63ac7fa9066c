"""What a preference set is on disk; the writer makes it, the dataset and `verify` read it.

A folder with `data.mdb` (`lmdb_io`) and `meta.json`, as an FGR set. A record is one low-quality image and what a
generator made of it. Record i has the key `i` in eight digits, and in the store, under `<key>/<part>`::

    lq         8-bit RGB PNG
    gt         8-bit RGB PNG; in every record of a set or in none
    sample_<n> 8-bit RGB PNG of sample n, one that stands in a pair; the others are not kept
    record     JSON: pairs [[winner, loser, gap], ...] by the numbers of the samples, the scores and terms of all
               samples, the prompt, how it was made, SHA-256 of the parts

A record without a pair has no pictures: all its samples were ties, or `skipped` says why it could not be made. While a
build is under way there are also `draft_<n>`, PNG, and `draft_<n>_scores`, JSON: samples whose record is not complete.

`meta.json`: format, options of the build, scale, number of records, number of pairs of each, which were skipped, the
sizes of the samples, whether there is gt. `complete: false` marks a build that has to be resumed.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Mapping, Sequence

import numpy as np

from finpercep_plugin.algorithms.preferences import Pair
from finpercep_plugin.data import fgr_format
from finpercep_plugin.data.fgr_format import decode_png, encode_png, from_json, sample_key, to_json

__all__ = ['FORMAT', 'PreferenceRecord', 'pack', 'pack_skipped', 'parts_of', 'read_meta', 'read_pair', 'read_record']

FORMAT = 'preferences 1'

Get = Callable[[str], 'bytes | memoryview']


@dataclass(frozen=True)
class PreferenceRecord:
    """One low-quality image, its samples and which of them are better than which.

    Args:
        lq: (h, w, 3) uint8.
        samples: {number: (H, W, 3) uint8}, at least those that the pairs name.
        pairs: winners and losers by number, none twice.
        scores: of all samples, in the order of their numbers; empty where there are none.
        terms: {name: what the scores are made of}, each as `scores`.
        gt: as a sample.
        prompt: the generator's, which the reward was given too.
        made: how the samples were made, JSON-ready.
    """

    lq: np.ndarray
    samples: Mapping[int, np.ndarray]
    pairs: Sequence[Pair]
    scores: Sequence[float] = ()
    terms: Mapping[str, Sequence[float]] = field(default_factory=dict)
    gt: np.ndarray | None = None
    prompt: str = ''
    made: Mapping[str, Any] = field(default_factory=dict)


def pack(index: int, record: PreferenceRecord, scale: int) -> dict[str, bytes]:
    """All values of record `index` by key, that of `record` last.

    Raises:
        ValueError: a picture of a wrong size or kind, a pair of a sample that is not there or with itself, or twice, a
            gap that is not above 0.
    """
    parts = {}
    if record.pairs:
        _check_pairs(record)
        numbers = sorted({n for pair in record.pairs for n in (pair.winner, pair.loser)})
        parts = {'lq': record.lq, **({} if record.gt is None else {'gt': record.gt})}
        parts |= {f'sample_{n}': record.samples[n] for n in numbers}
        _check_sizes(parts, scale)
    encoded = {part: encode_png(np.ascontiguousarray(image)) for part, image in parts.items()}
    text = {
        'index': index,
        'pairs': [[pair.winner, pair.loser, float(pair.gap)] for pair in record.pairs],
        'scores': [float(score) for score in record.scores],
        'terms': {name: [float(value) for value in values] for name, values in record.terms.items()},
        'prompt': record.prompt,
        'made': dict(record.made),
        'sha256': {part: hashlib.sha256(data).hexdigest() for part, data in encoded.items()},
        'size': list(record.lq.shape[:2]),
    }
    key = sample_key(index)
    return {**{f'{key}/{part}': data for part, data in encoded.items()}, f'{key}/record': to_json(text).encode()}


def pack_skipped(index: int, reason: str) -> dict[str, bytes]:
    """The record in place of one that cannot be made."""
    text = {'index': index, 'pairs': [], 'skipped': reason, 'sha256': {}}
    return {f'{sample_key(index)}/record': to_json(text).encode()}


def read_record(get: Get, index: int) -> dict[str, Any]:
    """The JSON of record `index`.

    Raises:
        MissingKeyError, CorruptValueError: of `get`.
        ValueError: it is none.
    """
    record = from_json(get(f'{sample_key(index)}/record'))
    if not isinstance(record, dict) or not isinstance(record.get('pairs'), list):
        raise ValueError('its record has no list of pairs')
    return record


def read_pair(get: Get, name: str, scale: int, gt: bool) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """A pair of a record.

    Args:
        get: key -> value.
        name: '<key of the record>/<number of the pair in it>'.
        scale: of the set.
        gt: whether the set has gt.

    Returns:
        lq, winner, loser and gt, (h, w, 3) uint8; and `winner_number`, `loser_number`, `gap`, `prompt`.

    Raises:
        MissingKeyError, CorruptValueError: of `get`.
        ValueError: no such pair, or a picture that is none or has the wrong size.
    """
    key, _, number = name.partition('/')
    record = read_record(get, int(key))
    if int(number) >= len(record['pairs']):
        raise ValueError(f'its record has {len(record["pairs"])} pairs')
    winner, loser, gap = record['pairs'][int(number)]
    where = {'lq': 'lq', 'winner': f'sample_{winner}', 'loser': f'sample_{loser}', **({'gt': 'gt'} if gt else {})}
    arrays = {}
    for role, part in where.items():
        data = get(f'{key}/{part}')
        try:
            arrays[role] = decode_png(data)
        except ValueError as error:
            raise ValueError(f'{part}: {error}') from error
    _check_sizes(arrays, scale)
    info = {'winner_number': winner, 'loser_number': loser, 'gap': gap, 'prompt': record.get('prompt', '')}
    return arrays, info


def parts_of(record: Mapping[str, Any]) -> list[str]:
    """The parts that the store has of a record, by its JSON."""
    return [*record['sha256'], 'record']


def read_meta(root: str | Path) -> dict[str, Any]:
    """meta.json of a preference set.

    Raises:
        FGRError: absent, unreadable, or of another format.
    """
    return fgr_format.read_meta(root, FORMAT, 'a preference set', 'finpercep-build-preferences')


def _check_pairs(record: PreferenceRecord) -> None:
    seen = [(pair.winner, pair.loser) for pair in record.pairs]
    for pair in record.pairs:
        missing = [n for n in (pair.winner, pair.loser) if n not in record.samples]
        if missing:
            raise ValueError(f'a pair names sample {missing[0]}, which is not among {sorted(record.samples)}')
        if pair.winner == pair.loser or not pair.gap > 0:
            raise ValueError(f'a pair needs two samples and a gap above 0, got {pair}; leave ties out')
    if len(set(seen)) < len(seen):
        raise ValueError(f'a pair stands twice among {seen}')


def _check_sizes(arrays: Mapping[str, np.ndarray], scale: int) -> None:
    """All 8-bit RGB, and all but lq `scale` times its size."""
    height, width = arrays['lq'].shape[:2]
    for part, array in arrays.items():
        factor = 1 if part == 'lq' else scale
        expected = (height * factor, width * factor, 3)
        if array.shape != expected or array.dtype != np.uint8:
            raise ValueError(f'{part} is {array.shape} {array.dtype}, expected {expected} uint8')
