"""finpercep-score: a folder of pictures -> CSV of scores, and a map overlay for each picture."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from finpercep_plugin.cli.arguments import positive

__all__ = ['main']

_EPILOG = """exit codes: 0 all pictures scored; 1 some were skipped (named on stderr and in the error column);
2 wrong usage, missing weights, or no pictures; 130 interrupted (rows so far are in OUT.part)"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog='finpercep-score', description=__doc__, epilog=_EPILOG)
    parser.add_argument('inputs', nargs='+', metavar='INPUT', help='folders (searched recursively) or image files')
    parser.add_argument(
        '--rm',
        required=True,
        metavar='FILE',
        help='a FinPercep-RM file, such as experiments/rm_2_small/models/net_g_latest.pth of a training run',
    )
    parser.add_argument('--out', default='scores.csv', metavar='FILE', help='CSV to write (default: %(default)s)')
    parser.add_argument(
        '--maps', type=Path, metavar='DIR', help='write an overlay PNG of the degradation map for each picture'
    )
    parser.add_argument('--device', default='auto', help='auto, cpu, cuda or cuda:N (default: %(default)s)')
    parser.add_argument(
        '--batch', type=positive, default=8, metavar='N', help='pictures of equal size at once (default: %(default)s)'
    )
    parser.add_argument(
        '--top', type=_share, default=0.01, metavar='Q', help='share of pixels in map_max (default: %(default)s)'
    )
    parser.add_argument('--limit', type=positive, metavar='N', help='only the first N pictures')
    parser.add_argument('--quiet', action='store_true', help='no progress bar, no summary')
    return parser


def _share(text: str) -> float:
    value = float(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f'expected a share above 0 and up to 1, such as 0.01, got {text}')
    return value


def main(argv: list[str] | None = None) -> int:
    """Parse, score, say what was skipped; returns the exit code."""
    args = _parser().parse_args(argv)
    from finpercep_plugin.devices import choose_device
    from finpercep_plugin.images import list_images
    from finpercep_plugin.scoring import Scorer, common_root

    try:
        paths = list_images(args.inputs, skip=[args.maps] if args.maps else [])[: args.limit]
        device = choose_device(args.device)
        _try(device)
    except (FileNotFoundError, ValueError) as error:
        return _refuse(str(error))
    if not paths:
        return _refuse(f'no images in {", ".join(args.inputs)}')
    if not Path(args.rm).is_file():
        return _refuse(f'--rm: no reward model at {Path(args.rm).absolute()}')
    try:
        rm = load_rm(args.rm)
    except (OSError, ImportError, KeyError, TypeError, ValueError, RuntimeError) as error:
        return _refuse(f'--rm: {args.rm} is not a FinPercep-RM file: {error}')
    if getattr(rm, 'stage', None) == 0:
        print('finpercep-score: this is an RM_0, which has no map: map_mean and map_max are 0', file=sys.stderr)
    return _score(Scorer(rm, device, args.batch, args.top, args.maps), paths, common_root(args.inputs), args)


def _try(device) -> None:
    """
    Raises:
        ValueError: nothing can be computed on it here.
    """
    import torch

    try:
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(f'--device: {device} cannot be used here: {str(error).splitlines()[0]}') from error


def load_rm(path: str):
    """The reward model of a file, on the CPU."""
    from finpercep_plugin.archs.finpercep_rm_arch import FinPercepRM

    return FinPercepRM.from_file(path, map_location='cpu')


def _refuse(message: str) -> int:
    print(f'finpercep-score: {message}', file=sys.stderr)
    return 2


def _score(scorer, paths: list[Path], root: Path, args: argparse.Namespace) -> int:
    from tqdm import tqdm

    from finpercep_plugin.scoring import RowWriter, score_all

    try:
        writer = RowWriter(Path(args.out))
    except OSError as error:
        return _refuse(f'--out: cannot write {args.out}: {error}')
    finished = False
    with tqdm(total=len(paths), unit='image', disable=args.quiet, desc='scoring') as bar:

        def tell(row) -> None:
            bar.update()
            if row.error:
                bar.write(f'skipped {row.path}: {row.error}', file=sys.stderr)

        try:
            failed = score_all(scorer, paths, root, writer, tell)
            finished = True
        except KeyboardInterrupt:
            bar.write(f'interrupted; the rows so far are in {writer.partial}', file=sys.stderr)
            return 130
        finally:
            writer.close(finished)
    if not args.quiet:
        print(f'{len(paths) - len(failed)} of {len(paths)} images scored; rows in {args.out}, paths relative to {root}')
    if failed:
        print(f'{len(failed)} skipped: {", ".join(row.path for row in failed)}', file=sys.stderr)
    return 1 if failed else 0


if __name__ == '__main__':
    sys.exit(main())
