"""Diffusion-DPO on pairs that are there already: nothing is sampled and nothing scored."""

from __future__ import annotations

from typing import Any, Iterator, List, Mapping, NamedTuple, Optional, Sequence, Tuple

import torch

from finpercep_plugin.algorithms.dpo import DPO
from finpercep_plugin.algorithms.members import Exchange, Update
from finpercep_plugin.algorithms.one_step import check_eta
from finpercep_plugin.algorithms.preferences import PreferenceBatch
from finpercep_plugin.rollout import sampler_steps

__all__ = ['StoredBatch', 'StoredPairs']


class StoredBatch(NamedTuple):
    """A pair for each row of an lq batch.

    Args:
        winner: (B, 3, H, W), [0, 1].
        loser: the same.
        gap: (B,), above 0.
        numbers: B times (winner, loser), of the samples among those of their image.
    """

    winner: torch.Tensor
    loser: torch.Tensor
    gap: torch.Tensor
    numbers: List[Tuple[int, int]]

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> StoredBatch:
        """From a batch of `FinPercepPreferenceDataset`."""
        numbers = zip(data['winner_number'].tolist(), data['loser_number'].tolist())
        return cls(data['winner'], data['loser'], data['gap'], list(numbers))


class StoredPairs:
    """The interface of the other algorithms over `DPO.pair_updates`; `batch` has to be set before each iteration.

    Any generator will do, one whose own samples hardly differ too, since it need not make any.

    Args:
        dpo: whose objective it is; its settings about samples are not used.

    Attributes:
        batch: of the lq that `updates` is called with.
    """

    needs_gradient = False
    needs_reference = True

    def __init__(self, dpo: DPO):
        self.dpo = dpo
        self.guidance, self.steps, self.eta = dpo.guidance, dpo.steps, dpo.eta
        self.batch: Optional[StoredBatch] = None

    @property
    def even(self) -> bool:
        """See `DPO`."""
        return self.dpo.even

    @even.setter
    def even(self, value: bool) -> None:
        self.dpo.even = value

    def check(self, generator: Any) -> None:
        """Whether the sampler's settings, which validation and the monitor use, fit the generator.

        Raises:
            ValueError: see `DPO.check`.
        """
        sampler_steps(generator, self.steps)
        check_eta(generator, self.eta, 'DPO')

    def shorten(self) -> None:
        """For a dry run: nothing to leave out."""

    def updates(
        self,
        generator: Any,
        lq: torch.Tensor,
        gt: Optional[torch.Tensor],
        reward_fn: Any,
        seed: int,
        iteration: int,
        samples: Sequence[int],
        exchange: Exchange,
    ) -> Iterator[Update]:
        """The optimiser updates of one iteration, on `batch`.

        The noise and timestep of a pair are keyed as online: on its sample index and the numbers of its two samples.

        Args:
            generator: in training.
            lq: (B, 3, h, w), [0, 1].
            gt: not used.
            reward_fn: not used.
            seed: of the run.
            iteration: of the run.
            samples: B global indices.
            exchange: ((n, ...) values, (n,) ids) -> those of all ranks.
        """
        assert self.batch is not None, 'set `batch` first'
        winner, loser, gap, numbers = self.batch
        keys = [(int(sample), *pair) for sample, pair in zip(samples, numbers)]
        pairs = PreferenceBatch(list(range(len(lq))), keys, winner.to(lq), loser.to(lq), gap.to(lq.device))
        yield from self.dpo.pair_updates(generator, lq, pairs, seed, iteration, samples, exchange, images=True)
