"""Fine-tune a generator by Diffusion-DPO: preferences between samples of a picture, online or stored, METHOD.md §5."""

from __future__ import annotations

from typing import Any, Mapping

from torch import Tensor, nn

from finpercep_plugin.algorithms.stored_pairs import StoredBatch, StoredPairs
from finpercep_plugin.curriculum.schedule import CCLSchedule
from finpercep_plugin.data.fgr_format import FGRError
from finpercep_plugin.data.preference_format import read_meta
from finpercep_plugin.models.rl_model import RLModel
from finpercep_plugin.models.rl_options import RLTrainOptions, build_algorithm, check_rl
from finpercep_plugin.registry import MODELS
from finpercep_plugin.rewards.base import RewardOutput

__all__ = ['FinPercepDPOModel', 'NoReward', 'check']

STORE = 'FinPercepPreferenceDataset'
ONLINE = ('members', 'best', 'min_gap', 'policy', 'sample_batch')
"""Settings of DPO about samples that it makes itself."""


def check(opt: Mapping[str, Any]) -> list[str]:
    """What is wrong with the model's sections, one line a problem."""
    if not _from_store(opt):
        return check_rl(opt, 'DPO')
    rewarded = opt.get('reward') is not None
    problems = check_rl(opt, 'DPO', _stored_pairs, rewarded)
    section = (opt.get('train') or {}).get('algorithm')
    given = section if isinstance(section, Mapping) else {}
    problems += [f'$.train.algorithm.{key}: {STORE} has pairs already; leave it out' for key in ONLINE if key in given]
    return problems or (_check_gt(opt) if rewarded else _check_unrewarded(opt))


def _from_store(opt: Mapping[str, Any]) -> bool:
    return ((opt.get('datasets') or {}).get('train') or {}).get('type') == STORE


def _stored_pairs(section: Mapping[str, Any], kind: str) -> StoredPairs:
    return StoredPairs(build_algorithm(section, kind))


def _check_unrewarded(opt: Mapping[str, Any]) -> list[str]:
    """Sections that are about a reward."""
    train = opt.get('train') or {}
    problems = []
    if (train.get('monitor') or {}).get('every'):
        problems.append('$.train.monitor.every: the monitor compares with a reward; set 0, or give $.reward to watch')
    if train.get('ccl'):
        problems.append('$.train.ccl: stored pairs have no stages; leave it out, or give $.reward to watch')
    return problems


def _check_gt(opt: Mapping[str, Any]) -> list[str]:
    """A reward is measured on the pictures of the set, gt included."""
    root = opt['datasets']['train'].get('dataroot')
    try:
        meta = read_meta(root)
    except (FGRError, TypeError):  # the data set tells
        return []
    return [] if meta.get('gt') else [f'$.reward: is watched on gt too, and {root} has none; leave the reward out']


class NoReward(nn.Module):
    """Stands where a reward would, in training that scores nothing."""

    stage = 0

    def raw(self, sr: Tensor, stage: int, **given: Any) -> RewardOutput:
        """0 for each of sr (B, 3, H, W)."""
        return RewardOutput(sr.new_zeros(len(sr)))


@MODELS.register('FinPercepDPOModel')
class FinPercepDPOModel(RLModel):
    """BasicSR model: `generator:` fine-tuned by DPO, on preferences by `reward:`, whose stage `train.ccl:` sets.

    With a FinPercepPreferenceDataset under `datasets.train` the preferences are those of the set. A reward is then
    optional, and only the hacking monitor looks at it; without one there is no monitor.
    """

    algorithm_type = 'DPO'

    def __init__(self, opt: dict[str, Any]):
        self.from_store = _from_store(opt)
        if self.from_store and opt.get('reward') is None:
            train = opt['train']
            opt = {**opt, 'train': {**train, 'monitor': {**(train.get('monitor') or {}), 'every': 0}}}
        super().__init__(opt)

    def make_algorithm(self, section: dict[str, Any]) -> Any:
        return _stored_pairs(section, 'DPO') if self.from_store else super().make_algorithm(section)

    def _staged_reward(self, section: dict[str, Any] | None, settings: RLTrainOptions) -> tuple[CCLSchedule, Any]:
        if section is None:
            return CCLSchedule((settings.total_iter, 0, 0)), NoReward()
        return super()._staged_reward(section, settings)

    def _prepare(self, stage: int) -> None:
        if not isinstance(self.reward, NoReward):
            super()._prepare(stage)

    def feed_data(self, data: dict[str, Any]) -> None:
        """lq (B, 3, h, w), [0, 1], and gt, or the pairs of a preference set."""
        super().feed_data(data)
        if self.from_store:
            self.algorithm.batch = StoredBatch.of(data)
