"""A store in tars of WebDataset's naming, read at random: member `00000012.gt.png` is the value of `00000012/gt`.

Each tar has an index beside it, `<tar>.index.npz`, made at the first use: where every member lies, and its CRC-32. With
it a sample is found without reading the tar, so that a run's position in the data stays exact across a restart.
"""

from __future__ import annotations

import bisect
import contextlib
import io
import logging
import mmap
import os
import tarfile
from pathlib import Path
from typing import Any, Callable, Iterable, Iterator, Mapping, NamedTuple

import numpy as np

from finpercep_plugin.data.lmdb_io import CorruptValueError, MissingKeyError, StoreError, crc32

__all__ = ['TarReader', 'tar_files', 'write_tar']

logger = logging.getLogger(__name__)


class _Index(NamedTuple):
    """Where the members of one tar lie.

    Args:
        stamp: size and modification time (ns) of the tar.
        parts: names of the values that samples have.
        samples: (n,) numbers of the samples, rising.
        offsets, sizes: (n, parts) in bytes; offset -1 where a sample has no such part.
        crcs: (n, parts) CRC-32 of the members.
    """

    stamp: np.ndarray
    parts: np.ndarray
    samples: np.ndarray
    offsets: np.ndarray
    sizes: np.ndarray
    crcs: np.ndarray


def tar_files(folder: str | Path) -> list[Path]:
    """The tars of a folder, by name."""
    return sorted(Path(folder).glob('*.tar'))


class TarReader:
    """Random access to the tars of a folder; opened at the first read, so it can be pickled and may cross a fork.

    Args:
        path: the folder. Members' names are `<sample>.<part>.<ending>`, samples are numbers.
    """

    def __init__(self, path: str | Path):
        self.path = os.path.realpath(path)
        self._forget()

    def _forget(self) -> None:
        self._indices: list[_Index] | None = None
        self._files: list[Path] = []
        self._columns: list[dict[str, int]] = []
        self._firsts: list[int] = []
        self._maps: dict[int, memoryview] = {}

    def __getstate__(self) -> str:
        return self.path

    def __setstate__(self, path: str) -> None:
        self.path = path
        self._forget()

    def get(self, key: str) -> memoryview:
        """The value of `key`.

        Raises:
            StoreError: no tars, one that is truncated, or no tar.
            MissingKeyError: no such key.
            CorruptValueError: the checksum does not match.
        """
        return memoryview(bytes(self._find(key)))

    @contextlib.contextmanager
    def borrow(self) -> Iterator[Callable[[str], memoryview]]:
        """`get` without copies: a value lies in the file and may be used until the block is left.

        Raises:
            StoreError: as of `get`.
        """
        yield self._find

    def keys(self) -> Iterator[str]:
        """All keys, sorted."""
        if self._indices is None:
            self._open()
        found = [
            f'{sample:08d}/{part}'
            for index in self._indices
            for row, sample in enumerate(index.samples.tolist())
            for part, offset in zip(index.parts.tolist(), index.offsets[row].tolist())
            if offset >= 0
        ]
        return iter(sorted(found))

    def close(self) -> None:
        """Give the files back; a later read opens them again."""
        self._forget()

    def _find(self, key: str) -> memoryview:
        if self._indices is None:
            self._open()
        sample, _, part = key.partition('/')
        number = int(sample) if sample.isdigit() else -1
        for file in self._candidates(number):
            row, column = _row(self._indices[file].samples, number), self._columns[file].get(part)
            if row is not None and column is not None and self._indices[file].offsets[row, column] >= 0:
                return self._value(file, row, column, key)
        raise MissingKeyError(f'{self.path}: no key {key!r}')

    def _candidates(self, number: int) -> Iterable[int]:
        """The tars that may hold the sample, the likeliest first: usually tars hold one run of samples each."""
        likely = bisect.bisect_right(self._firsts, number) - 1
        if likely >= 0:
            yield likely
        for file, index in enumerate(self._indices):
            if file != likely and index.samples[0] <= number <= index.samples[-1]:
                yield file

    def _value(self, file: int, row: int, column: int, key: str) -> memoryview:
        index = self._indices[file]
        begin = index.offsets[row, column]
        value = self._map(file)[begin : begin + index.sizes[row, column]]
        if crc32(value) != index.crcs[row, column]:
            raise CorruptValueError(f'{self._files[file]}: the value of {key!r} fails its checksum')
        return value

    def _open(self) -> None:
        files = tar_files(self.path)
        if not files:
            raise StoreError(f'{self.path}: no .tar files here')
        loaded = sorted(((_load(file), file) for file in files), key=lambda pair: int(pair[0].samples[0]))
        self._files = [file for _, file in loaded]
        self._columns = [{str(p): c for c, p in enumerate(index.parts)} for index, _ in loaded]
        self._firsts = [int(index.samples[0]) for index, _ in loaded]
        self._indices = [index for index, _ in loaded]

    def _map(self, file: int) -> memoryview:
        if file not in self._maps:
            with open(self._files[file], 'rb') as stream:
                size = os.fstat(stream.fileno()).st_size
                expected = int(self._indices[file].stamp[0])
                if size != expected:  # reading beyond the end of a mapped file would end the process
                    raise StoreError(f'{self._files[file]}: it has {size} bytes, its index tells of {expected}')
                self._maps[file] = memoryview(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ))
        return self._maps[file]


