"""soak: scores and trains on a small setup for hours, each in a process of its own, and watches what they take.

Every few seconds the memory (resident, without what is mapped from files, which the system drops and reads again as it
likes), open files, threads and processor time of each process and of those it started are read from /proc, and how far it
has come. "speed" is a second of the clock, "work_cpu" a second of processor time, which other programs on the machine
disturb less. The first part is left out; a line through the means of ten blocks of what remains gives the slope an hour
with its 95 % interval. "flat": the whole interval lies within what is allowed; "not flat": the whole interval lies outside
it, on the bad side; "undecided": the run was too short to tell.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Sequence

from finpercep_plugin.cli.soak_work import WORKS, prepare

__all__ = ['Slope', 'judge', 'main', 'sample', 'slope']

_BLOCKS, _QUANTILE = 10, 2.306  # 97.5 % of Student's t with 8 degrees of freedom
_WARM = 0.2
ALLOWED = {'memory_mb': (0.02, 5.0), 'files': (0.0, 1.0), 'threads': (0.0, 1.0)}
ALLOWED |= {'speed': (0.05, 0.0), 'work_cpu': (0.05, 0.0)}
"""{what: (share of its mean, absolute)} that it may change in an hour; the larger of the two."""


@dataclass(frozen=True)
class Slope:
    """Change an hour of one series.

    Args:
        mean: of the series.
        slope, low, high: an hour, and its 95 % interval.
        verdict: 'flat', 'not flat' or 'undecided'.
    """

    mean: float
    slope: float
    low: float
    high: float
    verdict: str


def sample(pid: int) -> dict[str, float]:
    """Memory in MB, open files, threads and processor seconds of a process and its children, from /proc.

    Raises:
        OSError: it is gone.
    """
    total = {'memory_mb': 0.0, 'files': 0.0, 'threads': 0.0, 'cpu': 0.0}
    pids = [pid]
    for one in pids:
        status = dict(line.partition(':')[::2] for line in Path(f'/proc/{one}/status').read_text().splitlines())
        total['memory_mb'] += sum(int(status.get(kind, '0').split()[0]) for kind in ('RssAnon', 'RssShmem')) / 1024
        total['threads'] += int(status['Threads'])
        total['files'] += len(os.listdir(f'/proc/{one}/fd'))
        ticks = (
            Path(f'/proc/{one}/stat').read_text().rpartition(')')[2].split()[11:15]
        )  # its own, and of children that ended
        total['cpu'] += sum(map(int, ticks)) / os.sysconf('SC_CLK_TCK')
        for task in os.listdir(f'/proc/{one}/task'):
            pids += map(int, Path(f'/proc/{one}/task/{task}/children').read_text().split())
    return total


def slope(times: Sequence[float], values: Sequence[float]) -> tuple[float, float, float, float]:
    """(mean, slope, low, high) an hour, of a line through the means of ten blocks.

    Args:
        times: in seconds, rising, at least two a block.
        values: one each.

    >>> mean, up, low, high = slope(range(100), [2.0 * t for t in range(100)])
    >>> round(mean), round(up), round(low), round(high)
    (99, 7200, 7200, 7200)
    """
    count = len(times) // _BLOCKS
    if count < 2:
        raise ValueError(f'{len(times)} samples; a slope needs {2 * _BLOCKS} or more')
    blocks = [range(b * count, (b + 1) * count) for b in range(_BLOCKS)]
    x = [sum(times[i] for i in block) / count / 3600 for block in blocks]
    y = [sum(values[i] for i in block) / count for block in blocks]
    mean_x, mean_y = sum(x) / _BLOCKS, sum(y) / _BLOCKS
    spread = sum((a - mean_x) ** 2 for a in x)
    rise = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y)) / spread
    rest = sum((b - mean_y - rise * (a - mean_x)) ** 2 for a, b in zip(x, y))
    half = _QUANTILE * math.sqrt(rest / (_BLOCKS - 2) / spread)
    return mean_y, rise, rise - half, rise + half


def judge(name: str, times: Sequence[float], values: Sequence[float]) -> Slope:
    """A series of `ALLOWED` with its verdict: memory, files and threads must not grow, speeds must not fall."""
    mean, rise, low, high = slope(times, values)
    share, least = ALLOWED[name]
    allowed = max(share * abs(mean), least)
    worst, best = (-low, -high) if name in ('speed', 'work_cpu') else (high, low)
    verdict = 'flat' if worst <= allowed else 'not flat' if best > allowed else 'undecided'
    return Slope(mean, rise, low, high, verdict)


def _watch(work: str, folder: Path, seconds: float, every: float) -> list[dict[str, float]]:
    """Samples of a work that runs for that long, counted from its first step.

    Raises:
        RuntimeError: it ended by itself; what it said last.
    """
    log = folder / f'{work}.log'
    command = [sys.executable, '-m', 'finpercep_plugin.cli.soak_work', work, str(folder)]
    samples: list[dict[str, float]] = []
    with open(log, 'wb') as said:
        process = subprocess.Popen(command, stdout=said, stderr=said)
    try:
        begin = None
        while begin is None or time.monotonic() < begin + seconds:
            time.sleep(every if begin else 0.05)
            if process.poll() is not None:
                raise RuntimeError(f'{work} ended: {log.read_text(errors="replace")[-2000:]}')
            text = (folder / f'{work}.done').read_text().strip() if (folder / f'{work}.done').exists() else ''
            if not text:
                continue
            begin = begin or time.monotonic()
            samples.append({'time': time.monotonic() - begin, 'done': float(text), **sample(process.pid)})
    finally:
        process.kill()
        process.wait()
    return samples


def _slopes(samples: Sequence[dict[str, float]]) -> dict[str, Slope]:
    """Of each series, without the first part."""
    used = samples[int(_WARM * len(samples)) :]
    times = [one['time'] for one in used]
    found = {name: judge(name, times, [one[name] for one in used]) for name in ('memory_mb', 'files', 'threads')}
    for name, clock in (('speed', 'time'), ('work_cpu', 'cpu')):
        pace = [(b['done'] - a['done']) / max(b[clock] - a[clock], 0.01) for a, b in zip(used, used[1:])]
        found[name] = judge(name, times[1:], pace)
    return found


def _parser() -> argparse.ArgumentParser:
    codes = 'exit codes: 0 nothing grew or slowed down (or it cannot be told); 1 something did; 2 a work failed'
    parser = argparse.ArgumentParser(prog='tools/soak.py', description=__doc__, epilog=codes)
    parser.add_argument('--minutes', type=float, default=120.0, metavar='N', help='of each work (default: %(default)s)')
    parser.add_argument(
        '--every', type=float, default=5.0, metavar='S', help='seconds between samples (default: %(default)s)'
    )
    parser.add_argument(
        '--only', nargs='+', choices=list(WORKS), default=list(WORKS), help='works, one after the other'
    )
    parser.add_argument(
        '--seed', type=int, default=0, metavar='N', help='of pictures and weights (default: %(default)s)'
    )
    parser.add_argument('--json', type=Path, metavar='FILE', help='slopes, verdicts and all samples')
    return parser


def main(argv: list[str] | None = None) -> int:
    """Watch each work; print the slopes; returns the exit code."""
    args = _parser().parse_args(argv)
    result: dict = {'minutes': args.minutes, 'every': args.every, 'seed': args.seed, 'machine': platform.platform()}
    verdicts = []
    with tempfile.TemporaryDirectory(prefix='soak_') as place:
        prepare(Path(place), args.seed)
        for work in args.only:
            try:
                samples = _watch(work, Path(place), 60 * args.minutes, args.every)
                slopes = _slopes(samples)
            except (RuntimeError, ValueError) as error:
                print(f'tools/soak.py: {error}', file=sys.stderr)
                return 2
            print(f'{work}: {samples[-1]["done"]:.0f} done in {samples[-1]["time"]:.0f} s, {len(samples)} samples')
            for name, s in slopes.items():
                print(f'  {name:9s} {s.mean:10.2f}  {s.slope:+.3f} [{s.low:+.3f}, {s.high:+.3f}] an hour: {s.verdict}')
            verdicts += [s.verdict for s in slopes.values()]
            result[work] = {'slopes': {name: asdict(s) for name, s in slopes.items()}, 'samples': samples}
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + '\n', encoding='utf-8')
    return int('not flat' in verdicts)


if __name__ == '__main__':
    sys.exit(main())
