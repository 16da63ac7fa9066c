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
the plugin's did before: a finder that is a module). *Read and run first*: by a process that has run nothing yet, so that the reader of files and the compiler are paid for too: the worst case. *After another*: as in every environment that has
setuptools, whose own .pth comes before it; what the plugin adds there. Nothing else of the plugin runs."""

STARTUP = Path(__file__).parents[1] / 'startup'
EMPTY, MODULE = 'an empty .pth', 'a .pth that imports its module'
SETUPTOOLS = (
    "import os; os.environ.get('SETUPTOOLS_USE_DISTUTILS', 'local') == 'none' and __import__('_distutils_hack')"
)
_CODE = """
import site, sys, time
sys.path.append(sys.argv[1])
if len(sys.argv) > 2:
    site.addpackage(sys.argv[2], 'x.pth', None)
begin = time.process_time_ns()
site.addpackage(sys.argv[1], 'x.pth', None)
print((time.process_time_ns() - begin) / 1000)
"""


def run(setup: Setup) -> Result:
    """Microseconds of the files; the goal is on the whole of ours, the reading of the file included."""
    rounds = 3 if setup.quick else 50 * setup.rounds
    with tempfile.TemporaryDirectory(prefix='bench_startup_') as name:
        *folders, other = _folders(Path(name)).items()
        kinds = [(kind, folder, before) for before in ((), (other[1],)) for kind, folder in folders]
        times: dict[tuple[str, bool], list[float]] = {(kind, bool(before)): [] for kind, _, before in kinds}
        for number in range(rounds + 1):
            for kind, folder, before in kinds:
                micro = _once(folder, *before)
                if number:  # the first reads the files from disk
                    times[kind, bool(before)].append(micro)
    figures = []
    for after, name in ((True, 'after another start-up file'), (False, 'read and run first')):
        ours = times['plugin', after]
        for peer in (EMPTY, MODULE):
            goal = '<= 100 us' if peer == EMPTY else ''
            figures.append(figure(name, peer, ours, times[peer, after], 'us', goal))
    return Result(figures, sizes=f'{rounds} processes each')


def _folders(root: Path) -> dict[str, Path]:
    folders = {kind: root / str(number) for number, kind in enumerate(('plugin', EMPTY, MODULE, SETUPTOOLS))}
    for folder in folders.values():
        folder.mkdir()
    shutil.copy(STARTUP / 'finpercep_plugin.pth', folders['plugin'] / 'x.pth')
    (folders[EMPTY] / 'x.pth').write_text('\n')
    (folders[MODULE] / 'x.pth').write_text(
        "import os; os.environ.get('X') == '0' or __import__('_finpercep_autoload').start()\n"
    )
    (folders[SETUPTOOLS] / 'x.pth').write_text(f'{SETUPTOOLS}\n')
    for kind in ('plugin', MODULE):
        shutil.copy(STARTUP / '_finpercep_autoload.py', folders[kind])
        compileall.compile_dir(folders[kind], quiet=1)  # as pip does
    return folders


def _once(folder: Path, *before: Path) -> float:
    command = [sys.executable, '-S', '-c', _CODE, str(folder), *map(str, before)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True, cwd=folder, timeout=60).stdout)
