"""Photos: where they lie (folders, files, lists, LMDBs), their names, and decoded ones at hand."""

from __future__ import annotations

import collections
import dataclasses
import io
import os
import re
from pathlib import Path
from typing import Iterator, NamedTuple, Sequence

import numpy as np

from finpercep_plugin.data.fgr_format import FGRError
from finpercep_plugin.data.lmdb_io import MissingKeyError, Reader, exists
from finpercep_plugin.images import ImageError, list_images, read_image

__all__ = ['MetaInfo', 'Photo', 'PhotoCache', 'Source', 'photo_list', 'photo_sizes']

_CACHED_BYTES = 192 << 20
_LINE = re.compile(r'^(.+?)(?:, .*| \(\d+, ?\d+(?:, ?\d+)?\).*)?$')
"""A line of BasicSR's meta info: a path, and perhaps `, another path` or ` (h,w,c) compression level`."""


@dataclasses.dataclass(frozen=True)
class MetaInfo:
    """Photos listed in a text file, one path a line, as in BasicSR.

    Attributes:
        meta_info: the file.
        root: folder that the paths start from; None for the file's own.
    """

    meta_info: str
    root: str | None = None


Source = str | Path | MetaInfo
"""A folder, searched recursively; an image file; a .txt file of paths; an LMDB of pictures in BasicSR's layout."""


class Photo(NamedTuple):
    """A photo that may or may not be readable.

    Attributes:
        name: relative to the folder that all sources have in common, with / between folders.
        path: of the file; in an LMDB its folder and the name of the file that it was made from.
        key: in the LMDB; None for a file.
    """

    name: str
    path: str
    key: str | None = None

    def read(self) -> np.ndarray:
        """(H, W, 3) uint8 RGB.

        Raises:
            ImageError: absent, or not a picture.
        """
        if self.key is None:
            return read_image(self.path)
        try:
            data = Reader(self.store).raw(self.key)
        except MissingKeyError:
            raise ImageError(self.path, f'no key {self.key!r} in the LMDB') from None
        return read_image(io.BytesIO(data))

    @property
    def store(self) -> str:
        """The folder of the LMDB."""
        assert self.key is not None
        return self.path[: -len(self.key + Path(self.path).suffix) - 1]


class PhotoCache:
    """Decoded photos, the latest used ones kept, and why others cannot be used.

    Args:
        photos: what can be asked for.
        smallest: the least side in pixels.
    """

    def __init__(self, photos: Sequence[Photo], smallest: int):
        self.photos, self.smallest = photos, smallest
        self._kept: collections.OrderedDict[int, np.ndarray] = collections.OrderedDict()
        self._bad: dict[int, str] = {}

    def get(self, index: int) -> np.ndarray | str:
        """(H, W, 3) uint8, or the reason why there is none."""
        if index in self._bad:
            return self._bad[index]
        if index not in self._kept:
            try:
                self._kept[index] = self._read(index)
            except ImageError as error:
                self._bad[index] = error.reason
                return error.reason
            while len(self._kept) > 1 and sum(p.nbytes for p in self._kept.values()) > _CACHED_BYTES:
                self._kept.popitem(last=False)
        self._kept.move_to_end(index)
        return self._kept[index]

    def _read(self, index: int) -> np.ndarray:
        photo = self.photos[index].read()
        if min(photo.shape[:2]) < self.smallest:
            reason = f'{photo.shape[1]}x{photo.shape[0]} pixels, less than the crop of {self.smallest}'
            raise ImageError(self.photos[index].path, reason)
        return photo


def photo_list(sources: Sequence[Source]) -> list[Photo]:
    """Every photo of `sources`, each once, in their order.

    Raises:
        FGRError: none there, or an LMDB that does not tell what it holds.
        FileNotFoundError: a source that is not there.
    """
    folders, found = [], {}
    for source in sources:
        folder, photos = _expand(source)
        folders.append(folder)
        found.update({path: key for path, key in photos if path not in found})
    if not found:
        raise FGRError(f'no image files in {", ".join(map(str, sources)) or "photos (an empty list)"}')
    root = os.path.commonpath(folders)
    return [Photo(_name(path, root), path, key) for path, key in found.items()]


def _name(path: str, root: str) -> str:
    """Of a photo; bytes that are not UTF-8 are spelt out, since records and meta.json are."""
    return Path(os.path.relpath(path, root)).as_posix().encode('utf-8', 'backslashreplace').decode()


def photo_sizes(photos: Sequence[Photo]) -> list[int]:
    """Bytes of each photo, as its file or in its LMDB; -1 where it is not there."""
    sizes = [_file_size(photo.path) if photo.key is None else -1 for photo in photos]
    stores = collections.defaultdict(list)
    for number, photo in enumerate(photos):
        if photo.key is not None:
            stores[photo.store].append(number)
    for store, numbers in stores.items():
        for number, length in zip(numbers, Reader(store).lengths(str(photos[n].key) for n in numbers)):
            sizes[number] = -1 if length is None else length
    return sizes


def _file_size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return -1


def _expand(source: Source) -> tuple[Path, list[tuple[str, str | None]]]:
    """The folder of a source, and (path, key in an LMDB) of its photos."""
    listed = source if isinstance(source, MetaInfo) else None
    path = Path(listed.meta_info if listed else source).expanduser().absolute()  # type: ignore[arg-type]
    if listed or (path.suffix.lower() == '.txt' and not path.is_dir()):
        root = Path(listed.root).expanduser().absolute() if listed and listed.root else path.parent
        return root, [(str(root / line), None) for line in _lines(path)]
    if path.is_dir() and (exists(path) or path.suffix == '.lmdb'):
        if not Path(path, 'meta_info.txt').is_file():
            raise FGRError(f'{path}: an LMDB without meta_info.txt, which lists the pictures in one made by BasicSR')
        names = _lines(path / 'meta_info.txt')
        return path, [(str(path / name), name.removesuffix(Path(name).suffix)) for name in names]
    return path if path.is_dir() else path.parent, [(str(file), None) for file in list_images([path])]


def _lines(file: Path) -> Iterator[str]:
    if not file.is_file():
        raise FileNotFoundError(f'{file}: no such file or folder')
    try:
        text = file.read_text(encoding='utf-8-sig')
    except UnicodeDecodeError as error:
        raise FGRError(f'{file}: not a text file ({error.reason})') from None
    lines = (line.strip() for line in text.splitlines())
    return (_LINE.sub(r'\1', line) for line in lines if line)
