"""How long finpercep-score takes, against pyiqa's command line metric by metric, and whether they agree."""

from __future__ import annotations

import argparse
import ast
import json
import os
import platform
import re
import resource
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Callable, Sequence

import numpy as np
from PIL import Image

from finpercep_plugin.cli.arguments import positive
from finpercep_plugin.images import list_images, read_image, write_png

__all__ = [
    'METRICS',
    'largest_difference',
    'main',
    'make_crops',
    'random_rm',
    'score_by_plugin',
    'score_by_pyiqa',
    'timed',
]

METRICS = ('psnr', 'ssim', 'gmsd', 'piqe')


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog='tools/bench_score.py', description=__doc__)
    parser.add_argument('photos', type=Path, help='folder of photos that crops are cut from')
    parser.add_argument('--rm', type=Path, help='a FinPercep-RM file (default: a small RM_2 with random weights)')
    parser.add_argument('--count', type=positive, default=500, help='crops (default: %(default)s)')
    parser.add_argument('--side', type=positive, default=256, help='of a crop, in pixels (default: %(default)s)')
    parser.add_argument('--seed', type=int, default=0, help='of the crops (default: %(default)s)')
    parser.add_argument('--threads', type=positive, default=os.cpu_count() or 1, help='for both (default: all)')
    parser.add_argument('--json', type=Path, help='write the figures there')
    return parser


def main(argv: list[str] | None = None) -> int:
    """Measure and tell; 1 where the scores do not agree."""
    args = _parser().parse_args(argv)
    with tempfile.TemporaryDirectory(prefix='bench_score_') as name:
        folder = Path(name)
        make_crops(list_images([args.photos]), folder, args.count, args.side, args.seed)
        rm = args.rm or random_rm(folder / 'rm_2.pth')
        times: dict[str, tuple[float, float]] = {}
        theirs = {}
        for metric in METRICS:
            theirs[metric], times[metric] = timed(lambda: score_by_pyiqa(metric, folder, args.threads))  # noqa: B023
            print(f'pyiqa {metric}: {_words(times[metric])}', flush=True)
        ours, own = timed(lambda: score_by_plugin(folder, args.threads, METRICS, rm))
        print(f'finpercep-score, all four and FinPercep-RM: {_words(own)}', flush=True)
    together = tuple(sum(column) for column in zip(*times.values()))
    differences = {m: largest_difference(ours[m], theirs[m]) for m in METRICS}
    figures = {
        'command': shlex.join(['tools/bench_score.py', *(sys.argv[1:] if argv is None else argv)]),
        'machine': f'{platform.platform()}, {os.cpu_count()} cores, Python {platform.python_version()}',
        'crops': f'{args.count} of {args.side} x {args.side}, seed {args.seed}, {args.threads} threads',
        'pyiqa': {metric: _words(one) for metric, one in {**times, 'together': together}.items()},
        'finpercep_score': _words(own),
        'times_faster': round(together[0] / own[0], 2),
        'times_less_processor_time': round(together[1] / own[1], 2),
        'largest_difference': differences,
    }
    text = json.dumps(figures, indent=2)
    print(text)
    if args.json:
        args.json.write_text(text + '\n', encoding='utf-8')
    return 0 if max(differences.values()) <= 1e-6 else 1


def make_crops(photos: Sequence[Path], folder: Path, count: int, side: int, seed: int) -> None:
    """Write `gt/` and `sr/`: crops of photos, and the same reduced four times, enlarged again, and noisy.

    Args:
        photos: taken in turn; those smaller than a crop are left out.
        folder: receives both.
        count: of crops.
        side: of a crop.
        seed: of places and noise.

    Raises:
        ValueError: no photo is large enough.
    """
    rng = np.random.default_rng(seed)
    images = [image for image in map(read_image, photos) if min(image.shape[:2]) >= side]
    if not images:
        raise ValueError(f'none of {len(photos)} photos has sides of {side} or more')
    for number in range(count):
        image = images[number % len(images)]
        top, left = (int(rng.integers(0, size - side + 1)) for size in image.shape[:2])
        gt = image[top : top + side, left : left + side]
        small = Image.fromarray(gt).resize((side // 4, side // 4), Image.Resampling.BICUBIC)
        sr = np.asarray(small.resize((side, side), Image.Resampling.BICUBIC), np.float64) + rng.normal(0, 4, gt.shape)
        write_png(folder / 'gt' / f'{number:04d}.png', gt)
        write_png(folder / 'sr' / f'{number:04d}.png', sr.clip(0, 255).astype(np.uint8))


def random_rm(path: Path) -> Path:
    """Write a small RM_2 with random weights."""
    import torch

    from finpercep_plugin.archs.finpercep_rm_arch import FinPercepRM

    torch.manual_seed(0)
    torch.save(FinPercepRM(stage=2, backbone='small').file(), path)
    return path


def _run(arguments: Sequence[str], threads: int) -> str:
    """Standard output of Python; everything of a process counts, its start too.

    Raises:
        RuntimeError: it failed.
    """
    environment = {**os.environ, 'OMP_NUM_THREADS': str(threads)}
    done = subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f'{shlex.join(arguments)} failed:\n{done.stderr[-2000:]}')
    return done.stdout


def timed(work: Callable[[], Any]) -> tuple[Any, tuple[float, float]]:
    """What it returns, and seconds that passed and that its processes computed."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    result = work()
    passed, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    return result, (passed, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


def _words(times: tuple[float, ...]) -> str:
    return f'{times[0]:.1f} s ({times[1]:.1f} s of processor time)'


def score_by_pyiqa(metric: str, folder: Path, threads: int) -> dict[str, float]:
    """{file name: score} by pyiqa's command line."""
    told = _run(
        ['-m', 'pyiqa.pyiqa_cmd', metric, '-t', str(folder / 'sr'), '-r', str(folder / 'gt'), '--device', 'cpu', '-v'],
        threads,
    )
    plain = re.sub(r'np\.float64\((.*?)\)', r'\1', told[told.index('{') :])
    table = ast.literal_eval(plain)[metric]
    return {Path(name.split(' | ')[0]).name: value for name, value in table.items() if name != 'mean'}


def score_by_plugin(
    folder: Path, threads: int, metrics: Sequence[str], rm: Path | None = None
) -> dict[str, dict[str, float]]:
    """{metric: {file name: score}} by finpercep-score, afresh; with a FinPercep-RM also by that one."""
    out = folder / 'scores.jsonl'
    files = ['--gt', str(folder / 'gt'), '--out', str(out), *(['--rm', str(rm)] if rm else [])]
    options = ['--metrics', *metrics, '--device', 'cpu', '--quiet', '--fresh']
    _run(['-m', 'finpercep_plugin.cli.score', str(folder / 'sr'), *files, *options], threads)
    lines = [json.loads(line) for line in out.read_text(encoding='utf-8').splitlines()]
    return {metric: {line['path']: line['scores'][metric] for line in lines} for metric in metrics}


def largest_difference(ours: dict[str, float], theirs: dict[str, float]) -> float:
    """Largest, relative to values above 1.

    Raises:
        ValueError: other pictures.
    """
    if ours.keys() != theirs.keys():
        raise ValueError(f'{len(ours)} pictures here, {len(theirs)} there')
    return max(abs(ours[name] - theirs[name]) / max(1.0, abs(theirs[name])) for name in ours)


if __name__ == '__main__':
    sys.exit(main())
