"""Fine-tune a generator by ReFL under the CCL curriculum of reward models (METHOD.md §4-5)."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Mapping

import torch
from basicsr.data import build_dataset
from basicsr.utils import get_root_logger
from torch import Tensor

from finpercep_plugin.config import build, collect, parse
from finpercep_plugin.curriculum.schedule import CCLSchedule
from finpercep_plugin.data.sampler import PositionDataset
from finpercep_plugin.models.base_model import TrainOptions
from finpercep_plugin.models.generator_model import GeneratorModel, check_generator, check_val
from finpercep_plugin.registry import ALGORITHMS, MODELS, REWARDS

__all__ = ['CCLOptions', 'FinPercepReFLModel', 'ReFLTrainOptions', 'check']


@dataclasses.dataclass(frozen=True)
class CCLOptions:
    """`train.ccl:`.

    Attributes:
        stages: steps of stage 0, 1, 2; the last runs on. `[0, 0, N]` is RM_2 without a curriculum.
        calibration: outputs of the starting generator that mu_k and sd_k are measured on.
    """

    stages: tuple[int, int, int] = (10000, 10000, 10000)
    calibration: int = 64


@dataclasses.dataclass(frozen=True)
class ReFLTrainOptions(TrainOptions):
    """`train:` of this model: the algorithm's section and the curriculum's."""

    algorithm: dict[str, Any] = dataclasses.field(default_factory=lambda: {'type': 'ReFL'})
    ccl: CCLOptions = CCLOptions()


def check(opt: Mapping[str, Any]) -> list[str]:
    """What is wrong with the model's sections, one line a problem; the files they name are looked for."""
    training = opt.get('is_train', True)
    problems = check_generator(opt.get('generator'), need_weights=True) + check_val(opt.get('val'))
    if training:
        train = opt.get('train') or {}
        problems += collect(
            lambda: parse(ReFLTrainOptions, train, '$.train'),
            lambda: build(ALGORITHMS, train.get('algorithm', {'type': 'ReFL'}), '$.train.algorithm'),
            lambda: build(REWARDS, opt.get('reward'), '$.reward'),
        )
        kind = (opt.get('reward') or {}).get('type')
        if kind in REWARDS.names() and not hasattr(REWARDS.get(kind), 'raw'):
            problems.append(
                f'$.reward.type: expected a reward with stages, such as FinPercep, got {kind}; others go to $.val.rewards'
            )
    return problems


@MODELS.register('FinPercepReFLModel')
class FinPercepReFLModel(GeneratorModel):
    """BasicSR model: `generator:` fine-tuned by `train.algorithm:` on `reward:`, whose stage `train.ccl:` sets."""

    def __init__(self, opt: dict[str, Any]):
        super().__init__(opt)
        self.build_net(opt)
        self.reward = None
        if self.is_train:
            settings = parse(ReFLTrainOptions, opt['train'], '$.train')
            self.algorithm = build(ALGORITHMS, settings.algorithm, '$.train.algorithm')
            self.algorithm.window(self.net_g)
            self.schedule = CCLSchedule(settings.ccl.stages)
            self.reward = build(REWARDS, opt['reward'], '$.reward', statistics=self.schedule.statistics).to(self.device)
            self.init_training(settings, {'generator': [p for p in self.net_g.parameters() if p.requires_grad]})

    def losses(self, current_iter: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The algorithm's loss under the stage's reward, and every term of both, with mean and spread."""
        if not self.schedule.statistics.ready(self.schedule.used_stages()):
            self._calibrate()
        stage = self.schedule.stage(current_iter)
        if stage != self.reward.stage:
            get_root_logger().info(f'iter {current_iter}: CCL stage {stage}')
            self.reward.stage = stage
        self.net_g.train()
        cond = self.net_g.condition(self.lq)
        samples = self.sample_ids(current_iter, len(self.lq))
        loss, terms = self.algorithm.loss(self.net_g, cond, self.gt, self.reward, self.seed, current_iter, samples)
        terms = {k: torch.as_tensor(v, dtype=torch.float32, device=self.device) for k, v in terms.items()}
        self.schedule.observe(current_iter, {k: float(v) for k, v in terms.items()})
        return loss, {**terms, 'stage': torch.tensor(float(stage), device=self.device)}

    @torch.no_grad()
    def _calibrate(self) -> None:
        """mu_k, sd_k of every stage used, on fixed outputs of the starting generator; each rank makes its share."""
        count = self.settings.ccl.calibration
        get_root_logger().info(f"Measuring the reward's mean and spread on {count} outputs of the starting generator")
        train = self.opt['datasets']['train']
        dataset = PositionDataset(build_dataset(train), self.seed, shuffle=True)
        stages = self.schedule.used_stages()
        raw = torch.zeros(len(stages), count, dtype=torch.float64)
        batch = max(1, int(train.get('batch_size_per_gpu', 1)))
        self.net_g.eval()
        mine = list(range(self.opt['rank'], count, self.opt['world_size']))
        for start in range(0, len(mine), batch):
            part = mine[start : start + batch]
            lq = torch.stack([dataset[i]['lq'] for i in part]).to(self.device)
            sr = self.super_resolve(lq, part, 'calibration')
            for row, stage in enumerate(stages):
                raw[row, part] = self.reward.raw(sr, stage).score.double().cpu()
        raw = self.reduce_sum(raw)
        for row, stage in enumerate(stages):
            self.schedule.statistics.measure(stage, raw[row])

    def training_state(self, epoch: int, current_iter: int) -> dict[str, Any]:
        return {**super().training_state(epoch, current_iter), 'ccl': self.schedule.state_dict()}

    def resume_training(self, resume_state: dict[str, Any]) -> None:
        super().resume_training(resume_state)
        self.schedule.load_state_dict(resume_state['ccl'])

    def panel_map(self, sr: Tensor) -> Tensor | None:
        """The map of the last stage's reward model."""
        if self.reward is None:
            return None
        return self.reward.raw(sr, self.schedule.used_stages()[-1]).maps.get('map')

    def export(self, path: Path) -> None:
        """The fine-tuned tensors alone, to be laid over `generator.weights`."""
        self.net_g.save(path, layout='trained')

    def save(self, epoch: int, current_iter: int) -> None:
        """As every model; at the end also the whole generator, ready to use by itself."""
        super().save(epoch, current_iter)
        if current_iter == -1 and self.opt['rank'] == 0:
            with self.ema_weights():
                self.net_g.save(f'{self.opt["path"]["models"]}/generator_latest.pth', layout='own')
