"""The photos of the quick start: those that ship inside scikit-image, and scikit-learn's two where it is installed."""

from __future__ import annotations

import importlib.util
from pathlib import Path

__all__ = ['HELD_OUT', 'TRAIN', 'find_photos']

TRAIN = ('chelsea.png', 'coffee.png', 'rocket.jpg', 'motorcycle_left.png', 'china.jpg')
"""Photos to train on. motorcycle_right, the other half of the stereo pair, is in neither list."""

HELD_OUT = ('astronaut.png', 'flower.jpg')
"""Photos to measure on; a photo is wholly in one list."""

_FOLDERS = (('skimage', 'data'), ('sklearn', 'datasets/images'))


def find_photos() -> tuple[list[Path], list[Path]]:
    """(photos to train on, held-out photos), those that are installed.

    Raises:
        FileNotFoundError: scikit-image is not installed, or came without its photos.
    """
    folders = []
    for package, inside in _FOLDERS:
        spec = importlib.util.find_spec(package)
        if spec is not None and spec.origin:
            folders.append(Path(spec.origin).parent / inside)
    train, held_out = (
        [f / name for name in names for f in folders if (f / name).is_file()] for names in (TRAIN, HELD_OUT)
    )
    if len(train) < 3 or not held_out:
        looked = ', '.join(map(str, folders)) or 'no package that has photos'
        raise FileNotFoundError(
            f'the quick start wants {", ".join(TRAIN + HELD_OUT)} and looked in {looked}: '
            'pip install scikit-image scikit-learn, or give --train and --held-out folders of your own'
        )
    return train, held_out
