"""`train:` of the models that fine-tune a generator on a reward, and the checks of their sections."""

from __future__ import annotations

import dataclasses
from typing import Any, Callable, Literal, Mapping, Sequence

from finpercep_plugin.combinations import refusal
from finpercep_plugin.config import ConfigError, build, collect, parse
from finpercep_plugin.curriculum.adaptive import AdaptiveOptions, AdaptivePolicy
from finpercep_plugin.curriculum.monitor import MonitorOptions
from finpercep_plugin.curriculum.schedule import CCLSchedule
from finpercep_plugin.generator_section import build_generator, check_generator
from finpercep_plugin.models.generator_model import check_reward, check_val
from finpercep_plugin.models.growth_options import GrowthOptions, check_growth
from finpercep_plugin.models.options import TrainOptions
from finpercep_plugin.models.parallel import check_parallel
from finpercep_plugin.models.watch import check_watch
from finpercep_plugin.registry import ALGORITHMS, REWARDS
from finpercep_plugin.rewards.finpercep_reward import FinPercepReward, by_stage, check_files
from finpercep_plugin.rewards.kind import reward_kind

__all__ = ['CCLOptions', 'RLTrainOptions', 'build_algorithm', 'check_rl', 'staged_schedule']


@dataclasses.dataclass(frozen=True)
class CCLOptions:
    """`train.ccl:`.

    Attributes:
        stages: steps of stage 0, 1, 2; the last runs on. `[0, 0, N]` is RM_2 without a curriculum. For rewards that have stages; null: 10,000 each.
        calibration: outputs of the starting generator that mu_k and sd_k are measured on.
        adaptive: leave a stage before its steps are over, by what the monitor measures.
        reward_update: 'offline': all reward models are there; 'at_switch': that of the first stage is, and each later one
            is trained when its stage begins, as `growth` says, on samples of the generator as it is then, too. The starting
            values of what trains are then kept in memory.
        growth: see there.
    """

    stages: tuple[int, int, int] | None = None
    calibration: int = 64
    adaptive: AdaptiveOptions | None = None
    reward_update: Literal['offline', 'at_switch'] = 'offline'
    growth: GrowthOptions = GrowthOptions()

    def __post_init__(self) -> None:
        if self.calibration < 2:
            raise ValueError(f'calibration: expected 2 outputs or more, got {self.calibration}')

    @property
    def lengths(self) -> tuple[int, int, int]:
        """`stages`, or what they are without."""
        return self.stages or (10_000, 10_000, 10_000)


@dataclasses.dataclass(frozen=True)
class RLTrainOptions(TrainOptions):
    """`train:` of this model: the sections of the algorithm, the curriculum and the hacking monitor."""

    algorithm: dict[str, Any] = dataclasses.field(default_factory=dict)
    ccl: CCLOptions = CCLOptions()
    monitor: MonitorOptions = MonitorOptions()


def check_rl(
    opt: Mapping[str, Any],
    kind: str,
    make: Callable[[Mapping[str, Any], str], Any] | None = None,
    rewarded: bool = True,
) -> list[str]:
    """What is wrong with the sections of a model that trains by algorithm `kind`, one line a problem; files are looked for.

    Args:
        opt: the options.
        kind: registered name of the algorithm.
        make: (section, kind) -> the algorithm; `build_algorithm` unless given.
        rewarded: whether there is to be a reward.
    """
    make = make or build_algorithm
    problems = check_generator(opt.get('generator'), need_weights=True) + check_val(opt.get('val'))
    if not opt.get('is_train', True):
        return problems
    train = opt.get('train') or {}
    section = train.get('algorithm') or {}
    problems += collect(
        lambda: parse(RLTrainOptions, train, '$.train'),
        lambda: make(section, kind) if isinstance(section, Mapping) else None,  # which the first one has told
    )
    problems += check_parallel(opt) + (check_reward(opt.get('reward'), '$.reward') if rewarded else [])
    if problems:
        return problems
    settings = parse(RLTrainOptions, train, '$.train')
    algorithm = make(settings.algorithm, kind)
    problems = _check_generator(opt, algorithm)
    return problems or (_check_rewarded(opt, settings, kind) if rewarded else [])


