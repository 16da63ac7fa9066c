"""Pictures in files -> uint8 RGB arrays, whatever the camera, editor or SR repo that wrote them."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import BinaryIO, Iterable, Sequence

import numpy as np
from PIL import Image, ImageOps

__all__ = ['MAX_BYTES', 'MAX_PIXELS', 'SUFFIXES', 'ImageError', 'check_size', 'list_images', 'read_image', 'write_png']

SUFFIXES = frozenset(
    {'.png', '.jpg', '.jpeg', '.jpe', '.bmp', '.webp', '.tif', '.tiff', '.ppm', '.pgm', '.gif', '.jp2'}
)

MAX_PIXELS = 178_956_970
"""Of a picture: half a gigabyte as 8-bit RGB. A header may promise any number."""
MAX_BYTES = 2 << 30
"""Of a file: a picture of so many pixels, 16 bits a channel and not compressed, is half of it."""
_ORIENTATION = 0x0112
_SMALL, _LEAST_RATE = 16_000_000, 0.01
"""A larger picture takes more bytes a pixel than that, unless it is made to take the memory: photos have 0.1 and more."""


class ImageError(ValueError):
    """A file that cannot be read as a picture.

    Attributes:
        reason: why, without the path; the message has both.
    """

    def __init__(self, path: str | Path | BinaryIO, reason: str):
        self.reason = reason
        super().__init__(f'{path}: {reason}')


def read_image(path: str | Path | BinaryIO) -> np.ndarray:
    """The picture as a viewer shows it: (H, W, 3) uint8 RGB.

    EXIF rotation is applied; grey, palette and CMYK pictures become RGB; transparent pixels are laid on white; of 16-bit files the high byte is
    taken (what Pillow does with 16-bit RGB); float files hold [0, 1]; of animations and multi-page files the first frame. Colour profiles are not
    applied, as in training.

    Args:
        path: the file, or its content, open for reading.

    Raises:
        ImageError: missing, truncated, not a regular file, not a picture, float values outside [0, 1], or larger than
            `check_size` allows.
    """
    try:
        length = _length(path)
        check_size(path, length)
        with Image.open(path) as image:
            check_size(path, length, image.width * image.height)
            image.load()
            turned = image.getexif().get(_ORIENTATION, 1) != 1  # without, it would be copied
            return np.array(_to_rgb(ImageOps.exif_transpose(image) if turned else image), dtype=np.uint8)
    except FileNotFoundError:
        raise ImageError(path, 'no such file') from None
    except (ImageError, MemoryError):
        raise
    except Exception as error:  # Pillow's decoders raise OSError, ValueError, SyntaxError, struct.error and more
        reason = ' '.join(str(error).replace(repr(str(path)), 'it').replace(repr(path), 'it').split())
        raise ImageError(path, f'cannot be read as an image ({reason})') from error


def check_size(path: str | Path | BinaryIO, length: int, pixels: int = 0) -> None:
    """
    Args:
        path: for the message.
        length: of the file in bytes.
        pixels: that its header tells.

    Raises:
        ImageError: it is larger than any picture should be, or holds next to nothing for its size.
    """
    if length > MAX_BYTES:
        raise ImageError(path, f'a file of {length / 1e9:.1f} GB, more than the limit of {MAX_BYTES / 1e9:.1f}')
    if pixels > MAX_PIXELS:
        raise ImageError(path, f'{pixels / 1e6:.0f} megapixels, more than the limit of {MAX_PIXELS / 1e6:.0f}')
    if pixels > _SMALL and length < _LEAST_RATE * pixels:
        raise ImageError(path, f'{pixels / 1e6:.0f} megapixels in {length / 1e6:.2f} MB: made to exhaust the memory')


def _length(path: str | Path | BinaryIO) -> int:
    """Bytes of a regular file, or of what is open."""
    if not isinstance(path, (str, Path)):
        length = path.seek(0, os.SEEK_END)
        path.seek(0)
        return length
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        raise ImageError(path, 'not a regular file')  # opening a pipe would wait for a writer
    return status.st_size


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith('I'):
        values = np.asarray(image).astype(np.int64)
        if values.size and not 0 <= values.min() <= values.max() <= 65535:
            raise ValueError(f'integers from {values.min()} to {values.max()}; expected 8 or 16 bits')
        return Image.fromarray((values >> 8).astype(np.uint8)).convert('RGB')
    if image.mode == 'F':
        values = np.asarray(image)
        if not np.isfinite(values).all() or values.min() < 0 or values.max() > 1:
            raise ValueError(f'float values from {values.min():g} to {values.max():g}; expected [0, 1]')
        return Image.fromarray(np.rint(values * 255).astype(np.uint8)).convert('RGB')
    if image.mode in ('RGBA', 'LA', 'PA', 'RGBa', 'La') or 'transparency' in image.info:
        picture = image.convert('RGBA')
        return Image.alpha_composite(Image.new('RGBA', picture.size, 'white'), picture).convert('RGB')
    return image if image.mode == 'RGB' else image.convert('RGB')


def list_images(sources: Sequence[str | Path], skip: Iterable[str | Path] = ()) -> list[Path]:
    """The image files of folders (recursively, sorted, without hidden files) and the files named one by one, each once.

    Args:
        sources: folders or files; a file named here is taken whatever its suffix.
        skip: folders left out, such as the one that results go to.

    Raises:
        FileNotFoundError: a source that is not there.
        ImageError: a folder that cannot be listed.
    """
    skipped = {Path(s).absolute() for s in skip}
    found: dict[Path, None] = {}
    for source in map(Path, sources):
        if source.is_dir():
            found.update(dict.fromkeys(_walk(source.absolute(), skipped)))
        elif source.exists():
            found[source.absolute()] = None
        else:
            raise FileNotFoundError(f'{source}: no such file or folder')
    return list(found)


def _walk(folder: Path, skipped: set[Path]) -> list[Path]:
    files: list[Path] = []
    for parent, folders, names in os.walk(folder, onerror=_refuse):
        folders[:] = [f for f in folders if not f.startswith('.') and Path(parent, f) not in skipped]
        files += [Path(parent, n) for n in names if not n.startswith('.') and Path(n).suffix.lower() in SUFFIXES]
    return sorted(files, key=lambda f: f.relative_to(folder).parts)


def _refuse(error: OSError) -> None:
    raise ImageError(error.filename, f'cannot be listed ({error.strerror})') from error


def write_png(path: str | Path, image: np.ndarray) -> Path:
    """Write (H, W, 3) or (H, W) uint8 as PNG under a temporary name, then rename; makes the folder."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f'.{path.name}.part')
    Image.fromarray(image).save(partial, format='PNG')
    os.replace(partial, path)
    return path
