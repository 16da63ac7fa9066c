"""Photos -> an FGR set (paper Eq. 3-4): resumable after kill -9, and the same set whatever the number of workers."""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
import itertools
import logging
import multiprocessing
import os
import threading
import time
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, Callable, Iterator, Sequence

import numpy as np

from finpercep_plugin.data import labels
from finpercep_plugin.data.fgr_format import FGRError, from_json, read_meta, sample_key, write_meta
from finpercep_plugin.data.fgr_options import BuildOptions, identity
from finpercep_plugin.data.fgr_sample import SampleMaker, photo_list
from finpercep_plugin.data.lmdb_io import Reader, Writer, exists
from finpercep_plugin.data.set_folder import differences, exclusive

__all__ = ['BuildReport', 'build']

_TASK = 4
_COMMIT_SAMPLES, _COMMIT_SECONDS = 64, 2.0

logger = logging.getLogger(__name__)


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


def build(options: BuildOptions, progress: Callable[[int, int], None] | None = None) -> BuildReport:
    """Make or continue the FGR set `options.out`.

    Args:
        options: of the build.
        progress: called with (samples in the set, samples wanted) at the start and after each sample.

    Raises:
        FGRError: no usable photo, or `out` holds a set made otherwise.
        ConfigError: the producers' sections.
        StoreError: the store cannot be written, or another build is writing it.
    """
    if not options.out:
        raise FGRError('out: name the folder of the set')
    photos = photo_list(options.photos)
    maker = SampleMaker(photos, options)
    Path(options.out).mkdir(parents=True, exist_ok=True)
    with exclusive(options.out):
        meta = {
            'complete': False,
            'count': options.count,
            'alpha': options.alpha,
            'options': identity(options),
            'photos': [[name, Path(path).stat().st_size] for name, path in photos],
        }
        _refuse_other(options.out, meta)
        with Writer(options.out) as writer:
            reader = Reader(options.out)
            missing = _missing(reader, options.count, options.out)
            if missing:
                write_meta(options.out, meta)
            tell = progress or (lambda done, total: None)
            tell(options.count - len(missing), options.count)
            _fill(writer, maker, photos, options, missing, tell)
            summary = summarise(reader, options.count, [name for name, _ in photos])
        write_meta(options.out, {**meta, **summary, 'complete': True})
    return BuildReport(options.count, len(missing), [tuple(s) for s in summary['skipped']], summary['p99'])


def _fill(
    writer: Writer,
    maker: SampleMaker,
    photos: Sequence[tuple[str, str]],
    options: BuildOptions,
    missing: list[int],
    tell: Callable[[int, int], None],
) -> None:
    """Make the missing samples and store them in order; what was made is stored also when this is interrupted."""
    done, batch, count, since = options.count - len(missing), {}, 0, time.monotonic()
    made = map(maker, missing) if not options.workers or not missing else _parallel(photos, options, missing)
    try:
        for values in made:
            batch.update(values)
            done, count = done + 1, count + 1
            tell(done, options.count)
            if count >= _COMMIT_SAMPLES or time.monotonic() - since > _COMMIT_SECONDS:
                writer.put(batch)
                batch, count, since = {}, 0, time.monotonic()
    finally:
        writer.put(batch)


def summarise(reader: Reader, count: int, photos: Sequence[str]) -> dict[str, Any]:
    """What meta.json tells about the samples as a whole, from their records.

    That is p99 of each term, the photos skipped, how many samples each producer made, and the photo of each sample.
    """
    totals = {t: np.zeros(labels.BINS, np.int64) for t in labels.TERMS}
    number, photo_of, skipped, producers = {name: i for i, name in enumerate(photos)}, [], {}, collections.Counter()
    for index in range(count):
        record = from_json(reader.get(f'{sample_key(index)}/record'))
        for term, (bins, counts) in record['histograms'].items():
            totals[term][bins] += counts
        photo_of.append(number[record['photo']])
        producers[record['producer']['type']] += 1
        skipped.update({name: reason for name, reason in record['skipped']})
    return {
        'p99': {t: labels.percentile(totals[t], 0.99, labels.SCALES[t]) for t in labels.TERMS},
        'skipped': sorted([name, reason] for name, reason in skipped.items()),
        'produced_by': dict(sorted(producers.items())),
        'photo_of': photo_of,
    }


def _missing(reader: Reader, count: int, out: str) -> list[int]:
    present = {int(k.split('/')[0]) for k in reader.keys() if k.endswith('/record')}
    beyond = sorted(i for i in present if i >= count)
    if beyond:
        raise FGRError(f'{out} holds {beyond[-1] + 1} samples already; count can grow, not shrink to {count}')
    return [i for i in range(count) if i not in present]


def _refuse_other(out: str, meta: dict[str, Any]) -> None:
    """Refuse to add to a set that was made with other options or photos."""
    if not Path(out, 'meta.json').exists():
        if exists(out) and next(Reader(out).keys(), None):
            raise FGRError(f'{out}: a store without meta.json; it is not an FGR set, choose another folder')
        return
    old = read_meta(out)
    problems = [*differences(old['options'], meta['options'])]
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


def _parallel(
    photos: Sequence[tuple[str, str]], options: BuildOptions, missing: list[int]
) -> Iterator[dict[str, bytes]]:
    """Samples in the order of `missing`, made by worker processes a bounded number of tasks ahead."""
    tasks = [missing[i : i + _TASK] for i in range(0, len(missing), _TASK)]
    workers = min(options.workers, len(tasks))
    pool = concurrent.futures.ProcessPoolExecutor(
        workers, multiprocessing.get_context('spawn'), _start_worker, (list(photos), options)
    )
    ahead: collections.deque[concurrent.futures.Future] = collections.deque()
    remaining = iter(tasks)
    try:
        for task in itertools.islice(remaining, 4 * workers):
            ahead.append(pool.submit(_work, task))
        while ahead:
            result = ahead.popleft().result()
            for task in itertools.islice(remaining, 1):
                ahead.append(pool.submit(_work, task))
            yield from result
    except BrokenProcessPool as error:
        raise FGRError(
            'a worker process was killed (memory?) or could not start (a script that calls build needs '
            "`if __name__ == '__main__':`); the samples so far are stored, run again to continue"
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


_maker: SampleMaker | None = None
"""The maker of a worker process; None elsewhere."""


def _start_worker(photos: list[tuple[str, str]], options: BuildOptions) -> None:
    global _maker
    import cv2

    cv2.setNumThreads(1)
    threading.Thread(target=_die_with_parent, daemon=True).start()
    _maker = SampleMaker(photos, options)


def _die_with_parent() -> None:
    """A killed parent closes no queue: without this its workers would wait for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _work(task: list[int]) -> list[dict[str, bytes]]:
    assert _maker is not None
    return [_maker(index) for index in task]
