"""A process that has imported what the commands need and forks itself for each of them: it starts them in milliseconds.

    {"module": ..., "argv": [...], "cwd": ..., "log": ..., "path": [...]}   on stdin, a line a command; "exit <status>" on stdout

It has one thread when it forks, which is looked at each time: a library's threads would be missing in the child.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import random
import signal
import sys
import traceback

_DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL)


def _run(command: dict) -> int:
    """In the child: as a process of its own, which has drawn nothing yet."""
    import numpy as np
    import torch

    os.setsid()
    _die_with_parent()
    os.chdir(command['cwd'])
    log = os.open(command['log'], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(log, stream)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    random.seed()
    np.random.seed(int.from_bytes(os.urandom(4), 'little'))
    torch.seed()
    sys.path[:0] = command['path']
    sys.argv[:] = [command['module']]
    try:
        return importlib.import_module(command['module']).main(command['argv'])
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 1
    except BaseException:
        traceback.print_exc()
        return 99


def serve() -> None:
    """Until stdin ends."""
    _die_with_parent()
    for module in sys.argv[1:]:
        importlib.import_module(module)
    print('ready', flush=True)
    for line in sys.stdin:
        tasks = os.listdir('/proc/self/task')
        assert len(tasks) == 1, f'{len(tasks)} threads: cannot be forked'
        command, child = json.loads(line), os.fork()
        if not child:
            code = 99
            try:
                code = _run(command)
                sys.stdout.flush()
            finally:
                os._exit(code)
        print(child, flush=True)
        print('exit', os.waitpid(child, 0)[1], flush=True)


if __name__ == '__main__':
    serve()
