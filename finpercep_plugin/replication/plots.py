"""Curves and bars of a replication as PNG files."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Sequence

import numpy as np

from finpercep_plugin.replication.grid import ALGORITHMS, Variant
from finpercep_plugin.replication.results import MEASURES, Results
from finpercep_plugin.report.chart import COLOURS

__all__ = ['draw_all']

DPI = 110
PANELS = (('reward', 'reward R'), ('held_out', 'held-out R'), ('psnr', 'PSNR (dB)'))


def draw_all(results: Results, folder: Path) -> dict[str, Path]:
    """Write the figures that there is something for.

    Returns:
        {title: file}.

    Raises:
        ImportError: matplotlib is not installed.
    """
    plt = _pyplot()
    folder.mkdir(parents=True, exist_ok=True)
    files = {}
    for algorithm in ALGORITHMS:
        trio = [v for v in results.present(algorithm) if v.name in ('global', 'rm_2', 'ccl')]
        if trio:
            file = folder / f'curves_{algorithm.lower()}.png'
            files[f'{algorithm}: curves on held-out crops'] = _curves(plt, results, trio, algorithm, file)
    if own := [v for v in results.present('ReFL') if v.curriculum in ('global', 'rm_2', 'ccl')]:
        title = 'ReFL: the reward of the training batches, each in units of its own reward model'
        files[title] = _training(plt, results, own, folder / 'training_refl.png')
    for algorithm in ALGORITHMS:
        if results.present(algorithm):
            file = folder / f'final_{algorithm.lower()}.png'
            files[f'{algorithm}: change from the start, with 95 % intervals'] = _bars(plt, results, algorithm, file)
    return files


def _pyplot() -> Any:
    try:
        import matplotlib
    except ImportError:
        raise ImportError("the plots need matplotlib: pip install 'finpercep_plugin[replication]'") from None
    matplotlib.use('Agg')
    import matplotlib.pyplot as plt

    plt.rcParams.update({'font.size': 9, 'axes.spines.top': False, 'axes.spines.right': False, 'axes.grid': True})
    plt.rcParams.update({'grid.color': '#e4e6ea', 'axes.axisbelow': True, 'legend.frameon': False})
    return plt


def _curves(plt: Any, results: Results, variants: Sequence[Variant], title: str, file: Path) -> Path:
    """Means over seeds with a band from the lowest to the highest seed."""
    figure, axes = plt.subplots(1, len(PANELS), figsize=(11, 3.7), layout='constrained')
    for axis, (measure, label) in zip(axes, PANELS):
        for v, colour in zip(variants, COLOURS):
            runs = [results.curve(run, measure) for run in results.cells[v.algorithm, v.name].values()]
            steps, values = runs[0][0], np.stack([values for _, values in runs])
            axis.fill_between(steps, values.min(0), values.max(0), color=colour, alpha=0.18, linewidth=0)
            axis.plot(steps, values.mean(0), color=colour, label=f'{v.title} ({len(runs)})')
        axis.set(title=f'{title}: change of {label}', xlabel='step')
    _thirds(axes, float(steps[-1]))
    figure.legend(*axes[0].get_legend_handles_labels(), loc='outside lower center', ncols=len(variants), fontsize=8)
    return _save(plt, figure, file)


def _thirds(axes: Sequence[Any], last: float) -> None:
    for axis in axes:
        for third in (1, 2):
            axis.axvline(last * third / 3, color='#8a919c', linestyle=':', linewidth=1)


def _training(plt: Any, results: Results, variants: Sequence[Variant], file: Path) -> Path:
    """The mean over seeds of every iteration's reward, smoothed, over the raw means."""
    columns = 3
    rows = -(-len(variants) // columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(11, 2.5 * rows), sharex=True, sharey=True, layout='constrained', squeeze=False
    )
    for axis in axes.flat[len(variants) :]:
        axis.set_axis_off()
    for axis, v in zip(axes.flat, variants):
        runs = [run['training']['reward'] for run in results.cells[v.algorithm, v.name].values()]
        for run, colour in zip(runs, (*COLOURS, *COLOURS)):
            axis.plot(run['step'], run['value'], color=colour, alpha=0.25, linewidth=0.8)
        mean = np.mean([run['value'] for run in runs], axis=0)
        axis.plot(runs[0]['step'], _smooth(mean), color='black', linewidth=1.6)
        axis.set_title(f'{v.title} ({len(runs)})', fontsize=9)
    return _save(plt, figure, file)


def _smooth(values: np.ndarray, width: int = 9) -> np.ndarray:
    """Moving average; at the ends over what there is."""
    kernel = np.ones(min(width, len(values)))
    return np.convolve(values, kernel, 'same') / np.convolve(np.ones(len(values)), kernel, 'same')


def _bars(plt: Any, results: Results, algorithm: str, file: Path) -> Path:
    variants = results.present(algorithm)
    figure, axes = plt.subplots(
        2, 4, figsize=(11, 1.4 + 0.36 * 2 * len(variants)), sharey=True, layout='constrained', squeeze=False
    )
    places = np.arange(len(variants))
    for axis, (name, measure) in zip(axes.flat, MEASURES.items()):
        intervals = [results.against_base(v, name) for v in variants]
        means = np.array([i.mean for i in intervals])
        errors = np.array([[i.mean - i.low for i in intervals], [i.high - i.mean for i in intervals]])
        good = (means > 0) == measure.higher
        axis.barh(places, means, color=np.where(good, COLOURS[2], COLOURS[1]), alpha=0.75)
        axis.errorbar(means, places, xerr=np.maximum(errors, 0), fmt='none', color='black', linewidth=1, capsize=2)
        axis.axvline(0, color='#555555', linewidth=0.8)
        axis.set_title(f'{measure.title}, {"higher" if measure.higher else "lower"} is better', fontsize=8)
    axes[0, 0].set_yticks(places, [v.name for v in variants])
    axes[0, 0].invert_yaxis()
    return _save(plt, figure, file)


def _save(plt: Any, figure: Any, file: Path) -> Path:
    partial = file.with_name(f'.{file.name}')
    figure.savefig(partial, dpi=DPI, format='png', metadata={'Software': None})
    plt.close(figure)
    partial.replace(file)
    return file
