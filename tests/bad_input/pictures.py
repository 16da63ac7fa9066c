"""Picture files of every kind that people have: which of them are read, and what is said of the others."""

import base64
import os
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Callable

import cv2
import numpy as np
from PIL import Image

ARITHMETIC_JPEG = (
    '/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAAYEBQYFBAYGBQYHBwYIChAKCgkJChQODwwQFxQYGBcUFhYaHSUfGhsjHBYWICwgIyYnKSopGR8tMC0o'
    'MCUoKSj/2wBDAQcHBwoIChMKChMoGhYaKCgoKCgoKCgoKCgoKCgoKCgoKCgoKCgoKCgoKCgoKCgoKCgoKCgoKCgoKCgoKCgoKCj/yQARCAAUABgD'
    'ASIAAhEBAxEB/8wACgAQEAUBEBEF/9oADAMBAAIRAxEAPwD/AM0/tgeguebl7I8+XTxkH3LQVB5SEJB7OlpShJK9k+EtARVKviV32F2XL64YKSGL'
    'sUwbBKL+1AmQWQK2pK2Ml7thMtDNZtmWLl1XduZxoP/Z'
)
"""24x20 pixels; Pillow cannot write this kind."""


@dataclass(frozen=True)
class Picture:
    """A file in a folder of pictures.

    Args:
        what: it is, for the table.
        name: of the file; None where it is not to be listed at all.
        make: makes it in the folder.
        read: whether it is to be used as a picture.
    """

    what: str
    name: str | None
    make: Callable[[Path], object]
    read: bool = True


def grain(seed: int, height: int = 20, width: int = 24, channels: int = 3) -> np.ndarray:
    """A picture like no other of another seed, (height, width, channels) uint8."""
    rng = np.random.default_rng(seed)
    field = cv2.resize(rng.uniform(0, 255, (4, 5, channels)).astype(np.float32), (width, height))
    return np.clip(
        field.reshape(height, width, channels) + rng.normal(0, 25, (height, width, channels)), 0, 255
    ).astype(np.uint8)


def image(seed: int, **size: int) -> Image.Image:
    return Image.fromarray(grain(seed, **size))


def saved(picture: Callable[[], Image.Image], name: str, **how) -> Callable[[Path], object]:
    return lambda folder: picture().save(folder / name, **how)


def cut(seed: int, name: str, keep: float) -> Callable[[Path], object]:
    def make(folder: Path) -> None:
        image(seed, height=40, width=48).save(folder / name)
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: int(keep * len(data))])

    return make


def changed(seed: int, name: str, change: Callable[[bytes], bytes], **how) -> Callable[[Path], object]:
    def make(folder: Path) -> None:
        image(seed).save(folder / name, **how)
        (folder / name).write_bytes(change((folder / name).read_bytes()))

    return make


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))


def png(header: tuple, data: bytes) -> bytes:
    body = chunk(b'IHDR', struct.pack('>IIBBBBB', *header)) + chunk(b'IDAT', zlib.compress(data)) + chunk(b'IEND', b'')
    return b'\x89PNG\r\n\x1a\n' + body


def interlaced(folder: Path) -> None:
    """Adam7: seven passes of ever finer grids."""
    pixels, data = grain(33), b''
    for y0, x0, dy, dx in (
        (0, 0, 8, 8),
        (0, 4, 8, 8),
        (4, 0, 8, 4),
        (0, 2, 4, 4),
        (2, 0, 4, 2),
        (0, 1, 2, 2),
        (1, 0, 2, 1),
    ):
        data += b''.join(b'\0' + row.tobytes() for row in pixels[y0::dy, x0::dx])
    (folder / 'interlaced.png').write_bytes(png((24, 20, 8, 2, 0, 0, 1), data))
    assert (np.asarray(Image.open(folder / 'interlaced.png')) == pixels).all()


def bomb(folder: Path) -> None:
    (folder / 'bomb.png').write_bytes(png((30000, 30000, 8, 2, 0, 0, 0), b'\0' * 1000))


def rotated(folder: Path, name: str = 'rotated.jpg') -> None:
    picture = image(18)
    exif = picture.getexif()
    exif[0x0112] = 6
    picture.save(folder / name, exif=exif)


def broken_crc(data: bytes) -> bytes:
    at = data.index(b'IDAT') + 20
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def frames(seed: int) -> list[Image.Image]:
    return [image(seed + n) for n in range(3)]


def animated(seed: int, name: str) -> Callable[[Path], object]:
    def make(folder: Path) -> None:
        first, *rest = frames(seed)
        first.save(folder / name, save_all=True, append_images=rest)

    return make


