"""Ready sr pictures of whole photos as a producer."""

from __future__ import annotations

import hashlib
from pathlib import Path, PurePosixPath
from typing import Any, Sequence

import numpy as np

from finpercep_plugin.data.fgr_format import FGRError
from finpercep_plugin.data.photos import Photo, PhotoCache, photo_list, photo_sizes
from finpercep_plugin.data.producers.base import Produced, Request
from finpercep_plugin.registry import PRODUCERS

__all__ = ['FolderProducer']


@PRODUCERS.register('folder')
class FolderProducer:
    """Cuts sr out of pictures that some model made of the whole photos; those without one are left to other producers.

    The picture of photo `a/b.jpg` is the file `a/<name>` with `b` put in for {name}, of any suffix that is read. It has
    the photo's size, or that cut down to a multiple of the scale; lq has that divided by the scale.

    Args:
        sr: folder of the pictures, or an LMDB of them as BasicSR makes it.
        lq: that of the pictures that they were made of, which take the place of the degraded gt; null: sr goes with an
            lq that it was not made of.
        name: of the files in `sr`, without suffix.
        lq_name: of the files in `lq`, without suffix; null: as `name`.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: no pictures in it, or a name without {name}.
    """

    align = True  # boxes fall on whole lq pixels, and end inside a picture that was cut down to a multiple of the scale

    def __init__(self, sr: Path, lq: Path | None = None, name: str = '{name}', lq_name: str | None = None):
        patterns = {'sr': name, 'lq': name if lq_name is None else lq_name}
        for argument, pattern in (('name', name), ('lq_name', patterns['lq'])):
            if '{name}' not in pattern:
                raise ValueError(f"{argument}: expected a pattern such as '{{name}}_x4', got {pattern!r}")
        folders = {'sr': sr} if lq is None else {'sr': sr, 'lq': lq}
        self.patterns = {part: patterns[part] for part in folders}
        self.files: dict[str, dict[str, list[int]]] = {}
        pictures: list[Photo] = []
        for part, folder in folders.items():
            self.files[part] = {}
            for picture in _listed(part, folder):
                self.files[part].setdefault(str(PurePosixPath(picture.name).with_suffix('')), []).append(len(pictures))
                pictures.append(picture)
        self.pictures, self._reasons = PhotoCache(pictures, 1), {}

    @staticmethod
    def identity(sr: Path, lq: Path | None, **_: Any) -> dict[str, str | None]:
        """The folders by their files' names and sizes in bytes, not by where they lie."""
        return {'sr': _digest('sr', sr), 'lq': None if lq is None else _digest('lq', lq)}

    def not_covered(self, photo: str, size: tuple[int, int], scale: int) -> str | None:
        """Why there is no sr of a photo; see `base.not_covered`."""
        if photo not in self._reasons:
            self._reasons[photo] = self._reason(photo, size, scale)
        return self._reasons[photo]

    def __call__(self, requests: Sequence[Request], scale: int) -> list[Produced]:
        """The boxes, which must start at multiples of the scale.

        Raises:
            ValueError: a photo that is not covered.
        """
        return [self._cut(request, scale) for request in requests]

    def _cut(self, request: Request, scale: int) -> Produced:
        parts, record = {}, {}
        for part, unit in (('sr', 1), ('lq', scale)):
            if part in self.files:
                name, picture = self._picture(part, request.photo)
                if isinstance(picture, str):
                    raise ValueError(f'{request.photo}: {picture}')
                x, y, side = (value // unit for value in request.box)
                parts[part], record[part] = np.ascontiguousarray(picture[y : y + side, x : x + side]), name
        return Produced(parts['sr'], record, parts.get('lq'))

    def _reason(self, photo: str, size: tuple[int, int], scale: int) -> str | None:
        units = [length // scale for length in size]
        whole = tuple(unit * scale for unit in units)
        fitting = {'sr': {whole, tuple(size)}, 'lq': {tuple(units)}}
        for part in self.files:
            name, picture = self._picture(part, photo)
            if isinstance(picture, str):
                return picture
            if picture.shape[:2] not in fitting[part]:
                wanted = ' or '.join(f'{width}x{height}' for height, width in sorted(fitting[part]))
                return f'{part} {name}: {picture.shape[1]}x{picture.shape[0]} pixels, expected {wanted}'
        return None

    def _picture(self, part: str, photo: str) -> tuple[str, np.ndarray | str]:
        """A picture's name and itself, or the reason why it cannot be had."""
        path = PurePosixPath(photo)
        name = str(path.parent / self.patterns[part].replace('{name}', path.stem))
        found = self.files[part].get(name, [])
        if len(found) != 1:
            names = ', '.join(self.pictures.photos[number].name for number in found)
            return name, f'{part} {name}: ' + (f'several files, {names}' if found else 'no such file')
        picture = self.pictures.get(found[0])
        name = self.pictures.photos[found[0]].name
        return name, f'{part} {name}: {picture}' if isinstance(picture, str) else picture


def _listed(part: str, folder: str | Path) -> list[Photo]:
    try:
        return photo_list([folder])
    except FileNotFoundError as error:
        raise FileNotFoundError(f'{part}: no such folder: {folder}') from error
    except FGRError as error:
        raise ValueError(f'{part}: {error}') from error


def _digest(part: str, folder: str | Path) -> str:
    pictures = _listed(part, folder)
    lines = sorted(f'{picture.name}\n{size}\n' for picture, size in zip(pictures, photo_sizes(pictures)))
    return f'{len(pictures)} files sha256:{hashlib.sha256("".join(lines).encode()).hexdigest()[:16]}'
