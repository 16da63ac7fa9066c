"""Checks FGR sets: their records and checksums, and what the samples are worth."""

from __future__ import annotations

from pathlib import Path, PurePath
from typing import Any

import numpy as np

from finpercep_plugin.data.check.pictures import BLANK
from finpercep_plugin.data.check.report import ALONE, Problem, Report, Work
from finpercep_plugin.data.fgr_format import FGRError, decode_png, from_json, read_meta, sample_indices, sample_key
from finpercep_plugin.data.fgr_verify import verify
from finpercep_plugin.data.lmdb_io import Reader, StoreError
from finpercep_plugin.data.shards import open_store
from finpercep_plugin.data.tar_store import TarReader

__all__ = ['check_fgr', 'photo_identities']


def check_fgr(folder: str | Path, work: Work = ALONE) -> Report:
    """All that is wrong with an FGR set: `verify`, then blank crops, regions that show no change, equal samples."""
    report = Report(str(folder), 'FGR samples')
    for problem in verify(folder, lambda done, total: work.tell(report.source, done, total)):
        where, _, text = problem.partition(': ') if problem.startswith('sample ') else ('', '', problem)
        report.add(where, 'record', text)
    try:
        meta, reader = read_meta(folder), open_store(folder)
        keys = [sample_key(index) for index in sample_indices(meta)]
        next(iter(reader.keys()), None)
    except (FGRError, StoreError, KeyError):
        return report  # `verify` has told why
    told = {problem.where for problem in report.findings}
    report.checked = len(keys)
    sound = [key for key in keys if f'sample {key}' not in told]
    seen: dict[str, str] = {}
    for key, (digest, found) in zip(sound, work.over(report.source, lambda key: _worth(reader, key), sound)):
        report.findings += [Problem(f'sample {key}', kind, text) for kind, text in found]
        if digest in seen:
            report.add(f'sample {key}', 'copy', f'the same sample as {seen[digest]}')
        seen.setdefault(digest, key)
    alpha = meta.get('alpha', 1)
    for term, weight in (('pixel', alpha), ('feature', 1 - alpha)):
        if weight and meta.get('p99', {}).get(term) == 0:
            report.add('meta.json', 'record', f'p99 of the {term} term is 0: it is 0 in every map')
    report.photos = photo_identities(meta)
    return report


def photo_identities(meta: dict[str, Any], names: set[str] | None = None) -> dict[str, str]:
    """{identity: name} of the photos that the samples are from, see `pictures.identities`.

    Args:
        meta: of the set.
        names: only these.
    """
    photos = meta['photos']
    used = {photos[number][0] for number in meta.get('photo_of', ())}
    return {
        f'file {PurePath(name).name} {size}': name
        for name, size in photos
        if name in used and (names is None or name in names)
    }


def _worth(reader: Reader | TarReader, key: str) -> tuple[str, list[tuple[str, str]]]:
    """A digest of the sample, and what is wrong with its content."""
    record = from_json(reader.get(f'{key}/record'))
    gt, sr, mask = (decode_png(reader.get(f'{key}/{part}')) for part in ('gt', 'sr', 'mask'))
    found = []
    if int((gt.max((0, 1)).astype(int) - gt.min((0, 1))).max()) <= BLANK:
        found.append(('blank', 'gt is one colour all over'))
    elif not np.abs(sr.astype(int) - gt)[mask > 0].any():
        found.append(('enlarged', 'sr is gt inside the mask: nothing is degraded'))
    return ' '.join(record['sha256'][part] for part in ('lq', 'gt', 'sr', 'mask')), found
