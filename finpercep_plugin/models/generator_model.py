"""What the models that train a generator share: building it from `generator:`, and validating it on lq / gt pairs."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any, Mapping

import numpy as np
import torch
from basicsr.metrics import calculate_metric
from basicsr.utils import get_root_logger
from torch import Tensor
from torch.utils.data import DataLoader

from finpercep_plugin.config import arguments, build, collect, parse
from finpercep_plugin.data.batches import to_floats
from finpercep_plugin.generator_section import build_generator, split_section
from finpercep_plugin.images import write_png
from finpercep_plugin.models.base_model import FinPercepModel
from finpercep_plugin.models.options import ValOptions
from finpercep_plugin.models.panels import map_picture, picture
from finpercep_plugin.models.precision import cast_frozen
from finpercep_plugin.registry import REWARDS
from finpercep_plugin.rollout import no_gradient, sample_images
from finpercep_plugin.visual import grid

__all__ = [
    'GeneratorModel',
    'GeneratorValOptions',
    'check_reward',
    'check_val',
]


NIQE_SIDE = 192
"""BasicSR's NIQE fits a Gaussian to 96 px blocks: two a side at the least."""


@dataclasses.dataclass(frozen=True)
class GeneratorValOptions(ValOptions):
    """`val:` of generator models.

    Attributes:
        metrics: BasicSR metrics on (sr, gt): `{psnr: {type: calculate_psnr, crop_border: 4, test_y_channel: true}}`.
        rewards: held-out rewards, `{name: {type: ...}}`; measured, never optimised.
        guidance: classifier-free guidance in sampling; 1 for none; null for the generator's own.
        steps: of the sampler; null for the generator's own.
    """

    metrics: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    rewards: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    guidance: float | None = None
    steps: int | None = None


def check_val(section: Any) -> list[str]:
    """What is wrong with the `val:` section of a generator model; no weights of a reward are loaded."""
    problems = collect(lambda: parse(GeneratorValOptions, section, '$.val'))
    if problems:
        return problems
    for name, reward in ((section or {}).get('rewards') or {}).items():
        if name in (section.get('metrics') or {}):
            problems.append(f'$.val.rewards.{name}: $.val.metrics has this name too; give it another')
        problems += check_reward(reward, f'$.val.rewards.{name}') or _check_scaled(reward, f'$.val.rewards.{name}')
    return problems


def _check_scaled(section: Mapping[str, Any], path: str) -> list[str]:
    """A sum of rewards has to know the scales of its parts, which are measured for the reward in training alone."""
    kind = REWARDS.get(section['type'])
    missing = kind.uncalibrated(section) if hasattr(kind, 'uncalibrated') else []
    if not missing:
        return []
    names = ', '.join(missing)
    return [f'{path}: held-out rewards are not calibrated; give statistics of {names}, or set normalise: none']


def check_reward(section: Any, path: str) -> list[str]:
    """What is wrong with a reward's section, its files included."""
    kind = section.get('type') if isinstance(section, Mapping) else None
    if kind not in REWARDS.names():
        return collect(lambda: build(REWARDS, section, path))
    options = {k: v for k, v in section.items() if k != 'type'}
    problems = collect(lambda: arguments(REWARDS.get(kind), options, path))
    if not problems and hasattr(REWARDS.get(kind), 'check'):
        problems = collect(lambda: REWARDS.get(kind).check(options, path))
    elif not problems and not getattr(REWARDS.get(kind), 'loads_weights', False):
        problems = collect(lambda: build(REWARDS, section, path))
    return problems


