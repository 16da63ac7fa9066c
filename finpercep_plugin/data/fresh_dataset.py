"""Reads an FGR set together with one of fresh samples, in a given mixture."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Mapping

from torch import Tensor
from torch.utils.data import Dataset

from finpercep_plugin.config import parse
from finpercep_plugin.data.fgr_dataset import FGROptions, FinPercepFGRDataset
from finpercep_plugin.registry import DATASETS

__all__ = ['FinPercepFreshFGRDataset', 'FreshFGROptions', 'mixture']


@dataclasses.dataclass(frozen=True, kw_only=True)
class FreshFGROptions(FGROptions):
    """As `FGROptions`, of the set in `dataroot`; the fresh one is read whole, and otherwise alike.

    Attributes:
        fresh: folder of the set of fresh samples.
        share: of them among all samples, in (0, 1).
    """

    fresh: str
    share: float = 0.25

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.share < 1:
            raise ValueError(f'share: expected between 0 and 1, got {self.share}')


def mixture(plain: int, fresh: int, share: float) -> tuple[int, int]:
    """Samples of two sets in an epoch, the fewest that have each at least once and `share` of the second's.

    >>> mixture(80, 10, 0.25), mixture(6, 10, 0.25)
    ((80, 27), (30, 10))
    """
    total = max(math.ceil(plain / (1 - share)), math.ceil(fresh / share))
    second = max(fresh, round(share * total))
    return max(plain, total - second), second


@DATASETS.register('FinPercepFreshFGRDataset')
class FinPercepFreshFGRDataset(Dataset):
    """Items as of `FinPercepFGRDataset`, first of the plain set, then of the fresh one, each again from its start as
    often as the mixture takes.

    Args:
        opt: a dataset section, as BasicSR passes it; see `FreshFGROptions`.

    Raises:
        ConfigError, FGRError: as of `FinPercepFGRDataset`, for either set.
    """

    Options = FreshFGROptions

    def __init__(self, opt: Mapping[str, Any]):
        options = parse(FreshFGROptions, opt, f'$.datasets.{opt.get("phase", "train")}')
        self.opt, self.options = dict(opt), options
        own = {key: value for key, value in opt.items() if key not in ('fresh', 'share')}
        self.plain = FinPercepFGRDataset(own)
        self.fresh = FinPercepFGRDataset({**own, 'dataroot': options.fresh, 'photos': 'all', 'limit': None})
        self.counts = mixture(len(self.plain), len(self.fresh), options.share)

    def __len__(self) -> int:
        return sum(self.counts)

    def __getitem__(self, index: int) -> dict[str, Tensor | str]:
        """
        Raises:
            FGRError: as of `FinPercepFGRDataset`.
        """
        first = self.counts[0]
        if index < first:
            return self.plain[index % len(self.plain)]
        return self.fresh[(index - first) % len(self.fresh)]
