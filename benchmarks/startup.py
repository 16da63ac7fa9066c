"""What the installed plugin adds to the start of every Python process: the time that its start-up file takes."""

from __future__ import annotations

import compileall
import os
import shutil
import statistics
import subprocess
import tempfile
import time
import venv
from pathlib import Path

from benchmarks.common import Result, Setup, figure

TITLE = 'Start of an unrelated Python process'
WORDS = """`python -c pass` in empty environments, in turn; a round is the median over its processes of what one with a start-up file takes more than one without. Wall time: it is one thread, and `site` runs before anything could
measure it from inside. Peers: a .pth that imports a module of its own, as most do (what the plugin's did before), and the least that puts a finder in place, `sys.audit`, a function in C that answers nothing: what cannot be
had for less."""

STARTUP = Path(__file__).parents[1] / 'startup'
NONE, PLUGIN = 'none', 'plugin'
PEERS = {
    'a .pth that imports its module': "import os; os.environ.get('X') == '0' or __import__('_finpercep_autoload').start()\n",
    'the least finder': 'import sys; sys.meta_path.insert(0, type(sys.implementation)(find_spec=sys.audit))\n',
    'a .pth with `import sys`': 'import sys\n',
}


def run(setup: Setup) -> Result:
    """Microseconds added by the plugin's file, and by the peers'."""
    processes = 3 if setup.quick else 200
    with tempfile.TemporaryDirectory(prefix='bench_startup_') as name:
        pythons = {kind: _environment(Path(name) / str(i), kind) for i, kind in enumerate((NONE, PLUGIN, *PEERS))}
        added: dict[str, list[float]] = {kind: [] for kind in pythons}
        for _ in range(setup.rounds):
            times = {kind: [] for kind in pythons}
            for _ in range(processes):
                for kind, python in pythons.items():
                    times[kind].append(_once(python))
            for kind in pythons:
                added[kind].append(statistics.median(a - b for a, b in zip(times[kind], times[NONE])))
    figures = [
        figure('added to `python -c pass`', peer, added[PLUGIN], added[peer], 'us', '' if number else '<= 100 us')
        for number, peer in enumerate(PEERS)
    ]
    whole = statistics.median(times[NONE])
    return Result(figures, sizes=f'{processes} processes a round of each kind, {whole / 1000:.1f} ms without')


def _environment(folder: Path, kind: str) -> Path:
    """A virtual environment with the start-up file of a kind; its Python."""
    venv.create(folder, symlinks=os.name != 'nt')
    packages = next(folder.glob('[Ll]ib/**/site-packages'))
    if kind != NONE:
        shutil.copy(STARTUP / '_finpercep_autoload.py', packages)
        compileall.compile_dir(packages, quiet=1)  # as pip does
        text = PEERS.get(kind) or (STARTUP / 'finpercep_plugin.pth').read_text(encoding='utf-8')
        (packages / 'x.pth').write_text(text, encoding='utf-8')
    return folder / ('Scripts/python.exe' if os.name == 'nt' else 'bin/python')


def _once(python: Path) -> float:
    """Microseconds of a process."""
    begin = time.perf_counter()
    subprocess.run([python, '-c', 'pass'], check=True)  # a timeout would poll
    return 1e6 * (time.perf_counter() - begin)
