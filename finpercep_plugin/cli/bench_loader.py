"""bench_loader: how fast data sets are read, against bare cv2.imdecode of the same bytes and BasicSR's PairedImageDataset.

A Markdown table; for the figures in docs/measured.md: tools/bench_loader.py
"""

from __future__ import annotations

import argparse
import dataclasses
import platform
import shlex
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Callable, Sequence

from finpercep_plugin.cli.arguments import positive

__all__ = ['main']

_EPILOG = """images/s: PNGs decoded a second of processor time of one core, median of the rounds; each round goes once through
every row, in random order of the samples, in this process. of bare: the time that cv2.imdecode alone takes for the same
bytes, already in memory, over the row's, round by round (median, lowest, highest)."""

_RM = ['sr', 'syn', 'gt', 'map', 'mask']
_TURNS = {'use_hflip': True, 'use_rot': True}


@dataclasses.dataclass
class _Row:
    """A way of reading, and the same PNGs for the bare decoder.

    Attributes:
        name: for the table.
        read: sample i.
        values: of sample i, what has to be decoded.
        seconds: of each round, [reading, bare].
    """

    name: str
    read: Callable[[int], Any]
    values: list[list[bytes]]
    seconds: list[tuple[float, float]] = dataclasses.field(default_factory=list)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog='bench_loader', description=__doc__, epilog=_EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--data', required=True, metavar='DIR', help='FGR set')
    parser.add_argument('--preferences', metavar='DIR', help='preference set')
    parser.add_argument('--samples', type=positive, default=200, metavar='N', help='of each set (default: 200)')
    parser.add_argument('--rounds', type=positive, default=7, metavar='N', help='(default: 7)')
    parser.add_argument('--seed', type=int, default=0, metavar='N', help='of the order (default: 0)')
    return parser


def main(argv: list[str] | None = None) -> int:
    """Print the table; returns the exit code: 0 done, 2 wrong usage."""
    args = _parser().parse_args(argv)
    import cv2
    import torch

    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory() as folder:
            rows = [*_fgr_rows(args.data, args.samples), *_basicsr_rows(args.data, args.samples, Path(folder))]
            rows += _preference_rows(args.preferences, args.samples) if args.preferences else []
            _measure(rows, args.rounds, args.seed)
    except (ValueError, OSError) as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    command = shlex.join(['tools/bench_loader.py', *(sys.argv[1:] if argv is None else argv)])
    print(f'`{command}`, seed {args.seed}; {_machine()}; OpenCV {cv2.__version__}, torch {torch.__version__}\n')
    print('| what is read | images/s | of bare | lowest | highest |\n| --- | --- | --- | --- | --- |')
    for row in rows:
        count = sum(map(len, row.values))
        shares = sorted(bare / reading for reading, bare in row.seconds)
        rate = count / statistics.median(reading for reading, _ in row.seconds)
        print(f'| {row.name} | {rate:.0f} | {statistics.median(shares):.3f} | {shares[0]:.3f} | {shares[-1]:.3f} |')
    return 0


def _machine() -> str:
    try:
        text = Path('/proc/cpuinfo').read_text(encoding='utf-8')
        name = next(line.partition(':')[2].strip() for line in text.splitlines() if line.startswith('model name'))
        load = f', load {Path("/proc/loadavg").read_text(encoding="utf-8").split()[0]}'
    except (OSError, StopIteration):
        name, load = platform.processor() or platform.machine(), ''
    return f'{name}, {platform.system()}, Python {platform.python_version()}{load}'


def _measure(rows: Sequence[_Row], rounds: int, seed: int) -> None:
    import random

    rng = random.Random(seed)
    for number in range(rounds + 1):
        for row in rows:
            order = rng.sample(range(len(row.values)), len(row.values))
            reading = _seconds(row.read, order)
            bare = _seconds(lambda i, row=row: _decode(row.values[i]), order)
            if number:  # the first warms up
                row.seconds.append((reading, bare))


def _seconds(work: Callable[[int], Any], order: Sequence[int]) -> float:
    begin = time.process_time()
    for index in order:
        work(index)
    return time.process_time() - begin


