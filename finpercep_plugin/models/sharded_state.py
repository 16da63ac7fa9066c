"""The tensors of a training state in a folder that any number of processes reads (`torch.distributed.checkpoint`)."""

from __future__ import annotations

import contextlib
import math
import os
import pickle
import secrets
import shutil
import warnings
from pathlib import Path
from typing import Any, Callable, Iterator

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex, TensorStorageMetadata

from finpercep_plugin.generators.checkpoint import write_weights

__all__ = ['check_shards', 'read_state', 'write_state']

SECTIONS = ('trained', 'ema', 'optimizers')
PAIR = 'pair'
"""A number that a file and its folder have in common, and no others."""
_ALLOWED = {
    'torch': {'Size', 'device', 'strided'} | {str(t)[6:] for t in vars(torch).values() if isinstance(t, torch.dtype)},
    'torch.serialization': {'_get_layout'},
    'torch.distributed.checkpoint.filesystem': {'_StorageInfo'},
    'torch.distributed.checkpoint.metadata': {
        'ChunkStorageMetadata',
        'Metadata',
        'MetadataIndex',
        'StorageMeta',
        'TensorProperties',
        'TensorStorageMetadata',
        '_MEM_FORMAT_ENCODING',
    },
    'pathlib': {'Path', 'PosixPath', 'PurePosixPath', 'PureWindowsPath', 'WindowsPath'},
    'pathlib._local': {'Path', 'PosixPath', 'PurePosixPath', 'PureWindowsPath', 'WindowsPath'},
}  # fmt: skip


class _Unpickler(pickle.Unpickler):
    """Of a folder's index, which torch reads as any pickle."""

    def find_class(self, module: str, name: str) -> Any:
        if name not in _ALLOWED.get(module, ()):
            raise pickle.UnpicklingError(f'{module}.{name} does not belong into it')
        return super().find_class(module, name)


class _Reader(dcp.FileSystemReader):
    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        return read_index(Path(self.path))


def read_index(folder: Path) -> Metadata:
    """What a folder of `write_state` holds.

    Raises:
        ValueError: no such folder, or its index is damaged or holds other things than an index.
    """
    file = folder / '.metadata'
    if not file.is_file():
        raise ValueError(f'the tensors of this state are not at {folder.absolute()}')
    try:
        with open(file, 'rb') as stream:
            index = _Unpickler(stream).load()
    except Exception as error:  # what a cut-off pickle raises is anything
        raise ValueError(f'{file.absolute()} is not a whole, safe index: {error or type(error).__name__}') from error
    if not isinstance(index, Metadata) or not _is_of_tensors(index):
        raise ValueError(f'{file.absolute()} is no index of tensors')
    return index


def _is_of_tensors(index: Metadata) -> bool:
    """Whether it has tensors alone, whose parts fill them and are in the folder; torch reads all else as any pickle."""
    try:
        return all(
            isinstance(entry, TensorStorageMetadata)
            and sum(math.prod(chunk.sizes) for chunk in entry.chunks) == entry.size.numel()
            and all(
                _place(index, key, chunk).length >= math.prod(chunk.sizes) * entry.properties.dtype.itemsize
                for chunk in entry.chunks
            )
            for key, entry in index.state_dict_metadata.items()
        ) and all(Path(place.relative_path).name == place.relative_path for place in index.storage_data.values())
    except (AttributeError, KeyError, TypeError):
        return False


def _place(index: Metadata, key: str, chunk: Any) -> Any:
    return index.storage_data[MetadataIndex(key, chunk.offsets)]


def check_shards(folder: Path) -> None:
    """Whether a folder of `write_state` is all there.

    Raises:
        ValueError: as `read_index`; a file is missing or cut off.
    """
    ends: dict[str, int] = {}
    for place in read_index(folder).storage_data.values():
        ends[place.relative_path] = max(ends.get(place.relative_path, 0), place.offset + place.length)
    for name, end in ends.items():
        file = folder / name
        if not file.is_file() or file.stat().st_size < end:
            raise ValueError(f'{file.absolute()} is missing or only half written')


