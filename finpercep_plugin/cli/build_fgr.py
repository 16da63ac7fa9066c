"""finpercep-build-fgr: a folder of photos -> an FGR set.

Each sample has lq, gt, sr, a region mask, degradation terms, and a record of how it was made.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

__all__ = ['main']

_EPILOG = """The options of the build are those of options/build_fgr.yml; the command line comes before the file.
A stopped or killed build continues when the same command is run again; a finished one grows with a larger --count.
Several machines: --shard 0/4 --out shard0, --shard 1/4 --out shard1, ..., then --merge shard0 shard1 ... --out set.
exit codes: 0 done; 1 done, but photos were skipped (named on stderr), or --verify found problems; 2 wrong usage or
refused; 130 interrupted (the samples so far are stored)"""

_OVERRIDES = ('photos', 'out', 'count', 'size', 'scale', 'seed', 'batch', 'workers', 'devices', 'shard', 'alpha')


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog='finpercep-build-fgr',
        description=__doc__,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('--opt', metavar='FILE', help='YAML file of options')
    parser.add_argument(
        '--photos',
        nargs='+',
        metavar='DIR',
        help='folders of photos (searched recursively), image files, .txt files of paths, or LMDBs of pictures',
    )
    parser.add_argument('--out', metavar='DIR', help='folder of the set')
    parser.add_argument('--count', type=int, metavar='N', help='samples in the set (default: 1000)')
    parser.add_argument('--size', type=int, metavar='PX', help='side of gt (default: 96)')
    parser.add_argument('--scale', type=int, metavar='X', help='gt size / lq size (default: 4)')
    parser.add_argument('--seed', type=int, metavar='N', help='(default: 0)')
    parser.add_argument(
        '--workers', type=int, metavar='N', help='worker processes; no effect on the result (default: 0, none)'
    )
    parser.add_argument(
        '--batch', type=int, metavar='N', help='samples that a network sees at once; part of the result (default: 8)'
    )
    parser.add_argument(
        '--devices',
        nargs='+',
        metavar='D',
        help='where the networks run, such as cuda:0 cuda:1 (default: in the workers)',
    )
    parser.add_argument(
        '--ray',
        metavar='ADDRESS',
        help="build on this Ray cluster; 'local' starts one here for the time being; no effect on the result",
    )
    parser.add_argument('--shard', type=_shard, metavar='I/N', help='make only the I-th of N parts, I from 0')
    parser.add_argument('--merge', nargs='+', metavar='SHARD', help='put finished shards together in --out')
    parser.add_argument('--alpha', type=float, metavar='A', help='weight of the pixel term in the map (default: 0.5)')
    parser.add_argument(
        '--verify', action='store_true', help='check the set afterwards; without --photos, only check it'
    )
    parser.add_argument('--quiet', action='store_true', help='no progress bar, no summary')
    return parser


def main(argv: list[str] | None = None) -> int:
    """Build, verify, tell; returns the exit code."""
    args = _parser().parse_args(argv)
    from finpercep_plugin.config import parse
    from finpercep_plugin.data.fgr_options import BuildOptions

    try:
        given = _load(args.opt) if args.opt else {}
        given.update({name: value for name in _OVERRIDES if (value := getattr(args, name)) is not None})
        options = parse(BuildOptions, given)
        if not options.out:
            raise ValueError('--out: name the folder of the set')
        if args.merge and (options.photos or args.shard):
            raise ValueError('--merge: takes no photos and no --shard; it copies finished shards')
        if not (options.photos or args.verify or args.merge):
            raise ValueError('--photos: name folders of photos or image files')
        skipped = _build(options, args.merge, args.ray, args.quiet) if options.photos or args.merge else 0
        problems = _verify(options.out, args.quiet) if args.verify else 0
    except (ValueError, OSError, ImportError) as error:
        print(f'finpercep-build-fgr: {error}', file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print('interrupted; the samples so far are stored, run the command again to continue', file=sys.stderr)
        return 130
    return 1 if skipped or problems else 0


def _load(path: str) -> dict[str, Any]:
    from finpercep_plugin.config import ConfigError
    from finpercep_plugin.plain_yaml import oddities, read_yaml

    with open(path, encoding='utf-8') as file:
        try:
            options = read_yaml(file.read(), f'{path}:')
        except UnicodeDecodeError as error:
            raise ValueError(f'{path}: not YAML: {error}') from None
    if options is not None and not isinstance(options, dict):
        raise ValueError(f'{path}: expected keys and values, got {type(options).__name__}')
    wrong = oddities(options)
    if wrong:
        raise ConfigError(wrong)
    return options or {}


def _shard(text: str) -> list[int]:
    """
    >>> _shard('1/4')
    [1, 4]
    """
    try:
        number, shards = map(int, text.split('/'))
    except ValueError:
        raise argparse.ArgumentTypeError(f'expected I/N, such as 0/4, got {text!r}') from None
    return [number, shards]


def _build(options: Any, shards: list[str] | None, ray: str | None, quiet: bool) -> int:
    """Build or merge; the number of photos skipped."""
    from tqdm import tqdm

    from finpercep_plugin.data.fgr_builder import build
    from finpercep_plugin.data.fgr_merge import merge
    from finpercep_plugin.data.fgr_runs import run_here
    from finpercep_plugin.data.ray_build import on_ray

    run = on_ray(ray) if ray else run_here
    with tqdm(unit='sample', desc='merging' if shards else 'building', smoothing=0.05, disable=quiet) as bar:

        def tell(done: int, total: int) -> None:
            bar.total = total
            if not bar.n and done:
                bar.initial = done
            bar.update(done - bar.n)

        report = merge(shards, options.out, tell) if shards else build(options, tell, run)
    for name, reason in report.skipped:
        print(f'skipped {name}: {reason}', file=sys.stderr)
    if not quiet:
        p99 = ', '.join(f'{term} {value:.4f}' for term, value in report.p99.items())
        print(f'{report.count} samples in {options.out}, {report.added} of them new; 99th percentiles: {p99}')
        if report.skipped:
            print(f'{len(report.skipped)} photos skipped', file=sys.stderr)
    return len(report.skipped)


def _verify(out: str, quiet: bool, shown: int = 20) -> int:
    """Check; the number of problems."""
    from tqdm import tqdm

    from finpercep_plugin.data.fgr_verify import verify

    with tqdm(unit='sample', desc='verifying', disable=quiet) as bar:

        def tell(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        problems = verify(out, tell)
    for problem in problems[:shown]:
        print(problem, file=sys.stderr)
    if len(problems) > shown:
        print(f'and {len(problems) - shown} more problems', file=sys.stderr)
    if not quiet:
        print(f'{out}: {len(problems)} problems' if problems else f'{out}: sound')
    return len(problems)


if __name__ == '__main__':
    sys.exit(main())
