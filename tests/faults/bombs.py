"""Pictures of a few bytes that ask for gigabytes."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Callable, NamedTuple

import numpy as np
from PIL import Image

from finpercep_plugin.images import MAX_BYTES


class Bomb(NamedTuple):
    """What it is, the file's name, what makes it, and a part of what is said of it."""

    what: str
    name: str
    make: Callable[[Path], object]
    says: str


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))


def png(width: int, height: int, rows: int, more: bytes = b'') -> bytes:
    """An RGB PNG of that header, so many rows of which are there, black; `more` chunks come before them."""
    packer, row = zlib.compressobj(9), bytes(1 + 3 * width)
    data = b''.join(packer.compress(row) for _ in range(rows)) + packer.flush()
    header = _chunk(b'IHDR', struct.pack('>IIBBBBB', width, height, 8, 2, 0, 0, 0))
    return b'\x89PNG\r\n\x1a\n' + header + more + _chunk(b'IDAT', data) + _chunk(b'IEND', b'')


def _written(content: Callable[[], bytes]) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(content())


def _flat(side: int, mode: str = 'L', **options: object) -> Callable[[Path], object]:
    return lambda path: Image.new(mode, (side, side)).save(path, **options)


def _patched(path: Path, offset_of: bytes, behind: int, size: bytes) -> None:
    """A small picture whose header is made to tell another size."""
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    data = bytearray(path.read_bytes())
    where = data.index(offset_of) + behind
    data[where : where + len(size)] = size
    path.write_bytes(data)


def _tiff(path: Path) -> None:
    """A header of 50,000 x 50,000 whose one strip is missing."""
    Image.new('L', (16, 16)).save(path)
    data = bytearray(path.read_bytes())
    for tag in (256, 257):  # ImageWidth, ImageLength
        where = data.index(struct.pack('<HH', tag, 4)) if struct.pack('<HH', tag, 4) in data else -1
        where = where if where >= 0 else data.index(struct.pack('<HH', tag, 3))
        data[where : where + 12] = struct.pack('<HHII', tag, 4, 1, 50_000)
    path.write_bytes(data)


def _sparse(path: Path) -> None:
    with open(path, 'wb') as file:
        file.truncate(MAX_BYTES + 1)


_LIMIT, _EMPTY, _BROKEN = 'more than the limit of', 'made to exhaust the memory', 'cannot be read as an image'
BOMBS = [
    Bomb('PNG, a header of 100,000 x 100,000', 'header1.png', _written(lambda: png(100_000, 100_000, 1)), _BROKEN),
    Bomb('PNG, a header of 15,000 x 15,000', 'header2.png', _written(lambda: png(15_000, 15_000, 1)), _BROKEN),
    Bomb('PNG, 8000 x 8000 black pixels', 'black.png', _written(lambda: png(8_000, 8_000, 8_000)), _EMPTY),
    Bomb(
        'PNG, a compressed text of 500 MB',
        'text.png',
        _written(lambda: png(16, 16, 16, _chunk(b'zTXt', b'a\0\0' + zlib.compress(bytes(500 << 20), 1)))),
        _BROKEN,
    ),
    Bomb('TIFF, a header of 50,000 x 50,000', 'header3.tif', _tiff, _BROKEN),
    Bomb('TIFF, 8000 x 8000 black pixels', 'black2.tif', _flat(8_000, compression='tiff_adobe_deflate'), _EMPTY),
    Bomb('WebP, 6000 x 6000 black pixels', 'black3.webp', _flat(6_000, lossless=True, quality=0, method=0), _EMPTY),
    Bomb(
        'GIF, a header of 65,535 x 65,535',
        'header4.gif',
        lambda path: _patched(path, b'GIF8', 6, b'\xff\xff\xff\xff'),
        _BROKEN,
    ),
    Bomb('GIF, 8000 x 8000 black pixels', 'black4.gif', _flat(8_000, 'P'), _EMPTY),
    Bomb(
        'JPEG, a header of 65,000 x 65,000',
        'header5.jpg',
        lambda path: _patched(path, b'\xff\xc0', 5, struct.pack('>HH', 65_000, 65_000)),
        _BROKEN,
    ),
    Bomb('a file of 2 GB of which nothing is on disk', 'sparse.png', _sparse, _LIMIT),
]
