"""rm_labels: what the labels of FGR data are worth to the reward model: with features or of pixels alone, random or semantic masks.

For the figures in docs/measured.md: tools/rm_labels.py --data ../shared/data/bsd100/hr
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import platform
import sys
from pathlib import Path
from typing import Any, Sequence

import numpy as np

from finpercep_plugin.config import merge
from finpercep_plugin.data.masks import MaskOptions
from finpercep_plugin.quickstart.workshop import CLASSICAL, Workshop
from finpercep_plugin.replication.pool import Task, run_tasks

__all__ = ['VARIANTS', 'Plan', 'main', 'report', 'tasks', 'work']

SEGMENTS: dict[str, Any] = {'type': 'felzenszwalb'}
MASKS = {'random': MaskOptions(), 'semantic': MaskOptions(kinds={'semantic': 1.0}, segments=SEGMENTS)}
VARIANTS = {'mixed': ('random', None), 'pixel': ('random', 1.0), 'semantic': ('semantic', None)}
"""{variant: (masks of its training data, alpha of its labels; None: the build's, features counting)}."""
TRUTHS = {'mixed': None, 'pixel': 1.0}
"""{labels that maps are measured against: alpha}."""
BATCH = 8


@dataclasses.dataclass(frozen=True)
class Plan:
    """Sizes.

    Attributes:
        train, test: photos to train on, and to measure on.
        out: folder of everything.
        seeds: of data, order and weights alike; the triplets to measure on are the same for all.
        size: side of the crops.
        triplets, measured: samples of each training set, and of each set to measure on.
        steps: of RM_0, RM_1 and RM_2.
    """

    train: tuple[str, ...]
    test: tuple[str, ...]
    out: Path
    seeds: int = 3
    size: int = 64
    triplets: int = 1600
    measured: int = 200
    steps: tuple[int, int, int] = (240, 80, 240)


def tasks(plan: Plan) -> list[Task]:
    """Everything to be made, each a name for `work`: `data-<masks>-<seed>`, `test-<masks>`, `rm_0-<masks>-<seed>`,
    `rm-<variant>-<seed>`.
    """
    made = [Task(f'test-{masks}') for masks in MASKS]
    for seed in range(plan.seeds):
        made += [Task(f'data-{masks}-{seed}', ('test-random',)) for masks in MASKS]
        made += [Task(f'rm_0-{masks}-{seed}', (f'data-{masks}-{seed}',)) for masks in MASKS]
        needs = tuple(f'test-{masks}' for masks in MASKS)
        made += [Task(f'rm-{name}-{seed}', (f'rm_0-{VARIANTS[name][0]}-{seed}', *needs)) for name in VARIANTS]
    return made


def work(plan: Plan, name: str) -> None:
    """Do a task; what is there already is not made again."""
    kind, _, rest = name.partition('-')
    if kind == 'test':
        _build(plan, 'held_out' if rest == 'random' else 'held_out_semantic', rest, 1000, plan.test, plan.measured)
        return
    what, _, seed = rest.rpartition('-')
    if kind == 'data':
        _build(plan, f'{what}_{seed}', what, int(seed), plan.train, plan.triplets)
    elif kind == 'rm_0':
        _train(plan, f'rm_0_{what}_{seed}', 'rm_0_small', f'{what}_{seed}', int(seed), plan.steps[0])
    elif not (result := _result(plan, what, int(seed))).is_file():
        masks, alpha = VARIANTS[what]
        changes = {} if alpha is None else {'datasets': {'train': {'alpha': alpha}, 'val': {'alpha': alpha}}}
        start, data = f'rm_0_{masks}_{seed}', f'{masks}_{seed}'
        for stage in (1, 2):
            own = f'rm_{stage}_{what}_{seed}'
            _train(plan, own, f'rm_{stage}_small', data, int(seed), plan.steps[stage], start, changes)
            start = own
        figures = _measure(plan, _shop(plan).weights(start))
        result.parent.mkdir(parents=True, exist_ok=True)
        result.write_text(json.dumps(figures, indent=1), encoding='utf-8')


def report(plan: Plan) -> str:
    """The figures as Markdown: the mean over the seeds, and lowest to highest."""
    found = {name: [_result(plan, name, seed) for seed in range(plan.seeds)] for name in VARIANTS}
    figures = {
        name: [json.loads(file.read_text(encoding='utf-8')) for file in files if file.is_file()]
        for name, files in found.items()
    }
    columns = sorted({column for runs in figures.values() for run in runs for column in run})
    lines = ['| Trained on | Seeds | ' + ' | '.join(columns) + ' |', '| --- ' * (len(columns) + 2) + '|']
    for name, runs in figures.items():
        cells = [_cell([run[column] for run in runs]) if runs else '' for column in columns]
        lines.append(f'| {name} | {len(runs)} | ' + ' | '.join(cells) + ' |')
    return '\n'.join(lines)


def _cell(values: Sequence[float]) -> str:
    return f'{np.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})'


def _result(plan: Plan, variant: str, seed: int) -> Path:
    return plan.out / 'results' / f'{variant}_{seed}.json'


def _shop(plan: Plan, seed: int = 0) -> Workshop:
    return Workshop(plan.out.absolute(), seed, plan.size, announce=lambda line: None, bars=False)


def _build(plan: Plan, name: str, masks: str, seed: int, photos: Sequence[str], count: int) -> None:
    from finpercep_plugin.data.fgr_builder import build
    from finpercep_plugin.data.fgr_options import BuildOptions

    out, mask = str(_shop(plan).data(name)), MASKS[masks]
    build(
        BuildOptions(
            photos=list(photos), out=out, count=count, size=plan.size, seed=seed, mask=mask, producers=[CLASSICAL]
        )
    )


def _train(
    plan: Plan,
    name: str,
    yaml_name: str,
    data: str,
    seed: int,
    steps: int,
    start: str | None = None,
    changes: dict[str, Any] | None = None,
) -> None:
    batch = {'datasets': {'train': {'batch_size_per_gpu': BATCH}}, 'logger': {'use_tb_logger': False}}
    _shop(plan, seed).train(name, yaml_name, data, steps, start, changes=merge(batch, changes or {}))


def _measure(plan: Plan, weights: Path) -> dict[str, float]:
    """Order accuracy and correlation of the map on the triplets of both kinds of masks."""
    import torch

    from finpercep_plugin.archs.finpercep_rm_arch import FinPercepRM
    from finpercep_plugin.data.fgr_dataset import FinPercepFGRDataset
    from finpercep_plugin.metrics.rm_metrics import map_sums, order_accuracy, summarise_maps

    rm, figures = FinPercepRM.from_file(weights).eval().requires_grad_(False), {}
    for masks, folder in (('random', 'held_out'), ('semantic', 'held_out_semantic')):
        root = str(_shop(plan).data(folder))
        sets = {name: FinPercepFGRDataset({'dataroot': root, 'alpha': alpha}) for name, alpha in TRUTHS.items()}
        sums = {name: torch.zeros(11, dtype=torch.float64) for name in TRUTHS}
        scores = []
        for first in range(0, plan.measured, 20):
            items = {n: [s[i] for i in range(first, min(first + 20, plan.measured))] for n, s in sets.items()}
            sr, syn, gt, mask = (torch.stack([i[k] for i in items['mixed']]) for k in ('sr', 'syn', 'gt', 'mask'))
            score, degradation = rm(torch.cat([sr, syn, gt]))
            scores.append(torch.stack(score.chunk(3)))
            for name in TRUTHS:
                truth = torch.stack([item['map'] for item in items[name]])
                sums[name] += map_sums(degradation.chunk(3)[1], truth, mask)
        s_sr, s_syn, s_gt = torch.cat(scores, 1)
        figures[f'{masks} masks: S(sr) < S(syn)'] = order_accuracy(s_sr, s_syn).item()
        figures[f'{masks} masks: S(syn) < S(gt)'] = order_accuracy(s_syn, s_gt).item()
        for name in TRUTHS:
            figures[f'{masks} masks: map, {name} truth'] = summarise_maps(sums[name])['map_corr']
    return figures


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog='rm_labels', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--data', type=Path, required=True, metavar='DIR', help='folder of photos, split by name')
    parser.add_argument(
        '--test', type=int, default=20, metavar='N', help='the last N photos by name are measured on (default: 20)'
    )
    parser.add_argument('--out', type=Path, default=Path('rm_labels'), metavar='DIR', help='(default: rm_labels)')
    parser.add_argument('--jobs', type=int, default=2, metavar='N', help='processes (default: 2)')
    parser.add_argument('--seeds', type=int, default=3, metavar='N', help='(default: 3)')
    parser.add_argument(
        '--effort', type=float, default=1.0, metavar='X', help='factor of samples and training steps (default: 1)'
    )
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run what is missing, print the figures; returns the exit code: 0 done, 1 a task failed, 2 wrong usage."""
    args = _parser().parse_args(argv)
    from finpercep_plugin.images import list_images

    try:
        photos = [str(photo) for photo in list_images([args.data])]
        if not 0 < args.test < len(photos):
            raise ValueError(f'--test: expected 1 to {len(photos) - 1} of the photos in {args.data}, got {args.test}')
    except (ValueError, FileNotFoundError) as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    factor, plan = args.effort, Plan(tuple(photos[: -args.test]), tuple(photos[-args.test :]), args.out, args.seeds)
    plan = dataclasses.replace(
        plan,
        triplets=max(BATCH, round(factor * plan.triplets)),
        measured=max(4, round(factor * plan.measured)),
        steps=tuple(max(1, round(factor * steps)) for steps in plan.steps),
    )
    failed = run_tasks(tasks(plan), functools.partial(work, plan), args.jobs)
    import torch

    print(report(plan))
    print(f'\n{platform.machine()}, {args.jobs} processes of one thread, torch {torch.__version__}; {plan.seeds} seeds')
    return 1 if failed else 0


if __name__ == '__main__':
    sys.exit(main())
