"""The co-evolution of CCL: RM_k is trained when its stage begins, on samples of the generator as it is then, too
(METHOD.md §4, `reward_update: at_switch`).
"""

from __future__ import annotations

import collections
import copy
import hashlib
import json
import os
import shutil
import time
from pathlib import Path
from typing import Any, Iterator, Mapping, Sequence

import numpy as np
import torch
import torch.distributed as dist
from basicsr.utils import get_root_logger
from torch import Tensor

from finpercep_plugin.archs.finpercep_rm_arch import FinPercepRM
from finpercep_plugin.config import ConfigError
from finpercep_plugin.data.fgr_dataset import FinPercepFGRDataset, to_tensor
from finpercep_plugin.data.fresh_samples import FreshSamples, build_fresh, is_complete
from finpercep_plugin.data.loaders import train_loader, val_loaders
from finpercep_plugin.generators.checkpoint import read_weights, write_weights
from finpercep_plugin.integrations.checkpoints import get_rng, load_resume_state, remove_leftovers, set_rng
from finpercep_plugin.loop import fit, validate
from finpercep_plugin.models.fixed_samples import sampler_of
from finpercep_plugin.models.growth_options import GrowthOptions, growth_folder, rm_options
from finpercep_plugin.models.panels import picture
from finpercep_plugin.models.rm_model import FinPercepRMModel, grown
from finpercep_plugin.rng import key_seed

__all__ = ['RewardGrowth', 'digest']

TELL = 60
"""Seconds between two lines about samples in the making."""