def build_algorithm(section: Mapping[str, Any], kind: str) -> Any:
    """The algorithm of `train.algorithm:`, whose type is `kind` unless it says so itself.

    Raises:
        ConfigError: another type, or options that it does not take.
    """
    if section.get('type', kind) != kind:
        raise ConfigError([f'$.train.algorithm.type: this model trains by {kind}, got {section["type"]!r}'])
    return build(ALGORITHMS, {**section, 'type': kind}, '$.train.algorithm')


def staged_schedule(ccl: CCLOptions) -> CCLSchedule:
    """The curriculum of a reward that has stages.

    Raises:
        ConfigError: stages that are none.
    """
    try:
        return CCLSchedule(ccl.lengths, policy=None if ccl.adaptive is None else AdaptivePolicy(ccl.adaptive))
    except ValueError as error:
        raise ConfigError([f'$.train.ccl.stages: {error}']) from None


def _check_generator(opt: Mapping[str, Any], algorithm: Any) -> list[str]:
    """Whether the algorithm's settings fit the generator."""
    try:
        generator = build_generator({**opt['generator'], 'weights': None})
    except ConfigError as error:
        return error.problems
    except (RuntimeError, TypeError, ValueError, OverflowError, MemoryError) as error:  # what torch says of such a size
        return [f'$.generator: it cannot be built: {str(error).splitlines()[0]}']
    return [f'$.train.algorithm: {problem}' for problem in collect(lambda: algorithm.check(generator))]


def _check_rewarded(opt: Mapping[str, Any], settings: RLTrainOptions, kind: str) -> list[str]:
    """Sections that are right by themselves and wrong together with the reward."""
    reward, ccl = REWARDS.get(opt['reward']['type']), settings.ccl
    dense = bool(settings.algorithm.get('dense'))
    refused = refusal(kind, reward_kind(opt['reward']), opt['reward']['type'], dense)
    if refused:
        return [refused]
    staged = hasattr(reward, 'raw')
    held = ((opt.get('val') or {}).get('rewards') or {}).keys()
    problems = check_watch(settings.monitor, ccl.adaptive, ccl.lengths if staged else None, held)
    if ccl.stages and not staged:
        problems.append(f'$.train.ccl.stages: {opt["reward"]["type"]} has no stages; leave the key out')
    if ccl.reward_update == 'at_switch' and not issubclass(reward, FinPercepReward):
        problems.append(f'$.train.ccl.reward_update: at_switch is for FinPercep, not for {opt["reward"]["type"]}')
    if ccl.reward_update == 'offline' and ccl.growth != GrowthOptions():
        problems.append('$.train.ccl.growth: is for reward_update: at_switch; leave it out')
    if problems or not staged:
        return problems
    return collect(lambda: staged_schedule(ccl)) or _check_reward_models(opt, ccl, staged_schedule(ccl).used_stages())


def _check_reward_models(opt: Mapping[str, Any], ccl: CCLOptions, stages: Sequence[int]) -> list[str]:
    """The files of the reward models that have to be there, and how the others are trained."""
    section = opt['reward']
    if not issubclass(REWARDS.get(section['type']), FinPercepReward):
        return []
    key = 'rms' if section.get('rms') else 'rm'
    if ccl.reward_update == 'offline':
        return check_files(section[key], stages, f'$.reward.{key}')
    problems = check_files(section[key], stages[:1], f'$.reward.{key}') or [
        f'$.reward.rms: RM_{stage} is trained at the switch (train.ccl.reward_update); leave it out'
        for stage in (by_stage(section['rms'], 'rms') if key == 'rms' else ())
        if stage in stages[1:]
    ]
    return problems + check_growth(ccl.growth, stages, opt)