class GeneratorModel(FinPercepModel):
    """Base of models whose `net_g` is a generator.

    Attributes:
        needs_reference: whether the starting policy is kept beside the trained one.
    """

    needs_reference = False

    def build_net(self, opt: dict[str, Any]) -> None:
        """Sets `net_g`, with the parameters that `generator.train` names marked as trained, and the held-out rewards."""
        torch.manual_seed(opt.get('manual_seed') or 0)
        self.seed = int(opt.get('manual_seed') or 0)
        own, _ = split_section(opt['generator'])
        self.net_g = build_generator(opt['generator'])
        if not self.parallel.sharded:
            self.net_g.to(self.device)
        if self.is_train:
            self.net_g.trainable(own.train, rank=own.lora_rank, alpha=own.lora_alpha, reference=self.needs_reference)
        if self.bf16 and getattr(self.net_g, 'frozen_in_bf16', False):
            cast_frozen(self.net_g)
        self.parallel.place(self.net_g)
        self.val_options = parse(GeneratorValOptions, opt.get('val'), '$.val')
        self.heldout = {
            name: build(REWARDS, section, f'$.val.rewards.{name}').to(self.device)
            for name, section in self.val_options.rewards.items()
        }

    def feed_data(self, data: dict[str, Any]) -> None:
        """lq (B, 3, h, w), gt (B, 3, H, W), in [0, 1], or uint8."""
        data = to_floats(data, ('lq', 'gt') if 'gt' in data else ('lq',), self.device)
        self.lq, self.gt = data['lq'], data.get('gt')

    def sample_ids(self, current_iter: int, batch: int) -> list[int]:
        """Global indices of this rank's samples of this iteration: the same for any number of ranks."""
        first = ((current_iter - 1) * self.opt['world_size'] + self.opt['rank']) * batch
        return list(range(first, first + batch))

    @no_gradient()
    def super_resolve(
        self, lq: Tensor, samples: list[int], purpose: str, **sampler: Any
    ) -> tuple[Tensor, tuple[str, ...]]:
        """sr (B, 3, H, W) of lq (B, 3, h, w), and the texts it was made with; the noise of row i is keyed on (seed, purpose, samples[i]).

        Args:
            sampler: `steps`, `guidance`, `eta`; validation's unless given.
        """
        options = {'guidance': self.val_options.guidance, 'steps': self.val_options.steps, **sampler}
        with self.autocast():
            cond = self.net_g.condition(lq)
            sr = sample_images(self.net_g, lq, samples, self.seed, purpose, cond, **options)
        return sr, self.net_g.prompts(cond)

    def panel_map(self, sr: Tensor, lq: Tensor, gt: Tensor | None) -> Tensor | None:
        """A degradation map (B, 1, H, W) to show beside sr, if the model has one."""
        return None

    @torch.no_grad()
    def validation(
        self, dataloader: DataLoader, current_iter: int | str, tb_logger: Any, save_img: bool = False
    ) -> None:
        """BasicSR's metrics and the held-out rewards on lq / gt pairs, sharded over ranks; the noise is the same at every call."""
        self.net_g.eval()
        dataset, name = dataloader.dataset, dataloader.dataset.opt['name']
        sums = {key: [0.0, 0] for key in (*self.val_options.metrics, *self.heldout)}
        panel = []
        mine = self.shard(dataset)
        with self.ema_weights(), self.parallel.uneven():
            if self.parallel.sharded and not mine:  # its part of the network is needed all the same
                self.super_resolve(dataset[0]['lq'][None].to(self.device), [0], f'validation {name}')
            for index in mine:
                item = dataset[index]
                lq, gt = item['lq'][None].to(self.device), item.get('gt')
                sr, prompt = self.super_resolve(lq, [index], f'validation {name}')
                for key, value in self._measure(sr, gt, lq, prompt).items():
                    sums[key][0] += value
                    sums[key][1] += 1
                if save_img:
                    folder = Path(self.opt['path']['visualization']) / name / str(current_iter)
                    write_png(folder / f'{index:05d}_{Path(item["lq_path"]).stem}.png', picture(sr[0]))
                if len(panel) < self.val_options.panel:
                    panel.append(self._panel_row(lq, sr, gt))
        totals = self.reduce_sum(torch.tensor(list(sums.values()), dtype=torch.float64).reshape(-1, 2)).tolist()
        results = {key: value / count for key, (value, count) in zip(sums, totals) if count}
        self.report(name, results, current_iter, tb_logger)
        if len(results) < len(sums):
            get_root_logger().warning(
                f'Validation {name}: could not be measured here: {", ".join(sorted(set(sums) - set(results)))}'
            )
        if panel:
            self.report_panel(name, grid(panel), current_iter, tb_logger, save_img)

    def _measure(self, sr: Tensor, gt: Tensor | None, lq: Tensor, prompt: tuple[str, ...]) -> dict[str, float]:
        """Every metric and reward that this sample has what it takes for: gt, and size; NaN of an sr that is not finite."""
        if not bool(sr.isfinite().all()):
            return dict.fromkeys((*self.val_options.metrics, *self.heldout), math.nan)
        values = {}
        images = {'img': _bgr(sr[0])} if gt is None else {'img': _bgr(sr[0]), 'img2': _bgr(gt)}
        for key, section in self.val_options.metrics.items():
            alone = section.get('type') == 'calculate_niqe'
            if alone and min(sr.shape[-2:]) - 2 * section.get('crop_border', 0) < NIQE_SIDE or not alone and gt is None:
                continue
            data = {'img': images['img']} if alone else images
            values[key] = float(calculate_metric(data, {k: v for k, v in section.items() if k != 'better'}))
        batched_gt = None if gt is None else gt[None].to(self.device)
        for key, reward in self.heldout.items():
            if gt is not None or 'gt' not in reward.needs:
                with self.autocast():
                    values[key] = float(reward(sr, lq=lq, gt=batched_gt, prompt=list(prompt)).score[0])
        return values

    def _panel_row(self, lq: Tensor, sr: Tensor, gt: Tensor | None) -> list[np.ndarray]:
        scale = (sr.shape[-2] // lq.shape[-2], sr.shape[-1] // lq.shape[-1])
        row = [picture(lq[0].repeat_interleave(scale[0], 1).repeat_interleave(scale[1], 2)), picture(sr[0])]
        degradation = self.panel_map(sr, lq, gt)
        if gt is not None:
            row.append(picture(gt))
        return row if degradation is None else [*row, map_picture(degradation[0])]


def _bgr(image: Tensor) -> np.ndarray:
    """As BasicSR's metrics take it: (H, W, 3) uint8 BGR."""
    return np.ascontiguousarray(picture(image)[..., ::-1])