def digest(tensors: Mapping[str, Tensor]) -> str:
    """Of names and values.

    >>> digest({'a': torch.zeros(2), 'b': torch.ones(())}) == digest({'b': torch.ones(()), 'a': torch.zeros(2)})
    True
    """
    result = hashlib.sha256()
    for name in sorted(tensors):
        result.update(name.encode())
        result.update(tensors[name].detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return result.hexdigest()


def _digest_of(file: Path) -> str:
    return digest(read_weights(file, 'the reward model')['params'])


class RewardGrowth:
    """Makes the reward models of the later stages of a run, each once; in `experiments/<name>/growth/stage_k`:

        key.json    what `rm.pth` follows from: options, generator, RM_k-1
        fgr         samples of the generator as it was at the switch, an FGR set
        rm.pth      RM_k

    A run that is killed and resumed comes to the same switch with the same generator, and goes on with what lies there,
    or uses it; where the key is another, it starts anew. All calls but the constructor are collective.

    Args:
        model: an `RLModel` with its generator, reward and algorithm.
        options: `train.ccl.growth:`.
        stages: those with steps, in order; the reward model of the first is there.

    Attributes:
        digests: {stage: of its reward model's tensors}, of those that were grown.

    Raises:
        ConfigError: options of a reward model that is to be grown, or its data.
        ValueError: the first reward model cannot be grown to one of these.
    """

    def __init__(self, model: Any, options: GrowthOptions, stages: Sequence[int]):
        self.model, self.options, self.stages = model, options, list(stages)
        self.plans = {k: rm_options(options, k, model.opt) for k in self.stages[1:]}
        self.digests: dict[int, str] = {}
        for plan in self.plans.values():
            scale = FinPercepFGRDataset(plan['datasets']['train']).scale
            if scale != model.net_g.scale:
                raise ValueError(
                    f'{plan["name"]}: its FGR set is of scale {scale}, the generator of {model.net_g.scale}'
                )
        self._born()

    @property
    def present(self) -> list[int]:
        """The stages whose reward model is there."""
        return [self.stages[0], *sorted(self.digests)]

    def file(self, stage: int) -> Path:
        """Of the stage's reward model."""
        if stage == self.stages[0]:
            return self.model.reward.files[stage]
        return growth_folder(self.model.opt, stage) / 'rm.pth'

    def grow(self, stage: int) -> None:
        """Train RM_stage, if it is not there already, and give it to the reward; generators of random numbers are left as
        they were.
        """
        before, folder = get_rng(), growth_folder(self.model.opt, stage)
        self._begin(stage, folder)
        if not self._agreed((folder / 'rm.pth').is_file()):
            get_root_logger().info(f'CCL: RM_{stage} is trained, in {folder}')
            if self.options.fresh:
                self._build_fresh(stage, folder)
            self._train(stage, folder)
        self._use(stage)
        set_rng(before)

    def rehearse(self) -> None:
        """For a dry run: untrained reward models in the place of those to come."""
        for stage, rm in self._born().items():
            write_weights(rm.file(), self.file(stage))
            self._use(stage)

    def restore(self, digests: Mapping[int, str]) -> None:
        """Give the reward what was grown before a resume.

        Raises:
            ConfigError: a file is gone, or is another than that which the run went on with.
        """
        for stage, wanted in sorted(digests.items()):
            self._fetch(stage)
            if not self.file(stage).is_file():
                raise ConfigError(
                    [f'$.path.resume_state: RM_{stage} of the run to resume is not at {self.file(stage)}']
                )
            self._use(stage)
            if self.digests[stage] != wanted:
                raise ConfigError([f'$.path.resume_state: {self.file(stage)} is another RM_{stage} than the run had'])

    def _fetch(self, stage: int) -> None:
        """From the experiment of the state, where that is resumed under another name."""
        state, own = self.model.opt['path'].get('resume_state'), self.file(stage)
        other = Path(state).parent.parent / own.relative_to(own.parents[2]) if state else own
        if self.model.opt['rank'] == 0 and other.is_file() and not own.is_file():
            own.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(other, own.with_suffix('.part'))
            os.replace(own.with_suffix('.part'), own)
        self._wait()

    def _born(self) -> dict[int, FinPercepRM]:
        """Every reward model as it is born, so that options that do not fit show before anything is trained."""
        before = get_rng()
        first = self.file(self.stages[0])
        rm, born, source = FinPercepRM.from_file(first), {}, str(first)
        for stage, plan in self.plans.items():
            rm = born[stage] = grown(rm, plan['network_g'], source)
            source = f'$.train.ccl.growth.rm_{stage}'
        set_rng(before)
        return born

    def _begin(self, stage: int, folder: Path) -> None:
        """Keep what lies in the folder if it follows from the same; else empty it."""
        plan, file = self.plans[stage], folder / 'key.json'
        previous = self.file(self.stages[self.stages.index(stage) - 1])
        kept = {name: plan[name] for name in ('network_g', 'train', 'datasets', 'manual_seed', 'world_size')}
        sampled = {'fresh': self.options.fresh, 'share': self.options.share, **sampler_of(self.model)}
        made = {'generator': digest(self.model.parallel.full(self.model.trained)), 'rm': _digest_of(previous)}
        key = json.dumps({**kept, **sampled, **made, 'bf16': self.model.bf16}, sort_keys=True, default=str)
        same = self._agreed(file.is_file() and file.read_text(encoding='utf-8') == key)
        if self.model.opt['rank'] == 0 and not same:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            file.with_suffix('.part').write_text(key, encoding='utf-8')
            os.replace(file.with_suffix('.part'), file)
        self._wait()

    def _build_fresh(self, stage: int, folder: Path) -> None:
        out, seed = folder / 'fgr', key_seed(self.model.seed, 'growth', stage)
        if self._agreed(is_complete(out)):
            return
        source = FinPercepFGRDataset(self.plans[stage]['datasets']['train'])
        samples = FreshSamples(source, {'type': 'current generator', 'stage': stage}, seed)
        rounds = self._rounds(samples, f'growth {stage}')
        if self.model.opt['rank'] == 0:
            build_fresh(out, samples, self.options.fresh, rounds)
        else:
            collections.deque(rounds, maxlen=0)
        self._wait()

    @torch.no_grad()
    def _rounds(self, samples: FreshSamples, purpose: str) -> Iterator[tuple[list[int], np.ndarray]]:
        """(indices, sr (n, H, W, 3) uint8) of all samples, and of a few more in the last round, a batch a rank at a time."""
        model = self.model
        batch, count = max(1, int(model.opt['datasets']['train'].get('batch_size_per_gpu', 1))), self.options.fresh
        training, step, told = model.net_g.training, batch * model.opt['world_size'], time.monotonic()
        model.net_g.eval()
        for first in range(0, count, step):
            if time.monotonic() - told > TELL:
                get_root_logger().info(f'CCL: {first} of {count} fresh samples')
                told = time.monotonic()
            begin = first + batch * model.opt['rank']
            mine = list(range(begin, begin + batch))
            lq = torch.stack([to_tensor(samples.lq(i)) for i in mine]).to(model.device)
            sr, _ = model.super_resolve(lq, mine, purpose, **sampler_of(model))
            pictures = torch.from_numpy(np.stack([picture(image) for image in sr])).to(model.device)
            pictures, indices = model.exchange(pictures, torch.tensor(mine))
            yield indices.tolist(), pictures.cpu().numpy()
        model.net_g.train(training)

    def _train(self, stage: int, folder: Path) -> None:
        """As `train.py` does, within this run."""
        opt = copy.deepcopy(self.plans[stage])
        opt['path']['pretrain_network_g'] = str(self.file(self.stages[self.stages.index(stage) - 1]))
        if self.options.fresh:
            fresh = {'type': 'FinPercepFreshFGRDataset', 'fresh': str(folder / 'fgr'), 'share': self.options.share}
            opt['datasets']['train'] |= fresh
        state = load_resume_state(opt)
        start = state['iter'] if state else 0
        if opt['rank'] == 0:
            remove_leftovers(opt)
        loader, validation = train_loader(opt, start), val_loaders(opt)
        rm = FinPercepRMModel(opt)
        if state:
            rm.resume_training(state)
        if not fit(rm, opt, loader, validation, start):
            validate(rm, opt, validation, int(opt['train']['total_iter']), None)
        if opt['rank'] == 0:
            with rm.ema_weights():
                rm.export(folder / 'rm.pth')
            for name in ('models', 'training_states'):
                shutil.rmtree(folder / name, ignore_errors=True)
        self._wait()

    def _use(self, stage: int) -> None:
        self.model.add_reward_model(stage, self.file(stage))
        self.digests[stage] = _digest_of(self.file(stage))

    def _agreed(self, holds: bool) -> bool:
        """What rank 0 found."""
        vote = float(holds and self.model.opt['rank'] == 0)
        return bool(self.model.reduce_sum(torch.tensor([vote])))

    def _wait(self) -> None:
        if self.model.opt['dist']:
            dist.barrier()
