"""A folder of pictures -> one row each: FinPercep-RM's score and how degraded the map says it is, and where.

Rows come in the order of the paths and do not depend on the batch size: pictures of equal size are scored together, never resized or padded to one
another.
"""

from __future__ import annotations

import csv
import dataclasses
import logging
import os
from pathlib import Path
from typing import Callable, Iterator, Sequence, TextIO

import numpy as np
import torch
from torch import nn

from finpercep_plugin.devices import out_of_memory
from finpercep_plugin.images import ImageError, read_image, write_png
from finpercep_plugin.rewards.base import robust_max
from finpercep_plugin.visual import overlay

__all__ = ['ROW_FIELDS', 'Row', 'RowWriter', 'Scorer', 'common_root', 'map_path', 'score_all']

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Row:
    """What is known of one picture; `error` is empty where it was scored, and the numbers are None where it was not."""

    path: str
    width: int | None = None
    height: int | None = None
    score: float | None = None
    map_mean: float | None = None
    map_max: float | None = None
    error: str = ''


ROW_FIELDS = tuple(f.name for f in dataclasses.fields(Row))


def common_root(sources: Sequence[str | Path]) -> Path:
    """The folder that rows' paths are relative to: the deepest one that holds all sources."""
    folders = [p if p.is_dir() else p.parent for p in (Path(s).absolute() for s in sources)]
    return Path(os.path.commonpath(folders))


def map_path(folder: Path, relative: str) -> Path:
    """Where the overlay of a picture goes. Its whole name is kept, so a.png and a.jpg do not meet.

    >>> map_path(Path('maps'), 'sub/a.jpg').as_posix()
    'maps/sub/a.jpg.map.png'
    """
    return folder / f'{relative}.map.png'


