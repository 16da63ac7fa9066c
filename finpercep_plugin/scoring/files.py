"""Pictures and metrics -> rows, in one call that keeps nothing on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Sequence

import torch

from finpercep_plugin.scoring.engine import Scorer, windows_of
from finpercep_plugin.scoring.metrics import Metric
from finpercep_plugin.scoring.sources import plain_items
from finpercep_plugin.scoring.table import Row, columns_of, row_of

__all__ = ['score_files']


def score_files(
    files: Sequence[Path],
    root: Path,
    metrics: Sequence[Metric],
    device: torch.device | str = 'cpu',
    batch: int | None = None,
) -> list[Row]:
    """One row a file, in order.

    Args:
        files: under `root`.
        root: what `Row.path` is relative to.
        metrics: that need no partner.
        device, batch: see `Scorer`.
    """
    items = plain_items(files, root)
    place = {item: number for number, item in enumerate(items)}
    results = Scorer(metrics, device=device, batch=batch).results(windows_of(items))
    ordered = sorted(results, key=lambda result: place[result.item])
    return [row_of(result, columns_of(metrics)) for result in ordered]
