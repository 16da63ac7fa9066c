"""Items and metrics -> values: in windows of pictures of one size, by threads, into a journal.

Which pictures share a window depends on the items alone, not on what is scored already, nor on the number of threads
or processes, nor on the order the items are given in; so neither do the scores, to the last digit.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from finpercep_plugin.images import ImageError, write_png
from finpercep_plugin.scoring.journal import Entry, Journal, entry_key
from finpercep_plugin.scoring.memory import Outcome, Runner
from finpercep_plugin.scoring.metrics import Batch, Metric
from finpercep_plugin.scoring.pictures import Contents, header_size
from finpercep_plugin.scoring.protocols import PROTOCOLS, Protocol, centre, compared, shave
from finpercep_plugin.scoring.sources import Item

__all__ = ['Result', 'Scorer', 'windows_of']

_MOST_ITEMS = 16
_MOST_PIXELS = 32_000_000  # of the pictures of one window; about 0.1 GB of them, and as much of their partners


@dataclasses.dataclass(frozen=True)
class Result:
    """What is known of one item.

    Args:
        item: it.
        size: (width, height), or None where it cannot be read.
        values: by column; those missing could not be computed.
        errors: why, one text for each reason.
        tiles: most tiles that a metric of it was computed in.
        scored: how many metrics were computed now, not found in the journal.
        keys: {label: key} of the journal.
    """

    item: Item
    size: tuple[int, int] | None
    values: dict[str, float]
    errors: tuple[str, ...] = ()
    tiles: int = 1
    scored: int = 0
    keys: dict[str, str] = dataclasses.field(default_factory=dict)


def windows_of(items: Sequence[Item]) -> list[list[Item]]:
    """Items in groups of one size, small enough to be held in memory, those of one key together."""
    sized = sorted((header_size(item.sr), item.key, item.method, item.name, item) for item in items)
    windows: list[list[Item]] = []
    last: tuple[int, int] | None = None
    for size, *_, item in sized:
        most = max(1, min(_MOST_ITEMS, _MOST_PIXELS // max(1, size[0] * size[1])))
        if size != last or len(windows[-1]) >= most:
            windows.append([])
        windows[-1].append(item)
        last = size
    return windows


class Scorer:
    """Scores items.

    Args:
        metrics: what is measured.
        protocol: how pictures are compared.
        device: where.
        batch: see `Runner`.
        journal: what was scored before, and receives what is scored now.
        keep_maps: keep the maps beside the journal.
        threads: how many windows at once; None: as many as torch has threads, each with one, if all metrics allow it.
        top: see `Runner`.
    """

    def __init__(
        self,
        metrics: Sequence[Metric],
        protocol: Protocol = PROTOCOLS['pyiqa'],
        device: torch.device | str = 'cpu',
        batch: int | None = None,
        journal: Journal | None = None,
        keep_maps: bool = False,
        threads: int | None = None,
        top: float = 0.01,
    ):
        self.metrics, self.protocol, self.device = list(metrics), protocol, torch.device(device)
        self.runner = Runner(device, batch, top)
        self.journal, self.keep_maps = Journal() if journal is None else journal, keep_maps
        self.parallel = self.device.type == 'cpu' and all(metric.parallel for metric in self.metrics)
        self.threads = threads or (torch.get_num_threads() if self.parallel else 2)
        self._turn = contextlib.nullcontext() if self.parallel else threading.Lock()

    def missing(self, windows: Sequence[Sequence[Item]]) -> dict[str, int]:
        """{label of a metric: how many pictures it has still to score}; every file is read for it."""
        counts = dict.fromkeys((metric.label for metric in self.metrics), 0)
        for window in windows:
            contents = Contents()
            for item in window:
                with contextlib.suppress(ImageError):
                    for metric in self._due(item, contents):
                        counts[metric.label] += 1
        return counts

    def results(self, windows: Sequence[Sequence[Item]]) -> Iterator[Result]:
        """One result an item, window by window.

        Raises:
            OSError: the journal cannot be written.
        """
        threads_before, waiting = torch.get_num_threads(), collections.deque[Future]()
        if self.parallel and self.threads > 1:
            torch.set_num_threads(1)
        pool = ThreadPoolExecutor(self.threads)
        try:
            for window in windows:
                waiting.append(pool.submit(self._window, window))
                if len(waiting) > self.threads:
                    yield from waiting.popleft().result()
            while waiting:
                yield from waiting.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
            torch.set_num_threads(threads_before)

    def _window(self, window: Sequence[Item]) -> list[Result]:
        contents, work = Contents(), [_Work(item) for item in window]
        for one in work:
            self._load(one, contents)
        with self._turn:
            for metric in self.metrics:
                due = [one for one in work if metric.label in one.due]
                for group in _groups(due, metric).values():
                    batch = _batch(group, metric, self.device)
                    for one, outcome in zip(group, self.runner.run(metric, batch)):
                        one.outcomes[metric.label] = outcome
        return self._keep(work)

    def _load(self, one: _Work, contents: Contents) -> None:
        """Look up what is known; read the pictures if anything is not."""
        try:
            one.due = {metric.label: metric for metric in self._due(one.item, contents, one)}
            if one.due:
                sr = contents.image(one.item.sr)
                one.size = sr.shape[1::-1]
                one.alone = centre(sr, self.protocol.centre)
        except ImageError as error:
            one.due, one.errors = {}, [error.reason]
        except MemoryError:
            one.due, one.errors = {}, ['out of memory while reading']
        for label, metric in list(one.due.items()):
            try:
                one.views[label] = self._view(one, metric, contents)
            except (ImageError, ValueError, MemoryError) as error:
                del one.due[label]
                reason = getattr(error, 'reason', str(error) or 'out of memory while reading')
                text = f'gt: {reason}' if isinstance(error, ImageError) else reason
                one.errors += [text] if text not in one.errors else []

    def _view(self, one: _Work, metric: Metric, contents: Contents) -> _View:
        """What a metric sees of an item.

        Raises:
            ImageError, MemoryError: a partner cannot be read.
            ValueError: there is none, or it does not fit.
        """
        for field in ('gt', 'lq'):
            if field in metric.needs and getattr(one.item, field) is None:
                raise ValueError(f'no {field} of this name')
        if 'prompt' in metric.needs and not one.item.prompt:
            raise ValueError('no prompt')
        sr, gt = one.alone, None
        if 'gt' in metric.needs:
            sr, gt = compared(contents.image(one.item.sr), contents.image(one.item.gt), self.protocol)
            gt = shave(gt, metric.border)
        lq = contents.image(one.item.lq) if 'lq' in metric.needs else None
        return shave(sr, metric.border), gt, lq

    def _due(self, item: Item, contents: Contents, one: _Work | None = None) -> list[Metric]:
        """The metrics whose values are not in the journal; those that are go into `one`.

        Raises:
            ImageError: the picture cannot be read.
        """
        due = []
        for metric in self.metrics:
            needed = ['sr', *(field for field in ('gt', 'lq') if field in metric.needs)]
            try:
                files = {field: contents.digest(getattr(item, field)) for field in needed if getattr(item, field)}
            except ImageError:
                contents.digest(item.sr)  # sr itself, which nothing can be done without
                files = {}
            key = entry_key(metric.version, files, item.prompt if 'prompt' in metric.needs else '')
            entry = self.journal.get(key) if len(files) == len(needed) else None
            kept = self.journal.map_path(key) if metric.gives_map and self.keep_maps else None
            if one is not None:
                one.keys[metric.label] = key
            if entry is None or (kept is not None and not kept.exists()):
                due.append(metric)
            elif one is not None:
                one.known[metric.label], one.size = entry, entry.size
        return due

    def _keep(self, work: Sequence[_Work]) -> list[Result]:
        """Write what is new; the journal comes last, so an entry in it has its map."""
        entries = []
        for one in work:
            for label, outcome in one.outcomes.items():
                if outcome.error:
                    one.errors.append(outcome.error)
                    continue
                key = one.keys[label]
                kept = self.journal.map_path(key)
                if outcome.map is not None and self.keep_maps and kept is not None:
                    write_png(kept, np.rint(outcome.map * 255).astype(np.uint8))
                name = f'{one.item.method}/{one.item.name}' if one.item.method else one.item.name
                one.known[label] = Entry(key, name, label, outcome.values, one.size, outcome.tiles)
                entries.append(one.known[label])
        self.journal.add(entries)
        return [one.result() for one in work]


_View = tuple[np.ndarray, 'np.ndarray | None', 'np.ndarray | None']


@dataclasses.dataclass
class _Work:
    """An item on its way through a window."""

    item: Item
    size: tuple[int, int] | None = None
    alone: np.ndarray | None = None
    due: dict[str, Metric] = dataclasses.field(default_factory=dict)
    views: dict[str, _View] = dataclasses.field(default_factory=dict)
    keys: dict[str, str] = dataclasses.field(default_factory=dict)
    known: dict[str, Entry] = dataclasses.field(default_factory=dict)
    outcomes: dict[str, Outcome] = dataclasses.field(default_factory=dict)
    errors: list[str] = dataclasses.field(default_factory=list)

    def result(self) -> Result:
        values = {column: value for entry in self.known.values() for column, value in entry.values.items()}
        tiles = max((entry.tiles for entry in self.known.values()), default=1)
        scored = sum(not outcome.error for outcome in self.outcomes.values())
        return Result(self.item, self.size, values, tuple(self.errors), tiles, scored, dict(self.keys))


def _groups(due: Sequence[_Work], metric: Metric) -> dict[tuple, list[_Work]]:
    """By the shapes of all that the metric sees."""
    groups: dict[tuple, list[_Work]] = {}
    for one in due:
        shapes = tuple(None if image is None else image.shape for image in one.views[metric.label])
        groups.setdefault(shapes, []).append(one)
    return groups


def _batch(group: Sequence[_Work], metric: Metric, device: torch.device) -> Batch:
    views = zip(*(one.views[metric.label] for one in group))
    sr, gt, lq = (None if images[0] is None else _tensor(images, device) for images in views)
    return Batch(sr, gt, lq, [one.item.prompt for one in group])


def _tensor(images: Sequence[np.ndarray], device: torch.device) -> Tensor:
    """(B, 3, H, W) float32 in [0, 1], laid out as pyiqa's own reader does."""
    return torch.from_numpy(np.stack(images)).to(device).permute(0, 3, 1, 2).contiguous().float() / 255
