"""Which kind of data a path holds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from finpercep_plugin.data import preference_format
from finpercep_plugin.data.check.fgr import check_fgr
from finpercep_plugin.data.check.preferences import check_preferences
from finpercep_plugin.data.check.report import ALONE, Report, Work
from finpercep_plugin.data.lmdb_io import exists

__all__ = ['check_set', 'is_set']


def is_set(path: str | Path) -> bool:
    """Is this the folder of a built set, or of what is left of one?"""
    return Path(path, 'meta.json').exists() or (exists(path) and not Path(path, 'meta_info.txt').exists())


def check_set(path: str | Path, work: Work = ALONE) -> Report:
    """Check an FGR set or a preference set, by what its meta.json says that it is."""
    try:
        meta: Any = json.loads(Path(path, 'meta.json').read_text(encoding='utf-8'))
    except (OSError, ValueError):
        meta = {}
    kind = meta.get('format') if isinstance(meta, dict) else None
    return (check_preferences if kind == preference_format.FORMAT else check_fgr)(path, work)
