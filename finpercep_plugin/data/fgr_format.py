"""What an FGR set is on disk; the builder writes it, the dataset and `verify` read it.

A folder with `data.mdb` (`lmdb_io`) and `meta.json`. Sample i has the key `i` in eight digits, and in the store, under
`<key>/<part>`::

    lq gt sr   8-bit RGB PNG
    mask       8-bit grey PNG, 255 = sr, in between on a feathered edge; syn = mask * sr + (1 - mask) * gt is not stored
    pixel      16-bit grey PNG of |syn - gt|, mean over channels;  raw value = stored / 65535
    feature    16-bit grey PNG of 1 - cos of the features;         raw value = 2 * stored / 65535
    record     JSON: photo, crop, degradation, producer, mask, seed, histograms of the two terms, SHA-256 of the parts

`meta.json`: format version, build options, the photos and those skipped, number of samples, the summed histogram and
p99 of each term over the set (p99 over the set `p99_of` where it extends one), the photo of each sample, and under
`label_sections` what makes regions and labels where that has files, by their paths. It is replaced atomically;
`complete: false` marks a build that has to be resumed.

A shard holds a part of a set's samples, under the numbers that they have there: `shard` is [its number, of how many],
`count` that of the whole set, everything else is about its own samples, whose numbers `sample_indices` gives.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Mapping

import cv2
import numpy as np

try:
    import pyspng
except ImportError:  # of the extra `fgr`
    pyspng = None

__all__ = [
    'FORMAT',
    'PARTS',
    'FGRError',
    'decode_png',
    'encode_png',
    'from_json',
    'read_meta',
    'sample_indices',
    'sample_key',
    'to_json',
    'write_meta',
]

FORMAT = 1
_RGB = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION if hasattr(cv2, 'IMREAD_COLOR_RGB') else None
"""Decodes in RGB order, which saves a pass; OpenCV has it since 4.10."""
_RGB8, _GREY8 = b'\x08\x02', b'\x08\x00'
"""Bit depth and colour type in a PNG's header."""
PARTS = ('lq', 'gt', 'sr', 'mask', 'pixel', 'feature')


class FGRError(ValueError):
    """A set, of FGR samples or of preferences, that cannot be used or built as asked."""


def sample_key(index: int) -> str:
    """
    >>> sample_key(12)
    '00000012'
    """
    return f'{index:08d}'


def sample_indices(meta: Mapping[str, Any]) -> list[int]:
    """The numbers of the samples in a set or in one shard of it, rising; `photo_of` goes by the same order.

    Blocks of `batch` samples are dealt out to the shards in turn.

    >>> sample_indices({'count': 7, 'options': {'batch': 2}, 'shard': [1, 2]})
    [2, 3, 6]
    """
    if not meta.get('shard'):
        return list(range(meta['count']))
    number, shards = meta['shard']
    return [i for i in range(meta['count']) if i // meta['options']['batch'] % shards == number]


def encode_png(image: np.ndarray) -> bytes:
    """(H, W, 3) uint8 RGB, (H, W) uint8 or (H, W) uint16 -> PNG."""
    done, data = cv2.imencode('.png', image[..., ::-1] if image.ndim == 3 else image, [cv2.IMWRITE_PNG_COMPRESSION, 4])
    assert done
    return data.tobytes()


def decode_png(data: bytes | memoryview) -> np.ndarray:
    """PNG -> the array that was encoded.

    8-bit pictures by libspng where that is installed (`pyspng`): faster than OpenCV, since it leaves out the checksums
    inside the PNG; a store has its own.

    Raises:
        ValueError: not a picture.
    """
    kind = bytes(data[24:26])
    if pyspng is not None and kind in (_RGB8, _GREY8):
        try:
            return pyspng.load(bytes(data))
        except RuntimeError as error:
            raise ValueError(f'not a PNG picture ({error})') from error
    rgb = _RGB is not None and kind == _RGB8
    image = cv2.imdecode(np.frombuffer(data, np.uint8), _RGB if rgb else cv2.IMREAD_UNCHANGED) if len(data) else None
    if image is None:
        raise ValueError('not a PNG picture')
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB) if image.ndim == 3 and not rgb else image


def to_json(value: Any) -> str:
    """Canonical: equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(',', ':'), ensure_ascii=False)


def from_json(data: bytes | memoryview | str) -> Any:
    return json.loads(data if isinstance(data, str) else bytes(data))


def read_meta(
    root: str | Path, version: int | str = FORMAT, what: str = 'an FGR set', tool: str = 'finpercep-build-fgr'
) -> dict[str, Any]:
    """meta.json of a set.

    Args:
        root: its folder.
        version: the format that it must have.
        what: the kind of set, for messages.
        tool: what builds such a set, for messages.

    Raises:
        FGRError: absent, unreadable, or of another format.
    """
    path = Path(root, 'meta.json')
    try:
        meta = json.loads(path.read_text(encoding='utf-8'))
    except FileNotFoundError:
        raise FGRError(f'{root}: not {what} (no meta.json); build one with {tool}') from None
    except (OSError, ValueError) as error:
        raise FGRError(f'{path}: cannot be read ({error})') from error
    if not isinstance(meta, dict) or meta.get('format') != version:
        found = meta.get('format') if isinstance(meta, dict) else type(meta).__name__
        raise FGRError(f'{path}: expected format {version}, got {found}')
    return meta


def write_meta(root: str | Path, meta: dict[str, Any]) -> None:
    """Replace meta.json in one step: after a kill it is the old or the new one.

    Args:
        root: folder of the set.
        meta: what it says; the format is FGR's unless it names another.
    """
    path = Path(root, 'meta.json')
    partial = path.with_name('.meta.json.part')
    with open(partial, 'w', encoding='utf-8') as file:
        json.dump({'format': FORMAT, **meta}, file, indent=1, ensure_ascii=False)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)
