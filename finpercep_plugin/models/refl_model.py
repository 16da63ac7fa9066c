"""Fine-tune a generator by ReFL: the gradient of a reward through one late sampler step (METHOD.md §5)."""

from __future__ import annotations

from typing import Any, Mapping

from finpercep_plugin.models.rl_model import RLModel
from finpercep_plugin.models.rl_options import check_rl
from finpercep_plugin.registry import MODELS

__all__ = ['FinPercepReFLModel', 'check']


def check(opt: Mapping[str, Any]) -> list[str]:
    """What is wrong with the model's sections, one line a problem."""
    return check_rl(opt, 'ReFL')


@MODELS.register('FinPercepReFLModel')
class FinPercepReFLModel(RLModel):
    """BasicSR model: `generator:` fine-tuned by ReFL on `reward:`, whose stage `train.ccl:` sets."""

    algorithm_type = 'ReFL'
