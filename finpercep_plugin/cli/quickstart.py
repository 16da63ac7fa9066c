"""finpercep-quickstart: from a handful of photos to a generator fine-tuned by a reward model that sees where, and one page about it."""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from finpercep_plugin.quickstart.recipe import Recipe

__all__ = ['main']


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog='finpercep-quickstart', description=__doc__)
    parser.add_argument(
        '--out', type=Path, default=Path('quickstart'), metavar='DIR', help='folder of everything (default: quickstart)'
    )
    parser.add_argument('--seed', type=int, default=0, metavar='N')
    parser.add_argument(
        '--train', nargs='+', type=Path, metavar='DIR', help='photos to train on (default: those inside scikit-image)'
    )
    parser.add_argument('--held-out', nargs='+', type=Path, metavar='DIR', help='photos to measure on')
    parser.add_argument(
        '--effort', type=float, default=1.0, metavar='X', help='factor of all training steps (default: 1)'
    )
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run it; returns the exit code: 0 done, 2 wrong usage."""
    args = _parser().parse_args(argv)
    if bool(args.train) != bool(args.held_out):
        print('error: give both --train and --held-out, or neither', file=sys.stderr)
        return 2
    if args.effort <= 0:
        print(f'error: --effort: expected a number above 0, got {args.effort:g}', file=sys.stderr)
        return 2
    began = time.perf_counter()
    from finpercep_plugin.config import ConfigError
    from finpercep_plugin.integrations.basicsr import require
    from finpercep_plugin.quickstart.photos import find_photos

    try:
        require()
        if args.train:
            from finpercep_plugin.images import list_images

            photos = [list_images(folders) for folders in (args.train, args.held_out)]
        else:
            photos = list(find_photos())
        return _run(args, photos[0], photos[1], began)
    except (ConfigError, FileNotFoundError, ValueError, ImportError) as error:
        print(f'error: {error}', file=sys.stderr)
        return 2


def _run(args: argparse.Namespace, train: list[Path], held_out: list[Path], began: float) -> int:
    import warnings

    from finpercep_plugin.quickstart.measure import measure
    from finpercep_plugin.quickstart.page import verdict, write_page
    from finpercep_plugin.quickstart.recipe import QuickStart, Recipe

    warnings.filterwarnings('ignore', category=FutureWarning)
    start = QuickStart(args.out, args.seed, train, held_out, _scaled(Recipe(), args.effort), _announce)
    start.run()
    _announce('Measuring before and after on held-out crops')
    weights = {'before': start.weights('generator'), 'after': start.weights('refl'), 'rm': start.weights('rm_2')}
    weights['held_out_rm'] = start.weights('held_out_rm')
    figures = measure(
        start.data('held_out'), start.out / 'scores', start.generator_section(), weights, args.seed, start.l2
    )
    page = write_page(start, figures, ' '.join(['finpercep-quickstart', *sys.argv[1:]]))
    for name, interval in verdict(figures).items():
        print(f'{name:34s} {interval}')
    print(f'{time.perf_counter() - began:.0f} s in all. Open {page}')
    return 0


def _scaled(recipe: Recipe, effort: float) -> Recipe:
    """The recipe with all training steps multiplied."""
    if effort == 1:
        return recipe
    steps = {}
    for name in ('generator', 'rm_0', 'rm_1', 'rm_2', 'held_out_rm', 'refl'):
        value = getattr(recipe, name)
        steps[name] = (
            tuple(max(1, round(v * effort)) for v in value)
            if isinstance(value, tuple)
            else max(1, round(value * effort))
        )
    return dataclasses.replace(recipe, **steps)


def _announce(line: str) -> None:
    print(f'\n== {line}', flush=True)
