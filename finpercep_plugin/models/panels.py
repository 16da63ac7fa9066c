"""Tensors as pictures, for validation panels."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from finpercep_plugin.visual import colour_map

__all__ = ['map_picture', 'picture']


def picture(image: Tensor) -> np.ndarray:
    """(3, H, W) in [0, 1] as (H, W, 3) uint8 RGB; values outside are clipped."""
    return (image.detach().float().cpu().clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()


def map_picture(degradation: Tensor) -> np.ndarray:
    """A map (1, H, W) in [0, 1] in the colours of `visual.colour_map`: (H, W, 3) uint8."""
    return colour_map(degradation.detach().float().cpu().numpy()[0])
