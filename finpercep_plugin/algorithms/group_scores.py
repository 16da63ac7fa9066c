"""The scores of samples, where they may be relative to the other samples of the same low-quality image."""

from __future__ import annotations

from typing import Any, Optional, Sequence, Tuple

import torch

from finpercep_plugin.algorithms.members import Exchange
from finpercep_plugin.rewards.base import RewardOutput

__all__ = ['group_scores']


def group_scores(
    reward_fn: Any, outputs: Sequence[RewardOutput], ids: torch.Tensor, exchange: Exchange
) -> Tuple[torch.Tensor, Optional[Tuple[torch.Tensor, torch.Tensor]]]:
    """(n,) scores of a process's samples, and scores and ids of those of all processes where they had to be gathered.

    A reward with `needs_groups` is asked to combine its terms over the group, wherever the group's samples are; the
    score of any other is taken as it is.

    Args:
        reward_fn: what gave the outputs.
        outputs: batches of n samples in all.
        ids: (n,) of the low-quality image of each.
        exchange: ((n, ...) values, (n,) ids) -> those of all ranks; called for a reward with `needs_groups` only.
    """
    if not getattr(reward_fn, 'needs_groups', False):
        return torch.cat([output.score.detach().float() for output in outputs]), None
    names = list(outputs[0].terms)
    own = torch.stack([torch.cat([output.terms[name].detach().float() for output in outputs]) for name in names], 1)
    gathered, all_ids = exchange(own, ids)
    terms, everywhere = (dict(zip(names, values.unbind(1))) for values in (own, gathered))
    scores = reward_fn.combine(terms, ids, (everywhere, all_ids))
    return scores, (reward_fn.combine(everywhere, all_ids), all_ids)
