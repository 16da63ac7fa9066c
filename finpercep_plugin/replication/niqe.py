"""NIQE as a reward without a gradient, with blocks that fit into small crops."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import torch

from finpercep_plugin.rewards.base import luma

__all__ = ['niqe']


@functools.lru_cache(maxsize=1)
def _model() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean, covariance and window of the pristine photos' model that basicsr ships."""
    from basicsr.metrics import niqe as module

    file = np.load(Path(module.__file__).parent / 'niqe_pris_params.npz')
    return file['mu_pris_param'], file['cov_pris_param'], file['gaussian_window']


def niqe(sr: torch.Tensor, block: int = 32) -> torch.Tensor:
    """BasicSR's NIQE of luma, lower better, with another block side than the 96 px that its model was fitted with.

    Its values are not those of published NIQE: statistics of small blocks are noisier. It ranks pictures of one size.

    Args:
        sr: (B, 3, H, W), RGB, [0, 1], two blocks or more a side.
        block: side of the blocks in pixels.

    Returns:
        (B,).
    """
    from basicsr.metrics.niqe import niqe as score

    grey = (luma(sr.float().clamp(0, 1)) * 255).round()[:, 0].cpu().numpy().astype(np.float64)
    with np.errstate(all='ignore'):  # flat blocks
        values = [score(image, *_model(), block_size_h=block, block_size_w=block) for image in grey]
    return torch.tensor(values, dtype=torch.float32)
