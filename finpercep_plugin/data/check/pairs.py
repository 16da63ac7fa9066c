"""Checks pairs of lq and gt as BasicSR's data sets read them: folders, lists of names (meta_info), LMDB."""

from __future__ import annotations

import dataclasses
import functools
import os
from pathlib import Path
from typing import Sequence

import cv2
import numpy as np
from PIL import Image

from finpercep_plugin.data.check.basicsr_lmdb import lmdb_sources
from finpercep_plugin.data.check.pictures import BLANK, Facts, Source, add_pictures, look, read_file
from finpercep_plugin.data.check.report import ALONE, Problem, Report, Work

__all__ = ['Pairs', 'check_pairs', 'check_single']

_KERNELS = (
    Image.Resampling.NEAREST,
    Image.Resampling.BILINEAR,
    Image.Resampling.BICUBIC,
    Image.Resampling.LANCZOS,
)
_UNLIKE = 0.3
"""Correlation of lq with the reduced gt below which they are not the same picture."""


@dataclasses.dataclass(frozen=True)
class Pairs:
    """Where pairs are, by the keys of BasicSR's PairedImageDataset.

    Args:
        gt, lq: folders, or LMDB folders, whose names end in .lmdb.
        scale: gt size / lq size; None takes that of the first pair.
        gt_size: side of the training crops of gt; None for whole pictures, as in validation, where BasicSR cuts off
            what gt has beyond lq times the scale.
        template: of the name of lq, without suffix, by that of gt.
        meta_info: a file of names, one a line.
    """

    gt: str
    lq: str
    scale: int | None = None
    gt_size: int | None = None
    template: str = '{}'
    meta_info: str | None = None


def check_pairs(pairs: Pairs, work: Work = ALONE) -> Report:
    """All that is wrong with pairs, each picture by itself and the two together."""
    report = Report(f'{pairs.gt} and {pairs.lq}', 'pairs')
    try:
        gt, lq = _sources(pairs.gt, pairs.meta_info, report), _sources(pairs.lq, None, report)
    except (OSError, ValueError) as error:
        report.add('', 'unreadable', str(error))
        return report
    matched = _match(pairs, gt, lq, report)
    if not matched:
        report.add('', 'partner', 'no pair there')
        return report
    scale = pairs.scale or _guess_scale(matched, report)
    looked = work.over(report.source, lambda pair: _look(pair, scale, pairs.gt_size), matched)
    report.checked = len(looked)
    lowest, truth = Report('', ''), Report('', '')
    add_pictures(truth, [a for a, _, _ in looked], pairs.gt_size or 0)
    add_pictures(lowest, [b for _, b, _ in looked])
    for side, part in (('gt', truth), ('lq', lowest)):
        report.findings += [Problem(f'{side} {p.where}', p.kind, p.text) for p in part.findings if _counts(side, p)]
    report.findings += [problem for _, _, found in looked for problem in found]
    report.photos = truth.photos
    return report


def check_single(folder: str, meta_info: str | None = None, smallest: int = 0, work: Work = ALONE) -> Report:
    """A folder or LMDB of one kind of picture, such as lq alone."""
    report = Report(folder, 'pictures')
    try:
        sources = list(_sources(folder, meta_info, report).values())
    except (OSError, ValueError) as error:
        report.add('', 'unreadable', str(error))
        return report
    facts = work.over(report.source, lambda source: look(source)[0], sources)
    report.checked = len(facts)
    add_pictures(report, facts, smallest)
    if not facts:
        report.add('', 'unreadable', 'no file there')
    return report


def _counts(side: str, problem: Problem) -> bool:
    """Blank or equal lq are told of through their gt."""
    return side == 'gt' or problem.kind not in ('blank', 'copy')


