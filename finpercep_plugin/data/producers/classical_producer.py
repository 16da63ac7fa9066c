"""Interpolation followed by drawn artifacts: needs no weights, works offline."""

from __future__ import annotations

from typing import Sequence

import numpy as np
from PIL import Image

from finpercep_plugin.data.producers.artifacts import ARTIFACTS
from finpercep_plugin.data.producers.base import Produced, Request
from finpercep_plugin.registry import PRODUCERS, nearest

__all__ = ['ClassicalProducer']

_UPSAMPLERS = {
    'bicubic': Image.Resampling.BICUBIC,
    'lanczos': Image.Resampling.LANCZOS,
    'bilinear': Image.Resampling.BILINEAR,
    'nearest': Image.Resampling.NEAREST,
    'area': Image.Resampling.HAMMING,
}

_UPSAMPLER_WEIGHTS = {'bicubic': 3.0, 'lanczos': 2.0, 'bilinear': 1.0, 'nearest': 0.5, 'area': 0.5}
_ARTIFACT_WEIGHTS = dict.fromkeys(ARTIFACTS, 1.0)


@PRODUCERS.register('classical')
class ClassicalProducer:
    """An upsampler drawn by weight, then a number of artifacts of random strength.

    Args:
        upsamplers: weight of each: bicubic, lanczos, bilinear, nearest, area (a soft box).
        artifacts: weight of each: sharpen, ringing, jpeg, noise, smooth, grid, texture, colour, stairs.
        number: how many artifacts follow, lowest and highest; 0 leaves the upsampler alone.
        strength: range of their strengths, within [0, 1].

    Raises:
        ValueError: an unknown name, or a range the wrong way round.
    """

    def __init__(
        self,
        upsamplers: dict[str, float] = _UPSAMPLER_WEIGHTS,
        artifacts: dict[str, float] = _ARTIFACT_WEIGHTS,
        number: tuple[int, int] = (0, 2),
        strength: tuple[float, float] = (0.0, 1.0),
    ):
        self.upsamplers = _weights(upsamplers, _UPSAMPLERS, 'upsampler')
        self.artifacts = _weights(artifacts, ARTIFACTS, 'artifact')
        if not 0 <= number[0] <= number[1] or number[1] > len(self.artifacts[0]):
            raise ValueError(f'number: expected 0 <= lowest <= highest <= {len(self.artifacts[0])}, got {number}')
        if not 0 <= strength[0] <= strength[1] <= 1:
            raise ValueError(f'strength: expected 0 <= lowest <= highest <= 1, got {strength}')
        self.number, self.strength = number, strength

    def __call__(self, requests: Sequence[Request], scale: int) -> list[Produced]:
        """Each by itself; the records are {upsampler, artifacts}."""
        return [Produced(*self._draw(request.lq, scale, request.rng)) for request in requests]

    def _draw(self, lq: np.ndarray, scale: int, rng: np.random.Generator) -> tuple[np.ndarray, dict]:
        names, p = self.upsamplers
        upsampler = names[rng.choice(len(names), p=p)]
        size = lq.shape[1] * scale, lq.shape[0] * scale
        image = np.asarray(Image.fromarray(lq).resize(size, _UPSAMPLERS[upsampler])).astype(np.float32) / 255
        names, p = self.artifacts
        chosen = rng.choice(len(names), size=int(rng.integers(self.number[0], self.number[1] + 1)), replace=False, p=p)
        record: dict = {'upsampler': upsampler, 'artifacts': []}
        for index in chosen:
            strength = float(rng.uniform(*self.strength))
            image, parameters = ARTIFACTS[names[index]](image, strength, rng)
            image = np.clip(image, 0, 1).astype(np.float32)
            record['artifacts'].append({'kind': names[index], 'strength': round(strength, 4), **_rounded(parameters)})
        return np.rint(image * 255).astype(np.uint8), record


def _weights(given: dict[str, float], known: dict, what: str) -> tuple[list[str], np.ndarray]:
    for name in given:
        if name not in known:
            raise ValueError(f'no {what} named {name!r}{nearest(name, known)}')
    names = sorted(n for n in given if given[n] > 0)
    if not names or min(given.values()) < 0:
        raise ValueError(f'{what}s: expected weights of at least 0, not all 0; got {given}')
    weights = np.array([given[n] for n in names], np.float64)
    return names, weights / weights.sum()


def _rounded(parameters: dict) -> dict:
    return {k: round(float(v), 4) if isinstance(v, float) else v for k, v in parameters.items()}
