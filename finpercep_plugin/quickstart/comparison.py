"""One crop as the quick start's models see it: lq, before and after fine-tuning, ground truth, and the maps."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Mapping

import numpy as np
import torch
from PIL import Image

from finpercep_plugin.archs.finpercep_rm_arch import FinPercepRM
from finpercep_plugin.models.panels import picture
from finpercep_plugin.quickstart.measure import load_generator, run_generator
from finpercep_plugin.visual import overlay

__all__ = ['COLUMNS', 'Compared', 'Comparison']

COLUMNS = ('lq', 'before', 'after', 'ground truth', 'map before', 'map after')


@dataclasses.dataclass(frozen=True)
class Compared:
    """Of one crop.

    Attributes:
        images: in the order of `COLUMNS`, (H, W, 3) uint8 each; lq by nearest neighbour.
        scores: of before, after and the ground truth.
        maps: means of the maps before and after.
    """

    images: list[np.ndarray]
    scores: list[float]
    maps: list[float]

    @property
    def captions(self) -> list[str]:
        """One a column; that of lq is empty."""
        return ['', *(f'{score:.2f}' for score in self.scores), *(f'mean {mean:.3f}' for mean in self.maps)]


class Comparison:
    """Runs both generators and the reward model.

    Args:
        section: `generator:`.
        weights: files of 'before', 'after' and 'rm'.
        seed: of the sampling noise.
    """

    def __init__(self, section: Mapping[str, Any], weights: Mapping[str, Path], seed: int):
        self.scale, self.seed = section.get('scale', 4), seed
        self.generators = [load_generator(section, weights[name]) for name in ('before', 'after')]
        self.rm = FinPercepRM.from_file(weights['rm'])

    def __call__(self, gt: np.ndarray, sample: int) -> Compared:
        """
        Args:
            gt: (H, W, 3) uint8, sides divisible by the scale; lq is made of it by Pillow's bicubic.
            sample: number that the noise is drawn by.
        """
        height, width = gt.shape[:2]
        small = Image.fromarray(gt).resize((width // self.scale, height // self.scale), Image.Resampling.BICUBIC)
        lq = torch.from_numpy(np.array(small)).permute(2, 0, 1)[None].float() / 255
        truth = torch.from_numpy(gt.copy()).permute(2, 0, 1)[None].float() / 255
        images = [run_generator(g, lq, [sample], self.seed) for g in self.generators]
        with torch.no_grad():
            scores, maps = self.rm(torch.cat([*images, truth]))
        shown = np.asarray(small.resize((width, height), Image.Resampling.NEAREST))
        overlays = [overlay(picture(i[0]), m[0].numpy(), with_legend=False) for i, m in zip(images, maps)]
        pictures = [shown, *(picture(i[0]) for i in images), gt, *overlays]
        return Compared(pictures, scores.tolist(), [float(m.mean()) for m in maps[:2]])
