"""What the installed plugin adds to the start of every Python process: the time that `site` takes for its start-up files."""

from __future__ import annotations

import compileall
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.common import Result, Setup, figure

TITLE = 'Start of an unrelated Python process'
WORDS = """Fresh processes in turn; each takes the processor time that `site.addpackage`, which is what runs a start-up file, takes for the plugin's .pth, for an empty one, and for one that imports a module beside it (what
the plugin's did before: a finder that is a module). A process that imports nothing, so nothing is warm: the worst case. Nothing else of the plugin runs."""

STARTUP = Path(__file__).parents[1] / 'startup'
EMPTY, MODULE = 'an empty .pth', 'a .pth that imports its module'
_CODE = """
import site, sys, time
sys.path.append(sys.argv[1])
begin = time.process_time_ns()
site.addpackage(sys.argv[1], 'x.pth', None)
print((time.process_time_ns() - begin) / 1000)
"""


def run(setup: Setup) -> Result:
    """Microseconds of the three files; the goal is on the whole of ours, the reading of the file included."""
    rounds = 3 if setup.quick else 50 * setup.rounds
    with tempfile.TemporaryDirectory(prefix='bench_startup_') as name:
        folders = _folders(Path(name))
        times: dict[str, list[float]] = {kind: [] for kind in folders}
        for number in range(rounds + 1):
            for kind, folder in folders.items():
                micro = _once(folder)
                if number:  # the first reads the files from disk
                    times[kind].append(micro)
    ours = times.pop('plugin')
    content = [a - b for a, b in zip(ours, times[EMPTY])]
    module = [a - b for a, b in zip(times[MODULE], times[EMPTY])]
    return Result(
        [
            figure('start-up file, read and run', EMPTY, ours, times[EMPTY], 'us', '<= 100 us'),
            figure(
                'its line alone (less an empty file)',
                'a line that imports a module',
                content,
                module,
                'us',
                '<= 100 us',
            ),
        ],
        sizes=f'{rounds} processes each',
    )


def _folders(root: Path) -> dict[str, Path]:
    folders = {kind: root / str(number) for number, kind in enumerate(('plugin', EMPTY, MODULE))}
    for folder in folders.values():
        folder.mkdir()
    shutil.copy(STARTUP / 'finpercep_plugin.pth', folders['plugin'] / 'x.pth')
    (folders[EMPTY] / 'x.pth').write_text('\n')
    (folders[MODULE] / 'x.pth').write_text(
        "import os; os.environ.get('X') == '0' or __import__('_finpercep_autoload').start()\n"
    )
    for kind in ('plugin', MODULE):
        shutil.copy(STARTUP / '_finpercep_autoload.py', folders[kind])
        compileall.compile_dir(folders[kind], quiet=1)  # as pip does
    return folders


def _once(folder: Path) -> float:
    command = [sys.executable, '-S', '-c', _CODE, str(folder)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True, cwd=folder, timeout=60).stdout)
