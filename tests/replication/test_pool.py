"""Tasks that need one another: order, failures, jobs."""

import os
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from finpercep_plugin.replication.pool import Task, run_tasks


def run(tasks, work, jobs=2):
    return run_tasks(tasks, work, jobs, announce=lambda line: None, executor=ThreadPoolExecutor)


def test_a_task_waits_for_what_it_needs():
    done = []
    tasks = [Task('cell', ('rm', 'base')), Task('base', ('rm',)), Task('rm', ('made before',))]
    assert run(tasks, done.append) == {}
    assert done == ['rm', 'base', 'cell']


def test_the_earlier_task_goes_first_and_no_more_than_jobs_run():
    lock, running, most, order = threading.Lock(), set(), [0], []

    def work(name):
        with lock:
            running.add(name)
            order.append(name)
            most[0] = max(most[0], len(running))
        threading.Event().wait(0.02)
        with lock:
            running.remove(name)

    run([Task(str(i)) for i in range(6)], work)
    assert most[0] == 2 and order[0] == '0' and set(order[:2]) == {'0', '1'} and set(order[-2:]) <= {'3', '4', '5'}


def test_a_failure_stops_only_what_needs_it():
    done, tasks = [], [Task('bad'), Task('child', ('bad',)), Task('grandchild', ('child',)), Task('good')]

    def work(name):
        if name == 'bad':
            raise RuntimeError('no such thing')
        done.append(name)

    failed = run(tasks, work, jobs=1)
    assert done == ['good']
    assert failed['bad'] == 'RuntimeError: no such thing (work)'
    assert (failed['child'], failed['grandchild']) == ('needs bad', 'needs child')


def test_tasks_that_need_each_other():
    with pytest.raises(ValueError, match='need each other: a, b'):
        run([Task('a', ('b',)), Task('b', ('a',))], print)


@pytest.mark.slow
def test_a_killed_process_is_reported_and_the_rest_is_done(tmp_path):
    failed = run_tasks([Task('kill'), Task(str(tmp_path / 'after'))], _touch_or_die, 1, announce=lambda line: None)
    assert list(failed) == ['kill'] and 'BrokenProcessPool' in failed['kill']
    assert (tmp_path / 'after').exists()


def _touch_or_die(name):
    if name == 'kill':
        os.kill(os.getpid(), 9)
    open(name, 'w').close()
