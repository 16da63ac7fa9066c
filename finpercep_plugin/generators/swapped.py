"""Other values in a network's parameters, for a while."""

from __future__ import annotations

import contextlib
from typing import Iterator, Mapping

import torch

__all__ = ['swapped']


@contextlib.contextmanager
def swapped(parameters: Mapping[str, torch.Tensor], values: Mapping[str, torch.Tensor]) -> Iterator[None]:
    """Inside, the parameters of these names hold `values`; afterwards, what they held before.

    A parameter stays the object that it is, so that this works for one that is a shard, too; the values must be sharded
    as it is.

    Args:
        parameters: by name.
        values: of some or all of them, each of the shape of its parameter.

    >>> weight = torch.zeros(1)
    >>> with swapped({'weight': weight}, {'weight': torch.ones(1)}):
    ...     print(weight)
    tensor([1.])
    >>> weight
    tensor([0.])
    """
    with torch.no_grad():
        kept = {name: parameters[name].detach().clone() for name in values}
        for name, value in values.items():
            parameters[name].copy_(value)
    try:
        yield
    finally:
        with torch.no_grad():
            for name, value in kept.items():
                parameters[name].copy_(value)
