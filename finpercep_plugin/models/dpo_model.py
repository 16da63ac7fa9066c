"""Fine-tune a generator by online Diffusion-DPO: preferences between samples of one picture (METHOD.md §5)."""

from __future__ import annotations

from typing import Any, Mapping

from finpercep_plugin.models.rl_model import RLModel, check_rl
from finpercep_plugin.registry import MODELS

__all__ = ['FinPercepDPOModel', 'check']


def check(opt: Mapping[str, Any]) -> list[str]:
    """What is wrong with the model's sections, one line a problem."""
    return check_rl(opt, 'DPO')


@MODELS.register('FinPercepDPOModel')
class FinPercepDPOModel(RLModel):
    """BasicSR model: `generator:` fine-tuned by DPO on `reward:`, whose stage `train.ccl:` sets."""

    algorithm_type = 'DPO'
