"""Commands as processes that start at once: the client of `fork_server.py`."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Sequence

_MODULES = ('finpercep_plugin.train', 'finpercep_plugin.models.rl_model', 'finpercep_plugin.cli.score_run')
_MODULES += (
    'finpercep_plugin.cli.score',
    'finpercep_plugin.cli.build_fgr',
    'finpercep_plugin.generators.tiny_diffusion',
)
_MODULES += ('finpercep_plugin.scoring.engine', 'diffusers', 'pyiqa')
_ONE_THREAD = {name: '1' for name in ('OMP_NUM_THREADS', 'OPENBLAS_NUM_THREADS', 'MKL_NUM_THREADS')}
ROOT = Path(__file__).resolve().parents[2]


class Forks:
    """One command at a time, each a forked process.

    Args:
        modules: imported before the first.
    """

    def __init__(self, modules: Sequence[str] = _MODULES):
        paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get('PYTHONPATH')]))
        environment = {**os.environ, **_ONE_THREAD, 'PYTHONPATH': paths}
        command = [sys.executable, '-X', 'faulthandler', str(Path(__file__).with_name('fork_server.py')), *modules]
        pipes = {'stdin': subprocess.PIPE, 'stdout': subprocess.PIPE}
        self._server = subprocess.Popen(command, env=environment, bufsize=0, **pipes)
        self._lines: list[str] = []
        self._partial = b''
        self._running = False
        self.pid = 0
        assert self._line(120) == 'ready'

    def start(self, module: str, *arguments: object, cwd: Path, log: Path, path: Sequence[Path] = ()) -> None:
        """Run `module.main(arguments)` in `cwd`; what it says is added to `log`, `path` comes first in sys.path.

        What a test has left running, cut off by its time limit, is ended first.
        """
        if self._running:
            self._kill()
            self.wait()
        command = {'module': module, 'argv': list(map(str, arguments)), 'cwd': str(cwd), 'log': str(log)}
        self._server.stdin.write(json.dumps({**command, 'path': list(map(str, path))}).encode() + b'\n')
        self.pid = int(self._line(30))
        self._running = True

    def wait(self, seconds: float = 120) -> int:
        """Its exit code, negative for a signal, once it has ended.

        Raises:
            TimeoutError: it runs on.
        """
        status = int(self._line(seconds).split()[1])
        self._running = False
        return os.waitstatus_to_exitcode(status)

    def run(self, module: str, *arguments: object, cwd: Path, log: Path, path: Sequence[Path] = ()) -> float:
        """To its end, which must be exit code 0; the seconds it took."""
        begin = time.monotonic()
        self.start(module, *arguments, cwd=cwd, log=log, path=path)
        assert self.wait() == 0, log.read_text()[-3000:]
        return time.monotonic() - begin

    def kill(self, after: float) -> bool:
        """kill -9 after so many seconds; False if it had ended by itself."""
        try:
            code = self.wait(after)
        except TimeoutError:
            self._kill()
            code = self.wait()
        assert code in (0, -signal.SIGKILL), code
        return code != 0

    def close(self) -> None:
        self._server.kill()  # what it runs dies with it
        self._server.wait(30)
        self._server.stdin.close()
        self._server.stdout.close()

    def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):  # it has ended by itself
            os.killpg(self.pid, signal.SIGKILL)

    def _line(self, seconds: float) -> str:
        deadline = time.monotonic() + seconds
        while b'\n' not in self._partial:
            if not select.select([self._server.stdout], [], [], max(0, deadline - time.monotonic()))[0]:
                raise TimeoutError(f'{seconds} s')
            data = os.read(self._server.stdout.fileno(), 1 << 12)
            assert data, 'the server is gone'
            self._partial += data
        line, _, self._partial = self._partial.partition(b'\n')
        return line.decode()
