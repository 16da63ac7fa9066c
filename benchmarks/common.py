"""What benchmarks share: rounds in turn, time and memory, figures and the goals they are held against."""

from __future__ import annotations

import dataclasses
import platform
import statistics
import time
from pathlib import Path
from typing import Any, Callable, Mapping, Sequence

__all__ = [
    'Figure',
    'Result',
    'Series',
    'Setup',
    'clock',
    'figure',
    'find_photos',
    'in_turn',
    'machine',
    'parameter_bytes',
    'peak_memory',
]

MIB = 2**20


@dataclasses.dataclass(frozen=True)
class Setup:
    """How a benchmark is to run.

    Attributes:
        rounds: repeats, in each of which every row is measured once.
        quick: at sizes that tell only whether it runs.
        device: 'cpu' or 'cuda'.
        seed: of weights and pictures.
        photos: folder of photos; None: those of scikit-image.
    """

    rounds: int = 3
    quick: bool = False
    device: str = 'cpu'
    seed: int = 0
    photos: Path | None = None


@dataclasses.dataclass(frozen=True)
class Figure:
    """A ratio of two medians of one run.

    Attributes:
        name: what was measured.
        peer: what it is measured against.
        unit: of both.
        ours, theirs: medians over the rounds.
        ratio: median over the rounds of the ratio in each; `low` and `high` its extremes.
        goal: '<= 1.10' or '>= 2', of the ratio or, where it says a unit, of `ours`; '' for none.
    """

    name: str
    peer: str
    unit: str
    ours: float
    theirs: float
    ratio: float
    low: float
    high: float
    goal: str = ''

    @property
    def met(self) -> bool | None:
        """Whether the goal is met; None without one.

        >>> Figure('a', 'b', 's', 1.0, 2.0, 0.5, 0.4, 0.6, '<= 0.8').met, Figure('a', 'b', 'us', 90, 1, 90, 1, 99, '<= 80 us').met
        (True, False)
        """
        if not self.goal:
            return None
        sign, limit, *unit = self.goal.split()
        value = self.ours if unit else self.ratio
        return value <= float(limit) if sign == '<=' else value >= float(limit)


@dataclasses.dataclass(frozen=True)
class Series:
    """A line of a plot.

    Attributes:
        plot: the picture that it is in.
        name: of the line.
        x_name, y_name: with units.
        x, y: points.
    """

    plot: str
    name: str
    x_name: str
    y_name: str
    x: list[float]
    y: list[float]


@dataclasses.dataclass(frozen=True)
class Result:
    """Of a benchmark: figures, lines of plots, and what has to be known of the sizes."""

    figures: list[Figure]
    series: list[Series] = dataclasses.field(default_factory=list)
    sizes: str = ''


def figure(
    name: str,
    peer: str,
    ours: Sequence[float],
    theirs: Sequence[float],
    unit: str = 's',
    goal: str = '',
    faster: bool = False,
) -> Figure:
    """A figure of what each round measured.

    Args:
        name, peer, unit, goal: see `Figure`.
        ours, theirs: a value a round, in its order.
        faster: the ratio is theirs / ours: how many times as fast.
    """
    pairs = list(zip(ours, theirs))
    ratios = [b / a if faster else a / b for a, b in pairs]
    middle = statistics.median
    return Figure(name, peer, unit, middle(ours), middle(theirs), middle(ratios), min(ratios), max(ratios), goal)


def clock(device: str) -> float:
    """Seconds: on a CPU those that this process computed, so that other work on the machine counts little."""
    if device == 'cpu':
        return time.process_time()
    import torch

    torch.cuda.synchronize()
    return time.perf_counter()


def in_turn(
    works: Mapping[str, Callable[[], Any]], rounds: int, device: str = 'cpu', warm: bool = True
) -> dict[str, list[float]]:
    """Seconds of each work in each round; every round goes through all of them, every other one backwards.

    Args:
        works: by name.
        rounds: of each.
        device: see `clock`.
        warm: one round more, the first, does not count.
    """
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for number in range(0 if warm else 1, rounds + 1):
        names = list(works) if number % 2 else list(works)[::-1]
        for name in names:
            begin = clock(device)
            works[name]()
            if number:
                seconds[name].append(clock(device) - begin)
    return seconds


def peak_memory(work: Callable[[], Any], device: str = 'cpu') -> int:
    """Bytes that torch's allocator held at the worst moment of `work`, above what it held before; exact on either device.

    On a CPU these are summed up from the profiler's record of every allocation and release, which leaves out the scratch
    space of the libraries below.
    """
    import torch

    if device != 'cpu':
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        work()
    events = [event for event in record.profiler.kineto_results.events() if event.name() == '[memory]']
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def parameter_bytes(*modules: Any) -> int:
    """Of the parameters and buffers of modules, each tensor once."""
    tensors = {t.data_ptr(): t for module in modules for t in [*module.parameters(), *module.buffers()]}
    return sum(t.numel() * t.element_size() for t in tensors.values())


def find_photos(setup: Setup) -> list[Path]:
    """Photos to cut crops from.

    Raises:
        FileNotFoundError: none were given, and scikit-image is not installed.
    """
    from finpercep_plugin.images import list_images
    from finpercep_plugin.quickstart.photos import find_photos as shipped

    return list_images([setup.photos]) if setup.photos else [*shipped()[0], *shipped()[1]]


def machine(device: str = 'cpu') -> str:
    """Processor, system, load and versions, in a line."""
    import os
    from importlib import metadata

    import torch

    try:
        lines = Path('/proc/cpuinfo').read_text(encoding='utf-8').splitlines()
        name = next(line.partition(':')[2].strip() for line in lines if line.startswith('model name'))
    except (OSError, StopIteration):
        name = platform.processor() or platform.machine()
    if device != 'cpu':
        name = f'{torch.cuda.get_device_name()}, {name}'
    packages = (
        'torch',
        'diffusers',
        'open_clip_torch',
        'transformers',
        'pyiqa',
        'opencv-python',
        'opencv-python-headless',
        'basicsr',
    )
    versions = [f'{p} {v}' for p in packages for v in [_version(metadata, p)] if v]
    load = f', load {os.getloadavg()[0]:.1f}' if hasattr(os, 'getloadavg') else ''
    return f'{name}, {os.cpu_count()} cores{load}, {platform.system()}, Python {platform.python_version()}, {", ".join(versions)}'


def _version(metadata: Any, package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
