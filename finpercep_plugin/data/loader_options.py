"""What every section under `datasets:` may say beside the data set's own options."""

from __future__ import annotations

import dataclasses
from typing import Any

__all__ = ['LoaderOptions']


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoaderOptions:
    """BasicSR's own keys, for its loader; the data sets do not read them."""

    name: str = ''
    type: str = ''
    phase: str = 'train'
    io_backend: dict[str, Any] | None = None
    batch_size_per_gpu: int = 1
    num_worker_per_gpu: int = 0
    use_shuffle: bool = True
    dataset_enlarge_ratio: float = 1
    prefetch_mode: str | None = None
    num_prefetch_queue: int = 1
    pin_memory: bool = False
    persistent_workers: bool = False
