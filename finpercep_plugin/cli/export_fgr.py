"""finpercep-export-fgr: an FGR set as tars of WebDataset's naming, or tars as an LMDB store again.

Both are read by FinPercepFGRDataset alike; tars also by webdataset.WebDataset.
"""

from __future__ import annotations

import argparse
import sys

from finpercep_plugin.cli.arguments import positive

__all__ = ['main']

_EPILOG = """A copy that was stopped or killed continues when the same command is run again.
exit codes: 0 done; 2 wrong usage or refused; 130 interrupted"""


def main(argv: list[str] | None = None) -> int:
    """Copy, tell; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog='finpercep-export-fgr',
        description=__doc__,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('--data', required=True, metavar='DIR', help='FGR set, or one shard of a set')
    parser.add_argument('--out', required=True, metavar='DIR', help='folder of the copy')
    parser.add_argument('--to', choices=('tar', 'lmdb'), default='tar', help='(default: tar)')
    parser.add_argument('--shard-size', type=positive, default=1000, metavar='N', help='samples a tar (default: 1000)')
    parser.add_argument('--quiet', action='store_true', help='no progress bar, no summary')
    args = parser.parse_args(argv)
    from tqdm import tqdm

    from finpercep_plugin.data.fgr_export import export

    try:
        with tqdm(unit='sample', desc='copying', disable=args.quiet) as bar:

            def tell(done: int, total: int) -> None:
                bar.total = total
                bar.update(done - bar.n)

            present = export(args.data, args.out, args.to, args.shard_size, tell)
    except (ValueError, KeyError, OSError) as error:
        print(f'finpercep-export-fgr: {error}', file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print('interrupted; run the command again to continue', file=sys.stderr)
        return 130
    if not args.quiet:
        print(f'{bar.total} samples in {args.out}' + (f', {present} of them there before' if present else ''))
    return 0


if __name__ == '__main__':
    sys.exit(main())
