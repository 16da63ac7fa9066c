"""Weight files of generators: read safely, checked strictly, written atomically."""

from __future__ import annotations

import os
import pickle
import re
import shutil
from pathlib import Path
from typing import Any, Dict, Mapping, Sequence, Union

import torch

from finpercep_plugin.registry import nearest

__all__ = [
    'check_arch',
    'check_finite',
    'check_keys',
    'check_whole',
    'read_weights',
    'unpickle',
    'why_refused',
    'write_weights',
]


def read_weights(path: Union[str, Path], what: str) -> Dict[str, Any]:
    """The dict in a weight file, by `unpickle`.

    Args:
        path: the file.
        what: whose weights are wanted, for messages.

    Raises:
        FileNotFoundError: no such file; says what was wanted and where it was looked for.
        ValueError: the file is damaged, holds other objects than tensors and plain values, or has no 'params'.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        beside = sorted(p.name for p in file.parent.iterdir() if p.is_file()) if file.parent.is_dir() else []
        hint = nearest(file.name, beside) if beside else ''
        raise FileNotFoundError(f'weights of {what}: no file {file.absolute()}{hint}')
    try:
        data = unpickle(file)
    except (RuntimeError, EOFError, ValueError, OSError, pickle.UnpicklingError) as error:
        raise ValueError(f'weights of {what}: {file.absolute()} cannot be read: {why_refused(error)}') from error
    if not isinstance(data, dict) or not isinstance(data.get('params'), dict):
        found = sorted(map(str, data)) if isinstance(data, dict) else type(data).__name__
        raise ValueError(f"weights of {what}: {file.absolute()} has no dict 'params'; found {found}")
    check_finite(data['params'], f'weights of {what}: {file.absolute()}')
    return data


def check_finite(tensors: Mapping[str, Any], source: str) -> None:
    """
    Args:
        tensors: by name.
        source: their file, for the message.

    Raises:
        ValueError: one holds a NaN or an infinity.
    """
    for name, value in tensors.items():
        if isinstance(value, torch.Tensor) and value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise ValueError(f'{source} holds numbers that are not finite, in {name}')


def unpickle(file: Path) -> Any:
    """What torch.save wrote, by the restricted unpickler (weights_only=True), on the CPU.

    Tensors are mapped, not read, where that can be: copy those that are changed, or that outlive the file.

    Raises:
        RuntimeError, EOFError, ValueError, OSError, pickle.UnpicklingError: whatever a damaged file leads to.
    """
    try:
        return torch.load(file, map_location='cpu', weights_only=True, mmap=True)
    except (RuntimeError, ValueError, TypeError):  # a file of torch before 1.6 is no zip archive; torch 2.0 maps none
        return torch.load(file, map_location='cpu', weights_only=True)


def why_refused(error: Exception) -> str:
    """What is wrong with a file that `unpickle` or torch.load refused; not torch's advice to load it without restrictions."""
    if not isinstance(error, pickle.UnpicklingError):
        return f'{type(error).__name__}: {error}'
    foreign = re.search(r'GLOBAL (\S+)', str(error))
    return f'it holds {foreign[1]}' if foreign else 'it is damaged, or no file of weights'


def check_whole(data: Mapping[str, Any], source: Union[str, Path]) -> None:
    """Refuse a file of fine-tuned tensors where nothing is there to lay them over.

    Args:
        data: of `read_weights`.
        source: the file, for the message.

    Raises:
        ValueError: the file is a subset.
    """
    if data.get('subset'):
        raise ValueError(
            f'{source} holds fine-tuned tensors only; load the weights that it was fine-tuned from first: '
            f'generator.weights: [base.pth, {Path(source).name}]'
        )


def check_keys(
    wanted: Mapping[str, torch.Tensor],
    found: Mapping[str, torch.Tensor],
    source: Union[str, Path],
    subset: bool = False,
) -> None:
    """Compare two state dicts by name and shape.

    Args:
        wanted: of the model.
        found: of the file.
        source: the file, for the message.
        subset: `found` may lack names.

    Raises:
        ValueError: every missing and unexpected key and every other shape, in one error.
    """
    lines = [] if subset else [f'missing: {name}' for name in wanted if name not in found]
    lines += [f'unexpected: {name}' for name in found if name not in wanted]
    lines += [
        f'shape: {name} is {tuple(found[name].shape)} in the file, {tuple(value.shape)} in the model'
        for name, value in wanted.items()
        if name in found and found[name].shape != value.shape
    ]
    if lines:
        raise ValueError(f'{source} does not fit the model:\n  ' + '\n  '.join(lines))


def check_arch(
    own: Mapping[str, Any], found: Mapping[str, Any], source: Union[str, Path], names: Sequence[str]
) -> None:
    """Compare the options that change what weights mean; a file without them is taken at its word.

    Args:
        own: options of the model.
        found: options in the file.
        source: the file, for the message.
        names: of the options compared.

    Raises:
        ValueError: every option that differs.
    """
    lines = [
        f'{name} is {found[name]!r} in the file, {own[name]!r} in the model'
        for name in names
        if name in found and found[name] != own[name]
    ]
    if lines:
        raise ValueError(f'{source} was made by a model with other options:\n  ' + '\n  '.join(lines))


def write_weights(data: Mapping[str, Any], path: Union[str, Path]) -> None:
    """torch.save to a temporary name in the same folder, then rename: `path` is never half written.

    Raises:
        OSError: it cannot be written; what was there before is there still.
    """
    file = Path(path).expanduser()
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f'{file.name}.{os.getpid()}.tmp')
    try:
        with open(temporary, 'wb') as stream:
            torch.save(dict(data), stream)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, file)
    except (OSError, RuntimeError) as error:  # of a full disk torch tells the position that it could not write at
        free = shutil.disk_usage(file.parent).free
        reason = getattr(error, 'strerror', None) or str(error).splitlines()[0]
        raise OSError(
            f'{file}: cannot be written ({reason}; {free >> 20} MiB are free); what was kept before is whole'
        ) from error
    finally:
        temporary.unlink(missing_ok=True)
