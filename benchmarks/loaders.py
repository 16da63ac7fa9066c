"""Reading an FGR set from LMDB against bare decoding of the same bytes, and against BasicSR's own data set."""

from __future__ import annotations

import contextlib
import io
import tempfile
from pathlib import Path

from benchmarks.common import Figure, Result, Setup, figure, find_photos
from finpercep_plugin.cli import build_fgr
from finpercep_plugin.cli.bench_loader import basicsr_rows, fgr_rows, measure

TITLE = 'Reading data'
WORDS = """A freshly built FGR set (classical samples); rows of tools/bench_loader.py, processor time of one thread. Shares of the speed of bare `cv2.imdecode` of the same PNGs, and of BasicSR's `PairedImageDataset` on LMDBs of
the same lq and gt. The peer decodes by `cv2.imdecode`, ours 8-bit PNGs by libspng where it is installed."""

PAIRED = "BasicSR's PairedImageDataset, lq and gt"
OURS = 'FGR, lq and gt, uint8'


def run(setup: Setup) -> Result:
    """Speeds as shares of the peers' speed."""
    count, side = (4, 64) if setup.quick else (60, 256)
    with tempfile.TemporaryDirectory(prefix='bench_loader_') as name:
        folder = Path(name)
        photos = [str(photo) for photo in find_photos(setup)]
        command = ['--photos', *photos, '--out', str(folder / 'set'), '--count', str(count), '--size', str(side)]
        with contextlib.redirect_stdout(io.StringIO()):
            if build_fgr.main([*command, '--seed', str(setup.seed), '--quiet']):
                raise RuntimeError('the FGR set was not built')
        (folder / 'pairs').mkdir()
        rows = [*fgr_rows(str(folder / 'set'), count), *basicsr_rows(str(folder / 'set'), count, folder / 'pairs')]
        measure(rows, 2 * setup.rounds, setup.seed)
    figures: list[Figure] = []
    by_name = {row.name: row for row in rows}
    for row in rows:
        own, bare = zip(*row.seconds)
        goal = '' if row.name == PAIRED else '>= 0.9'
        figures.append(
            figure(f'{row.name}: share of the speed', 'bare cv2.imdecode', own, bare, goal=goal, faster=True)
        )
    if PAIRED in by_name:
        own, peer = ([seconds for seconds, _ in by_name[name].seconds] for name in (OURS, PAIRED))
        figures.append(figure(f'{OURS}: times as fast', PAIRED, own, peer, goal='>= 1.2', faster=True))
    return Result(figures, sizes=f'{count} samples of {side} px, {2 * setup.rounds} rounds')