def floats(name: str, scale: float, broken: bool = False) -> Callable[[Path], object]:
    def make(folder: Path) -> None:
        values = grain(24, channels=1)[..., 0].astype(np.float32) / 255 * scale
        values[3, 3] = np.nan if broken else values[3, 3]
        Image.fromarray(values).save(folder / name)

    return make


def inside(folder: Path) -> None:
    (folder / 'directory.png').mkdir()
    image(47).save(folder / 'directory.png/inside.png')


def copied(source: str, name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes((folder / source).read_bytes())


def linked(target: str, name: str) -> Callable[[Path], object]:
    return lambda folder: os.symlink(target, folder / name)


def linked_folder(folder: Path) -> None:
    elsewhere = folder.parent / 'elsewhere'
    elsewhere.mkdir(exist_ok=True)
    image(50).save(elsewhere / 'beyond.png')
    os.symlink(elsewhere, folder / 'linked')


def text(name: str, content: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(content)


def sixteen(seed: int, name: str, channels: int) -> Callable[[Path], object]:
    return lambda folder: cv2.imwrite(str(folder / name), grain(seed, channels=channels).astype(np.uint16) * 257)


LONG = 'n' * 251 + '.png'

PICTURES = [
    Picture('PNG, 8-bit RGB', 'plain.png', saved(lambda: image(1), 'plain.png')),
    Picture('truncated PNG', 'cut.png', cut(2, 'cut.png', 0.6), read=False),
    Picture('truncated JPEG', 'cut.jpg', cut(3, 'cut.jpg', 0.6), read=False),
    Picture('file of no bytes', 'empty.png', text('empty.png', b''), read=False),
    Picture('text under the name of a picture', 'text.jpg', text('text.jpg', b'not a picture'), read=False),
    Picture('HTML error page saved as a picture', 'page.png', text('page.png', b'<!doctype html><h1>404'), read=False),
    Picture('bytes of zeros, as a crash leaves them', 'zeros.png', text('zeros.png', bytes(4096)), read=False),
    Picture('Git LFS pointer', 'lfs.png', text('lfs.png', b'version https://git-lfs.github.com/spec/v1\n'), read=False),
    Picture('JPEG called .png', 'jpeg.png', saved(lambda: image(8), 'jpeg.png', format='JPEG')),
    Picture('PNG with a wrong checksum', 'crc.png', changed(9, 'crc.png', broken_crc), read=False),
    Picture('garbage behind the end of a PNG', 'tail.png', changed(12, 'tail.png', lambda d: d + b'tail' * 50)),
    Picture('garbage behind the end of a JPEG', 'tail.jpg', changed(13, 'tail.jpg', lambda d: d + b'tail' * 50)),
    Picture('header of 30000x30000 pixels (decompression bomb)', 'bomb.png', bomb, read=False),
    Picture('PNG, 16-bit grey', 'grey16.png', sixteen(4, 'grey16.png', 1)),
    Picture('PNG, 16-bit RGB', 'rgb16.png', sixteen(5, 'rgb16.png', 3)),
    Picture('PNG, 8-bit grey', 'grey.png', saved(lambda: image(14).convert('L'), 'grey.png')),
    Picture('PNG, 1 bit', 'bit.png', saved(lambda: image(15).convert('1'), 'bit.png')),
    Picture('PNG, grey with alpha', 'la.png', saved(lambda: image(16, channels=4).convert('LA'), 'la.png')),
    Picture('PNG, RGBA', 'rgba.png', saved(lambda: image(17, channels=4), 'rgba.png')),
    Picture('PNG with a palette', 'palette.png', saved(lambda: image(19).quantize(16), 'palette.png')),
    Picture(
        'PNG with a palette and a transparent colour',
        'clear.png',
        saved(lambda: image(20).quantize(16), 'clear.png', transparency=3),
    ),
    Picture(
        'RGB PNG with a transparent colour', 'key.png', saved(lambda: image(21), 'key.png', transparency=(1, 2, 3))
    ),
    Picture('interlaced PNG', 'interlaced.png', interlaced),
    Picture('PNG with a colour profile', 'icc.png', saved(lambda: image(22), 'icc.png', icc_profile=b'Adobe RGB' * 9)),
    Picture('JPEG, turned by EXIF', 'rotated.jpg', rotated),
    Picture(
        'JPEG with broken EXIF',
        'exif.jpg',
        saved(lambda: image(23), 'exif.jpg', exif=b'Exif\0\0MM\0*\0\0\0\x08\xff\xff\x01\x12'),
    ),
    Picture('JPEG, CMYK', 'cmyk.jpg', saved(lambda: image(25).convert('CMYK'), 'cmyk.jpg')),
    Picture('JPEG, grey', 'grey.jpg', saved(lambda: image(26).convert('L'), 'grey.jpg')),
    Picture('progressive JPEG', 'progressive.jpg', saved(lambda: image(27), 'progressive.jpg', progressive=True)),
    Picture('JPEG, arithmetic coding', 'arithmetic.jpg', text('arithmetic.jpg', base64.b64decode(ARITHMETIC_JPEG))),
    Picture('animated GIF', 'moving.gif', animated(60, 'moving.gif')),
    Picture('animated WebP', 'moving.webp', animated(63, 'moving.webp')),
    Picture('animated PNG', 'moving.png', animated(66, 'moving.png')),
    Picture('TIFF of several pages', 'pages.tif', animated(69, 'pages.tif')),
    Picture('TIFF, 16-bit grey', 'grey16.tif', sixteen(6, 'grey16.tif', 1)),
    Picture('TIFF, floats in [0, 1]', 'float.tif', floats('float.tif', 1.0)),
    Picture('TIFF, floats up to 255', 'float255.tif', floats('float255.tif', 255.0), read=False),
    Picture('TIFF, floats with NaN', 'nan.tif', floats('nan.tif', 1.0, broken=True), read=False),
    Picture(
        'TIFF, 32-bit integers beyond 16 bits',
        'int32.tif',
        saved(lambda: Image.fromarray(grain(28, channels=1)[..., 0].astype(np.int32) << 16), 'int32.tif'),
        read=False,
    ),
    Picture('picture of 1x1 pixel', 'dot.png', saved(lambda: image(29, height=1, width=1), 'dot.png')),
    Picture('odd sides, 23x17', 'odd.png', saved(lambda: image(30, height=17, width=23), 'odd.png')),
    Picture('one side less than the crop', 'thin.png', saved(lambda: image(31, height=9, width=40), 'thin.png')),
    Picture('black all over', 'black.png', saved(lambda: Image.new('RGB', (24, 20)), 'black.png')),
    Picture('the same file again', 'plain_copy.png', copied('plain.png', 'plain_copy.png')),
    Picture('the same pixels in another format', 'plain_too.bmp', saved(lambda: image(1), 'plain_too.bmp')),
    Picture('name in another script', 'ночь-夜-🌃.png', saved(lambda: image(34), 'ночь-夜-🌃.png')),
    Picture('name of 255 bytes', LONG, saved(lambda: image(35), LONG)),
    Picture('spaces and quotes in the name', 'a "b" \'c\', d.png', saved(lambda: image(36), 'a "b" \'c\', d.png')),
    Picture('line break in the name', 'two\nlines.png', saved(lambda: image(37), 'two\nlines.png')),
    Picture('name that is not UTF-8', 'latin\udce9.png', saved(lambda: image(38), 'latin\udce9.png')),
    Picture('name in capitals', 'UPPER.PNG', saved(lambda: image(39), 'UPPER.PNG')),
    Picture('leading dash in the name', '-rf.png', saved(lambda: image(40), '-rf.png')),
    Picture('link to a picture', 'link.png', linked('../outside.png', 'link.png')),
    Picture('link to nothing', 'dangling.png', linked('nowhere.png', 'dangling.png'), read=False),
    Picture('link to itself', 'loop.png', linked('loop.png', 'loop.png'), read=False),
    Picture('folder called x.png, with a picture', 'directory.png/inside.png', inside),
    Picture('named pipe', 'pipe.png', lambda folder: os.mkfifo(folder / 'pipe.png'), read=False),
    Picture('file that the disk fails to give', 'failing.png', linked('/proc/self/mem', 'failing.png'), read=False),
    Picture('hidden picture', None, saved(lambda: image(41), '.hidden.png')),
    Picture('what macOS leaves (._x.png)', None, text('._plain.png', b'\0\x05\x16\x07')),
    Picture('Thumbs.db, notes.txt', None, text('Thumbs.db', b'\0')),
    Picture('picture without a suffix', None, saved(lambda: image(42), 'plain', format='PNG')),
    Picture('link to a folder', None, linked_folder),
]


def write_all(folder: Path) -> None:
    """All of them in `folder`, and what their links lead to beside it."""
    folder.mkdir()
    image(43).save(folder.parent / 'outside.png')
    for picture in PICTURES:
        picture.make(folder)
