"""finpercep-show-fgr: an HTML contact sheet of an FGR set: lq, gt, sr, syn, mask and map, and how each was made."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

from finpercep_plugin.cli.arguments import positive

__all__ = ['main']

_EPILOG = """exit codes: 0 written; 1 written, but some of the samples cannot be read (named on stderr and on the page);
2 wrong usage, no set, or no sample to show; 130 interrupted"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog='finpercep-show-fgr', description=__doc__, epilog=_EPILOG)
    parser.add_argument('sets', nargs='+', metavar='SET', help='the folder of the set, or those of its shards')
    parser.add_argument('--out', metavar='FILE', help='the page (default: the name of the set, .html)')
    parser.add_argument('--count', type=positive, default=48, metavar='N', help='samples (default: %(default)s)')
    parser.add_argument('--seed', type=int, default=0, metavar='N', help='of the random choice (default: %(default)s)')
    parser.add_argument('--producer', metavar='NAME', help='only samples of this producer, such as classical')
    parser.add_argument('--mask', metavar='KIND', help='only samples with this kind of mask, such as blob')
    parser.add_argument(
        '--sort',
        choices=('random', 'map', 'map-low', 'area', 'index'),
        default='random',
        help='which first: a random choice; the most or the least degraded; the largest mask; as they are numbered '
        '(default: %(default)s)',
    )
    parser.add_argument(
        '--inline',
        type=float,
        default=24.0,
        metavar='MB',
        help='pictures beyond this go to a folder beside the page (default: %(default)s)',
    )
    parser.add_argument('--quiet', action='store_true', help='no progress bar, no summary')
    return parser


def main(argv: list[str] | None = None) -> int:
    """Choose, draw, write; returns the exit code."""
    args = _parser().parse_args(argv)
    from tqdm import tqdm

    from finpercep_plugin.report.fgr_sheet import Choice, write_sheet

    out = args.out or f'{Path(args.sets[0]).resolve().name}.html'
    choice = Choice(args.count, args.seed, args.producer, args.mask, args.sort)
    command = shlex.join(['finpercep-show-fgr', *(sys.argv[1:] if argv is None else argv)])
    try:
        with tqdm(unit='sample', desc='drawing', disable=args.quiet) as bar:

            def tell(done: int, total: int) -> None:
                bar.total = total
                bar.update(done - bar.n)

            shown, unread = write_sheet(args.sets, out, choice, args.inline, command, tell)
    except (ValueError, OSError) as error:
        print(f'finpercep-show-fgr: {error}', file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print('interrupted', file=sys.stderr)
        return 130
    for line in unread:
        print(line, file=sys.stderr)
    if not args.quiet:
        print(f'{shown} samples in {out}')
    return 1 if unread else 0


if __name__ == '__main__':
    sys.exit(main())
