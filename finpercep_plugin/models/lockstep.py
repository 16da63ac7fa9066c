"""Calls of a sharded network by processes that have different numbers of them to make."""

from __future__ import annotations

import contextlib
from typing import Any, Callable, ContextManager, Iterator

import torch
import torch.distributed as dist
from torch import nn

__all__ = ['Lockstep']

DONE = 2**31 - 1


class Lockstep:
    """Keeps the processes that share a network together, one call after the other.

    Each call of a sharded network gathers its parameters, for which all processes are needed. Within `uneven`, one
    that has none to make repeats one of its own, whose result nobody sees, until all are done. A network with several
    entries, told apart by a first argument that is a string, goes first through those that all can take part in: those
    used first.

    Args:
        network: is called through its `forward`; within `uneven`, without gradient.
        device: of the messages.
        precision: makes the context that repeated calls run in.
    """

    def __init__(self, network: nn.Module, device: torch.device, precision: Callable[[], ContextManager]):
        self.network, self.device, self.precision = network, device, precision
        self._open = self._repeating = False
        self._entries: dict[str, int] = {}
        self._inputs: dict[int, tuple] = {}
        network.register_forward_pre_hook(self._before, prepend=True)

    @contextlib.contextmanager
    def uneven(self) -> Iterator[None]:
        """Inside, each process calls the network as often as it has to, each of its entries once at the least."""
        self._open = True
        try:
            yield
            while (agreed := self._agree(DONE)) != DONE:
                self._repeat(agreed)
        finally:
            self._open = False
            self._entries.clear()
            self._inputs.clear()

    def _before(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        if not self._open or self._repeating:
            return
        entry = inputs[0] if isinstance(inputs[0], str) else ''
        number = self._entries.setdefault(entry, len(self._entries))
        self._inputs[number] = inputs
        while (agreed := self._agree(number)) != number:
            self._repeat(agreed)

    def _agree(self, wish: int) -> int:
        """The entry that all call next; DONE where none has one to call."""
        vote = torch.tensor([wish], device=self.device)
        dist.all_reduce(vote, dist.ReduceOp.MIN)
        return int(vote)

    def _repeat(self, entry: int) -> None:
        self._repeating = True
        try:
            with torch.no_grad(), self.precision():
                self.network(*self._inputs[entry])
        finally:
            self._repeating = False
