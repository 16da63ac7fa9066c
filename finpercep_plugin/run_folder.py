"""A folder of pictures made with certain settings, to which a later run adds what is missing.

The settings are in `run.json`. Every picture carries a mark of these and of what it was made from, so that one is made
again when either has changed, whatever was killed when.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any, Iterable, Iterator, Mapping

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

__all__ = ['RunFolder', 'digest']

_WEIGHTS = ('.safetensors', '.bin', '.pth', '.pt', '.ckpt', '.pkl', '.json')
_END = b'\0\0\0\0IEND\xaeB`\x82'
_KEY = 'finpercep'


def digest(path: Path) -> str:
    """A hash of a file's content, or of the names and contents of a folder's weight files.

    Raises:
        OSError: it cannot be read.
    """
    total = hashlib.blake2b(digest_size=16)
    files = [path] if not path.is_dir() else sorted(f for f in path.rglob('*') if f.suffix in _WEIGHTS and f.is_file())
    for file in files:
        total.update(b'' if file is path else f'\0{file.relative_to(path).as_posix()}\0'.encode())
        with file.open('rb') as stream:
            while block := stream.read(1 << 22):
                total.update(block)
    return total.hexdigest()


class RunFolder:
    """Where a run's pictures go.

    Args:
        path: the folder.
        settings: all that decides what a picture of a given input looks like; plain values.
        notes: more for `run.json`, which is not compared.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any], notes: Mapping[str, Any]):
        self.path, self.file = path, path / 'run.json'
        self.settings = json.loads(json.dumps(settings, default=str))
        self.notes = dict(notes)
        text = json.dumps(self.settings, sort_keys=True)
        self._key = hashlib.blake2b(text.encode(), digest_size=8).hexdigest()

    def mark(self, *inputs: str) -> str:
        """What a picture made with these settings from these inputs carries."""
        text = '\0'.join(inputs)
        return f'{self._key}-{hashlib.blake2b(text.encode(), digest_size=8).hexdigest()}'

    def check(self, targets: Iterable[Path]) -> None:
        """
        Args:
            targets: files that the run will write.

        Raises:
            ValueError: the folder is of other settings, all of which are named, or holds such files and no `run.json`.
        """
        if not self.file.exists():
            foreign = next((t for t in targets if t.exists() and self._key not in _mark_of(t)), None)
            if foreign is not None:
                raise ValueError(f'{foreign} is there, and was not made by this tool with these settings')
            return
        try:
            there = json.loads(self.file.read_text(encoding='utf-8'))['settings']
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(f'{self.file} is not readable as settings: {error}') from error
        before, now = dict(_flat(there)), dict(_flat(self.settings))
        lines = [
            f'{key}: {_shown(before, key)} there, {_shown(now, key)} now'
            for key in {**before, **now}
            if _shown(before, key) != _shown(now, key)
        ]
        if lines and any(_mark_of(file) for file in self.path.rglob('*.png')):
            raise ValueError(f'{self.path} holds pictures of other settings:\n  ' + '\n  '.join(lines))

    def start(self) -> None:
        """Write `run.json`, whole or not at all, unless it is there; processes of one run write the same.

        Raises:
            OSError: it cannot be written.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        text = json.dumps({**self.notes, 'settings': self.settings}, indent=1, ensure_ascii=False) + '\n'
        if self.file.exists() and self.file.read_text(encoding='utf-8') == text:
            return
        partial = self.path / f'.run.json.{os.getpid()}.part'
        partial.write_text(text, encoding='utf-8')
        os.replace(partial, self.file)

    def has(self, target: Path, mark: str) -> bool:
        """Whether that picture is there, to its end, and carries the mark."""
        return mark == _mark_of(target)

    def write(self, target: Path, image: np.ndarray, mark: str) -> None:
        """Write (H, W, 3) uint8 as PNG with its mark, whole or not at all, on disk before it has its name.

        Raises:
            OSError: it cannot be written.
        """
        target.parent.mkdir(parents=True, exist_ok=True)
        info, partial = PngInfo(), target.with_name(f'.{target.name}.part')
        info.add_text(_KEY, mark)
        try:
            with partial.open('wb') as stream:
                Image.fromarray(image).save(stream, format='PNG', pnginfo=info)
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(partial, target)
        except OSError:
            partial.unlink(missing_ok=True)
            raise

    def write_failures(self, name: str, failures: Mapping[str, str]) -> None:
        """`{picture: why it was not made}` into the file of that name, which is removed where there are none."""
        if failures:
            rows = [{'image': image, 'error': error} for image, error in failures.items()]
            (self.path / name).write_text(json.dumps(rows, indent=1, ensure_ascii=False) + '\n', encoding='utf-8')
        else:
            (self.path / name).unlink(missing_ok=True)


def _mark_of(target: Path) -> str:
    """The mark in a PNG that ends as one should; '' without. The chunk stands right behind the header's 33 bytes."""
    try:
        with target.open('rb') as stream:
            head = stream.read(33 + 8 + len(_KEY) + 1 + 33)
            stream.seek(-len(_END), os.SEEK_END)
            whole = stream.read() == _END
    except OSError:
        return ''
    _, found, rest = head.partition(b'tEXt' + _KEY.encode() + b'\0')
    return rest[:33].decode('latin-1') if whole and found else ''


def _flat(value: Any, path: str = '') -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for key, item in value.items():
            yield from _flat(item, f'{path}.{key}' if path else str(key))
    else:
        yield path, value


def _shown(values: Mapping[str, Any], key: str) -> str:
    return json.dumps(values[key], ensure_ascii=False) if key in values else 'nothing'
