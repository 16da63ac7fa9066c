"""The replication's results as Markdown, written between two marks of a page whose other words are kept."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Sequence

import numpy as np

from finpercep_plugin.replication.claims import CLAIMS, HACKED_BY, Outcome, judge, judge_hacked
from finpercep_plugin.replication.grid import ALGORITHMS, cells, variant
from finpercep_plugin.replication.plots import draw_all
from finpercep_plugin.replication.results import CURVE_FIGURES, MEASURES, Measure, Results
from finpercep_plugin.report.bootstrap import Interval

__all__ = ['BEGIN', 'END', 'write_report']

BEGIN, END = '<!-- results: written by tools/replicate.py --report -->', '<!-- end of results -->'


def write_report(out: Path, page: Path) -> str:
    """Write tables and plots of what is there; plots go to a folder named as the page, without its suffix.

    Args:
        out: folder of the replication.
        page: Markdown file; what is outside the marks is kept, a file without them gets them at its end.

    Returns:
        A line about it.

    Raises:
        FileNotFoundError: nothing was measured yet.
        ImportError: matplotlib is not installed.
    """
    results = Results(out)
    figures = draw_all(results, page.with_suffix(''))
    text = page.read_text(encoding='utf-8') if page.is_file() else f'# Replication\n\n{BEGIN}\n{END}\n'
    if BEGIN not in text or END not in text:
        text = f'{text.rstrip()}\n\n{BEGIN}\n{END}\n'
    head, rest = text.split(BEGIN, 1)
    body = '\n\n'.join(_sections(results, out, {title: file.name for title, file in figures.items()}, page.stem))
    partial = page.with_name(f'.{page.name}.part')
    partial.parent.mkdir(parents=True, exist_ok=True)
    partial.write_text(f'{head}{BEGIN}\n\n{body}\n\n{END}{rest.split(END, 1)[1]}', encoding='utf-8')
    os.replace(partial, page)
    missing = len(results.missing())
    return f'{page}: {len(cells()) - missing} cells, {missing} missing, {len(figures)} figures'


def _sections(results: Results, out: Path, figures: dict[str, str], folder: str) -> list[str]:
    parts = [
        '## What was run',
        _facts(results, out),
        '## What the papers say, and what came out here',
        _claims(results),
    ]
    parts += ['## CCL against RM_2 from the start', _against_rm_2(results)]
    parts += ['## Reward curves', _curve_table(results)]
    parts += [f'![{title}]({folder}/{name})\n\n*{title}.*' for title, name in figures.items() if 'start' not in title]
    parts += ['## Final pictures', _start_table(results)]
    for algorithm in ALGORITHMS:
        if results.present(algorithm):
            parts += [f'### {algorithm}', _final_table(results, algorithm)]
            title = next(t for t in figures if t.startswith(f'{algorithm}: change'))
            parts.append(f'![{title}]({folder}/{figures[title]})')
    return parts


def _facts(results: Results, out: Path) -> str:
    plan, about = results.about['plan'], results.about
    runs = [run for found in results.cells.values() for run in found.values()]
    made = [json.loads(f.read_text(encoding='utf-8')) for f in sorted((out / 'made').glob('*.json'))]
    shared = sum(sum(m['seconds'].values()) for m in made)
    spent = sum(sum(run['seconds'].values()) for run in runs)
    steps = ', '.join(f'{name} {count}' for name, count in plan['steps'].items())
    machines = sorted({f'{m["machine"]}, {m["device"]}, torch {m["torch"]}' for m in [results.base, *runs]})
    held, l2 = plan['held_out_rm'], results.base['l2']
    lines = [
        f'{len(about["photos"])} photos to train on, {plan["crops"]} crops of {plan["size"]} px (x4) from '
        f'{len(set(results.base["photos"]))} of {len(about["held_out"])} held-out photos to measure on; seed {about["seed"]} '
        'for data, generator and reward models, the seeds of the cells for everything else.',
        f'Steps: generator {plan["generator"]}; RM_0 {plan["rm_0"]}, RM_1 {plan["rm_1"]}, RM_2 {plan["rm_2"]}; held-out reward '
        f'model {held[0]} + {held[1]}; a cell {steps}.',
        f'R = S_2 + l2 (1 - max^(M_2)) with l2 = {l2:.2f}, at which both terms have gradients of one length on outputs of the start.',
        f'Machine: {"; ".join(machines)}, one thread a process.',
        f'Seconds, with whatever else ran on the machine: {shared:.0f} for what is shared, {spent:.0f} in {len(runs)} cells '
        f'({_costs(results)}).',
    ]
    if missing := results.missing():
        named = ', '.join(cell.name for cell in missing)
        lines.append(f'**Not run or not finished, {len(missing)} of {len(cells())} cells:** {named}.')
    return '\n'.join(f'- {line}' for line in lines)


def _costs(results: Results) -> str:
    parts = []
    for algorithm in ALGORITHMS:
        own = [r for (a, _), found in results.cells.items() if a == algorithm for r in found.values()]
        if own:
            parts.append(f'{algorithm} {np.mean([sum(r["seconds"].values()) for r in own]):.0f} each')
    return ', '.join(parts) or 'none yet'


def _claims(results: Results) -> str:
    rows = []
    for algorithm in ALGORITHMS:
        for name in HACKED_BY:
            outcome, rise = judge_hacked(results, algorithm, name)
            measure = MEASURES[name]
            what = f'score {_interval(rise)}; {measure.title} {_interval(outcome.interval, measure)}'
            text = f'{algorithm}: the global score rises while pictures get worse by {measure.title}'
            rows.append(['paper, Fig. 1b', text, '' if rise is None else what, *_verdict(outcome)])
    for claim in CLAIMS:
        outcome, measure = judge(results, claim), (MEASURES | CURVE_FIGURES)[claim.measure]
        what = f'{claim.algorithm}, {claim.first} - {claim.second}, {measure.title}: {_interval(outcome.interval, measure)}'
        rows.append([claim.source, claim.text, what if outcome.interval else '', *_verdict(outcome)])
    note = (
        'Differences are paired, with 95 % bootstrap intervals that draw seeds and photos (of curve figures, seeds alone) anew. '
        '*Reproduced*, *contradicted*: the interval lies wholly on the side of the claim, or on the other; *not shown*: it holds 0, or fewer than three seeds were run. '
        '*Seeds*: those whose mean is on the side of the claim. All of three agree by chance once in eight, and of five once in '
        '32; the intervals of so few are too narrow rather than too wide.'
    )
    return f'{_table(["Source", "Claim", "Here", "Seeds", "Verdict"], rows)}\n\n{note}'


def _verdict(outcome: Outcome) -> tuple[str, str]:
    return f'{outcome.agreeing} of {outcome.seeds}' if outcome.seeds else '', f'**{outcome.verdict}**'


def _against_rm_2(results: Results) -> str:
    everything = MEASURES | CURVE_FIGURES
    names = ('reward', 'variance', 'training_variance', 'drop', 'held_out', 'psnr', 'lq_psnr', 'distance', 'artifacts')
    rows = []
    for algorithm in ALGORITHMS:
        pair = variant(algorithm, 'ccl'), variant(algorithm, 'rm_2')
        common = set(results.seeds(pair[0])) & set(results.seeds(pair[1]))
        if common:
            cells_ = [_interval(results.difference(*pair, name), everything[name]) for name in names]
            rows.append([algorithm, str(len(common)), *cells_])
    return _table(['CCL - RM_2', 'Seeds', *(everything[name].title for name in names)], rows)


def _curve_table(results: Results) -> str:
    rows = []
    for v in results.present():
        figures = [results.of(v, name).values() for name in CURVE_FIGURES]
        shown = [f'{np.mean(list(f)):.{m.digits}f}' for f, m in zip(figures, CURVE_FIGURES.values())]
        rows.append([v.algorithm, v.title, str(len(results.seeds(v))), _interval(results.optimised(v)), *shown])
    head = ['Algorithm', 'Variant', 'Seeds', 'Own reward, last third', *(m.title for m in CURVE_FIGURES.values())]
    note = (
        "*Own reward*: what was optimised, on the training batches, in spreads of its value over the start's outputs. *R*: of RM_2, the "
        f'same for all, on the first {results.about["plan"]["curve_crops"]} held-out crops, every {results.about["plan"]["points"]}th of the '
        'training; the weights being trained, without EMA. Of the training batches it is the own reward. *Largest drop*: from the highest R so far.'
    )
    return f'{_table(head, rows)}\n\n{note}'


def _start_table(results: Results) -> str:
    rows = []
    for method, name in (('bicubic', 'bicubic'), ('base', 'start'), ('gt', 'ground truth')):
        values = [results.of_base(measure, method) for measure in MEASURES]
        known = [not (method == 'gt' and measure in ('psnr', 'ssim', 'distance')) for measure in MEASURES]
        shown = [f'{v.mean():.{m.digits}f}' if k else '' for v, m, k in zip(values, MEASURES.values(), known)]
        rows.append([name, *shown])
    note = (
        "R and held-out R are in spreads over the start's outputs, 0 at the start. Artifacts: pixels of the held-out map above "
        f'{results.base["threshold"]:.2f}, where the start has 5 %. Feature distance: of unit features of the held-out encoder to those of gt.'
    )
    return f'{_table(["", *(m.title for m in MEASURES.values())], rows)}\n\n{note}'


def _final_table(results: Results, algorithm: str) -> str:
    rows = []
    for v in results.present(algorithm):
        intervals = [_interval(results.against_base(v, name), measure) for name, measure in MEASURES.items()]
        rows.append([v.title, str(len(results.seeds(v))), *intervals])
    head = ['Variant - start', 'Seeds', *(f'{m.title} {"↑" if m.higher else "↓"}' for m in MEASURES.values())]
    return _table(head, rows)


def _interval(interval: Interval | None, measure: Measure | None = None) -> str:
    if interval is None:
        return ''
    digits = 2 if measure is None else measure.digits
    mean, low, high = (f'{x:.{digits}f}' for x in (interval.mean, interval.low, interval.high))
    return f'{mean} [{low}, {high}]'


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = [head, ['---'] * len(head), *rows]
    return '\n'.join('| ' + ' | '.join(str(cell) for cell in line) + ' |' for line in lines)
