"""How fast FGR sets are built: the builder with worker processes against a plain loop over the same functions."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import platform
import shlex
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Iterator

from finpercep_plugin.cli.arguments import positive

__all__ = ['main']

_EPILOG = """Each round builds the same set twice, from nothing, and checks that both are the same: by the builder, with
its start-up of worker processes; and by a loop in this process that computes a block and stores it, and the figures
of meta.json at the end. With --threads 0 the loop has the threads that OpenCV takes of itself; networks have one."""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog='bench_fgr', description=__doc__, epilog=_EPILOG)
    parser.add_argument('--photos', nargs='+', required=True, metavar='DIR', help='folders of photos')
    parser.add_argument('--opt', metavar='FILE', help='YAML file of a build; the options here come before it')
    parser.add_argument('--count', type=positive, default=2000, metavar='N', help='samples (default: 2000)')
    parser.add_argument('--size', type=positive, default=96, metavar='PX', help='side of gt (default: 96)')
    parser.add_argument('--seed', type=int, default=0, metavar='N', help='(default: 0)')
    parser.add_argument('--workers', type=positive, default=2, metavar='N', help='of the builder (default: 2)')
    parser.add_argument('--rounds', type=positive, default=3, metavar='N', help='(default: 3)')
    parser.add_argument(
        '--threads', type=int, default=0, metavar='N', help='of OpenCV in the loop; 0: its own choice (default)'
    )
    return parser


def main(argv: list[str] | None = None) -> int:
    """Measure and print; returns the exit code: 0, or 2 for wrong usage."""
    args = _parser().parse_args(argv)
    from finpercep_plugin.config import parse
    from finpercep_plugin.data.fgr_options import BuildOptions

    try:
        given = _load(args.opt)
        given |= {name: getattr(args, name) for name in ('photos', 'count', 'size', 'seed', 'workers')}
        options = parse(BuildOptions, given)
        print(_machine())
        print(f'command: {shlex.join([sys.argv[0], *(sys.argv[1:] if argv is None else argv)])}')
        ratios = [_round(number, options, args.threads) for number in range(args.rounds)]
    except (ValueError, OSError, ImportError) as error:
        print(f'bench_fgr: {error}', file=sys.stderr)
        return 2
    print(f'builder / loop: {statistics.median(ratios):.2f} (median of {len(ratios)}), seed {options.seed}')
    return 0


def _load(path: str | None) -> dict[str, Any]:
    import yaml

    return (yaml.safe_load(Path(path).read_text(encoding='utf-8')) if path else None) or {}


def _round(number: int, options: Any, threads: int) -> float:
    """Samples a second of the builder over those of the loop; which comes first changes with the number."""
    from finpercep_plugin.data.fgr_builder import build

    def built(out: str) -> None:
        build(dataclasses.replace(options, out=out))

    def looped(out: str) -> None:
        with _threads(threads):
            _loop(dataclasses.replace(options, out=out, workers=0))

    ways = {'builder': built, 'loop': looped}
    with tempfile.TemporaryDirectory(prefix='bench_fgr_') as folder:
        seconds = {}
        for name in ('builder', 'loop') if number % 2 else ('loop', 'builder'):
            since = time.perf_counter()
            ways[name](str(Path(folder, name)))
            seconds[name] = time.perf_counter() - since
        if _values(Path(folder, 'builder')) != _values(Path(folder, 'loop')):
            raise ValueError('the two sets differ')
    rates = {name: options.count / s for name, s in seconds.items()}
    ratio = rates['builder'] / rates['loop']
    print(
        f'round {number + 1}: builder {rates["builder"]:.1f} samples/s, loop {rates["loop"]:.1f} samples/s, '
        f'ratio {ratio:.2f}',
        flush=True,
    )
    return ratio


def _loop(options: Any) -> None:
    from finpercep_plugin.data.fgr_block import BlockMaker
    from finpercep_plugin.data.fgr_builder import summarise
    from finpercep_plugin.data.lmdb_io import Reader, Writer
    from finpercep_plugin.data.photos import photo_list

    photos = photo_list(options.photos)
    maker = BlockMaker(photos, options)
    with Writer(options.out) as writer:
        for first in range(0, options.count, options.batch):
            writer.put(maker(first // options.batch, range(first, min(first + options.batch, options.count))))
        summarise(Reader(options.out), range(options.count), [photo.name for photo in photos])


@contextlib.contextmanager
def _threads(number: int) -> Iterator[None]:
    import cv2

    before = cv2.getNumThreads()
    if number:
        cv2.setNumThreads(number)
    try:
        yield
    finally:
        cv2.setNumThreads(before)


def _values(path: Path) -> dict[str, bytes]:
    from finpercep_plugin.data.lmdb_io import Reader

    reader = Reader(path)
    return {key: bytes(reader.get(key)) for key in reader.keys()}


def _machine() -> str:
    import cv2
    import numpy as np

    names = [line.split(':')[1].strip() for line in _lines('/proc/cpuinfo') if line.startswith('model name')]
    load = ', '.join(f'{value:.1f}' for value in os.getloadavg()) if hasattr(os, 'getloadavg') else 'unknown'
    return (
        f'machine: {os.cpu_count()} x {names[0] if names else platform.machine()}, load {load}\n'
        f'python {platform.python_version()}, numpy {np.__version__}, OpenCV {cv2.__version__}'
    )


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text(encoding='utf-8').splitlines()
    except OSError:
        return []


if __name__ == '__main__':
    sys.exit(main())
