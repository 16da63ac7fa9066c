"""What can be told of a single picture, and of many of them together."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import re
from pathlib import Path, PurePath
from typing import Callable, Iterable, Sequence

import numpy as np
from PIL import Image

from finpercep_plugin.data.check.report import Problem, Report
from finpercep_plugin.images import ImageError, check_size, read_image

__all__ = ['BLANK', 'Facts', 'Source', 'add_pictures', 'copies', 'identities', 'look', 'read_file']

BLANK = 2
"""The widest range of grey levels, in any channel, of a picture that counts as one colour."""

_MODES = {
    '1': 'black and white, read as RGB',
    'L': 'grey, read as RGB',
    'LA': 'grey with transparency, laid on white',
    'P': 'a palette, read as RGB',
    'PA': 'a palette with transparency, laid on white',
    'RGBA': 'transparency, laid on white',
    'CMYK': 'CMYK, read as RGB without its profile',
    'YCbCr': 'YCbCr, read as RGB',
    'LAB': 'Lab, read as RGB',
    'HSV': 'HSV, read as RGB',
    'F': 'float values',
}
_SUFFIXES = {
    'JPEG': ('.jpg', '.jpeg', '.jpe', '.jfif'),
    'MPO': ('.jpg', '.jpeg', '.mpo'),
    'PNG': ('.png', '.apng'),
    'TIFF': ('.tif', '.tiff'),
    'WEBP': ('.webp',),
    'BMP': ('.bmp', '.dib'),
    'GIF': ('.gif',),
    'PPM': ('.ppm', '.pgm', '.pbm', '.pnm'),
    'JPEG2000': ('.jp2', '.j2k', '.jpx'),
}
_PNG_DEPTH = 24  # byte of a PNG file that holds its bits a channel

Source = tuple[str, Callable[[], bytes]]
"""The name of a picture and what reads its bytes."""


@dataclasses.dataclass(frozen=True)
class Facts:
    """A picture without its pixels.

    Args:
        name: of the picture, as it is shown.
        size: of the file in bytes.
        digest: of the file; '' where it cannot be read.
        pixels: digest of the decoded picture and its size; '' where it cannot be decoded.
        height, width: as it is shown.
        contrast: the widest range of grey levels, 0 to 255, of its channels.
        colour: of its first pixel.
        remarks: how it is read otherwise than it is stored.
        error: why it cannot be read, else ''.
    """

    name: str
    size: int = 0
    digest: str = ''
    pixels: str = ''
    height: int = 0
    width: int = 0
    contrast: int = 0
    colour: tuple[int, ...] = ()
    remarks: tuple[str, ...] = ()
    error: str = ''


def read_file(path: str | Path) -> bytes:
    """
    Raises:
        OSError: no such file, not one, or not readable.
        ImageError: too large.
    """
    if Path(path).exists() and not Path(path).is_file():
        raise OSError('not a regular file')
    check_size('', Path(path).stat().st_size)
    return Path(path).read_bytes()


def look(source: Source) -> tuple[Facts, np.ndarray | None]:
    """Decode a picture; the facts, and (H, W, 3) uint8 RGB where it can be read."""
    name, read = source
    try:
        data = read()
    except (OSError, ValueError, KeyError) as error:
        reason = getattr(error, 'reason', None) or getattr(error, 'strerror', None) or str(error)
        return Facts(name, error=reason[:1].lower() + reason[1:]), None
    digest = hashlib.sha256(data).hexdigest()
    if not data:
        return Facts(name, 0, digest, error='an empty file'), None
    try:
        picture = read_image(io.BytesIO(data))
    except ImageError as error:
        return Facts(
            name, len(data), digest, error=re.sub(r'<_io\.BytesIO\S* object at \w+>', 'it', error.reason)
        ), None
    except MemoryError:
        return Facts(name, len(data), digest, error='too large for the memory'), None
    height, width = picture.shape[:2]
    pixels = hashlib.sha256(f'{height} {width} '.encode() + picture.tobytes()).hexdigest()
    contrast = int((picture.max((0, 1)).astype(int) - picture.min((0, 1))).max())
    colour = tuple(map(int, picture[0, 0]))
    remarks = tuple(_remarks(name, data))
    return Facts(name, len(data), digest, pixels, height, width, contrast, colour, remarks), picture


def _remarks(name: str, data: bytes) -> Iterable[str]:
    with Image.open(io.BytesIO(data)) as image:
        depth = _bits(image, data)
        if depth > 8:
            yield f'{depth} bits a channel, of which the high byte is taken' if image.mode != 'F' else _MODES['F']
        elif image.mode in _MODES:
            yield _MODES[image.mode]
        if 'transparency' in image.info:
            yield 'a transparent colour, laid on white'
        frames = getattr(image, 'n_frames', 1)
        if frames > 1 and image.format != 'MPO':
            yield f'{frames} frames or pages, of which the first is taken'
        if image.getexif().get(0x0112, 1) not in (0, 1):
            yield 'turned upright as its EXIF orientation says'
        profile = image.info.get('icc_profile') or b''
        if profile and b'sRGB' not in profile and 'sRGB'.encode('utf-16-be') not in profile:
            yield 'a colour profile, which is not applied'
        suffixes = _SUFFIXES.get(image.format or '', ())
        if suffixes and PurePath(name).suffix and PurePath(name).suffix.lower() not in suffixes:
            yield f'{image.format} under the name of another format'


def _bits(image: Image.Image, data: bytes) -> int:
    """Bits a channel of the file."""
    if image.format == 'PNG':
        return data[_PNG_DEPTH]
    if image.format == 'TIFF':
        bits = image.tag_v2.get(258, (1,))  # BitsPerSample
        return max(bits) if isinstance(bits, tuple) else int(bits)
    return 16 if image.mode.startswith('I') else 32 if image.mode == 'F' else 8


def add_pictures(report: Report, pictures: Sequence[Facts], smallest: int = 0) -> None:
    """What is wrong with each picture by itself, and which of them are there twice.

    Args:
        report: findings and photos are added to it.
        pictures: the facts.
        smallest: the least side in pixels.
    """
    for facts in pictures:
        if facts.error:
            report.add(facts.name, 'unreadable', facts.error)
            continue
        if min(facts.height, facts.width) < smallest:
            text = f'{facts.width}x{facts.height} pixels, less than the crop of {smallest}'
            report.add(facts.name, 'small', text)
        if facts.contrast <= BLANK:
            report.add(facts.name, 'blank', _colour(facts.colour))
        for remark in facts.remarks:
            report.add(facts.name, 'converted', remark)
    report.findings += copies(pictures)
    for facts in pictures:
        report.photos.update(dict.fromkeys(identities(facts), facts.name))


def _colour(colour: tuple[int, ...]) -> str:
    names = {(0, 0, 0): 'black', (255, 255, 255): 'white'}
    return f'{names.get(colour, f"the colour {colour}")} all over'


def copies(pictures: Sequence[Facts]) -> list[Problem]:
    """Every picture whose bytes, or whose pixels, another before it has."""
    files: dict[str, str] = {}
    decoded: dict[str, str] = {}
    found = []
    for facts in (f for f in pictures if f.pixels and f.contrast > BLANK):
        if facts.digest in files:
            found.append(Problem(facts.name, 'copy', f'the same file as {files[facts.digest]}'))
        elif facts.pixels in decoded:
            found.append(Problem(facts.name, 'copy', f'the same pixels as {decoded[facts.pixels]}'))
        files.setdefault(facts.digest, facts.name)
        decoded.setdefault(facts.pixels, facts.name)
    return found


def identities(facts: Facts) -> list[str]:
    """What a picture may be known by elsewhere: its pixels, and its name and size in bytes as built sets keep them."""
    if not facts.pixels or facts.contrast <= BLANK:
        return []
    return [f'pixels {facts.pixels}', f'file {PurePath(facts.name).name} {facts.size}']
