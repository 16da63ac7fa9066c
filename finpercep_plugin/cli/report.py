"""finpercep-report: a training run, going on or over, as one HTML page: curves, pictures over time, hacking monitor, settings."""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Sequence

if TYPE_CHECKING:
    from finpercep_plugin.report.experiment.record import Record

__all__ = ['main']

_EPILOG = """The page holds everything and opens from disk, with no network. Curves come from tb_logger/NAME beside
experiments/NAME, and from the training log where that is not there. exit codes: 0 written; 2 wrong usage, or no such experiment"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog='finpercep-report', description=__doc__, epilog=_EPILOG)
    parser.add_argument(
        'experiments',
        nargs='+',
        metavar='EXPERIMENT',
        help='folder of a training run, such as experiments/ccl_refl_small, or its name; several are shown side by side',
    )
    parser.add_argument(
        '--out', type=Path, metavar='FILE', help='the page (default: NAME.html, or report.html of several)'
    )
    parser.add_argument(
        '--watch',
        type=_seconds,
        metavar='SECONDS',
        help='write it anew that often, until all of them are over or Ctrl-C; a page that is open follows',
    )
    return parser


def _seconds(text: str) -> float:
    value = float(text)
    if not value >= 1:
        raise argparse.ArgumentTypeError(f'expected a number of at least 1, got {text}')
    return value


def main(argv: list[str] | None = None) -> int:
    """Read, draw, write; returns the exit code."""
    args = _parser().parse_args(argv)
    from finpercep_plugin.report.experiment.page import experiment_page, read_all
    from finpercep_plugin.report.experiment.record import find_experiment

    command = shlex.join(['finpercep-report', *(sys.argv[1:] if argv is None else argv)])
    try:
        folders = [find_experiment(text) for text in args.experiments]
        out = args.out or Path(f'{folders[0].resolve().name}.html' if len(folders) == 1 else 'report.html')

        def write(watching: bool) -> list[Record]:
            records = read_all(folders)
            experiment_page(records, command, args.watch if watching and not _over(records) else 0.0).write(out)
            return records

        records = write(bool(args.watch))
        print(f'{out}: {"; ".join(f"{r.label}: {r.state()}" for r in records)}', flush=True)
        if args.watch:
            _watch(write, records, args.watch)
    except (OSError, ValueError, ImportError) as error:
        print(f'finpercep-report: {error}', file=sys.stderr)
        return 2
    return 0


def _over(records: Sequence[Record]) -> bool:
    return all(record.over for record in records)


def _watch(write, records: Sequence[Record], seconds: float) -> None:
    """Write again and again; the last page, at the end or at Ctrl-C, is one that is not read again."""
    try:
        while not _over(records):
            time.sleep(seconds)
            records = write(True)
    except KeyboardInterrupt:
        write(False)


if __name__ == '__main__':
    sys.exit(main())
