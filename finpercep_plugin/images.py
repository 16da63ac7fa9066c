"""Pictures in files -> uint8 RGB arrays, whatever the camera, editor or SR repo that wrote them."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import BinaryIO, Iterable, Sequence

import numpy as np
from PIL import Image, ImageOps

__all__ = ['SUFFIXES', 'ImageError', 'list_images', 'read_image', 'write_png']

SUFFIXES = frozenset(
    {'.png', '.jpg', '.jpeg', '.jpe', '.bmp', '.webp', '.tif', '.tiff', '.ppm', '.pgm', '.gif', '.jp2'}
)


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
        ImageError: missing, truncated, not a regular file, not a picture, float values outside [0, 1], or over Pillow's
            limit of about 179 megapixels.
    """
    try:
        if isinstance(path, (str, Path)) and not stat.S_ISREG(os.stat(path).st_mode):
            raise ImageError(path, 'not a regular file')  # opening a pipe would wait for a writer
        with Image.open(path) as image:
            image.load()
            upright = ImageOps.exif_transpose(image) or image
            return np.array(_to_rgb(upright), dtype=np.uint8)
    except FileNotFoundError:
        raise ImageError(path, 'no such file') from None
    except (ImageError, MemoryError):
        raise
    except Exception as error:  # Pillow's decoders raise OSError, ValueError, SyntaxError, struct.error and more
        reason = ' '.join(str(error).replace(repr(str(path)), 'it').replace(repr(path), 'it').split())
        raise ImageError(path, f'cannot be read as an image ({reason})') from error


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
    return image.convert('RGB')


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