def _sources(folder: str, meta_info: str | None, report: Report) -> dict[str, Source]:
    """{name: picture} of what BasicSR would read: every file of the folder that is not hidden, or those listed.

    Raises:
        OSError: the folder or the list cannot be read.
    """
    root = Path(folder).expanduser()
    if folder.rstrip('/').endswith('.lmdb'):
        return lmdb_sources(root, report)
    if meta_info is None:
        names = sorted(e.name for e in os.scandir(root) if not e.name.startswith('.') and (e.is_file() or _broken(e)))
    else:
        lines = Path(meta_info).expanduser().read_text(encoding='utf-8').splitlines()
        names = [line.strip().split(' ')[0] for line in lines]
        for number, name in enumerate(names, 1):
            if not name or name in names[: number - 1]:
                report.add(
                    f'{meta_info}:{number}', 'unreadable', 'an empty line' if not name else f'{name} a second time'
                )
        names = list(dict.fromkeys(filter(None, names)))
    return {name: (name, functools.partial(read_file, root / name)) for name in names}


def _broken(entry: os.DirEntry) -> bool:
    return entry.is_symlink() and not os.path.exists(entry.path)


def _match(pairs: Pairs, gt: dict[str, Source], lq: dict[str, Source], report: Report) -> list[tuple[Source, Source]]:
    """Pairs by name; halves without a partner are reported."""
    matched, used, keys = [], set(), pairs.gt.rstrip('/').endswith('.lmdb')
    for name, source in gt.items():
        stem, suffix = os.path.splitext(os.path.basename(name))
        partner = name if keys else f'{pairs.template.format(stem)}{suffix}'
        if partner in lq:
            matched.append((source, lq[partner]))
            used.add(partner)
        else:
            report.add(f'gt {name}', 'partner', f'no lq called {partner}')
    if pairs.meta_info is None:
        for name in lq.keys() - used:
            report.add(f'lq {name}', 'partner', 'no gt for it')
    report.findings.sort(key=lambda p: p.where)
    return matched


def _guess_scale(matched: Sequence[tuple[Source, Source]], report: Report) -> int:
    for gt, lq in matched:
        (large, _), (small, _) = look(gt), look(lq)
        if large.pixels and small.pixels:
            return max(1, round(large.width / small.width))
    report.add('', 'size', 'the scale cannot be told: no pair can be read')
    return 1


def _look(pair: tuple[Source, Source], scale: int, gt_size: int | None) -> tuple[Facts, Facts, list[Problem]]:
    (truth, gt), (low, lq) = map(look, pair)
    if gt is None or lq is None:
        return truth, low, []
    found, name = [], truth.name
    expected = (low.height * scale, low.width * scale)
    size = f'gt is {truth.width}x{truth.height}, lq {low.width}x{low.height}: not {scale} times'
    beyond = (truth.height - expected[0], truth.width - expected[1])
    if beyond != (0, 0):
        cut = gt_size is None and all(0 <= b < scale for b in beyond)
        text = f'{size}; BasicSR cuts gt to {expected[1]}x{expected[0]}' if cut else size
        found.append(Problem(name, 'converted' if cut else 'size', text))
        if not cut:
            return truth, low, found
    gt = gt[: expected[0], : expected[1]]
    if truth.contrast > BLANK:
        enlarged = _enlarged(gt, lq)
        if enlarged:
            found.append(Problem(name, 'enlarged', enlarged))
        elif (likeness := _likeness(gt, lq)) < _UNLIKE:
            found.append(Problem(name, 'stranger', f'lq is not this picture (correlation {likeness:.2f} with gt)'))
    return truth, low, found


def _enlarged(gt: np.ndarray, lq: np.ndarray) -> str:
    """How gt was made of lq, if it was: within 2 grey levels everywhere."""
    if gt.shape == lq.shape:
        return 'gt and lq are the same picture' if (gt == lq).all() else ''
    size = (gt.shape[1], gt.shape[0])
    for kernel in _KERNELS:
        if np.abs(np.asarray(Image.fromarray(lq).resize(size, kernel)).astype(int) - gt).max() <= 2:
            return f'gt is lq enlarged ({kernel.name.lower()})'
    return ''


def _likeness(gt: np.ndarray, lq: np.ndarray) -> float:
    """Correlation of the grey pictures at the size of lq; 1 where one has hardly any contrast or few pixels."""
    small = cv2.resize(gt, (lq.shape[1], lq.shape[0]), interpolation=cv2.INTER_AREA)
    a, b = (picture.astype(np.float32).mean(-1).ravel() for picture in (small, lq))
    if min(a.std(), b.std()) < 2 or a.size < 16:
        return 1.0
    return float(np.corrcoef(a, b)[0, 1])
