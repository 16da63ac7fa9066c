"""The analysis as pictures: preference bars, ranking with intervals, raters."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Sequence

import numpy as np

from finpercep_plugin.report.chart import COLOURS
from finpercep_plugin.study.definition import QUESTIONS

if TYPE_CHECKING:
    from finpercep_plugin.study.analysis import Analysis, Preference

__all__ = ['draw']

_DPI = 130
_GREY = '#8a919c'


def draw(analysis: Analysis, folder: Path) -> dict[str, Path]:
    """Write what there is something for.

    Returns:
        {what it shows: PNG file}.

    Raises:
        ImportError: matplotlib is not installed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = {}
    whole = [p for p in analysis.preferences if not p.group]
    if whole:
        files['Preference'] = _save(_preference(whole), folder / 'preference.png')
    if analysis.ranking:
        files['Ranking'] = _save(_ranking(analysis), folder / 'ranking.png')
    if analysis.raters:
        files['Raters'] = _save(_raters(analysis), folder / 'raters.png')
    return files


def _figure(columns: int, height: float) -> tuple[Any, Sequence[Any]]:
    """A figure of its own: nothing of matplotlib's global state is read or set."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError("the plots need matplotlib: pip install 'finpercep_plugin[study]'") from None
    figure = Figure(figsize=(9.5, height), layout='constrained')
    axes = figure.subplots(1, columns, squeeze=False)[0]
    for axis in axes:
        axis.spines[['top', 'right']].set_visible(False)
        axis.tick_params(labelsize=9)
    return figure, axes


def _preference(preferences: Sequence[Preference]) -> Any:
    pairs = list(dict.fromkeys((p.first, p.second) for p in preferences))
    figure, axes = _figure(len(QUESTIONS), 1.3 + 0.6 * len(pairs))
    for axis, question in zip(axes, QUESTIONS):
        rows = [p for pair in pairs for p in preferences if p.question == question and (p.first, p.second) == pair]
        places, shares = np.arange(len(rows)), np.array([100 * p.wins / p.votes for p in rows])
        axis.barh(places, shares, 0.62, color=COLOURS[0])
        axis.barh(places, 100 - shares, 0.62, left=shares, color='#d5dae1')
        intervals = [p.clustered or p.wilson for p in rows]
        errors = 100 * np.array([[i.mean - i.low for i in intervals], [i.high - i.mean for i in intervals]])
        below = {'fmt': 'none', 'color': 'black', 'linewidth': 1.2, 'capsize': 3}  # the number, which it would cross
        axis.errorbar(shares, places + 0.18, xerr=np.maximum(errors, 0), **below)
        for place, p, share in zip(places, rows, shares):
            x, colour = (2, 'white') if share > 22 else (share + 2, 'black')
            axis.text(x, place - 0.1, f'{share:.1f} %', va='center', color=colour, fontsize=9, fontweight='bold')
            axis.text(101, place, p.second, va='center', fontsize=9, color='#30363d')
        axis.axvline(50, color=_GREY, linestyle=':', linewidth=1)
        axis.set(xlim=(0, 100), title=question, xlabel='chosen, % of votes', yticks=[])
        axis.invert_yaxis()
    axes[0].set_yticks(np.arange(len(pairs)), [first for first, _ in pairs])
    return figure


def _ranking(analysis: Analysis) -> Any:
    most = max(map(len, analysis.ranking.values()))
    figure, axes = _figure(len(QUESTIONS), 1.4 + 0.42 * most)
    for axis, question in zip(axes, QUESTIONS):
        methods = analysis.ranking[question]
        intervals = [interval for interval, _ in methods.values()]
        places, means = np.arange(len(methods)), np.array([i.mean for i in intervals])
        errors = np.array([[i.mean - i.low for i in intervals], [i.high - i.mean for i in intervals]])
        errors = np.maximum(np.nan_to_num(errors), 0)
        axis.errorbar(means, places, xerr=errors, fmt='o', color=COLOURS[0], capsize=3, markersize=6)
        axis.axvline(0, color=_GREY, linestyle=':', linewidth=1)
        axis.set(title=question, xlabel='log strength, higher is better', ylim=(len(methods) - 0.4, -0.6))
        axis.set_yticks(places, list(methods))
    return figure


def _raters(analysis: Analysis) -> Any:
    figure, axes = _figure(3, 3.2)
    parts = (
        ('check_accuracy', 'attention checks right'),
        ('repeat_agreement', 'repeats as before'),
        ('median_seconds', 'median seconds'),
    )
    for axis, (name, title) in zip(axes, parts):
        for kept, colour, label in ((True, COLOURS[0], 'counted'), (False, COLOURS[1], 'left out')):
            raters = [r for r in analysis.raters if (not r.reasons) == kept and getattr(r, name) is not None]
            axis.scatter([r.rater for r in raters], [getattr(r, name) for r in raters], 22, color=colour, label=label)
        axis.set(title=title, xlabel='rater')
        axis.set_ylim(-0.05 if name != 'median_seconds' else 0, 1.05 if name != 'median_seconds' else None)
        axis.xaxis.get_major_locator().set_params(integer=True)
    figure.legend(*axes[0].get_legend_handles_labels(), loc='outside lower center', ncols=2, frameon=False, fontsize=9)
    return figure


def _save(figure: Any, file: Path) -> Path:
    partial = file.with_name(f'.{file.name}.part')
    figure.savefig(partial, dpi=_DPI, format='png', metadata={'Software': None})
    os.replace(partial, file)
    return file
