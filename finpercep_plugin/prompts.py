"""Texts for pictures, from a file."""

from __future__ import annotations

import json
from pathlib import Path

from finpercep_plugin.images import SUFFIXES

__all__ = ['read_prompts']


def read_prompts(file: str | Path) -> dict[str, str]:
    """{name of a picture without its suffix: its text}.

    Args:
        file: .json, one object of these; else a text file with `name<TAB>text` or `name: text` on each line.

    Raises:
        ValueError: it is neither, or names a picture twice.
    """
    path = Path(file)
    text = path.read_text(encoding='utf-8-sig')
    if path.suffix.lower() == '.json':
        pairs = json.loads(text, object_pairs_hook=list)
        if not isinstance(pairs, list) or not all(isinstance(v, str) and isinstance(k, str) for k, v in pairs):
            raise ValueError(f'{path}: expected one object {{"name": "text"}}')
    else:
        pairs = [_pair(line, path, number) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    prompts: dict[str, str] = {}
    for name, prompt in pairs:
        stem = str(Path(name).with_suffix('')) if Path(name).suffix.lower() in SUFFIXES else name
        if stem in prompts:
            raise ValueError(f'{path}: {stem!r} has two texts')
        prompts[stem] = prompt
    return prompts


def _pair(line: str, path: Path, number: int) -> tuple[str, str]:
    name, separator, text = line.partition('\t' if '\t' in line else ':')
    if not separator or not name.strip():
        raise ValueError(f'{path}:{number}: expected "name<TAB>text" or "name: text", got {line[:60]!r}')
    return name.strip(), text.strip()
