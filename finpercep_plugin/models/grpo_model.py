"""Fine-tune a generator by Flow-GRPO: policy gradient over sampler steps that draw (METHOD.md §5)."""

from __future__ import annotations

from typing import Any, Mapping

from finpercep_plugin.models.rl_model import RLModel
from finpercep_plugin.models.rl_options import check_rl
from finpercep_plugin.registry import MODELS

__all__ = ['FinPercepGRPOModel', 'check']


def check(opt: Mapping[str, Any]) -> list[str]:
    """What is wrong with the model's sections, one line a problem."""
    return check_rl(opt, 'FlowGRPO')


@MODELS.register('FinPercepGRPOModel')
class FinPercepGRPOModel(RLModel):
    """BasicSR model: `generator:` fine-tuned by FlowGRPO on `reward:`, whose stage `train.ccl:` sets."""

    algorithm_type = 'FlowGRPO'
