"""Tasks that need one another, in processes of one thread each; one that fails stops only those that need it."""

from __future__ import annotations

import dataclasses
import multiprocessing
import traceback
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Callable, Sequence

__all__ = ['Task', 'run_tasks']


@dataclasses.dataclass(frozen=True)
class Task:
    """Something to do.

    Attributes:
        name: unique.
        needs: names of tasks to be done before; those that are not among the tasks count as done.
    """

    name: str
    needs: tuple[str, ...] = ()


def run_tasks(
    tasks: Sequence[Task],
    work: Callable[[str], None],
    jobs: int,
    announce: Callable[[str], None] = print,
    executor: Callable[[int], Executor] | None = None,
) -> dict[str, str]:
    """Do all tasks, the earlier ones first where there is a choice.

    Args:
        tasks: in the order wanted.
        work: called with a task's name, in another process: it can be pickled.
        jobs: processes.
        announce: called with a line at the beginning and end of a task.
        executor: number of jobs -> what does them; None: processes.

    Returns:
        {task: why it was not done}. Where a process is killed, so are all tasks that were running.

    Raises:
        ValueError: tasks that need each other.
    """
    executor, open_tasks, failed = executor or _processes, {task.name: task for task in tasks}, {}
    running: dict[Future, str] = {}
    pool = executor(jobs)
    try:
        while open_tasks or running:
            _drop(open_tasks, failed, announce)
            ready = [t for t in open_tasks.values() if not set(t.needs) & {*open_tasks, *running.values()}]
            if open_tasks and not ready and not running:
                raise ValueError(f'tasks that need each other: {", ".join(open_tasks)}')
            for task in ready[: jobs - len(running)]:
                announce(f'{task.name}: begun')
                running[pool.submit(work, task.name)] = open_tasks.pop(task.name).name
            ended, _ = wait(running, return_when=FIRST_COMPLETED)
            broken = any(isinstance(future.exception(), BrokenProcessPool) for future in ended)
            for future in list(running) if broken else ended:  # all are lost with the pool
                name, reason = running.pop(future), _reason(future)
                failed |= {name: reason} if reason else {}
                announce(f'{name}: {"failed: " + reason if reason else "done"}')
            if broken:
                pool.shutdown()
                pool = executor(jobs)
    finally:
        pool.shutdown(cancel_futures=True)
    return failed


def _drop(open_tasks: dict[str, Task], failed: dict[str, str], announce: Callable[[str], None]) -> None:
    """Give up what needs a task that failed."""
    while lost := [t for t in open_tasks.values() if set(t.needs) & set(failed)]:
        for task in lost:
            failed[task.name] = f'needs {sorted(set(task.needs) & set(failed))[0]}'
            del open_tasks[task.name]
            announce(f'{task.name}: failed: {failed[task.name]}')


def _reason(future: Future) -> str:
    error = future.exception()
    if error is None:
        return ''
    place = traceback.extract_tb(error.__traceback__)
    where = f' ({place[-1].name})' if place else ''
    return f'{type(error).__name__}: {error}{where}'


def _processes(jobs: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(jobs, multiprocessing.get_context('spawn'), initializer=_single_thread)


def _single_thread() -> None:
    import warnings

    import torch

    warnings.filterwarnings('ignore', category=FutureWarning)
    torch.set_num_threads(1)
