"""Where tools compute, and how they know that memory ran out there."""

from __future__ import annotations

import torch

__all__ = ['choose_device', 'out_of_memory']


def choose_device(name: str) -> torch.device:
    """'auto' is the GPU where there is one.

    Raises:
        ValueError: a device that torch does not know or cannot use here.
    """
    if name == 'auto':
        return torch.device('cuda' if torch.cuda.is_available() else 'cpu')
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f'unknown device {name!r}; expected auto, cpu, cuda or cuda:N') from None
    if device.type == 'cuda' and not torch.cuda.is_available():
        raise ValueError(f'{name} was asked for, but torch sees no GPU; use cpu')
    return device


def out_of_memory(error: BaseException) -> bool:
    """Whether it is a GPU's out-of-memory error, the CPU allocator's, or Python's.

    >>> out_of_memory(MemoryError()), out_of_memory(RuntimeError("[enforce fail] can't allocate memory"))
    (True, True)
    >>> out_of_memory(RuntimeError('shapes do not match'))
    False
    """
    kinds: tuple[type, ...] = (MemoryError, torch.cuda.OutOfMemoryError)
    text = str(error).lower()
    return isinstance(error, kinds) or 'out of memory' in text or "can't allocate memory" in text
