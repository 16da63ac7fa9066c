"""Checks the data that a YAML file names: every section under `datasets:`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Mapping

from finpercep_plugin.config import check_file, collect
from finpercep_plugin.data.check.fgr import photo_identities
from finpercep_plugin.data.check.leaks import compare
from finpercep_plugin.data.check.pairs import Pairs, check_pairs, check_single
from finpercep_plugin.data.check.photos import check_photos
from finpercep_plugin.data.check.report import ALONE, Report, Work
from finpercep_plugin.data.check.sets import check_set
from finpercep_plugin.data.fgr_dataset import split_photos
from finpercep_plugin.data.fgr_format import FGRError, read_meta
from finpercep_plugin.data.shards import folders_of
from finpercep_plugin.plain_yaml import read_yaml
from finpercep_plugin.registry import DATASETS

__all__ = ['check_options']


def check_options(file: str | Path, work: Work = ALONE) -> list[Report]:
    """A report for each section, and one of what they have in common.

    Args:
        file: the YAML file; its paths count from the working directory, as in training.
        work: how to go through the data.

    Raises:
        ValueError: it cannot be read, or has no `datasets:`.
    """
    try:
        options = read_yaml(check_file(file, '-opt', 'the YAML file').read_text(encoding='utf-8'), f'{file}:')
    except UnicodeDecodeError as error:
        raise ValueError(f'{file}: not YAML: {error}') from None
    sections = options.get('datasets') if isinstance(options, Mapping) else None
    if not isinstance(sections, Mapping) or not sections:
        raise ValueError(f'{file}: no section `datasets:`')
    whole = Checker(options.get('scale'), work)
    reports = {name: whole.section(str(name), section) for name, section in sections.items()}
    train = [r for name, r in reports.items() if str(name).split('_')[0] == 'train']
    held_out = [r for name, r in reports.items() if str(name).split('_')[0] in ('val', 'test')]
    return [*reports.values(), *([compare(str(file), train, held_out)] if train and held_out else [])]


class Checker:
    """Checks sections; a set that several of them name is looked at once.

    Args:
        scale: of the YAML file, or None.
        work: how to go through the data.
    """

    def __init__(self, scale: Any, work: Work):
        self.scale, self.work = scale, work
        self._sets: dict[str, Report] = {}

    def section(self, name: str, section: Any) -> Report:
        """The report of one section under `datasets:`."""
        where = f'datasets.{name}'
        if not isinstance(section, Mapping) or not isinstance(section.get('type'), str):
            report = Report(where, 'a section')
            report.add(where, 'options', 'expected a section with `type:`')
            return report
        section = {'phase': name.split('_')[0], **section}
        if self.scale is not None:
            section.setdefault('scale', self.scale)
        report = self._ours(section) if section['type'] in DATASETS.names() else self._basicsr(section)
        report.source = f'{where} ({report.source})'
        return report

    def _ours(self, section: dict[str, Any]) -> Report:
        cls = DATASETS.get(section['type'])
        wrong = collect(lambda: cls(section))
        if section['type'] == 'FinPercepPhotoDataset':
            roots = section.get('dataroot', [])
            report = check_photos([roots] if isinstance(roots, str) else roots, section.get('size', 96), self.work)
        else:
            report = self._built(section)
        for problem in wrong:
            if not any(problem.endswith(finding.text) for finding in report.findings):
                report.add('', 'options', problem)
        return report

    def _built(self, section: dict[str, Any]) -> Report:
        report = Report(str(section.get('dataroot')), 'samples')
        try:
            folders = [
                str(f) for root in (section.get('dataroot', []), section.get('fresh')) if root for f in folders_of(root)
            ]
        except (FGRError, TypeError):
            return report  # the data set itself has said so
        for folder in folders:
            if folder not in self._sets:
                self._sets[folder] = check_set(folder, self.work)
                report.findings += self._sets[folder].findings
            part = self._sets[folder]
            report.what, report.checked = part.what, report.checked + part.checked
            report.photos |= self._photos(folder, part, section)
        return report

    def _photos(self, folder: str, part: Report, section: dict[str, Any]) -> dict[str, str]:
        """Of a set, those that the section reads."""
        side = section.get('photos', 'all')
        if side == 'all' or not part.photos:
            return part.photos
        meta = read_meta(folder)
        names = sorted({meta['photos'][number][0] for number in meta['photo_of']})
        ordered = [name for name, _ in meta['photos'] if name in set(names)]
        try:
            held_out = split_photos(ordered, section.get('val_fraction', 0.2), section.get('val_photos'))
        except FGRError:
            return {}  # the data set itself has said so
        return photo_identities(meta, held_out if side == 'val' else set(ordered) - held_out)

    def _basicsr(self, section: dict[str, Any]) -> Report:
        gt, lq = section.get('dataroot_gt'), section.get('dataroot_lq')
        meta_info = section.get('meta_info_file') or section.get('meta_info')
        size = section.get('gt_size') if section['phase'] == 'train' else None
        single = lq if lq is not None else gt
        if not all(isinstance(v, str) for v in (gt, lq) if v is not None) or single is None or 'num_frame' in section:
            report = Report(section['type'], 'a section')
            report.add('', 'not checked', f'{section["type"]} is not a data set that is known here')
            return report
        if gt is None or lq is None:
            return check_single(single, meta_info, size or 0, self.work)
        template = section.get('filename_tmpl', '{}')
        return check_pairs(Pairs(gt, lq, section.get('scale'), size, template, meta_info), self.work)
