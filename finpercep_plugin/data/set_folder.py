"""What any set on disk needs: one writer at a time, no adding to a set that was made otherwise, bad samples named."""

from __future__ import annotations

import contextlib
import logging
from pathlib import Path
from typing import Any, Callable, Iterator, Literal, Sequence

from finpercep_plugin.data.fgr_format import FGRError
from finpercep_plugin.data.lmdb_io import MissingKeyError, StoreError

__all__ = ['differences', 'exclusive', 'make_folder', 'read_or_skip']

logger = logging.getLogger(__name__)


def differences(old: Any, new: Any, path: str = '$') -> Iterator[str]:
    """A line for each option that is not what it was; lists called `producers` are compared item by item.

    >>> list(differences({'seed': 0, 'size': 96}, {'seed': 1, 'size': 96}))
    ['$.seed: built with 0, asked for 1']
    """
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(old.keys() | new.keys()):
            yield from differences(old.get(key), new.get(key), f'{path}.{key}')
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new) and path.endswith('producers'):
        for index, (before, after) in enumerate(zip(old, new)):
            yield from differences(before, after, f'{path}[{index}]')
    elif old != new:
        yield f'{path}: built with {old}, asked for {new}'


def make_folder(out: str | Path) -> None:
    """The folder of a set, with those above it.

    Raises:
        StoreError: it cannot be made there.
    """
    try:
        Path(out).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f'{out}: cannot be written ({error.strerror})') from error


@contextlib.contextmanager
def exclusive(out: str | Path) -> Iterator[None]:
    """One build a folder; the lock is the kernel's, so none is left behind by a kill.

    Raises:
        FGRError: another build has it.
        StoreError: nothing can be written there.
    """
    try:
        import fcntl
    except ImportError:  # not on Windows, where LMDB's own lock serialises the writes
        yield
        return
    try:
        file = open(Path(out, '.build.lock'), 'w', encoding='utf-8')
    except OSError as error:
        raise StoreError(f'{out}: cannot be written ({error.strerror})') from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise FGRError(f'{out}: another build is writing this set') from None
        yield


def read_or_skip(
    root: str, names: Sequence[str], index: int, read: Callable[[str], Any], on_error: Literal['raise', 'skip']
) -> tuple[str, Any, int]:
    """Sample `names[index]`, or in place of one that cannot be read the next that can, which is logged.

    Args:
        root: of the set, for messages.
        names: of all samples.
        index: which is wanted.
        read: makes a sample of its name; a ValueError (corrupt values included) or a missing key says that it cannot.
        on_error: 'raise' takes no other in its place.

    Returns:
        the name of the sample, the sample, how many were skipped.

    Raises:
        FGRError: the sample cannot be read, with 'raise', or none can.
        IndexError: there are fewer.
    """
    if index >= len(names) > 0:
        raise IndexError(index)  # the end, to whoever iterates over a data set
    for step in range(len(names)):
        name = names[(index + step) % len(names)]
        try:
            return name, read(name), step
        except (MissingKeyError, ValueError) as error:
            if on_error == 'raise':
                raise FGRError(f'{root}: sample {name}: {error}') from error
            logger.warning('%s: sample %s skipped: %s', root, name, error)
    raise FGRError(f'{root}: none of the {len(names)} samples can be read')
