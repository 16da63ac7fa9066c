"""What has to be known of a reward before its weights are loaded: whether an algorithm can train on it."""

from __future__ import annotations

import dataclasses
from typing import Any, Mapping

from finpercep_plugin.registry import REWARDS

__all__ = ['RewardKind', 'reward_kind']


@dataclasses.dataclass(frozen=True)
class RewardKind:
    """
    Attributes:
        differentiable: whether gradients reach the picture.
        needs: of 'lq', 'gt', 'prompt', what it cannot do without.
        gives_map: whether it says where: `RewardOutput.maps['map']`, from some stage on.
        needs_groups: whether it scores samples of one lq against each other.
    """

    differentiable: bool
    needs: frozenset[str] = frozenset()
    gives_map: bool = False
    needs_groups: bool = False


def reward_kind(section: Mapping[str, Any]) -> RewardKind:
    """The kind of the reward that a YAML section describes.

    Args:
        section: `{type: ..., options}`, one that is checked. A class whose kind depends on its options says which in a class
            method `kind(options)`; that of others is in their attributes.

    Raises:
        KeyError: no such reward.
        ImportError: what it needs to tell is not installed.

    >>> reward_kind({'type': 'Function', 'function': 'math:sqrt', 'differentiable': True})
    RewardKind(differentiable=True, needs=frozenset(), gives_map=False, needs_groups=False)
    """
    reward = REWARDS.get(section['type'])
    if hasattr(reward, 'kind'):
        return reward.kind({key: value for key, value in section.items() if key != 'type'})
    return RewardKind(reward.differentiable, frozenset(reward.needs), getattr(reward, 'gives_map', False))
