"""The quick start's page: what was made, in pictures, curves and figures with intervals."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any, Mapping, Sequence

import numpy as np
import torch

from finpercep_plugin.images import read_image
from finpercep_plugin.quickstart.comparison import COLUMNS, Comparison
from finpercep_plugin.quickstart.measure import Figures
from finpercep_plugin.quickstart.recipe import QuickStart
from finpercep_plugin.report.bootstrap import Interval, mean_interval, paired_difference
from finpercep_plugin.report.chart import Chart
from finpercep_plugin.report.experiment.events import read_scalars
from finpercep_plugin.report.page import Page, PictureRow

__all__ = ['verdict', 'write_page']

SIDE = 160


def verdict(figures: Mapping[str, Figures]) -> dict[str, Interval]:
    """The three comparisons that tell whether it worked, on the same crops."""
    before, after = figures['before'], figures['after']
    return {
        'PSNR, before - bicubic': paired_difference(figures['bicubic'].psnr, before.psnr),
        'PSNR, after - before': paired_difference(before.psnr, after.psnr),
        'reward, after - before': paired_difference(before.reward, after.reward),
        'held-out reward, after - before': paired_difference(before.held_out, after.held_out),
        'map mean, after - before': paired_difference(before.map_mean, after.map_mean),
    }


def write_page(start: QuickStart, figures: Mapping[str, Figures], command: str) -> Path:
    """Write `index.html` into the quick start's folder; returns its path."""
    count = len(figures['before'].psnr)
    page = Page('FinPercep quick start').intro(
        'A small super-resolution generator was trained from scratch on a handful of photos, then fine-tuned by ReFL under the CCL '
        'curriculum with a reward model that was trained here too. Everything below is measured on photos that nothing was trained on.',
        'The held-out reward is a second reward model, trained from another seed and never optimised: a reward that rises '
        'while the held-out one falls would be reward hacking.',
    )
    page.table(
        f'Before and after, {count} held-out crops (x4)',
        ['', 'PSNR (dB)', 'reward', 'held-out reward', 'map mean', 'map max'],
        [_row(name, figures[key]) for name, key in (('bicubic', 'bicubic'), ('before', 'before'), ('after', 'after'))]
        + [['ground truth', None, *_row('', figures['gt'])[2:]]],
        note=f'Means with 95 % bootstrap intervals over crops. Reward = score + {start.l2:g} (1 - map max), not normalised; higher is better. Map: lower is better.',
        digits=2,
    )
    page.table(
        'What changed',
        ['paired difference', 'mean and interval'],
        [[name, interval] for name, interval in verdict(figures).items()],
        note=f'95 % paired bootstrap over the {count} crops; they are from {len(start.photos["held_out"])} photos, so this says little of other photos.',
    )
    page.pictures(
        'Held-out pictures',
        COLUMNS,
        _picture_rows(start),
        note='lq is shown by nearest neighbour. Maps are of RM_2. Hover or tap to enlarge.',
        map_scale=True,
    )
    page.curves('Training', _charts(start))
    facts = {
        'seed': start.seed,
        'photos to train on': ', '.join(Path(p).name for p in start.photos['train']),
        'held-out photos': ', '.join(Path(p).name for p in start.photos['held_out']),
        'machine': f'{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}',
        'seconds': ', '.join(f'{k} {v:.0f}' for k, v in start.seconds.items())
        + f'; together {sum(start.seconds.values()):.0f}',
    }
    return page.made(command, facts).write(start.out / 'index.html')


def _row(name: str, figures: Figures) -> list[Any]:
    values: Sequence[list[float]] = (figures.psnr, figures.reward, figures.held_out, figures.map_mean, figures.map_max)
    return [name, *(mean_interval(v) for v in values)]


def _picture_rows(start: QuickStart) -> list[PictureRow]:
    weights = {'before': start.weights('generator'), 'after': start.weights('refl'), 'rm': start.weights('rm_2')}
    compare, rows = Comparison(start.generator_section(), weights, start.seed), []
    for number, photo in enumerate(start.photos['held_out']):
        for gt, where in _patches(read_image(Path(photo))):
            compared = compare(gt, 10_000 + number)
            rows.append(PictureRow(f'{Path(photo).name}, {where}', compared.images, compared.captions))
    return rows


def _patches(photo: np.ndarray) -> list[tuple[np.ndarray, str]]:
    """Two squares of a photo: its centre, and the one with the most detail beside it."""
    height, width = photo.shape[:2]
    if min(height, width) < SIDE:
        return []
    grey = photo.astype(np.float32).mean(-1)
    detail = np.abs(np.diff(grey, axis=0))[:, :-1] + np.abs(np.diff(grey, axis=1))[:-1]
    centre = ((height - SIDE) // 2, (width - SIDE) // 2)
    places = [(y, x) for y in range(0, height - SIDE + 1, SIDE // 4) for x in range(0, width - SIDE + 1, SIDE // 4)]
    beside = [p for p in places if max(abs(p[0] - centre[0]), abs(p[1] - centre[1])) >= SIDE * 3 // 4]
    best = sorted(beside, key=lambda p: -float(detail[p[0] : p[0] + SIDE, p[1] : p[1] + SIDE].mean()))[:1]
    return [(photo[y : y + SIDE, x : x + SIDE], f'at {x}, {y}') for y, x in [centre, *best]]


def _charts(start: QuickStart) -> list[Chart]:
    runs = {n: read_scalars(start.out / 'tb_logger' / n) for n in ('generator', 'rm_0', 'rm_1', 'rm_2', 'refl')}
    first, second, _ = start.recipe.refl
    marks = {'RM_1': first + 1.0, 'RM_2': first + second + 1.0}

    def series(run: str, **tags: str) -> dict[str, tuple[list[float], list[float]]]:
        return {label.replace('_', ' '): runs[run][tag] for label, tag in tags.items() if tag in runs[run]}

    validation = {t.rsplit('/', 1)[1]: v for t, v in runs['refl'].items() if t.startswith('metrics/')}
    return [
        Chart('Generator: noise prediction', series('generator', loss='losses/l_eps'), smoothing=0.8),
        Chart('RM_0: ranking', series('rm_0', loss='losses/l_rank'), smoothing=0.8),
        Chart(
            'RM_2: losses',
            series('rm_2', map='losses/l_map', rank='losses/l_rank', align='losses/l_align'),
            smoothing=0.8,
        ),
        Chart('CCL + ReFL: reward R_k', series('refl', reward='reward'), marks=marks, smoothing=0.8),
        Chart('CCL + ReFL: held-out reward', {k: v for k, v in validation.items() if k == 'held_out'}, marks=marks),
        Chart('CCL + ReFL: held-out PSNR (dB)', {k: v for k, v in validation.items() if k == 'psnr'}, marks=marks),
    ]