def write_state(state: dict[str, Any], path: Path) -> None:
    """Write a training state whose tensors are shards; all processes, which share the file system, take part.

    The tensors of `SECTIONS` go into a folder beside `path`, `<name>.<number>.shards`, the rest into `path`, last: with
    it, the state is there, and before it, the one that was there before.

    Args:
        state: of `FinPercepModel.training_state`.
        path: of the file.

    Raises:
        OSError: it cannot be written; what was there before is there still.
    """
    rest, tensors = _split(state)
    first = dist.get_rank() == 0
    number, pair = _broadcast((_free_number(path), secrets.randbits(62)) if first else (0, 0))
    folder, unfinished = path.with_name(f'{path.stem}.{number}.shards'), path.with_name(f'{path.stem}.shards.tmp')
    if first:
        _remove(unfinished)
        unfinished.mkdir(parents=True)
    dist.barrier()
    try:
        with _one_line(OSError, f'{path}: its tensors cannot be written'):
            writer = dcp.FileSystemWriter(unfinished, sync_files=True)
            dcp.save({**tensors, PAIR: torch.tensor(pair)}, storage_writer=writer)
        if first:
            os.replace(unfinished, folder)
            write_weights({**rest, 'shards': folder.name, PAIR: pair}, path)
    except OSError:
        if first:
            _remove(unfinished, folder)
        raise
    if first:
        _remove(*(old for old in path.parent.glob(f'{path.stem}.*.shards') if old != folder))
    dist.barrier()


def _remove(*folders: Path) -> None:
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


def _free_number(path: Path) -> int:
    taken = {file.name for file in path.parent.glob(f'{path.stem}.*.shards')}
    return next(n for n in range(len(taken) + 1) if f'{path.stem}.{n}.shards' not in taken)


def _broadcast(numbers: tuple[int, int]) -> tuple[int, int]:
    box = [numbers]
    dist.broadcast_object_list(box)
    return box[0]


@contextlib.contextmanager
def _one_line(kind: type[Exception], text: str) -> Iterator[None]:
    """
    Raises:
        kind: what failed inside on any process, which torch tells by the tracebacks of all, and not as an Exception.
    """
    try:
        yield
    except CheckpointException as error:
        causes = (cause for cause, _ in error.failures.values())
        lines = (str(cause).strip().splitlines() or [type(cause).__name__] for cause in causes)
        raise kind(f'{text}: {next(lines)[0]}') from error


def read_state(
    state: dict[str, Any], folder: Path, empty: Callable[[tuple[str, ...], torch.Size], Tensor], alone: bool
) -> dict[str, Any]:
    """A training state with the tensors of its folder.

    Args:
        state: the content of the file of `write_state`.
        folder: where that file lies.
        empty: (keys of a tensor in the state, its whole shape) -> the tensor to read it into, whole or a shard.
        alone: every process reads for itself; else all take part.

    Raises:
        ValueError: see `check_shards`; or it was written with another file.
    """
    place = folder / state['shards']
    check_shards(place)
    found = read_index(place).state_dict_metadata
    tensors = {
        key: empty(tuple(key.split('/')), entry.size).to(entry.properties.dtype)
        for key, entry in found.items()
        if key != PAIR
    }
    pair = torch.zeros((), dtype=torch.int64)
    with warnings.catch_warnings(), _one_line(ValueError, f'{place.absolute()} cannot be read'):
        warnings.filterwarnings('ignore', 'torch.distributed is disabled')
        dcp.load({**tensors, PAIR: pair}, storage_reader=_Reader(place), no_dist=alone)
    if int(pair) != state.get(PAIR):
        raise ValueError(f'{place.absolute()} was not written with this state, but with another')
    return _joined({key: value for key, value in state.items() if key != PAIR}, tensors)


def _split(state: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The state without the tensors of `SECTIONS`, and these by their keys, joined by a slash."""
    tensors: dict[str, Tensor] = {}

    def strip(value: Any, path: str) -> Any:
        if isinstance(value, dict):
            kept = {k: strip(v, f'{path}/{k}') for k, v in value.items() if not torch.is_tensor(v)}
            tensors.update({f'{path}/{k}': v for k, v in value.items() if torch.is_tensor(v)})
            return kept
        return [strip(v, f'{path}/{i}') for i, v in enumerate(value)] if isinstance(value, list) else value

    return {key: strip(value, key) if key in SECTIONS else value for key, value in state.items()}, tensors


def _joined(state: dict[str, Any], tensors: dict[str, Tensor]) -> dict[str, Any]:
    """Inverse of `_split`."""

    def copied(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: copied(v) for k, v in value.items()}
        return [copied(v) for v in value] if isinstance(value, list) else value

    result = {key: copied(value) if key in SECTIONS else value for key, value in state.items() if key != 'shards'}
    for path, tensor in tensors.items():
        *outer, last = path.split('/')
        section: Any = result
        for key in outer:
            section = section[int(key)] if isinstance(section, list) or key.isdigit() else section.setdefault(key, {})
        section[last] = tensor
    return result
