"""The blocks of an FGR build as a Ray Data job (extra `ray`): numbers of blocks -> prepare -> compute -> finish.

The driver writes what comes back, in order, into the same store as a build on one machine, so the set is the same, and
a job that was stopped goes on where it was. Processes of the cluster that die are replaced and their blocks made again.
"""

from __future__ import annotations

import pickle
from typing import Any, Callable, Iterator, Sequence

from finpercep_plugin.data.fgr_block import BlockMaker
from finpercep_plugin.data.fgr_format import FGRError
from finpercep_plugin.data.fgr_options import BuildOptions
from finpercep_plugin.data.fgr_runs import Run, Task
from finpercep_plugin.data.photos import Photo

__all__ = ['on_ray']

_MOST_TASKS = 10000
"""Of one job: blocks are dealt out to so many at most."""


def on_ray(address: str) -> Run:
    """A `Run` on a Ray cluster.

    `options.workers` processes prepare and finish, one a core when 0; with `options.devices`, as many others compute,
    each with a GPU of the cluster to itself. Photos and weights must lie under the same paths on every node.

    Args:
        address: of the cluster; 'local' starts one on this machine for the time being. One that this process is
            connected to already is used as it is.

    Raises:
        ImportError: Ray is not installed.
    """
    try:
        import ray.data  # noqa: F401
    except ImportError as error:
        raise ImportError(f'{error}; Ray comes with: pip install "finpercep_plugin[ray]"', name=error.name) from error

    def run(photos: Sequence[Photo], options: BuildOptions) -> Callable[[Sequence[Task]], Iterator[dict[str, bytes]]]:
        BlockMaker(photos, options, 'cpu' if options.devices else 'all')  # for its complaints, before a cluster starts
        return lambda tasks: _connected(address, list(photos), options, tasks)

    return run


def _connected(
    address: str, photos: list[Photo], options: BuildOptions, tasks: Sequence[Task]
) -> Iterator[dict[str, bytes]]:
    import ray

    own = not ray.is_initialized()
    if own:
        local = {'num_cpus': options.workers or None, 'include_dashboard': False} if address == 'local' else {}
        ray.init(address=address, log_to_driver=False, **local)
    try:
        yield from _blocks(photos, options, tasks)
    except ray.exceptions.RayError as error:
        raise FGRError(f'the Ray job failed: {error}; the samples so far are stored, run again to continue') from error
    finally:
        if own:
            ray.shutdown()


def _blocks(photos: list[Photo], options: BuildOptions, tasks: Sequence[Task]) -> Iterator[dict[str, bytes]]:
    """The values of every task, in order."""
    import ray

    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    workers = options.workers or max(1, int(ray.cluster_resources().get('CPU', 1)))
    rows = [{'block': block, 'wanted': pickle.dumps(list(wanted))} for block, wanted in tasks]
    job = ray.data.from_items(rows, override_num_blocks=min(len(rows), _MOST_TASKS))
    given = {'fn_constructor_args': (photos, options), 'concurrency': (1, workers)}
    if not options.devices:
        job = job.map(_Whole, num_cpus=1, **given)
    else:
        kind = options.devices[0].partition(':')[0]
        job = job.map(_Prepare, num_cpus=0.5, **given)
        job = job.map(
            _Compute,
            fn_constructor_args=(photos, options, kind),
            concurrency=len(options.devices),
            num_gpus=1 if kind == 'cuda' else None,
            num_cpus=0,
        )
        job = job.map(_Finish, num_cpus=0.5, **given)
    for row in job.iter_rows():
        values = pickle.loads(row['made'])
        if isinstance(values, FGRError):
            raise values
        yield values


def _made(function: Callable[[Any], Any], given: Any) -> bytes:
    """What the function makes of it, pickled, or why it cannot, which the driver raises in its turn."""
    try:
        return pickle.dumps(given if isinstance(given, FGRError) else function(given))
    except FGRError as error:
        return pickle.dumps(error)


class _Whole:
    """All three steps, in a process of the cluster."""

    def __init__(self, photos: list[Photo], options: BuildOptions):
        _one_thread()
        self.maker = BlockMaker(photos, options)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        return {'made': _made(lambda wanted: self.maker(int(row['block']), wanted), pickle.loads(row['wanted']))}


class _Prepare:
    def __init__(self, photos: list[Photo], options: BuildOptions):
        _one_thread()
        self.maker = BlockMaker(photos, options, 'cpu')

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        return {'wanted': row['wanted'], 'made': _made(self.maker.prepare, int(row['block']))}


class _Compute:
    def __init__(self, photos: list[Photo], options: BuildOptions, device: str):
        _one_thread()
        self.maker = BlockMaker(photos, options, 'device', device)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        return {'wanted': row['wanted'], 'made': _made(self.maker.compute, pickle.loads(row['made']))}


class _Finish:
    def __init__(self, photos: list[Photo], options: BuildOptions):
        _one_thread()
        self.maker = BlockMaker(photos, options, 'cpu')

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        wanted = pickle.loads(row['wanted'])
        return {'made': _made(lambda samples: self.maker.finish(samples, wanted), pickle.loads(row['made']))}


def _one_thread() -> None:
    """Cores are for processes; networks on a CPU take one thread of themselves."""
    import cv2

    cv2.setNumThreads(1)
