"""What the models that fine-tune a generator on a reward share: algorithm, reward, curriculum (METHOD.md §4-5)."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any, ClassVar, ContextManager, Iterator, Sequence

import torch
import torch.distributed as dist
from basicsr.utils import get_root_logger
from torch import Tensor

from finpercep_plugin.algorithms.members import alone
from finpercep_plugin.config import ConfigError, build, parse
from finpercep_plugin.curriculum.schedule import CCLSchedule
from finpercep_plugin.models.base_model import Micro
from finpercep_plugin.models.calibration import calibrate
from finpercep_plugin.models.generator_model import GeneratorModel
from finpercep_plugin.models.growth import RewardGrowth
from finpercep_plugin.models.precision import cast_frozen
from finpercep_plugin.models.resuming import check_kind
from finpercep_plugin.models.rl_options import RLTrainOptions, build_algorithm, staged_schedule
from finpercep_plugin.models.watch import Watch
from finpercep_plugin.registry import REWARDS
from finpercep_plugin.rewards.normalised import NormalisedReward

__all__ = ['RLModel']


class RLModel(GeneratorModel):
    """`generator:` fine-tuned by `train.algorithm:` on `reward:`, whose stage `train.ccl:` sets.

    Attributes:
        algorithm_type: of the subclass: the registered name.
    """

    algorithm_type: ClassVar[str]
    exports_everything = False

    def __init__(self, opt: dict[str, Any]):
        super().__init__(opt)
        if self.is_train:
            settings = parse(RLTrainOptions, opt['train'], '$.train')
            at_switch = settings.ccl.reward_update == 'at_switch'
            self.algorithm = self.make_algorithm(settings.algorithm)
            self.needs_reference = self.algorithm.needs_reference or at_switch
            if hasattr(self.algorithm, 'even'):
                self.algorithm.even = self.parallel.sharded
        self.build_net(opt)
        self.reward = self.growth = None
        if self.is_train:
            self.algorithm.check(self.net_g)
            self.schedule, self.reward = self._staged_reward(opt.get('reward'), settings)
            self.reward.to(self.device)
            used = self.schedule.used_stages()
            if at_switch:
                self.growth = RewardGrowth(self, settings.ccl.growth, used)
            self._load_reward(self.stages)
            self.watch = Watch(self, settings.monitor) if settings.monitor.every else None
            self.init_training(settings, {'generator': [p for p in self.net_g.parameters() if p.requires_grad]})

    def make_algorithm(self, section: dict[str, Any]) -> Any:
        """Of `train.algorithm:`."""
        return build_algorithm(section, self.algorithm_type)

    def _staged_reward(self, section: dict[str, Any], settings: RLTrainOptions) -> tuple[CCLSchedule, Any]:
        """The schedule and the reward that shares its statistics; a reward without stages has the one stage 0."""
        if not hasattr(REWARDS.get(section['type']), 'raw'):
            schedule = CCLSchedule((settings.total_iter, 0, 0))
            return schedule, NormalisedReward(build(REWARDS, section, '$.reward'), schedule.statistics)
        schedule = staged_schedule(settings.ccl)
        if settings.ccl.reward_update == 'at_switch' and section.get('rm'):  # of the first stage, not of all
            section = {**section, 'rm': None, 'rms': {schedule.used_stages()[0]: section['rm']}}
        return schedule, build(REWARDS, section, '$.reward', statistics=schedule.statistics)

    def _load_reward(self, stages: Sequence[int]) -> None:
        """Read the reward models now, so that a wrong file shows at once."""
        if hasattr(self.reward, 'load'):
            self.reward.load(stages, self.device)
        if self.bf16:
            for module in getattr(self.reward, 'encoders', ()):
                cast_frozen(module)

    def add_reward_model(self, stage: int, file: Path) -> None:
        """Give the reward the model of a stage."""
        self.reward.add(stage, file)
        self._load_reward([stage])

    @property
    def stages(self) -> list[int]:
        """The stages with steps whose reward model is there, in order."""
        return self.schedule.used_stages() if self.growth is None else self.growth.present

    def updates(self, current_iter: int) -> Iterator[Iterator[Micro]]:
        """The algorithm's updates under the stage's reward, and every term of both, with mean and spread."""
        stage = self.schedule.stage(current_iter)
        self._prepare(stage)
        if stage != self.reward.stage:
            get_root_logger().info(f'iter {current_iter}: CCL stage {stage}')
            self.reward.stage = stage
        self.net_g.train()
        samples = self.sample_ids(current_iter, len(self.lq))
        arguments = (self.net_g, self.lq, self.gt, self.reward, self.seed, current_iter, samples, self.exchange)
        return self.algorithm.updates(*arguments)

    def _prepare(self, stage: int) -> None:
        """The reward model of the stage, the scales of all that are there, and what the monitor compares with."""
        if stage not in self.stages:
            self.growth.grow(stage)
        unscaled = [k for k in self.stages if not self.schedule.statistics.ready([k])]
        if unscaled:
            with self._starting_generator():
                calibrate(self, unscaled)
        if self.watch and not self.watch.monitor.started:
            self.watch.start()

    def _starting_generator(self) -> ContextManager[None]:
        """Inside, the generator is as it was before the first step; without growth, it still is so when this is asked for."""
        return self.net_g.reference() if self.growth else contextlib.nullcontext()

    def optimize_parameters(self, current_iter: int) -> None:
        super().optimize_parameters(current_iter)
        self.log_dict['stage'] = torch.tensor(float(self.reward.stage), device=self.device)
        if self.watch and self.watch.monitor.due(current_iter):
            verdict = self.watch.observe(current_iter)
            hacked = verdict.level == 'hacked'
            decision = self.schedule.observe(current_iter, {'reward': verdict.reward, **verdict.gains}, hacked)
            if decision:
                get_root_logger().info(f'iter {current_iter}: {decision.text()}')
            if hacked and self.watch.monitor.options.stop and decision is None:
                self.watch.stop(current_iter)
        self.log_dict.update(self.watch.numbers if self.watch else {})

    def exchange(self, values: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Rewards (n, ...) and the indices of their images (n,), of all ranks, in their order (a collective call)."""
        if not self.opt['dist']:
            return alone(values, ids)
        gathered = []
        for tensor in (values.contiguous(), ids.to(values.device).contiguous()):
            parts = [torch.empty_like(tensor) for _ in range(self.opt['world_size'])]
            dist.all_gather(parts, tensor)
            gathered.append(torch.cat(parts))
        return gathered[0], gathered[1]

    def prepare_dry_run(self) -> None:
        """No calibration, no training of reward models, and the shortest rollout that the algorithm knows."""
        if self.growth:
            self.growth.rehearse()
        for stage in self.stages:
            self.schedule.statistics.set(stage, 0.0, 1.0)
        if hasattr(self.reward, 'restore'):
            self.reward.restore(dict.fromkeys(self.reward.term_names, (0.0, 1.0)))
        self.algorithm.shorten()
        self.watch = None

    def training_state(self, epoch: int, current_iter: int) -> dict[str, Any]:
        return {
            **super().training_state(epoch, current_iter),
            'ccl': self.schedule.state_dict(),
            'monitor': self.watch.monitor.state_dict() if self.watch else None,
            'reward': getattr(self.reward, 'measured', None),
            'grown': self.growth.digests if self.growth else None,
        }

    def resume_training(self, resume_state: dict[str, Any]) -> None:
        check_kind(resume_state, type(self).__name__, ccl=dict)
        super().resume_training(resume_state)
        self.schedule.load_state_dict(resume_state['ccl'])
        if resume_state.get('reward'):
            self.reward.restore(resume_state['reward'])
        grown = resume_state.get('grown')
        if (grown is None) != (self.growth is None):
            kinds = ('at_switch', 'offline')
            raise ConfigError(
                [
                    f'$.train.ccl.reward_update: the run to resume has {kinds[grown is None]}, the YAML '
                    f'{kinds[self.growth is None]}; set it as it was'
                ]
            )
        if self.growth:
            self.growth.restore(grown)
        if self.watch and resume_state.get('monitor'):
            self.watch.monitor.load_state_dict(resume_state['monitor'])
        elif self.watch:
            get_root_logger().warning('The state to resume has no monitor: changes are counted from here on')

    def panel_map(self, sr: Tensor, lq: Tensor, gt: Tensor | None) -> Tensor | None:
        """The map of the last reward model that is there, if it has one."""
        if self.reward is None or gt is None:
            return None
        with self.autocast():
            return self.reward.raw(sr, self.stages[-1], lq=lq, gt=gt[None].to(self.device)).maps.get('map')

    def export(self, path: Path) -> None:
        """The fine-tuned tensors alone, to be laid over `generator.weights`."""
        self.net_g.save(path, layout='trained')

    def save(self, epoch: int, current_iter: int) -> None:
        """As every model; at the end also the whole generator, ready to use by itself.

        One that came from a released checkpoint is written in that layout too, for its own project.
        """
        super().save(epoch, current_iter)
        if current_iter != -1:
            return
        folder, released = Path(self.opt['path']['models']), getattr(self.net_g, 'released', None)
        with self.exporting(everything=True) as writes:
            if writes:
                self.net_g.save(folder / 'generator_latest.pth', layout='own')
            if writes and released is not None:
                suffix = released.path.suffix if released.path.is_file() else ''
                self._save_original(folder / f'original_latest{suffix}')

    def _save_original(self, path: Path) -> None:
        try:
            self.net_g.save(path, layout='original')
        except ValueError as error:  # what was trained may have no place there; everything is in the other files
            get_root_logger().warning(f'{path.name} was not written: {error}')
