"""BasicSR's own PSNR, SSIM and NIQE: what tables of BasicSR-based papers were measured with."""

from __future__ import annotations

import inspect
import warnings
from typing import Any, Callable, Mapping

import numpy as np

from finpercep_plugin.registry import nearest

__all__ = ['MOST_PSNR', 'check', 'load']

MOST_PSNR = 100.0  # of equal pictures, for which BasicSR gives infinity, which no mean survives
_NEEDS = {'psnr': frozenset({'gt'}), 'ssim': frozenset({'gt'}), 'niqe': frozenset()}


def check(metric: str, options: Mapping[str, Any]) -> tuple[frozenset[str], bool]:
    """What a metric needs, and whether higher is better.

    Raises:
        ValueError: BasicSR has none of that name, or it takes no such option.
        ImportError: BasicSR is not installed.
    """
    if metric not in _NEEDS:
        raise ValueError(f'no metric {metric!r} of BasicSR{nearest(metric, _NEEDS)}')
    known = [name for name in inspect.signature(_function(metric)).parameters if name not in _GIVEN]
    unknown = [name for name in options if name not in known]
    if unknown:
        raise ValueError(f'calculate_{metric} takes no {unknown[0]!r}{nearest(unknown[0], known)}')
    return _NEEDS[metric], metric != 'niqe'


def load(metric: str, options: Mapping[str, Any]) -> Callable[[np.ndarray, np.ndarray | None], float]:
    """A function of sr and gt, (H, W, 3) uint8 RGB, borders cut already."""
    function = _function(metric)

    def score(sr: np.ndarray, gt: np.ndarray | None) -> float:
        images = [np.ascontiguousarray(image[..., ::-1]) for image in (sr, gt) if image is not None]
        with warnings.catch_warnings():  # of flat blocks, in NIQE
            warnings.simplefilter('ignore', RuntimeWarning)
            value = float(function(*images[: 1 + ('gt' in _NEEDS[metric])], crop_border=0, **options))
        return min(value, MOST_PSNR) if metric == 'psnr' else value

    return score


_GIVEN = ('img', 'img2', 'crop_border', 'input_order', 'kwargs')


def _function(metric: str) -> Callable[..., float]:
    from finpercep_plugin.integrations import shims

    shims.install()
    import basicsr.metrics

    return getattr(basicsr.metrics, f'calculate_{metric}')
