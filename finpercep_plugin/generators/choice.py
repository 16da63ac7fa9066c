"""Which parameters of a network are trained."""

from __future__ import annotations

import fnmatch
from typing import Iterable, List, Sequence, Union

from finpercep_plugin.registry import nearest

__all__ = ['match_names']


def match_names(choice: Union[str, Sequence[str]], names: Iterable[str], released: Sequence[str] = ('*',)) -> List[str]:
    """The parameter names that a choice means, in the network's order.

    Args:
        choice: 'all', 'released' or a list of shell patterns.
        names: of the network's parameters.
        released: the patterns that 'released' stands for.

    Raises:
        ValueError: another word, or a pattern that fits no name.

    >>> match_names(['down.*', '*.bias'], ['down.0.weight', 'mid.weight', 'mid.bias'])
    ['down.0.weight', 'mid.bias']
    """
    names = list(names)
    patterns = {'all': ['*'], 'released': released}.get(choice) if isinstance(choice, str) else list(choice)
    if not patterns:
        words = nearest(str(choice), ['all', 'released', 'lora'])
        raise ValueError(f'no choice {choice!r} of trained parameters{words}; or a list of patterns')
    dead = [pattern for pattern in patterns if not any(fnmatch.fnmatchcase(name, pattern) for name in names)]
    if dead:
        beginnings = sorted({'.'.join(name.split('.')[:2]) for name in names})
        raise ValueError(f'patterns that fit no parameter of the network: {dead}; its names begin with {beginnings}')
    return [name for name in names if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)]
