"""Checks folders of photos, as finpercep-build-fgr and FinPercepPhotoDataset read them."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Sequence

from finpercep_plugin.data.check.pictures import add_pictures, look, read_file
from finpercep_plugin.data.check.report import ALONE, Report, Work
from finpercep_plugin.data.lmdb_io import Reader
from finpercep_plugin.data.photos import Photo, Source, photo_list

__all__ = ['check_photos']


def check_photos(sources: Sequence[Source], smallest: int = 0, work: Work = ALONE) -> Report:
    """All that is wrong with the photos of folders, searched recursively, and other sources.

    Args:
        sources: as of a build: folders, files, lists, LMDBs.
        smallest: the side of the crops; smaller photos are a problem.
        work: how to go through them.
    """
    report = Report(', '.join(map(str, sources)), 'photos')
    try:
        photos = photo_list(sources)
    except (OSError, ValueError) as error:
        report.add('', 'unreadable', str(error))
        return report
    items = [(photo.name, functools.partial(_read, photo)) for photo in photos]
    facts = work.over(report.source, lambda item: look(item)[0], items)
    report.checked = len(facts)
    add_pictures(report, facts, smallest)
    for folder in _linked_folders(sources):
        report.add(str(folder), 'not checked', 'a link to a folder, which is not followed; name it as a source')
    return report


def _read(photo: Photo) -> bytes:
    return read_file(photo.path) if photo.key is None else bytes(Reader(photo.store).raw(photo.key))


def _linked_folders(sources: Sequence[Source]) -> list[Path]:
    """Links to folders below the sources: no reader of photos follows them."""
    return [
        Path(parent, name)
        for source in sources
        if isinstance(source, (str, Path))
        for parent, folders, _ in os.walk(Path(source).expanduser())
        for name in sorted(folders)
        if not name.startswith('.') and Path(parent, name).is_symlink()
    ]
