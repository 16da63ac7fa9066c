"""One metric over pictures of one size, within the memory there is: as many at once as fit, then half, then tiles."""

from __future__ import annotations

import dataclasses
import logging

import numpy as np
import torch

from finpercep_plugin.devices import out_of_memory
from finpercep_plugin.rewards.base import robust_max
from finpercep_plugin.scoring.metrics import RM_COLUMNS, Batch, Metric

__all__ = ['Outcome', 'Runner', 'tiles_of']

log = logging.getLogger(__name__)

OVERLAP = 64  # pixels that neighbouring tiles share at least; a tile's own border is cut in its middle
SMALLEST = 128  # side below which a picture is not cut further
MOST = 64  # pictures at once, whatever the memory


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a metric says of one picture: values by column, its map (H, W) where it gives one; or why there are none."""

    values: dict[str, float] = dataclasses.field(default_factory=dict)
    map: np.ndarray | None = None
    tiles: int = 1
    error: str = ''


class Runner:
    """Runs metrics on a device.

    Args:
        device: where.
        batch: most pictures at once; None: one on the CPU, where more are not faster, and on a GPU as many as fit by
            the memory that the first one took.
        top: share of the pixels in the robust maximum of a map put together of tiles.
    """

    def __init__(self, device: torch.device | str = 'cpu', batch: int | None = None, top: float = 0.01):
        self.device, self.batch, self.top = torch.device(device), batch, top
        self._fits: dict[tuple[str, tuple[int, ...]], int] = {}

    def run(self, metric: Metric, batch: Batch) -> list[Outcome]:
        """One outcome a picture of the batch, each as if it were alone, to rounding."""
        if metric.alone:
            return [outcome for i in range(len(batch)) for outcome in self._part(metric, batch.part(i, i + 1))]
        outcomes: list[Outcome] = []
        while len(outcomes) < len(batch):
            at, size = len(outcomes), self._size(metric, batch)
            outcomes += self._part(metric, batch.part(at, min(at + size, len(batch))))
        return outcomes

    def _size(self, metric: Metric, batch: Batch) -> int:
        known = self._fits.get((metric.label, tuple(batch.sr.shape[1:])))
        if self.batch is not None or known is not None:
            return min(n for n in (self.batch, known) if n is not None)
        if self.device.type != 'cuda':
            return 1
        return self._measure(metric, batch)

    def _measure(self, metric: Metric, batch: Batch) -> int:
        """How many fit, by what one takes."""
        torch.cuda.synchronize(self.device)
        before = torch.cuda.memory_allocated(self.device)
        torch.cuda.reset_peak_memory_stats(self.device)
        self._part(metric, batch.part(0, 1))
        taken = max(1, torch.cuda.max_memory_allocated(self.device) - before)
        torch.cuda.empty_cache()
        fits = max(1, min(MOST, int(0.6 * torch.cuda.mem_get_info(self.device)[0] / taken)))
        self._fits.setdefault((metric.label, tuple(batch.sr.shape[1:])), fits)
        return fits

    def _part(self, metric: Metric, batch: Batch) -> list[Outcome]:
        try:
            return self._outcomes(metric, batch)
        except Exception as error:  # a metric is anyone's code; one picture must not stop the others
            if not out_of_memory(error):
                return self._failed(metric, batch, error)
        # Outside the except block: the traceback there would keep the tensors alive.
        if self.device.type == 'cuda':
            torch.cuda.empty_cache()
        if len(batch) == 1:
            return [self._tiled(metric, batch)]
        half = len(batch) // 2
        shape = tuple(batch.sr.shape[1:])
        self._fits[metric.label, shape] = min(half, self._fits.get((metric.label, shape), half))
        log.warning('%s: out of memory with %d pictures at once; going on with %d', metric.label, len(batch), half)
        return self._part(metric, batch.part(0, half)) + self._part(metric, batch.part(half, len(batch)))

    def _failed(self, metric: Metric, batch: Batch, error: Exception) -> list[Outcome]:
        """Of several, each is tried by itself: the fault may be one's alone."""
        if len(batch) > 1:
            return [outcome for i in range(len(batch)) for outcome in self._part(metric, batch.part(i, i + 1))]
        h, w = batch.sr.shape[-2:]
        what = 'the model' if metric.gives_map else metric.label
        return [Outcome(error=f'{what} failed at {w} x {h}: {" ".join(str(error).split())[:300]}')]

    def _outcomes(self, metric: Metric, batch: Batch) -> list[Outcome]:
        with torch.no_grad():
            scores = metric.get(self.device)(batch)
        outcomes = []
        for i in range(len(batch)):
            values = {column: float(numbers[i]) for column, numbers in scores.values.items()}
            if np.isfinite(list(values.values())).all():
                outcomes.append(Outcome(values, None if scores.maps is None else scores.maps[i]))
            else:
                what = 'the model' if metric.gives_map else metric.label
                told = ', '.join(f'{column.replace("_", " ")} {value:g}' for column, value in values.items())
                outcomes.append(Outcome(error=f'{what} gave {told}'))
        return outcomes

    def _tiled(self, metric: Metric, batch: Batch) -> Outcome:
        """A picture too large by itself: the mean over quarters, by area, and their maps put together."""
        h, w = batch.sr.shape[-2:]
        if not metric.tiles or min(h, w) < 2 * SMALLEST:
            return Outcome(error=f'{metric.label}: out of memory on {self.device} at {w} x {h}')
        outcomes, areas = [], []
        whole = np.zeros((h, w), np.float32)
        for box, inner in tiles_of(h, w):
            part = Batch(
                *(None if t is None else t[..., box[0], box[1]] for t in (batch.sr, batch.gt)), batch.lq, batch.prompt
            )
            (outcome,) = self._part(metric, part)
            if outcome.error:
                return outcome
            if outcome.map is not None:
                inside = tuple(slice(i.start - b.start, i.stop - b.start) for i, b in zip(inner, box))
                whole[inner] = outcome.map[inside]
            areas.append((inner[0].stop - inner[0].start) * (inner[1].stop - inner[1].start))
            outcomes.append(outcome)
        values = {c: float(np.average([o.values[c] for o in outcomes], weights=areas)) for c in metric.columns}
        if metric.gives_map:
            values |= {RM_COLUMNS[1]: float(whole.mean()), RM_COLUMNS[2]: _robust_max(whole, self.top)}
        return Outcome(values, whole if metric.gives_map else None, sum(o.tiles for o in outcomes))


def tiles_of(height: int, width: int) -> list[tuple[tuple[slice, slice], tuple[slice, slice]]]:
    """Four quarters that overlap, and the part of each that counts: these cover the picture once.

    >>> [(box[1], inner[1]) for box, inner in tiles_of(256, 512)][:2]
    [(slice(0, 288, None), slice(0, 256, None)), (slice(224, 512, None), slice(256, 512, None))]
    """

    def halves(size: int) -> list[tuple[slice, slice]]:
        middle, reach = size // 2, OVERLAP // 2
        return [
            (slice(0, middle + reach), slice(0, middle)),
            (slice(middle - reach, size), slice(middle, size)),
        ]

    return [((y, x), (inner_y, inner_x)) for y, inner_y in halves(height) for x, inner_x in halves(width)]


def _robust_max(values: np.ndarray, top: float) -> float:
    return float(robust_max(torch.from_numpy(values)[None, None], top))