class Scorer:
    """Scores pictures with one reward model.

    Args:
        rm: `rm(sr (B, 3, H, W) RGB [0, 1]) -> (score (B,), map (B, 1, H, W) [0, 1])`; moved to the device, set to eval.
        device: where it runs.
        batch: most pictures at once; halved for the rest of the run when memory runs out.
        top: share of pixels in the robust maximum.
        maps: folder for overlays, or None.
    """

    def __init__(
        self,
        rm: nn.Module,
        device: torch.device | str = 'cpu',
        batch: int = 8,
        top: float = 0.01,
        maps: Path | None = None,
    ):
        self.rm = rm.to(device).eval()
        self.device, self.batch, self.top, self.maps = torch.device(device), batch, top, maps

    def rows(self, paths: Sequence[Path], root: Path) -> Iterator[Row]:
        """One row a path, in order; a picture that cannot be scored gives a row with `error`.

        Args:
            paths: files under `root`.
            root: what `Row.path` is relative to.
        """
        at = 0
        while at < len(paths):
            # A window of several batches, so that pictures of the same size meet although others stand between them.
            window = paths[at : at + (4 * self.batch if self.batch > 1 else 1)]
            at += len(window)
            yield from self._window([(p.relative_to(root).as_posix(), p) for p in window])

    def _window(self, window: list[tuple[str, Path]]) -> Iterator[Row]:
        rows: dict[str, Row] = {}
        by_size: dict[tuple[int, ...], list[tuple[str, np.ndarray]]] = {}
        for name, path in window:
            try:
                picture = read_image(path)
            except ImageError as error:
                rows[name] = Row(name, error=error.reason)
            except MemoryError:
                rows[name] = Row(name, error='out of memory while reading')
            else:
                by_size.setdefault(picture.shape, []).append((name, picture))
        told = 0
        for group in by_size.values():
            while group:
                now, group = group[: self.batch], group[self.batch :]
                rows.update({row.path: row for row in self._batch(now)})
                while told < len(window) and window[told][0] in rows:
                    yield rows[window[told][0]]
                    told += 1
        yield from (rows[name] for name, _ in window[told:])

    def _batch(self, group: list[tuple[str, np.ndarray]]) -> list[Row]:
        try:
            scores, maps, tops = self._forward(np.stack([picture for _, picture in group]))
        except (RuntimeError, ValueError, MemoryError) as error:
            if not out_of_memory(error):
                return [self._failed(name, picture, error) for name, picture in group]
        else:
            return [self._row(*item) for item in zip(group, scores, maps, tops)]
        # Outside the except block: the traceback there would keep the tensors alive.
        if self.device.type == 'cuda':
            torch.cuda.empty_cache()
        if len(group) == 1:
            name, picture = group[0]
            h, w = picture.shape[:2]
            return [Row(name, w, h, error=f'out of memory on {self.device} at {w} x {h}')]
        half = len(group) // 2
        self.batch = max(1, min(self.batch, half))
        log.warning('out of memory with %d pictures at once; going on with %d', len(group), self.batch)
        return self._batch(group[:half]) + self._batch(group[half:])

    @torch.inference_mode()
    def _forward(self, pictures: np.ndarray) -> tuple[list[float], np.ndarray, list[float]]:
        """(B, H, W, 3) uint8 -> scores, maps (B, H, W), robust maxima."""
        sr = torch.from_numpy(pictures).to(self.device).permute(0, 3, 1, 2).float() / 255
        # TF32 convolutions would make the scores differ between a GPU and the CPU.
        with torch.backends.cudnn.flags(enabled=torch.backends.cudnn.enabled, allow_tf32=False):
            score, maps = self.rm(sr)
        return score.tolist(), maps[:, 0].float().cpu().numpy(), robust_max(maps.float(), self.top).tolist()

    def _row(self, item: tuple[str, np.ndarray], score: float, values: np.ndarray, top: float) -> Row:
        name, picture = item
        h, w = picture.shape[:2]
        mean = float(values.mean())
        if not np.isfinite([score, mean, top]).all():
            return Row(name, w, h, error=f'the model gave score {score}, map mean {mean}')
        if self.maps is not None:
            try:
                write_png(map_path(self.maps, name), overlay(picture, values))
            except OSError as error:  # a full disk, or a name that is too long with .map.png behind it
                return Row(name, w, h, score, mean, top, f'its map cannot be written ({error.strerror or error})')
        return Row(name, w, h, score, mean, top)

    def _failed(self, name: str, picture: np.ndarray, error: BaseException) -> Row:
        h, w = picture.shape[:2]
        return Row(name, w, h, error=f'the model failed at {w} x {h}: {" ".join(str(error).split())[:300]}')


class RowWriter:
    """CSV rows on disk as they come: into `<file>.part`, flushed a row at a time, renamed to `<file>` by `close`.

    A run that is interrupted leaves its rows in the .part file and the earlier `<file>` untouched.

    Args:
        path: the CSV file; its folder is made.
    """

    def __init__(self, path: Path):
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path, self.partial = path, path.with_name(path.name + '.part')
        self._file: TextIO = self.partial.open('w', newline='', encoding='utf-8', errors='surrogateescape')
        self._writer = csv.writer(self._file, lineterminator='\n')
        self._write(ROW_FIELDS)

    def __call__(self, row: Row) -> None:
        self._write([_cell(getattr(row, name)) for name in ROW_FIELDS])

    def _write(self, cells: Sequence[str]) -> None:
        self._writer.writerow(cells)
        self._file.flush()

    def close(self, finished: bool = True) -> None:
        """Close the file; give it its name where the run has finished."""
        self._file.close()
        if finished:
            os.replace(self.partial, self.path)


def _cell(value: str | int | float | None) -> str:
    if value is None:
        return ''
    return f'{value:.6f}' if isinstance(value, float) else str(value)


def score_all(scorer: Scorer, paths: Sequence[Path], root: Path, *sinks: Callable[[Row], object]) -> list[Row]:
    """Send every row to the sinks as it comes; returns the rows with errors."""
    failed = []
    for row in scorer.rows(paths, root):
        for sink in sinks:
            sink(row)
        if row.error:
            failed.append(row)
    return failed
