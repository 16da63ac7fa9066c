"""Files -> what is scored: read once, hashed, decoded once for all metrics."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import os
import stat
from pathlib import Path

import numpy as np
from PIL import Image

from finpercep_plugin.images import ImageError, check_size, read_image

__all__ = ['Contents', 'header_size']


@dataclasses.dataclass(frozen=True)
class _File:
    digest: str
    data: bytes


class Contents:
    """The files of a few items, each read and decoded once however many items and metrics ask for it."""

    def __init__(self) -> None:
        self._files: dict[Path, _File] = {}
        self._images: dict[Path, np.ndarray] = {}

    def digest(self, path: Path) -> str:
        """SHA-256 of a file.

        Raises:
            ImageError: it cannot be read.
        """
        return self._read(path).digest

    def image(self, path: Path) -> np.ndarray:
        """(H, W, 3) uint8, see `read_image`.

        Raises:
            ImageError: it is no picture.
            MemoryError: it is too large.
        """
        if path not in self._images:
            try:
                self._images[path] = read_image(io.BytesIO(self._read(path).data))
            except ImageError as error:
                raise ImageError(path, error.reason) from error
        return self._images[path]

    def _read(self, path: Path) -> _File:
        if path not in self._files:
            try:
                status = os.stat(path)
                if not stat.S_ISREG(status.st_mode):
                    raise ImageError(path, 'not a regular file')  # opening a pipe would wait for a writer
                check_size(path, status.st_size)
                data = path.read_bytes()
            except FileNotFoundError:
                raise ImageError(path, 'no such file') from None
            except OSError as error:
                reason = ' '.join(str(error).replace(repr(str(path)), 'it').split())
                raise ImageError(path, f'cannot be read as an image ({reason})') from error
            self._files[path] = _File(hashlib.sha256(data).hexdigest(), data)
        return self._files[path]


def header_size(path: Path) -> tuple[int, int]:
    """(width, height) that a picture's header tells; (0, 0) of what cannot be opened.

    Before rotation, so it serves to put pictures of one size together, and no more.
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            return 0, 0
        with Image.open(path) as image:
            return image.size
    except Exception:  # Pillow's decoders raise OSError, ValueError, SyntaxError, struct.error and more
        return 0, 0