def write_tar(path: Path, values: Iterable[tuple[str, str, bytes | memoryview]]) -> None:
    """Write a tar and its index; under their names they are whole or not there.

    The same values give the same bytes.

    Args:
        path: of the tar.
        values: (sample, part, value), sample by sample.

    Raises:
        StoreError: they cannot be written.
    """
    partial = path.with_name(f'.{path.name}.part')
    members: dict[tuple[str, str], tuple[int, int, int]] = {}
    try:
        with open(partial, 'wb') as stream:
            with tarfile.open(fileobj=stream, mode='w', format=tarfile.USTAR_FORMAT) as tar:
                for sample, part, value in values:
                    info = tarfile.TarInfo(f'{sample}.{part}.{"json" if part == "record" else "png"}')
                    info.size = len(value)
                    begin = tar.offset + tarfile.BLOCKSIZE
                    tar.addfile(info, io.BytesIO(value))
                    members[sample, part] = begin, len(value), crc32(value)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(partial, path)
        _keep(path, _table(path, members))
    except OSError as error:
        raise StoreError(f'{path}: cannot be written ({error.strerror or error})') from error


def _index_file(tar: Path) -> Path:
    return tar.with_name(f'{tar.name}.index.npz')


def _stamp(tar: Path) -> np.ndarray:
    status = tar.stat()
    return np.array([status.st_size, status.st_mtime_ns], np.int64)


def _load(tar: Path) -> _Index:
    """The index beside the tar, or a new one where there is none of this very file."""
    try:
        with np.load(_index_file(tar), allow_pickle=False) as stored:
            index = _Index(**{name: stored[name] for name in _Index._fields})
        if np.array_equal(index.stamp, _stamp(tar)):
            return index
    except (OSError, ValueError, KeyError, EOFError):
        pass
    index = _table(tar, _scan(tar))
    try:
        _keep(tar, index)
    except OSError as error:
        logger.info('%s: its index cannot be kept (%s) and will be made again', tar, error.strerror)
    return index


def _keep(tar: Path, index: _Index) -> None:
    partial = tar.with_name(f'.{tar.name}.index.{os.getpid()}.part')
    with open(partial, 'wb') as stream:
        np.savez(stream, **index._asdict())
    os.replace(partial, _index_file(tar))


def _scan(tar: Path) -> dict[tuple[str, str], tuple[int, int, int]]:
    """{(sample, part): (offset, size, CRC-32)} of a tar that is read from end to end.

    Raises:
        StoreError: it is truncated, no tar, or its members are named otherwise.
    """
    members = {}
    try:
        with open(tar, 'rb') as stream, tarfile.open(fileobj=stream, mode='r:') as archive:
            for info in archive:
                if info.isfile():
                    sample, _, rest = os.path.basename(info.name).partition('.')
                    part = rest.rpartition('.')[0]
                    if not sample.isdigit() or not part:
                        raise StoreError(f'{tar}: {info.name}: members are called <number>.<part>.<ending>')
                    stream.seek(info.offset_data)
                    value = stream.read(info.size)
                    if len(value) < info.size:
                        raise tarfile.ReadError('unexpected end of data')
                    members[sample, part] = info.offset_data, info.size, crc32(value)
            stream.seek(archive.offset)
            if stream.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise tarfile.ReadError('it has no end mark')
    except tarfile.TarError as error:
        raise StoreError(f'{tar}: truncated or no tar ({error})') from error
    except OSError as error:
        if isinstance(error, StoreError):
            raise
        raise StoreError(f'{tar}: cannot be read ({error.strerror or error})') from error
    if not members:
        raise StoreError(f'{tar}: an empty tar')
    return members


def _table(tar: Path, members: Mapping[tuple[str, str], tuple[int, int, int]]) -> _Index:
    samples, parts = sorted({int(s) for s, _ in members}), sorted({p for _, p in members})
    rows, columns = {s: i for i, s in enumerate(samples)}, {p: i for i, p in enumerate(parts)}
    table: dict[str, Any] = {name: np.full((len(samples), len(parts)), -1, np.int64) for name in _Index._fields[3:]}
    for (sample, part), place in members.items():
        for name, value in zip(_Index._fields[3:], place):
            table[name][rows[int(sample)], columns[part]] = value
    return _Index(_stamp(tar), np.array(parts), np.array(samples, np.int64), **table)


def _row(samples: np.ndarray, number: int) -> int | None:
    guess = number - int(samples[0])  # where the tar holds a run of samples
    if 0 <= guess < len(samples) and samples[guess] == number:
        return guess
    row = int(np.searchsorted(samples, number))
    return row if row < len(samples) and samples[row] == number else None
