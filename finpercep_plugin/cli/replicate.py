"""replicate: the paper's comparisons at a small scale, cell by cell, and a report of what came out.

tools/replicate.py --photos DIR --held-out DIR --out replication      run what is missing
tools/replicate.py --out replication --report docs/replication.md     tables and plots of what is there
"""

from __future__ import annotations

import argparse
import functools
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from finpercep_plugin.replication.bench import Bench
    from finpercep_plugin.replication.plan import Plan

__all__ = ['main']


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog='replicate', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--out', type=Path, default=Path('replication'), metavar='DIR', help='(default: replication)')
    parser.add_argument('--photos', nargs='+', type=Path, metavar='DIR', help='folders or files to train on')
    parser.add_argument('--held-out', nargs='+', type=Path, metavar='DIR', help='folders or files to measure on')
    parser.add_argument(
        '--budget',
        type=float,
        metavar='MIN',
        help='minutes for the whole grid on two cores by a table of costs, which sets the training steps (default: the '
        'standard steps, whose minutes --list tells)',
    )
    parser.add_argument('--seed', type=int, default=0, metavar='N', help='of data, generator and reward models')
    parser.add_argument('--jobs', type=int, default=2, metavar='N', help='processes of one thread (default: 2)')
    parser.add_argument('--only', default='*', metavar='PATTERN', help="cells by name, such as 'refl-*-0'")
    parser.add_argument('--algorithms', nargs='+', metavar='NAME', help='ReFL, DPO, FlowGRPO, RFSR (default: all)')
    parser.add_argument('--seeds', nargs='+', type=int, metavar='N', help='of the cells (default: all)')
    parser.add_argument('--list', action='store_true', help='name the chosen cells and what they are to cost, and stop')
    parser.add_argument(
        '--report', type=Path, metavar='FILE', help='write the results into this Markdown file, and its plots beside it'
    )
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run it; returns the exit code: 0 done, 1 cells failed, 2 wrong usage."""
    args = _parser().parse_args(argv)
    from finpercep_plugin.config import ConfigError
    from finpercep_plugin.integrations.basicsr import require

    try:
        require()
        if args.report:
            return _report(args)
        return _run(args)
    except (ConfigError, FileNotFoundError, ValueError, ImportError) as error:
        print(f'error: {error}', file=sys.stderr)
        return 2


def _run(args: argparse.Namespace) -> int:
    from finpercep_plugin.replication.cell import result_file, work
    from finpercep_plugin.replication.grid import ALGORITHMS, cells
    from finpercep_plugin.replication.plan import Plan, minutes, plan_for
    from finpercep_plugin.replication.pool import Task, run_tasks

    if unknown := sorted(set(args.algorithms or ()) - set(ALGORITHMS)):
        raise ValueError(f'--algorithms: no {unknown[0]}; there are {", ".join(ALGORITHMS)}')
    if args.jobs < 1:
        raise ValueError(f'--jobs: expected at least 1, got {args.jobs}')
    plan = Plan() if args.budget is None else plan_for(args.budget)
    chosen = cells(args.algorithms, args.seeds, args.only)
    if not chosen:
        raise ValueError(f'no cell is called {args.only!r} with these algorithms and seeds')
    if args.list:
        print(*(f'{cell.name}  {plan.steps[cell.variant.algorithm]} steps' for cell in chosen), sep='\n')
        print(f'{len(chosen)} cells; the whole grid is to take {minutes(plan):.0f} minutes on two cores')
        return 0
    bench = _bench(args, plan)
    waiting = [cell for cell in chosen if not result_file(bench, cell.name).is_file()]
    tasks = bench.tasks()
    needs = tuple(task.name for task in tasks)
    tasks += [Task(f'cell {cell.name}', needs) for cell in waiting]
    _announce(f'{len(chosen) - len(waiting)} of {len(chosen)} cells are there already')
    os.environ['OMP_NUM_THREADS'] = '1'  # of the processes to come
    failed = run_tasks(tasks, functools.partial(work, bench), args.jobs, _announce)
    for name, reason in failed.items():
        print(f'{name}: {reason}', file=sys.stderr)
    return 1 if failed else 0


def _bench(args: argparse.Namespace, plan: Plan) -> Bench:
    from finpercep_plugin.images import list_images
    from finpercep_plugin.replication.bench import Bench

    if not args.photos or not args.held_out:
        raise ValueError('give --photos and --held-out: folders or files of photos')
    photos, held_out = ([str(p) for p in list_images(paths)] for paths in (args.photos, args.held_out))
    bench = Bench(args.out.absolute(), tuple(photos), tuple(held_out), plan, args.seed)
    bench.remember()
    return bench


def _report(args: argparse.Namespace) -> int:
    from finpercep_plugin.replication.page import write_report

    print(write_report(args.out.absolute(), args.report))
    return 0


def _announce(line: str) -> None:
    print(f'{time.strftime("%H:%M:%S")} {line}', flush=True)
