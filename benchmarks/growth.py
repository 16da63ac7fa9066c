"""How time and memory grow: with the side of the picture, the size of a group, the steps of the sampler, the number of processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Callable

import torch

from benchmarks.common import MIB, Result, Series, Setup, in_turn, peak_memory
from benchmarks.generators import forget, load_reward, load_seesr, pictures, write
from finpercep_plugin.algorithms.grpo import FlowGRPO
from finpercep_plugin.algorithms.members import alone
from finpercep_plugin.algorithms.noisy_steps import NoisySteps
from finpercep_plugin.algorithms.refl import ReFL
from finpercep_plugin.cli.tiny.seesr import seesr

TITLE = 'Growth'
WORDS = """Time and memory above the weights of one iteration, forward and backward. *Side*: ReFL with a single sampler step, plain and with `checkpointing` and a `decode_size` of half the side, so what grows is the network, the decoder and the reward; below 256 px a step
costs mostly calls. *Group* and *steps*: GRPO, in batches of 2; memory grows by the stored latents alone. *Processes*: a group of 8 shared by gloo processes with their gradients averaged, seconds that passed."""

Work = Callable[[], Any]


def run(setup: Setup) -> Result:
    """The lines of four plots."""
    sides = [64, 128] if setup.quick else [128, 192, 256, 384]
    groups = [2, 4] if setup.quick else [2, 4, 8]
    steps = [4, 6] if setup.quick else [4, 8, 16]
    counts = [1, 2]
    with tempfile.TemporaryDirectory(prefix='bench_growth_') as name:
        folder = Path(name)
        files = {**write(folder, setup), **_small(folder / 'small', setup)}
        reward = load_reward(files, setup)
        series = []
        for label, options in (('plain', {}), ('checkpointing, half decoded', {'checkpointing': True})):
            works = [_refl(files, setup, reward, side, **options) for side in sides]
            series += _lines('Side of the picture', label, 'side (px)', sides, works, setup)
        generator = load_seesr(files, setup, checkpointing=False, reference=True)
        works = [_grpo(generator, reward, setup, group, 6) for group in groups]
        series += _lines('Samples of a group', 'GRPO', 'samples', groups, works, setup)
        for label, window in (('all steps', None), ('window of 2', 2)):
            works = [_grpo(generator, reward, setup, 2, count, window) for count in steps]
            series += _lines('Steps of the sampler', label, 'steps', steps, works, setup)
        series += _processes(files, setup, counts)
    return Result([], series, sizes='tiny SeeSR, the reward model of the other benchmarks')


def _small(folder: Path, setup: Setup) -> dict[str, str]:
    """A tiny SeeSR, beside the reward model of the other benchmarks."""
    return seesr(folder, setup.seed)


def _refl(files: dict[str, str], setup: Setup, reward: Any, side: int, checkpointing: bool = False) -> Work:
    generator = load_seesr(files, setup, checkpointing=checkpointing)
    lq, gt = pictures(setup, 1, side)
    algorithm = ReFL(0, 0, steps=1, decode_size=side // 2 if checkpointing else None)

    def work() -> None:
        for encoder in reward.encoders:
            encoder.checkpointing = checkpointing
        (update,) = algorithm.updates(generator, lq, gt, reward, setup.seed, 1, [0], None)
        next(update)[0].backward()
        generator.zero_grad()

    return work


def _grpo(
    generator: Any,
    reward: Any,
    setup: Setup,
    group: int,
    steps: int,
    window: int | None = None,
    after: Work = lambda: None,
) -> Work:
    lq, _ = pictures(setup, 1, 64)
    algorithm = FlowGRPO(group, NoisySteps(window=window), micro_batch=2, guidance=1.0, steps=steps)

    def work() -> None:
        forget(generator)
        for update in algorithm.updates(generator, lq, None, reward, setup.seed, 1, [0], alone):
            for loss, _ in update:
                loss.backward()
        after()
        generator.zero_grad()

    return work


def _lines(plot: str, label: str, x_name: str, x: list[int], works: list[Work], setup: Setup) -> list[Series]:
    """Time, the median over rounds, and memory."""
    named = {str(value): work for value, work in zip(x, works)}
    peaks = [peak_memory(work, setup.device) / MIB for work in works]  # the passes warm up
    seconds = in_turn(named, 1 if setup.quick else max(1, setup.rounds - 1), setup.device, warm=False)
    times = [sorted(values)[len(values) // 2] for values in seconds.values()]
    points = list(map(float, x))
    return [
        Series(plot, label, x_name, 'time (s)', points, times),
        Series(plot, label, x_name, 'memory above the weights (MiB)', points, peaks),
    ]


def _processes(files: dict[str, str], setup: Setup, counts: list[int]) -> list[Series]:
    """Seconds an iteration, and memory of a process, in runs of 1, 2, ... processes."""
    times, peaks = [], []
    for count in counts:
        with tempfile.TemporaryDirectory(prefix='bench_gloo_') as folder:
            running = []
            for rank in range(count):
                job = {
                    'files': files,
                    'setup': [setup.rounds, setup.quick, 'cpu', setup.seed],
                    'rank': rank,
                    'count': count,
                    'meet': f'file://{folder}/meet',
                }
                environment = {**os.environ, 'OMP_NUM_THREADS': '1'}
                command = [sys.executable, '-m', 'benchmarks.growth', json.dumps(job)]
                running.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment))
            told = [json.loads(process.communicate(timeout=300)[0].splitlines()[-1]) for process in running]
        times.append(max(seconds for seconds, _ in told))
        peaks.append(max(peak for _, peak in told))
    points = list(map(float, counts))
    plot, x_name = 'Processes', 'processes, a core each'
    return [
        Series(plot, 'GRPO, group of 8 in all', x_name, 'time (s)', points, times),
        Series(plot, 'GRPO, group of 8 in all', x_name, 'memory above the weights (MiB)', points, peaks),
    ]


def _process(job: dict[str, Any]) -> None:
    """One of the processes: its part of the group, gradients averaged; prints [seconds, MiB]."""
    import torch.distributed as dist

    torch.set_num_threads(1)
    rounds, quick, device, seed = job['setup']
    setup = Setup(rounds, quick, device, seed)
    dist.init_process_group('gloo', init_method=job['meet'], rank=job['rank'], world_size=job['count'])
    generator = load_seesr(job['files'], setup, checkpointing=False, reference=True)
    trained = [p for p in generator.parameters() if p.requires_grad]

    def average() -> None:
        flat = torch.cat([p.grad.flatten() for p in trained if p.grad is not None])
        dist.all_reduce(flat)

    work = _grpo(generator, load_reward(job['files'], setup), setup, 8 // job['count'], 6, after=average)
    work()
    times = []
    for _ in range(max(1, rounds - 1)):
        dist.barrier()
        begin = time.perf_counter()
        work()
        times.append(time.perf_counter() - begin)
    print(json.dumps([sorted(times)[len(times) // 2], peak_memory(work) / MIB]))
    dist.destroy_process_group()


if __name__ == '__main__':
    _process(json.loads(sys.argv[1]))
