"""Before and after fine-tuning, on photos that nothing was trained on."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Mapping, Sequence

import torch

from finpercep_plugin.config import build
from finpercep_plugin.data.fgr_dataset import FinPercepFGRDataset
from finpercep_plugin.generators.pixels import upscale
from finpercep_plugin.images import write_png
from finpercep_plugin.models.panels import picture
from finpercep_plugin.registry import GENERATORS
from finpercep_plugin.rewards.psnr_reward import comparable, psnr
from finpercep_plugin.rng import keyed_randn
from finpercep_plugin.rollout import super_resolve
from finpercep_plugin.scoring.files import score_files
from finpercep_plugin.scoring.metrics import RM_COLUMNS, rm_metric
from finpercep_plugin.scoring.table import Row, write_csv

__all__ = ['METHODS', 'Figures', 'load_generator', 'measure', 'run_generator']

METHODS = ('bicubic', 'before', 'after', 'gt')


@dataclasses.dataclass(frozen=True)
class Figures:
    """One method's figures, a value a crop.

    Attributes:
        psnr: dB, Y channel, 4 pixels cropped; 100 for gt.
        reward: raw R_2 of the reward model that was optimised, S_2 + l2 (1 - max^(M_2)).
        held_out: raw R_2 of the one that never was.
        map_mean, map_max: of the optimised one.
    """

    psnr: list[float]
    reward: list[float]
    held_out: list[float]
    map_mean: list[float]
    map_max: list[float]


def load_generator(section: Mapping[str, Any], weights: Path) -> torch.nn.Module:
    """A generator in eval mode."""
    generator = build(GENERATORS, section, '$.generator')
    generator.load(weights)
    return generator.eval()


def run_generator(generator: torch.nn.Module, lq: torch.Tensor, samples: list[int], seed: int) -> torch.Tensor:
    """sr of lq (B, 3, h, w), with the same noise for every generator."""
    noise = keyed_randn(generator.latent_shape(generator.condition(lq)), samples, seed, 'measure')
    return super_resolve(generator, lq, noise)


def measure(
    data: Path, folder: Path, section: Mapping[str, Any], weights: Mapping[str, Path], seed: int, l2: float
) -> dict[str, Figures]:
    """Super-resolve the held-out crops by both generators, write them as PNG, score them with both reward models.

    Args:
        data: FGR set of the held-out crops.
        folder: receives `<method>/<crop>.png`, and the folder scorer's CSV of each.
        section: `generator:`.
        weights: files of 'before', 'after', 'rm' and 'held_out_rm'.
        seed: of the sampling noise.
        l2: weight of the map in the reward.

    Returns:
        {method: Figures}.
    """
    dataset = FinPercepFGRDataset({'dataroot': str(data)})
    generators = {name: load_generator(section, weights[name]) for name in ('before', 'after')}
    distances: dict[str, list[float]] = {method: [] for method in METHODS}
    for start in range(0, len(dataset), 16):
        indices = list(range(start, min(start + 16, len(dataset))))
        items = [dataset[i] for i in indices]
        lq, gt = (torch.stack([item[k] for item in items]) for k in ('lq', 'gt'))
        images = {name: run_generator(g, lq, indices, seed) for name, g in generators.items()}
        images |= {'bicubic': upscale(lq, dataset.scale), 'gt': gt}
        for method, batch in images.items():
            rounded = (batch.clamp(0, 1) * 255).round() / 255
            distances[method] += psnr(*comparable('PSNR', rounded, gt, y_channel=True, crop_border=4)).tolist()
            for index, image in zip(indices, batch):
                write_png(folder / method / f'{index:04d}.png', picture(image))
    return {m: _figures(folder, m, distances[m], weights, l2) for m in METHODS}


def _figures(folder: Path, method: str, distances: list[float], weights: Mapping[str, Path], l2: float) -> Figures:
    files = sorted((folder / method).glob('*.png'))
    rows = _score(files, folder / f'{method}.csv', weights['rm'])
    held_out = _score(files, folder / f'{method}_held_out.csv', weights['held_out_rm'])
    return Figures(
        psnr=distances,
        reward=[row.values['score'] + l2 * (1 - row.values['map_max']) for row in rows],
        held_out=[row.values['score'] + l2 * (1 - row.values['map_max']) for row in held_out],
        map_mean=[row.values['map_mean'] for row in rows],
        map_max=[row.values['map_max'] for row in rows],
    )


def _score(files: Sequence[Path], table: Path, rm: Path) -> list[Row]:
    """What `finpercep-score` gives for the files, also written to `table`."""
    rows = score_files(files, files[0].parent, [rm_metric(rm)])
    write_csv(table, rows, RM_COLUMNS)
    return rows
