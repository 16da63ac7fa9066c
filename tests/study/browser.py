"""A served study and a real Chromium for tests.

Chromium is not a Python package: `apt-get install chromium`, or FINPERCEP_CHROMIUM=/path/to/it.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from finpercep_plugin.study.definition import Secrets
from finpercep_plugin.study.store import FILE

FLAGS = [
    '--no-sandbox',
    '--disable-gpu',
    '--disable-quic',
    '--no-first-run',
    '--disable-background-networking',
    '--disable-component-update',
    '--disable-sync',
]


def chromium() -> dict[str, Any]:
    """Playwright's launch options; the test is skipped where there is no browser."""
    pytest.importorskip('playwright')
    path = os.environ.get('FINPERCEP_CHROMIUM') or shutil.which('chromium') or shutil.which('chromium-browser')
    if not path:
        pytest.skip('no Chromium (apt-get install chromium, or FINPERCEP_CHROMIUM=/path/to/it)')
    return {'executable_path': path, 'args': FLAGS}


def opened(page) -> None:
    """Wait until a question can be answered."""
    page.wait_for_selector('#choose-a:not([disabled])')
    page.wait_for_timeout(400)  # in which a second key answers nothing


class Server:
    """`serve` as a process of its own."""

    def __init__(self, folder: Path):
        self.folder = folder
        with socket.socket() as free:
            free.bind(('127.0.0.1', 0))
            self.port = free.getsockname()[1]
        self.base = f'http://127.0.0.1:{self.port}'
        self.link = f'{self.base}/s/{Secrets.read(folder).study}'
        self.process: subprocess.Popen | None = None

    def __enter__(self) -> Server:
        self.start()
        return self

    def __exit__(self, *_) -> None:
        self.kill()

    def start(self) -> None:
        """Start it and wait until it answers."""
        command = [sys.executable, '-m', 'finpercep_plugin.cli.user_study', 'serve', str(self.folder)]
        command += ['--port', str(self.port), '--rate', '0', '--joins', '0']
        root = str(Path(__file__).resolve().parents[2])
        environment = {**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONPATH': root}
        self.process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
        for _ in range(300):
            try:
                urllib.request.urlopen(self.base, timeout=5).read()
                return
            except OSError:
                assert self.process.poll() is None, 'the server ended'
                time.sleep(0.1)
        raise AssertionError('the server did not answer in 30 s')

    def kill(self) -> None:
        """-9."""
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(10)

    def query(self, sql: str, *values: Any) -> list[tuple]:
        """What stands in the database."""
        with sqlite3.connect(self.folder / FILE, timeout=30) as database:
            return database.execute(sql, values).fetchall()
