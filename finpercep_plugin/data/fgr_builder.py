"""Photos -> an FGR set (paper Eq. 3-4): resumable after kill -9, and the same set however the work is divided."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import itertools
import time
from pathlib import Path
from typing import Any, Callable, Iterator, Sequence

import numpy as np

from finpercep_plugin.data import labels
from finpercep_plugin.data.card import write_card
from finpercep_plugin.data.fgr_format import (
    PARTS,
    FGRError,
    from_json,
    read_meta,
    sample_indices,
    sample_key,
    write_meta,
)
from finpercep_plugin.data.fgr_options import BuildOptions, identity, label_sections
from finpercep_plugin.data.fgr_runs import Run, Task, run_here
from finpercep_plugin.data.fgr_sample import sparse
from finpercep_plugin.data.lmdb_io import Reader, Writer, exists
from finpercep_plugin.data.photos import photo_list, photo_sizes
from finpercep_plugin.data.set_folder import differences, exclusive, make_folder
from finpercep_plugin.data.tar_store import TarReader

__all__ = ['BuildReport', 'build', 'fill', 'summarise']

_COMMIT_SAMPLES, _COMMIT_SECONDS = 64, 2.0


@dataclasses.dataclass(frozen=True)
class BuildReport:
    """What a build did.

    Attributes:
        count: samples in the set.
        added: of these, made by this call.
        skipped: (photo, reason) of the photos that could not be used.
        p99: of each raw term over the set.
    """

    count: int
    added: int
    skipped: list[tuple[str, str]]
    p99: dict[str, float]


def build(
    options: BuildOptions, progress: Callable[[int, int], None] | None = None, run: Run = run_here
) -> BuildReport:
    """Make or continue the FGR set, or the shard of one, `options.out`.

    Args:
        options: of the build.
        progress: called with (samples in the set, samples wanted) at the start and after each sample.
        run: makes the blocks; the samples do not depend on it.

    Raises:
        FGRError: no usable photo, or `out` holds a set made otherwise.
        ConfigError: the sections of producers, features and segments.
        StoreError: the store cannot be written, or another build is writing it.
    """
    if not options.out:
        raise FGRError('out: name the folder of the set')
    photos = photo_list(options.photos)
    work = run(photos, options)
    meta = _meta(options, [[photo.name, size] for photo, size in zip(photos, photo_sizes(photos))])

    def make(missing: list[int]) -> Iterator[dict[str, bytes]]:
        tasks = [(b, list(wanted)) for b, wanted in itertools.groupby(missing, lambda index: index // options.batch)]
        return _samples(work(tasks) if tasks else iter(()), tasks)

    return fill(options.out, meta, make, progress)


def fill(
    out: str,
    meta: dict[str, Any],
    make: Callable[[list[int]], Iterator[dict[str, bytes]]],
    progress: Callable[[int, int], None] | None,
) -> BuildReport:
    """Bring a set, or a shard of one, to what its meta.json is to say.

    Args:
        out: the folder.
        meta: without the summary.
        make: indices of the samples that are missing -> the values of each by key, in this order; a generator.
        progress: as in `build`.

    Raises:
        FGRError: `out` holds something else.
        StoreError: the store cannot be written, or another build is writing it.
    """
    make_folder(out)
    with exclusive(out):
        _refuse_other(out, meta)
        with Writer(out) as writer:
            reader, indices = Reader(out), sample_indices(meta)
            missing = _missing(reader, indices, out)
            if missing:
                write_meta(out, meta)
            with contextlib.closing(make(missing)) as samples:
                _store(writer, samples, len(indices) - len(missing), len(indices), progress)
            summary = summarise(reader, indices, [name for name, _ in meta['photos']])
        write_meta(out, {**meta, **summary, 'complete': True})
        write_card(out, {**meta, **summary})
    return BuildReport(len(indices), len(missing), [tuple(s) for s in summary['skipped']], summary['p99'])


def _meta(options: BuildOptions, photos: list[list]) -> dict[str, Any]:
    meta: dict[str, Any] = {
        'complete': False,
        'count': options.count,
        'alpha': options.alpha,
        'options': identity(options),
        'photos': photos,
    }
    if licences := {name: text for name in ('licence', 'source_licence') if (text := getattr(options, name))}:
        meta['licences'] = licences
    if sections := label_sections(options):
        meta['label_sections'] = sections
    if options.shard:
        meta['shard'] = list(options.shard)
        if not sample_indices(meta):
            raise FGRError(f'shard {options.shard[0]} of {options.shard[1]} is empty with {options.count} samples')
    return meta


def _samples(blocks: Iterator[dict[str, bytes]], tasks: Sequence[Task]) -> Iterator[dict[str, bytes]]:
    """The values of each sample, its record last, from those of whole blocks."""
    for values, (_, wanted) in zip(blocks, tasks, strict=True):
        for index in wanted:
            keys = (f'{sample_key(index)}/{part}' for part in (*PARTS, 'record'))
            yield {key: values[key] for key in keys}


def _store(
    writer: Writer,
    samples: Iterator[dict[str, bytes]],
    done: int,
    total: int,
    progress: Callable[[int, int], None] | None,
) -> None:
    """Write the samples in their order, some at a time; what was made is stored also when this is interrupted.

    Args:
        writer: of the set.
        samples: the values of each by key.
        done, total: samples that are there already, and that will be.
        progress: called with (samples there or made, total), first before any is made.
    """
    tell = progress or (lambda done, total: None)
    tell(done, total)
    batch, count, since = {}, 0, time.monotonic()
    try:
        for values in samples:
            batch.update(values)
            done, count = done + 1, count + 1
            tell(done, total)
            if count >= _COMMIT_SAMPLES or time.monotonic() - since > _COMMIT_SECONDS:
                writer.put(batch)
                batch, count, since = {}, 0, time.monotonic()
    finally:
        writer.put(batch)


def summarise(reader: Reader | TarReader, indices: Sequence[int], photos: Sequence[str]) -> dict[str, Any]:
    """What meta.json tells about the samples as a whole, from their records.

    That is the histogram ([bins, counts]) and p99 of each term, the photos skipped, how many samples each producer
    made, and the photo of each sample, in the order of `indices`.
    """
    totals = {t: np.zeros(labels.BINS, np.int64) for t in labels.TERMS}
    number, photo_of, skipped, producers = {name: i for i, name in enumerate(photos)}, [], {}, collections.Counter()
    for index in indices:
        record = from_json(reader.get(f'{sample_key(index)}/record'))
        for term, (bins, counts) in record['histograms'].items():
            totals[term][bins] += counts
        photo_of.append(number[record['photo']])
        producers[record['producer']['type']] += 1
        skipped.update({name: reason for name, reason in record['skipped']})
    return {
        'histograms': {t: sparse(totals[t]) for t in labels.TERMS},
        'p99': {t: labels.percentile(totals[t], 0.99, labels.SCALES[t]) for t in labels.TERMS},
        'skipped': sorted([name, reason] for name, reason in skipped.items()),
        'produced_by': dict(sorted(producers.items())),
        'photo_of': photo_of,
    }


def _missing(reader: Reader, indices: Sequence[int], out: str) -> list[int]:
    present = {int(k.split('/')[0]) for k in reader.keys() if k.endswith('/record')}
    beyond = sorted(present.difference(indices))
    if beyond:
        count = indices[-1] + 1
        raise FGRError(f'{out} holds {beyond[-1] + 1} samples already; count can grow, not shrink to {count}')
    return [i for i in indices if i not in present]


def _refuse_other(out: str, meta: dict[str, Any]) -> None:
    """Refuse to add to a set, or shard, that was made with other options or photos.

    Args:
        out: its folder.
        meta: what its meta.json would say.

    Raises:
        FGRError: every difference.
    """
    if not Path(out, 'meta.json').exists():
        if exists(out) and next(Reader(out).keys(), None):
            raise FGRError(f'{out}: a store without meta.json; it is not an FGR set, choose another folder')
        return
    old = read_meta(out)
    problems = [*differences(old['options'], meta['options'])]
    if old.get('shard') != meta.get('shard'):
        problems.append(f'$.shard: built with {old.get("shard")}, asked for {meta.get("shard")}')
    before, now = (dict(map(tuple, m['photos'])) for m in (old, meta))
    changed = sorted(n for n in before.keys() & now.keys() if before[n] != now[n])
    for what, names in (
        ('gone', before.keys() - now.keys()),
        ('new', now.keys() - before.keys()),
        ('changed', changed),
    ):
        if names:
            problems.append(f'$.photos: {len(names)} {what}, such as {sorted(names)[0]}')
    if problems:
        raise FGRError(f'{out} was built otherwise and cannot be continued:\n  ' + '\n  '.join(problems))
