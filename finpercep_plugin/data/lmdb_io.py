"""The only importer of lmdb: a checksummed key -> bytes store that survives fork, spawn, threads and kill -9.

A value is stored as its payload followed by the payload's CRC-32 (4 bytes, little-endian). PNG and JPEG decoders
ignore bytes after the end of the picture, so other tools can still decode a raw value.
"""

from __future__ import annotations

import errno
import os
import shutil
import threading
from pathlib import Path
from typing import Callable, Iterable, Iterator, Mapping

try:
    from isal.isal_zlib import crc32  # the same, five times as fast; of the extra `fgr`
except ImportError:
    from zlib import crc32

__all__ = ['CorruptValueError', 'MissingKeyError', 'Reader', 'StoreError', 'Writer', 'crc32', 'exists']

_FIRST_MAP = 64 << 20
_BYTES_OF_CRC = 4


class StoreError(OSError):
    """A store that cannot be opened, read or written."""


class MissingKeyError(KeyError):
    """The store has no such key."""

    def __str__(self) -> str:
        return str(self.args[0])


class CorruptValueError(ValueError):
    """A value whose bytes are not those that were written."""


class _Handles:
    """The open environments of this process: LMDB allows one a file and process, and none may be used across a fork."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.environments: dict[str, tuple[int, object]] = {}

    def get(self, path: str):
        """The environment of `path`, opened read-only when this process has none. Call with the lock held."""
        pid, environment = self.environments.get(path, (0, None))
        if environment is not None and pid == os.getpid():
            return environment
        self.close(path)
        return self.open(path, readonly=True)

    def open(self, path: str, readonly: bool):
        environment = _open(path, readonly)
        self.environments[path] = (os.getpid(), environment)
        return environment

    def close(self, path: str) -> None:
        """Also in a forked child, for the handle it inherited: that unmaps the child's copy and leaves the parent's."""
        _, environment = self.environments.pop(path, (0, None))
        if environment is not None:
            environment.close()


_handles = _Handles()


def _fresh_lock() -> None:
    _handles.lock = threading.RLock()  # another thread of the parent may have held it


if hasattr(os, 'register_at_fork'):
    os.register_at_fork(after_in_child=_fresh_lock)


def exists(path: str | Path) -> bool:
    """Is there an LMDB file in this folder?"""
    return Path(path, 'data.mdb').is_file()


def _open(path: str, readonly: bool):
    import lmdb

    if readonly and not exists(path):
        raise StoreError(f'{path}: no LMDB store here (a folder with data.mdb is expected)')
    try:
        if readonly:
            environment = lmdb.open(path, readonly=True, lock=False, readahead=False, meminit=False, create=False)
        else:
            size = Path(path, 'data.mdb').stat().st_size if exists(path) else 0
            environment = lmdb.open(path, map_size=max(_FIRST_MAP, 2 * size), meminit=False)
    except (lmdb.Error, OSError) as error:
        raise StoreError(f'{path}: not a readable LMDB store ({_reason(error, path)})') from error
    # A file shorter than its own page count would end the process with SIGBUS at some later read.
    expected = (environment.info()['last_pgno'] + 1) * environment.stat()['psize']
    size = Path(path, 'data.mdb').stat().st_size
    if size < expected and environment.stat()['entries']:
        environment.close()
        raise StoreError(f'{path}: data.mdb is truncated: {size} bytes, its pages need {expected}')
    return environment


def _reason(error: Exception, path: str) -> str:
    return str(error).replace(f'{path}: ', '')


class _Loan:
    """One transaction, with the lock held; see `Reader.borrow`."""

    def __init__(self, path: str):
        self.path = path

    def __enter__(self) -> Callable[[str], memoryview]:
        import lmdb

        _handles.lock.acquire()
        try:
            try:
                self._transaction = _handles.get(self.path).begin(buffers=True)
            except lmdb.MapResizedError:  # it was appended to since it was opened
                _handles.close(self.path)
                self._transaction = _handles.get(self.path).begin(buffers=True)
        except BaseException as error:
            _handles.lock.release()
            if isinstance(error, lmdb.Error):
                raise StoreError(f'{self.path}: cannot be read ({error})') from error
            raise
        return self._get

    def __exit__(self, *_: object) -> None:
        self._transaction.abort()
        _handles.lock.release()

    def raw(self, key: str) -> memoryview | None:
        """The value with its checksum; None where there is none."""
        import lmdb

        try:
            return self._transaction.get(key.encode())
        except lmdb.Error as error:
            raise StoreError(f'{self.path}: cannot be read ({error})') from error

    def _get(self, key: str) -> memoryview:
        value = self.raw(key)
        if value is None:
            raise MissingKeyError(f'{self.path}: no key {key!r}')
        payload = value[:-_BYTES_OF_CRC]
        if len(value) < _BYTES_OF_CRC or crc32(payload) != int.from_bytes(value[-_BYTES_OF_CRC:], 'little'):
            raise CorruptValueError(f'{self.path}: the value of {key!r} fails its checksum')
        return payload


class Reader:
    """Random access to a store; opened at the first read of each process, so it can be pickled and may cross a fork.

    Do not read while another process writes the same store.

    Args:
        path: the folder of data.mdb.
    """

    def __init__(self, path: str | Path):
        self.path = os.path.realpath(path)

    def get(self, key: str) -> memoryview:
        """The payload of `key`.

        Raises:
            StoreError: no store, or not an LMDB file.
            MissingKeyError: no such key.
            CorruptValueError: the checksum does not match.
        """
        with self.borrow() as get:
            return memoryview(bytes(get(key)))

    def borrow(self) -> _Loan:
        """A context that gives `get` for many keys, without copies: a payload lies in the file, and is gone when the
        block is left.

        Other threads that read any store wait meanwhile.

        Raises:
            StoreError: as of `get`.
        """
        return _Loan(self.path)

    def raw(self, key: str) -> bytes:
        """The value as it is stored, of a store by another tool, whose values end without a checksum.

        Raises:
            StoreError, MissingKeyError: as of `get`.
        """
        with (loan := self.borrow()):
            value = loan.raw(key)
            if value is None:
                raise MissingKeyError(f'{self.path}: no key {key!r}')
            return bytes(value)

    def lengths(self, keys: Iterable[str]) -> Iterator[int | None]:
        """Bytes of each value as it is stored; None where there is none."""
        with (loan := self.borrow()):
            values = [loan.raw(key) for key in keys]
            return iter([None if value is None else len(value) for value in values])

    def keys(self) -> Iterator[str]:
        """All keys, sorted."""
        import lmdb

        with _handles.lock:
            try:
                with _handles.get(self.path).begin() as transaction:
                    found = [bytes(k).decode() for k in transaction.cursor().iternext(values=False)]
            except lmdb.Error as error:
                raise StoreError(f'{self.path}: cannot be read ({error})') from error
        return iter(found)

    def close(self) -> None:
        """Give the file back; a later read opens it again."""
        with _handles.lock:
            _handles.close(self.path)


class Writer:
    """Appends batches to a store, each batch wholly or not at all; a context manager.

    Readers of the same store in this process go on working, through the writer's handle.

    Args:
        path: the folder; made when absent.
    """

    def __init__(self, path: str | Path):
        self.path = os.path.realpath(path)
        Path(self.path).mkdir(parents=True, exist_ok=True)
        with _handles.lock:
            _handles.close(self.path)
            self._environment = _handles.open(self.path, readonly=False)

    def put(self, items: Mapping[str, bytes] | Iterable[tuple[str, bytes]], remove: Iterable[str] = ()) -> None:
        """Write all items in one transaction, on disk when this returns; doubles the map when it is full.

        Args:
            items: keys and values.
            remove: keys that go in the same transaction; one that is not there is no error.

        Raises:
            StoreError: the disk is full or cannot be written; nothing of this batch is stored.
        """
        import lmdb

        items, remove = list(items.items() if isinstance(items, Mapping) else items), list(remove)
        with _handles.lock:
            while True:
                try:
                    with self._environment.begin(write=True) as transaction:
                        for key, payload in items:
                            crc = crc32(payload).to_bytes(_BYTES_OF_CRC, 'little')
                            transaction.put(key.encode(), bytes(payload) + crc)
                        for key in remove:
                            transaction.delete(key.encode())
                    return
                except lmdb.MapFullError:
                    self._environment.set_mapsize(2 * self._environment.info()['map_size'])
                except lmdb.Error as error:
                    # LMDB calls a write that stopped half-way an input/output error.
                    needed = sum(len(payload) for _, payload in items)
                    full = os.strerror(errno.ENOSPC) in str(error) or shutil.disk_usage(self.path).free < needed
                    what = 'the disk is full' if full else 'cannot be written'
                    raise StoreError(f'{self.path}: {what} ({_reason(error, self.path)})') from error

    def close(self) -> None:
        with _handles.lock:
            _handles.close(self.path)

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
