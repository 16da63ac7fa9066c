"""Train a diffusion generator from scratch on lq / gt pairs with its noise-prediction loss."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Mapping

import torch
from basicsr.data import build_dataset
from torch import Tensor

from finpercep_plugin.config import collect, parse
from finpercep_plugin.data.batches import stack_floats
from finpercep_plugin.data.sampler import PositionDataset
from finpercep_plugin.generator_section import check_generator
from finpercep_plugin.models.generator_model import GeneratorModel, check_val
from finpercep_plugin.models.options import TrainOptions
from finpercep_plugin.models.parallel import check_parallel
from finpercep_plugin.registry import MODELS
from finpercep_plugin.rng import keyed_randn, keyed_torch

__all__ = ['FinPercepDiffusionModel', 'check']

FIT_SAMPLES = 256
"""Pairs that the spread of the residual is measured on."""


def check(opt: Mapping[str, Any]) -> list[str]:
    """What is wrong with the model's sections, one line a problem."""
    training = opt.get('is_train', True)
    problems = check_generator(opt.get('generator'), need_weights=not training)
    if training:
        problems += collect(lambda: parse(TrainOptions, opt.get('train'), '$.train')) + check_parallel(opt)
    return problems + check_val(opt.get('val'))


@MODELS.register('FinPercepDiffusionModel')
class FinPercepDiffusionModel(GeneratorModel):
    """BasicSR model: the generator's `pretrain_loss`, timesteps uniform, every draw keyed on (seed, iteration, global sample)."""

    def __init__(self, opt: dict[str, Any]):
        super().__init__(opt)
        self.build_net(opt)
        if self.is_train:
            self.init_training(parse(TrainOptions, opt['train'], '$.train'), {'net': self.net_g.parameters()})

    def losses(self, current_iter: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean squared error of the prediction at one random timestep a sample."""
        self.net_g.train()
        if current_iter == 1:
            self._fit_residual()
        samples = self.sample_ids(current_iter, len(self.gt))
        cond = self.net_g.condition(self.lq)
        noise = keyed_randn(
            self.net_g.latent_shape(cond), samples, self.seed, current_iter, 'noise', device=self.device
        )
        t = torch.stack([self.net_g.draw_t(keyed_torch(self.seed, current_iter, 'timestep', i)) for i in samples])
        loss = self.net_g.pretrain_loss(self.gt, cond, noise, t.to(self.device)).mean()
        return loss, {'l_eps': loss}

    def _fit_residual(self) -> None:
        """Measure the spread that the generator divides its target by, on the run's first samples: the same on every rank.

        Not where the YAML gives it, or weights that were trained with one.
        """
        section = self.opt['generator']
        if not hasattr(self.net_g, 'fit_residual_sd') or section.get('weights') or 'residual_sd' in section:
            return
        dataset = PositionDataset(build_dataset(self.opt['datasets']['train']), self.seed, shuffle=True)
        items = [dataset[i] for i in range(min(FIT_SAMPLES, len(dataset)))]
        self.net_g.fit_residual_sd(*stack_floats(items, ('lq', 'gt'), self.device))

    def export(self, path: Path) -> None:
        self.net_g.save(path, layout='own')
