"""Tools that share their work between processes, started by torchrun or by hand, without a process group."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import timedelta
from typing import Optional, Sequence, TypeVar

import torch

from finpercep_plugin.devices import choose_device

__all__ = ['Ranks']

Item = TypeVar('Item')


@dataclass(frozen=True)
class Ranks:
    """Which of how many processes this is.

    Args:
        rank: of this process.
        world: how many there are.
        local: rank among those on this machine.

    >>> Ranks(1, 3).share('abcdefg')
    ['b', 'e']
    """

    rank: int = 0
    world: int = 1
    local: int = 0

    @classmethod
    def of_environment(cls) -> Ranks:
        """RANK, WORLD_SIZE and LOCAL_RANK; a process alone where they are not set.

        Raises:
            ValueError: they are no ranks.
        """
        names = ('RANK', 'WORLD_SIZE', 'LOCAL_RANK')
        rank, world = os.environ.get('RANK', '0'), os.environ.get('WORLD_SIZE', '1')
        texts = (rank, world, os.environ.get('LOCAL_RANK', rank))
        if not all(text.isdigit() for text in texts) or not int(rank) < int(world):
            raise ValueError(f'{", ".join(names)} are {", ".join(texts)}; expected 0 <= rank < world size')
        return cls(*map(int, texts))

    def share(self, items: Sequence[Item]) -> list[Item]:
        """Item i is for rank i mod world."""
        return list(items[self.rank :: self.world])

    def device(self, name: str) -> torch.device:
        """Device of that name; of several processes, 'auto' and 'cuda' are each one's own GPU.

        Raises:
            ValueError: an unknown device, or one that nothing can be computed on here.
        """
        device = choose_device(name)
        if device.type == 'cuda' and device.index is None and self.world > 1:
            device = torch.device('cuda', self.local)
        try:
            torch.zeros(1, device=device).item()
            if device.type == 'cuda':
                torch.cuda.set_device(device)
        except (RuntimeError, AssertionError, NotImplementedError) as error:
            raise ValueError(f'{device} cannot be used here: {str(error).splitlines()[0]}') from error
        return device

    def gather(self, text: str) -> Optional[list[str]]:
        """Every rank's text, once all have come here, however long that takes; None where there is no meeting place.

        The place is the store that torchrun keeps for its processes. It is also how a process that will exit with an
        error waits for the others, which torchrun would end.
        """
        if self.world == 1:
            return [text]
        if os.environ.get('TORCHELASTIC_USE_AGENT_STORE') != 'True':
            return None
        from torch.distributed import TCPStore

        host, port = os.environ['MASTER_ADDR'], int(os.environ['MASTER_PORT'])
        prefix = f'finpercep/{os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)}'
        try:
            store = TCPStore(host, port, is_master=False, timeout=timedelta(days=7), wait_for_workers=False)
            store.set(f'{prefix}/{self.rank}', text)
            return [store.get(f'{prefix}/{rank}').decode() for rank in range(self.world)]
        except RuntimeError:  # the store is gone, and so is the launcher
            return None
