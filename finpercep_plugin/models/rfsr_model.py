"""Fine-tune a generator by RFSR: low frequencies in early steps, a reward in late ones, the style of the start (METHOD.md §5)."""

from __future__ import annotations

from typing import Any, Mapping

from finpercep_plugin.models.rl_model import RLModel
from finpercep_plugin.models.rl_options import check_rl
from finpercep_plugin.registry import MODELS

__all__ = ['FinPercepRFSRModel', 'check']


def check(opt: Mapping[str, Any]) -> list[str]:
    """What is wrong with the model's sections, one line a problem."""
    return check_rl(opt, 'RFSR')


@MODELS.register('FinPercepRFSRModel')
class FinPercepRFSRModel(RLModel):
    """BasicSR model: `generator:` fine-tuned by RFSR on `reward:`, whose stage `train.ccl:` sets."""

    algorithm_type = 'RFSR'
