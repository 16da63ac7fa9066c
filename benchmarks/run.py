"""Measure, write the figures as JSON, and docs/performance.md from them.

    python benchmarks/run.py                       # all, in about twenty minutes on two cores
    python benchmarks/run.py grpo startup          # these; the figures of others stay as they are in --out
    python benchmarks/run.py --page                # measure nothing, write the page again

Each benchmark runs in a process of its own, with one thread of arithmetic on a CPU.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:  # run as a file
    sys.path.insert(0, str(ROOT))

from benchmarks import page  # noqa: E402
from benchmarks.common import Result, Setup, machine  # noqa: E402

NAMES = ('startup', 'rm_forward', 'refl_step', 'grpo', 'score_folder', 'loaders', 'growth')


def main(argv: list[str] | None = None) -> int:
    """Returns the exit code: 0 done, whatever goals were missed; 1 a benchmark failed; 2 wrong usage."""
    args = _parser().parse_args(argv)
    if args.into:
        return _measure(args)
    data = json.loads(args.out.read_text(encoding='utf-8')) if args.out.is_file() else {'benchmarks': {}}
    failed = [] if args.page else [name for name in args.names or NAMES if not _spawn(name, args, data)]
    args.docs.mkdir(parents=True, exist_ok=True)
    page.write(data, args.docs)
    if failed:
        print(f'failed: {", ".join(failed)}', file=sys.stderr)
    return 1 if failed else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog='benchmarks/run.py', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        'names', nargs='*', choices=[*NAMES, []], metavar='NAME', help=f'{", ".join(NAMES)} (default: all)'
    )
    parser.add_argument('--rounds', type=int, default=3, metavar='N', help='repeats, in turn (default: 3)')
    parser.add_argument('--quick', action='store_true', help='sizes that tell only whether it runs')
    parser.add_argument('--device', choices=('cpu', 'cuda'), default='cpu', help='(default: cpu)')
    parser.add_argument('--seed', type=int, default=0, metavar='N', help='(default: 0)')
    parser.add_argument('--photos', type=Path, metavar='DIR', help="to cut crops from (default: scikit-image's)")
    parser.add_argument(
        '--out', type=Path, default=ROOT / 'benchmarks/results.json', metavar='FILE', help='(default: %(default)s)'
    )
    parser.add_argument('--docs', type=Path, default=ROOT / 'docs', metavar='DIR', help='where performance.md goes')
    parser.add_argument('--page', action='store_true', help='measure nothing, write the page from --out')
    parser.add_argument('--into', type=Path, metavar='FILE', help=argparse.SUPPRESS)  # one benchmark, in this process
    return parser


def _spawn(name: str, args: argparse.Namespace, data: dict[str, Any]) -> bool:
    """Measure in a process of its own; adds to `data` and writes it, whatever comes after. Whether that went well."""
    begin = time.perf_counter()
    shared = ['--rounds', str(args.rounds), '--seed', str(args.seed), '--device', args.device]
    shared += ['--quick'] if args.quick else []
    shared += ['--photos', str(args.photos)] if args.photos else []
    threads = {'OMP_NUM_THREADS': '1'} if args.device == 'cpu' else {}
    environment = {**os.environ, **threads, 'PYTHONPATH': str(ROOT)}
    with tempfile.TemporaryDirectory(prefix='bench_') as folder:
        file = Path(folder) / 'result.json'
        command = [sys.executable, str(ROOT / 'benchmarks/run.py'), name, *shared, '--into', str(file)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode or not file.is_file():
            print(f'{name}: failed\n{done.stderr[-3000:]}', file=sys.stderr)
            return False
        found = json.loads(file.read_text(encoding='utf-8'))
    found['command'] = shlex.join(['python', 'benchmarks/run.py', name, *shared])
    found['took'] = round(time.perf_counter() - begin)
    data['benchmarks'][name] = found
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(data, indent=1) + '\n', encoding='utf-8')
    print(f'{name}: {found["took"]} s')
    for line in page.table(found):
        print(line)
    return True


def _measure(args: argparse.Namespace) -> int:
    import torch

    if args.device == 'cpu':
        torch.set_num_threads(1)
    module = importlib.import_module(f'benchmarks.{args.names[0]}')
    setup = Setup(args.rounds, args.quick, args.device, args.seed, args.photos)
    result: Result = module.run(setup)
    found = {
        'title': module.TITLE,
        'words': module.WORDS,
        'machine': machine(args.device),
        **dataclasses.asdict(result),
    }
    args.into.write_text(json.dumps(found), encoding='utf-8')
    return 0


if __name__ == '__main__':
    sys.exit(main())