def _decode(values: Sequence[bytes]) -> None:
    import cv2
    import numpy as np

    for value in values:
        cv2.imdecode(np.frombuffer(value, np.uint8), cv2.IMREAD_UNCHANGED)


def _fgr_rows(data: str, samples: int) -> list[_Row]:
    from finpercep_plugin.data.fgr_dataset import FinPercepFGRDataset
    from finpercep_plugin.data.fgr_format import PARTS

    rows = []
    for name, parts, options in (
        ('FGR, whole samples', PARTS, {}),
        ('FGR, whole samples, flips and turns', PARTS, _TURNS),
        ('FGR, as a reward model needs it', PARTS[1:], {'fields': _RM}),
        ('FGR, as a reward model needs it, uint8', PARTS[1:], {'fields': _RM, 'dtype': 'uint8'}),
        (
            'FGR, as options/rm_*.yml read it: uint8, flips and turns',
            PARTS[1:],
            {'fields': _RM, 'dtype': 'uint8', **_TURNS},
        ),
        ('FGR, lq and gt', PARTS[:2], {'fields': ['lq', 'gt']}),
        ('FGR, lq and gt, uint8', PARTS[:2], {'fields': ['lq', 'gt'], 'dtype': 'uint8'}),
        (
            'FGR, as options/ccl_*.yml read it: lq and gt, uint8, flips and turns',
            PARTS[:2],
            {'fields': ['lq', 'gt'], 'dtype': 'uint8', **_TURNS},
        ),
    ):
        dataset = FinPercepFGRDataset({'dataroot': data, 'limit': samples, **options})
        rows.append(_Row(name, dataset.__getitem__, [_values(dataset.shards, key, parts) for key in dataset.keys]))
    return rows


def _values(shards: Any, key: str, parts: Sequence[str]) -> list[bytes]:
    store, prefix = shards.place(key)
    return [bytes(store.get(prefix + part)) for part in parts]


def _basicsr_rows(data: str, samples: int, folder: Path) -> list[_Row]:
    """PairedImageDataset on LMDB stores of the set's lq and gt."""
    from finpercep_plugin.data.fgr_dataset import FinPercepFGRDataset
    from finpercep_plugin.data.lmdb_io import Reader, Writer
    from finpercep_plugin.integrations.basicsr import require

    try:
        require()
    except ImportError as error:
        print(f'without BasicSR: {error}', file=sys.stderr)
        return []
    from basicsr.data.paired_image_dataset import PairedImageDataset

    dataset = FinPercepFGRDataset({'dataroot': data, 'limit': samples, 'fields': ['lq', 'gt']})
    values = {key: _values(dataset.shards, key, ('lq', 'gt')) for key in dataset.keys}
    for number, part in enumerate(('lq', 'gt')):
        store = folder / f'{part}.lmdb'
        with Writer(store) as writer:
            writer.put({key: found[number] for key, found in values.items()})
        lines = [f'{key}.png ({dataset.size},{dataset.size},3) 1' for key in values]
        (store / 'meta_info.txt').write_text('\n'.join(lines), encoding='utf-8')
        Reader(store).close()
    paired = PairedImageDataset(
        {
            'dataroot_lq': str(folder / 'lq.lmdb'),
            'dataroot_gt': str(folder / 'gt.lmdb'),
            'io_backend': {'type': 'lmdb'},
            'scale': dataset.scale,
            'phase': 'val',
        }
    )
    return [_Row("BasicSR's PairedImageDataset, lq and gt", paired.__getitem__, list(values.values()))]


def _preference_rows(data: str, samples: int) -> list[_Row]:
    from finpercep_plugin.data.preference_dataset import FinPercepPreferenceDataset

    dataset = FinPercepPreferenceDataset({'dataroot': data, 'limit': samples})
    count, values = min(len(dataset), samples), []
    for index in range(count):
        key = dataset.keys[index].partition('/')[0]
        item = dataset[index]
        names = ['lq', f'sample_{item["winner_number"]}', f'sample_{item["loser_number"]}']
        names += ['gt'] if 'gt' in item else []
        values.append([bytes(dataset.reader.get(f'{key}/{name}')) for name in names])
    return [_Row('preference pairs', dataset.__getitem__, values)]


if __name__ == '__main__':
    sys.exit(main())
