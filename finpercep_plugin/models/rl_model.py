"""What the models that fine-tune a generator on a reward share: algorithm, reward, curriculum (METHOD.md §4-5)."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, ClassVar, Iterator, Mapping

import torch
import torch.distributed as dist
from basicsr.data import build_dataset
from basicsr.utils import get_root_logger
from torch import Tensor

from finpercep_plugin.config import ConfigError, build, collect, parse
from finpercep_plugin.curriculum.adaptive import AdaptiveOptions, AdaptivePolicy
from finpercep_plugin.curriculum.monitor import MonitorOptions
from finpercep_plugin.curriculum.schedule import CCLSchedule
from finpercep_plugin.data.sampler import PositionDataset
from finpercep_plugin.generator_section import build_generator, check_generator
from finpercep_plugin.generators.pixels import crop
from finpercep_plugin.models.base_model import Micro
from finpercep_plugin.models.generator_model import GeneratorModel, check_reward, check_val
from finpercep_plugin.models.options import TrainOptions
from finpercep_plugin.models.precision import cast_frozen
from finpercep_plugin.models.watch import Watch, check_watch
from finpercep_plugin.registry import ALGORITHMS, REWARDS
from finpercep_plugin.rewards.finpercep_reward import FinPercepReward, check_files
from finpercep_plugin.rewards.normalised import NormalisedReward

__all__ = ['CCLOptions', 'RLModel', 'RLTrainOptions', 'check_rl']


@dataclasses.dataclass(frozen=True)
class CCLOptions:
    """`train.ccl:`.

    Attributes:
        stages: steps of stage 0, 1, 2; the last runs on. `[0, 0, N]` is RM_2 without a curriculum. For rewards that have stages; null: 10,000 each.
        calibration: outputs of the starting generator that mu_k and sd_k are measured on.
        adaptive: leave a stage before its steps are over, by what the monitor measures.
    """

    stages: tuple[int, int, int] | None = None
    calibration: int = 64
    adaptive: AdaptiveOptions | None = None


@dataclasses.dataclass(frozen=True)
class RLTrainOptions(TrainOptions):
    """`train:` of this model: the sections of the algorithm, the curriculum and the hacking monitor."""

    algorithm: dict[str, Any] = dataclasses.field(default_factory=dict)
    ccl: CCLOptions = CCLOptions()
    monitor: MonitorOptions = MonitorOptions()


def check_rl(opt: Mapping[str, Any], kind: str) -> list[str]:
    """What is wrong with the sections of a model that trains by algorithm `kind`, one line a problem; files are looked for."""
    problems = check_generator(opt.get('generator'), need_weights=True) + check_val(opt.get('val'))
    if not opt.get('is_train', True):
        return problems
    train = opt.get('train') or {}
    problems += collect(
        lambda: parse(RLTrainOptions, train, '$.train'),
        lambda: build_algorithm(train.get('algorithm') or {}, kind),
    )
    problems += check_reward(opt.get('reward'), '$.reward')
    return problems or _check_together(opt, parse(RLTrainOptions, train, '$.train'), kind)


def build_algorithm(section: Mapping[str, Any], kind: str) -> Any:
    """The algorithm of `train.algorithm:`, whose type is `kind` unless it says so itself.

    Raises:
        ConfigError: another type, or options that it does not take.
    """
    if section.get('type', kind) != kind:
        raise ConfigError([f'$.train.algorithm.type: this model trains by {kind}, got {section["type"]!r}'])
    return build(ALGORITHMS, {**section, 'type': kind}, '$.train.algorithm')


def _check_together(opt: Mapping[str, Any], settings: RLTrainOptions, kind: str) -> list[str]:
    """Sections that are right by themselves and wrong together."""
    reward = REWARDS.get(opt['reward']['type'])
    algorithm = build_algorithm(settings.algorithm, kind)
    try:
        algorithm.check(build_generator({**opt['generator'], 'weights': None}))
    except ValueError as error:
        return [f'$.train.algorithm: {error}']
    if algorithm.needs_gradient and not getattr(reward, 'differentiable', True):  # of an instance: see `_staged_reward`
        return [f'$.reward.type: {no_gradient(kind, opt["reward"]["type"])}']
    staged = hasattr(reward, 'raw')
    lengths = settings.ccl.stages or (10_000, 10_000, 10_000) if staged else None
    held = ((opt.get('val') or {}).get('rewards') or {}).keys()
    problems = check_watch(settings.monitor, settings.ccl.adaptive, lengths, held)
    if problems or not staged:
        stages = settings.ccl.stages if not staged else None
        none = [f'$.train.ccl.stages: {opt["reward"]["type"]} has no stages; leave the key out'] if stages else []
        return problems + none
    try:
        stages = _schedule(settings).used_stages()
    except ConfigError as error:
        return error.problems
    if not issubclass(reward, FinPercepReward):
        return []
    key = 'rms' if opt['reward'].get('rms') else 'rm'
    return check_files(opt['reward'][key], stages, f'$.reward.{key}')


def no_gradient(kind: str, reward: Any) -> str:
    return f'{kind} needs a gradient, and {reward} has none; watch it under $.val.rewards, or use DPO or FlowGRPO, which do not'


def _schedule(settings: RLTrainOptions) -> CCLSchedule:
    try:
        policy = None if settings.ccl.adaptive is None else AdaptivePolicy(settings.ccl.adaptive)
        return CCLSchedule(settings.ccl.stages or (10_000, 10_000, 10_000), policy=policy)
    except ValueError as error:
        raise ConfigError([f'$.train.ccl.stages: {error}']) from None


class RLModel(GeneratorModel):
    """`generator:` fine-tuned by `train.algorithm:` on `reward:`, whose stage `train.ccl:` sets.

    Attributes:
        algorithm_type: of the subclass: the registered name.
    """

    algorithm_type: ClassVar[str]

    def __init__(self, opt: dict[str, Any]):
        super().__init__(opt)
        if self.is_train:
            settings = parse(RLTrainOptions, opt['train'], '$.train')
            self.algorithm = build_algorithm(settings.algorithm, self.algorithm_type)
            self.needs_reference = self.algorithm.needs_reference
        self.build_net(opt)
        self.reward = None
        if self.is_train:
            self.algorithm.check(self.net_g)
            self.schedule, self.reward = self._staged_reward(opt['reward'], settings)
            self.reward.to(self.device)
            if hasattr(self.reward, 'load'):  # now, so that a wrong file shows at once
                self.reward.load(self.schedule.used_stages(), self.device)
            if self.bf16:
                for module in getattr(self.reward, 'encoders', ()):
                    cast_frozen(module)
            self.watch = Watch(self, settings.monitor) if settings.monitor.every else None
            self.init_training(settings, {'generator': [p for p in self.net_g.parameters() if p.requires_grad]})

    def _staged_reward(self, section: dict[str, Any], settings: RLTrainOptions) -> tuple[CCLSchedule, Any]:
        """The schedule and the reward that shares its statistics; a reward without stages has the one stage 0."""
        if hasattr(REWARDS.get(section['type']), 'raw'):
            schedule = _schedule(settings)
            return schedule, build(REWARDS, section, '$.reward', statistics=schedule.statistics)
        schedule, reward = CCLSchedule((settings.total_iter, 0, 0)), build(REWARDS, section, '$.reward')
        if self.algorithm.needs_gradient and not reward.differentiable:
            raise ConfigError([f'$.reward: {no_gradient(self.algorithm_type, section)}'])
        return schedule, NormalisedReward(reward, schedule.statistics)

    def updates(self, current_iter: int) -> Iterator[Iterator[Micro]]:
        """The algorithm's updates under the stage's reward, and every term of both, with mean and spread."""
        if not self.schedule.statistics.ready(self.schedule.used_stages()):
            self._calibrate()
        if self.watch and not self.watch.monitor.started:
            self.watch.start()
        stage = self.schedule.stage(current_iter)
        if stage != self.reward.stage:
            get_root_logger().info(f'iter {current_iter}: CCL stage {stage}')
            self.reward.stage = stage
        self.net_g.train()
        samples = self.sample_ids(current_iter, len(self.lq))
        arguments = (self.net_g, self.lq, self.gt, self.reward, self.seed, current_iter, samples, self.exchange)
        return self.algorithm.updates(*arguments)

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
        """Rewards (n,) and the indices of their images (n,), of all ranks, in their order (a collective call)."""
        if not self.opt['dist']:
            return values, ids
        gathered = []
        for tensor in (values.contiguous(), ids.to(values.device).contiguous()):
            parts = [torch.empty_like(tensor) for _ in range(self.opt['world_size'])]
            dist.all_gather(parts, tensor)
            gathered.append(torch.cat(parts))
        return gathered[0], gathered[1]

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
            items = [dataset[i] for i in part]
            lq, gt = (torch.stack([item[k] for item in items]).to(self.device) for k in ('lq', 'gt'))
            sampler = {name: getattr(self.algorithm, name) for name in ('guidance', 'steps', 'eta')}
            sr, prompt = self.super_resolve(lq, part, 'calibration', **sampler)
            sr, lq, gt = self._rewarded(sr, lq, gt, part)
            for row, stage in enumerate(stages):
                with self.autocast():
                    raw[row, part] = self.reward.raw(sr, stage, lq=lq, gt=gt, prompt=list(prompt)).score.double().cpu()
        raw = self.reduce_sum(raw)
        for row, stage in enumerate(stages):
            self.schedule.statistics.measure(stage, raw[row])

    def _rewarded(self, sr: Tensor, lq: Tensor, gt: Tensor, samples: list[int]) -> tuple[Tensor, Tensor, Tensor]:
        """The parts of a batch that the algorithm would reward, where it does not reward the whole."""
        if not hasattr(self.algorithm, 'region'):
            return sr, lq, gt
        parts, scale = [], self.net_g.scale
        for row, index in enumerate(samples):
            region = self.algorithm.region(self.net_g, sr.shape[-2:], self.seed, 'calibration', index)
            small = None if region is None else tuple(side // scale for side in region)
            rows = (image[row : row + 1] for image in (sr, lq, gt))
            parts.append([crop(image, place) for image, place in zip(rows, (region, small, region))])
        return tuple(torch.cat(images) for images in zip(*parts))

    def prepare_dry_run(self) -> None:
        """No calibration, and the shortest rollout that the algorithm knows."""
        for stage in self.schedule.used_stages():
            self.schedule.statistics.set(stage, 0.0, 1.0)
        self.algorithm.shorten()
        self.watch = None

    def training_state(self, epoch: int, current_iter: int) -> dict[str, Any]:
        return {
            **super().training_state(epoch, current_iter),
            'ccl': self.schedule.state_dict(),
            'monitor': self.watch.monitor.state_dict() if self.watch else None,
        }

    def resume_training(self, resume_state: dict[str, Any]) -> None:
        super().resume_training(resume_state)
        self.schedule.load_state_dict(resume_state['ccl'])
        if self.watch and resume_state.get('monitor'):
            self.watch.monitor.load_state_dict(resume_state['monitor'])
        elif self.watch:
            get_root_logger().warning('The state to resume has no monitor: changes are counted from here on')

    def panel_map(self, sr: Tensor, lq: Tensor, gt: Tensor | None) -> Tensor | None:
        """The map of the last stage's reward, if it has one."""
        if self.reward is None or gt is None:
            return None
        last = self.schedule.used_stages()[-1]
        with self.autocast():
            return self.reward.raw(sr, last, lq=lq, gt=gt[None].to(self.device)).maps.get('map')

    def export(self, path: Path) -> None:
        """The fine-tuned tensors alone, to be laid over `generator.weights`."""
        self.net_g.save(path, layout='trained')

    def save(self, epoch: int, current_iter: int) -> None:
        """As every model; at the end also the whole generator, ready to use by itself.

        One that came from a released checkpoint is written in that layout too, for its own project.
        """
        super().save(epoch, current_iter)
        if current_iter == -1 and self.opt['rank'] == 0:
            folder, released = Path(self.opt['path']['models']), getattr(self.net_g, 'released', None)
            with self.ema_weights():
                self.net_g.save(folder / 'generator_latest.pth', layout='own')
                if released is not None:
                    suffix = released.path.suffix if released.path.is_file() else ''
                    self._save_original(folder / f'original_latest{suffix}')

    def _save_original(self, path: Path) -> None:
        try:
            self.net_g.save(path, layout='original')
        except ValueError as error:  # what was trained may have no place there; everything is in the other files
            get_root_logger().warning(f'{path.name} was not written: {error}')
