"""What every producer takes and gives, and the questions that a build asks it.

A producer is a class in PRODUCERS with typed keyword arguments and one method::

    producer(requests: Sequence[Request], scale: int) -> list[Produced]

All lq of one call have one size; a network runs them in one batch. Draws come from each request's own `rng` alone, so
that what a request gets does not depend on the others but for rounding. What else a producer may have, each optional
and asked for by the function of this module with that name:

    align: bool            boxes must start at multiples of the scale; `align(producer)`, False where absent
    scale: int             the only scale that it can do; `check_scale(producer, scale)`, once, when it is made
    not_covered(photo, size, scale) -> str | None
                           why it has no sr of a photo, None where it has; `not_covered(...)`, None where absent;
                           `covers(...)` is whether it is None. size is the whole photo's (height, width)
    FILES: tuple           names of the arguments that are weight files, which count by their content
    identity(**arguments) -> dict
                           a static method: what else its arguments stand for (all of them are given, defaults filled
                           in), JSON-ready; `identity(cls, arguments)`, to be laid over the arguments in the identity
                           of the build; {} where absent
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Mapping, Protocol, Sequence

import numpy as np

__all__ = ['Produced', 'Producer', 'Request', 'align', 'check_scale', 'covers', 'identity', 'not_covered']


@dataclass(frozen=True)
class Request:
    """One sr that is wanted.

    Attributes:
        lq: (h, w, 3) uint8 RGB.
        rng: what this sr's draws come from; used up by the call.
        photo: the photo's name in the build.
        box: (x, y, side) of gt in the photo, in pixels; side is h * scale.
    """

    lq: np.ndarray
    rng: np.random.Generator
    photo: str
    box: tuple[int, int, int]


@dataclass(frozen=True)
class Produced:
    """One sr.

    Attributes:
        sr: (h * scale, w * scale, 3) uint8 RGB.
        record: how this sr was made, JSON-ready.
        lq: (h, w, 3) uint8 RGB that takes the place of the request's; None: the request's stays.
    """

    sr: np.ndarray
    record: dict[str, Any]
    lq: np.ndarray | None = None


class Producer(Protocol):
    """The one method that all have."""

    def __call__(self, requests: Sequence[Request], scale: int) -> list[Produced]:
        """One result a request, in their order."""
        ...


def align(producer: Producer) -> bool:
    """Whether boxes must start at multiples of the scale."""
    return bool(getattr(producer, 'align', False))


def check_scale(producer: Producer, scale: int) -> None:
    """
    Raises:
        ValueError: the producer can only do another scale.
    """
    own = getattr(producer, 'scale', scale)
    if own != scale:
        raise ValueError(f'weights: a model for scale {own}, but the build has scale {scale}')


def not_covered(producer: Producer, photo: str, size: tuple[int, int], scale: int) -> str | None:
    """Why a producer has no sr of a photo; None where it has.

    Args:
        producer: the one that is asked.
        photo: the photo's name in the build.
        size: (height, width) of the whole photo.
        scale: of the build.
    """
    method = getattr(producer, 'not_covered', None)
    return None if method is None else method(photo, size, scale)


def covers(producer: Producer, photo: str, size: tuple[int, int], scale: int) -> bool:
    """Whether a producer has an sr of a photo; the arguments are those of `not_covered`."""
    return not_covered(producer, photo, size, scale) is None


def identity(cls: type, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """What a producer's arguments stand for beyond their values; to be laid over them.

    Args:
        cls: the producer's class.
        arguments: all of its constructor's, defaults filled in, without `type` and `weight`.
    """
    method = getattr(cls, 'identity', None)
    return {} if method is None else method(**arguments)
