"""Batches of whatever type, as the floats that models compute with."""

from __future__ import annotations

from typing import Any, Mapping, Sequence

import torch
from torch import Tensor

__all__ = ['stack_floats', 'to_floats']


def to_floats(data: Mapping[str, Any], names: Sequence[str], device: torch.device | str) -> dict[str, Tensor]:
    """Tensors of a batch on the device, uint8 scaled to [0, 1] there; syn is made where only its parts are given.

    Args:
        data: of a loader: (B, C, H, W), floats or uint8.
        names: what is wanted of it.
        device: of the model.

    Raises:
        ValueError: the batch lacks something.

    >>> to_floats({'gt': torch.tensor([[[[0, 51]]]], dtype=torch.uint8)}, ['gt'], 'cpu')['gt']
    tensor([[[[0.0000, 0.2000]]]])
    """
    own = [name for name in names if name in data]
    parts = () if 'syn' in own or 'syn' not in names else ('gt', 'sr', 'mask')
    lacking = [name for name in (*names, *parts) if name not in data and not (name == 'syn' and parts)]
    if lacking:
        raise ValueError(f'a batch without {", ".join(dict.fromkeys(lacking))}; see `fields` of the training set')
    floats = {name: _float(data[name], device) for name in dict.fromkeys((*own, *parts))}
    if parts:
        floats['syn'] = torch.lerp(floats['gt'], floats['sr'], floats['mask'])
    return {name: floats[name] for name in names}


def stack_floats(items: Sequence[Mapping[str, Any]], names: Sequence[str], device: torch.device | str) -> list[Tensor]:
    """(B, C, H, W) of each of `names` from B items of a data set, as `to_floats` gives a loader's batch."""
    batch = {name: torch.stack([item[name] for item in items]) for name in names}
    return list(to_floats(batch, names, device).values())


def _float(tensor: Tensor, device: torch.device | str) -> Tensor:
    tensor = tensor.to(device, non_blocking=True)
    return tensor.float().div_(255) if tensor.dtype == torch.uint8 else tensor
