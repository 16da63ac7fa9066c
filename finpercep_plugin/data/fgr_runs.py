"""How the blocks of a build are made: in this process, by worker processes, or by workers around devices.

All give the same, in the order of the tasks; at most a bounded number of blocks is ahead of what was taken.
"""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import itertools
import multiprocessing
import os
import queue
import signal
import threading
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from typing import Any, Callable, Iterator, Sequence

from finpercep_plugin.data.fgr_block import BlockMaker
from finpercep_plugin.data.fgr_format import FGRError
from finpercep_plugin.data.fgr_options import BuildOptions, Part
from finpercep_plugin.data.photos import Photo

__all__ = ['Run', 'Task', 'run_here']

Task = tuple[int, Sequence[int]]
"""Number of a block, and the indices of the samples that are wanted of it."""

_THREADS = ('OMP_NUM_THREADS', 'OPENBLAS_NUM_THREADS', 'MKL_NUM_THREADS')

Run = Callable[[Sequence[Photo], BuildOptions], Callable[[Sequence[Task]], Iterator[dict[str, bytes]]]]
"""(photos, options) -> (tasks -> the values of each task by key, in their order).

The first call raises whatever is wrong with the options; the second does the work.
"""


def run_here(photos: Sequence[Photo], options: BuildOptions) -> Callable[[Sequence[Task]], Iterator[dict[str, bytes]]]:
    """A `Run` on this machine, as `options.workers` and `options.devices` say."""
    if options.devices:
        makers = [BlockMaker(photos, options, 'device', device) for device in options.devices]
        cpu = BlockMaker(photos, options, 'cpu')
        return lambda tasks: _staged(makers, cpu, photos, options, tasks)
    maker = BlockMaker(photos, options)
    if options.workers:  # then it was made for its complaints alone
        return lambda tasks: _workers(photos, options, tasks)
    return lambda tasks: (maker(*task) for task in tasks)


def _workers(photos: Sequence[Photo], options: BuildOptions, tasks: Sequence[Task]) -> Iterator[dict[str, bytes]]:
    workers = min(options.workers, max(len(tasks), 1))
    with _processes(photos, options, 'all', workers) as submit:
        yield from _in_order((lambda task=task: submit('__call__', *task) for task in tasks), 3 * workers)


def _staged(
    makers: Sequence[BlockMaker],
    cpu: BlockMaker,
    photos: Sequence[Photo],
    options: BuildOptions,
    tasks: Sequence[Task],
) -> Iterator[dict[str, bytes]]:
    """One thread a device computes what the workers have prepared; they finish it."""
    workers = min(options.workers, max(len(tasks), 1))
    pool = _processes(photos, options, 'cpu', workers) if workers else _thread(cpu)
    with pool as submit, _device_threads(makers) as compute:

        def start(task: Task) -> Future:
            block, wanted = task
            prepared = submit('prepare', block)
            return compute(lambda maker: submit('finish', maker.compute(prepared.result()), wanted))

        started = (lambda task=task: start(task) for task in tasks)
        for finished in _in_order(started, 2 * (workers + len(makers))):
            yield finished.result()


def _in_order(jobs: Iterator[Callable[[], Future]], ahead: int) -> Iterator[Any]:
    """Results of the jobs in their order, started so many ahead."""
    waiting = collections.deque(job() for job in itertools.islice(jobs, ahead))
    while waiting:
        result = waiting.popleft().result()
        waiting.extend(job() for job in itertools.islice(jobs, 1))
        yield result


Submit = Callable[..., Future]
"""(name of a method of a BlockMaker, its arguments) -> its result."""


@contextlib.contextmanager
def _processes(photos: Sequence[Photo], options: BuildOptions, part: Part, workers: int) -> Iterator[Submit]:
    pool = concurrent.futures.ProcessPoolExecutor(
        workers, multiprocessing.get_context('spawn'), _start_worker, (list(photos), options, part)
    )

    def submit(method: str, *args: Any) -> Future:
        with _deaf(), _one_thread_each():
            return pool.submit(_work, method, *args)

    try:
        yield submit
    except BrokenProcessPool as error:
        raise FGRError(
            'a worker process was killed (memory?) or could not start (a script that calls build needs '
            "`if __name__ == '__main__':`); the samples so far are stored, run again to continue"
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


@contextlib.contextmanager
def _one_thread_each() -> Iterator[None]:
    """In processes started inside, numpy and torch keep one thread: as many as there are cores would fight for them."""
    before = {name: os.environ.get(name) for name in _THREADS}
    os.environ.update(dict.fromkeys(_THREADS, '1'))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextlib.contextmanager
def _deaf() -> Iterator[None]:
    """Processes started inside never hear of Ctrl-C, which is for the parent: it ends its workers."""
    if threading.current_thread() is not threading.main_thread():  # which alone may set this
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextlib.contextmanager
def _thread(maker: BlockMaker) -> Iterator[Submit]:
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        try:
            yield lambda method, *args: pool.submit(getattr(maker, method), *args)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


@contextlib.contextmanager
def _device_threads(makers: Sequence[BlockMaker]) -> Iterator[Callable[[Callable[[BlockMaker], Any]], Future]]:
    """Takes functions of a maker, each called in a thread that has one of the makers for itself."""
    free: queue.SimpleQueue[BlockMaker] = queue.SimpleQueue()
    for maker in makers:
        free.put(maker)

    def call(function: Callable[[BlockMaker], Any]) -> Any:
        maker = free.get()
        try:
            return function(maker)
        finally:
            free.put(maker)

    with _one_torch_thread(), concurrent.futures.ThreadPoolExecutor(len(makers)) as pool:
        try:
            yield lambda function: pool.submit(call, function)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


@contextlib.contextmanager
def _one_torch_thread() -> Iterator[None]:
    """Networks set this for themselves, and back, which several threads at once would do in any order."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


_maker: BlockMaker | None = None
"""The maker of a worker process; None elsewhere."""


def _start_worker(photos: list[Photo], options: BuildOptions, part: Part) -> None:
    global _maker
    import cv2

    cv2.setNumThreads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # where the parent was in another thread
    threading.Thread(target=_die_with_parent, daemon=True).start()
    _maker = BlockMaker(photos, options, part)


def _die_with_parent() -> None:
    """A killed parent closes no queue: without this its workers would wait for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _work(method: str, *args: Any) -> Any:
    assert _maker is not None
    return getattr(_maker, method)(*args)
