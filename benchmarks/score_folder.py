"""finpercep-score against pyiqa's command line, on the same crops."""

from __future__ import annotations

import tempfile
from pathlib import Path

from benchmarks.common import Result, Setup, figure, find_photos
from finpercep_plugin.cli.bench_score import (
    METRICS,
    largest_difference,
    make_crops,
    random_rm,
    score_by_plugin,
    score_by_pyiqa,
    timed,
)

TITLE = 'Scoring a folder'
WORDS = """`finpercep-score` against `python -m pyiqa.pyiqa_cmd`, each metric by itself and all of them in one call, whole processes with their start, processor time of one thread. The peer takes one metric a call. The scores must agree to 1e-6.
tools/bench_score.py does the same at other sizes."""


TOGETHER, WITH_RM = 'all of them in one call', 'all of them and a small FinPercep-RM in one call'


def run(setup: Setup) -> Result:
    """Processor seconds; how many times as fast.

    Raises:
        ValueError: the scores differ.
    """
    count, side = (2, 64) if setup.quick else (200, 256)
    metrics = METRICS[:1] if setup.quick else METRICS
    rounds = 1 if setup.quick else max(1, setup.rounds - 1)
    ours: dict[str, list[float]] = {m: [] for m in (*metrics, TOGETHER, WITH_RM)}
    theirs: dict[str, list[float]] = {m: [] for m in metrics}
    with tempfile.TemporaryDirectory(prefix='bench_score_') as name:
        folder = Path(name)
        make_crops(find_photos(setup), folder, count, side, setup.seed)
        rm = random_rm(folder / 'rm_2.pth')
        for _ in range(rounds):
            for metric in metrics:
                peer, (_, seconds) = timed(lambda: score_by_pyiqa(metric, folder, 1))  # noqa: B023
                theirs[metric].append(seconds)
                own, (_, seconds) = timed(lambda: score_by_plugin(folder, 1, [metric]))  # noqa: B023
                ours[metric].append(seconds)
                if largest_difference(own[metric], peer) > 1e-6:
                    raise ValueError(f'{metric}: the scores differ by {largest_difference(own[metric], peer):g}')
            ours[TOGETHER].append(timed(lambda: score_by_plugin(folder, 1, metrics))[1][1])
            ours[WITH_RM].append(timed(lambda: score_by_plugin(folder, 1, metrics, rm))[1][1])
    figures = [
        figure(f'{m}, times as fast', f'pyiqa {m}', ours[m], theirs[m], goal='>= 2', faster=True) for m in metrics
    ]
    together = [sum(seconds) for seconds in zip(*theirs.values())]
    peer = 'pyiqa, one after the other'
    figures += [
        figure(f'{name}, times as fast', peer, ours[name], together, goal=goal, faster=True)
        for name, goal in ((TOGETHER, '>= 2'), (WITH_RM, ''))
    ]
    return Result(figures, sizes=f'{count} crops of {side} px, {rounds} rounds')
