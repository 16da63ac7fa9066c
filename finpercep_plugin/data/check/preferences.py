"""Checks preference sets: their records and checksums, and what the pairs are worth."""

from __future__ import annotations

from pathlib import Path

from finpercep_plugin.data.check.report import ALONE, Report, Work
from finpercep_plugin.data.fgr_format import FGRError, sample_key
from finpercep_plugin.data.lmdb_io import Reader, StoreError
from finpercep_plugin.data.preference_format import read_meta, read_record
from finpercep_plugin.data.preference_verify import verify

__all__ = ['check_preferences']


def check_preferences(folder: str | Path, work: Work = ALONE) -> Report:
    """All that is wrong with a preference set: `verify`, then pairs of equal samples, and equal records."""
    report = Report(str(folder), 'preference records')
    for problem in verify(folder, lambda done, total: work.tell(report.source, done, total)):
        where, _, text = problem.partition(': ') if problem.startswith('record ') else ('', '', problem)
        report.add(where, 'record', text)
    try:
        meta, reader = read_meta(folder), Reader(folder)
        report.checked = meta.get('count', 0)
    except (FGRError, StoreError):
        return report  # `verify` has told why
    if report.findings:
        return report
    seen: dict[str, str] = {}
    for index in range(meta['count']):
        key, record = sample_key(index), read_record(reader.get, index)
        parts = record['sha256']
        for winner, loser, _ in record['pairs']:
            if parts[f'sample_{winner}'] == parts[f'sample_{loser}']:
                report.add(f'record {key}', 'copy', f'samples {winner} and {loser} are one picture, but scored apart')
        digest = ' '.join(f'{part} {parts[part]}' for part in sorted(parts))
        if digest and digest in seen:
            report.add(f'record {key}', 'copy', f'the same pictures as {seen[digest]}')
        seen.setdefault(digest, key)
    if meta['count'] and not sum(meta['pairs_of']):
        report.add('meta.json', 'record', 'no pair in any record')
    return report
