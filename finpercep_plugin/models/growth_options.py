"""`train.ccl.growth:`, how the reward models of later stages are trained at the switches, and its checks."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any, Mapping, Sequence

from finpercep_plugin.checks import check_options, check_yaml
from finpercep_plugin.config import ConfigError, collect, merge
from finpercep_plugin.integrations.fitting import fit

__all__ = ['GrowthOptions', 'check_growth', 'growth_folder', 'rm_options']

OF_THE_RUN = ('dist', 'rank', 'world_size', 'num_gpu', 'manual_seed')


@dataclasses.dataclass(frozen=True)
class GrowthOptions:
    """`train.ccl.growth:`, for `reward_update: at_switch`.

    Attributes:
        rm_1, rm_2: how RM_1 and RM_2 are trained: the YAML file of such a training, or a section with that file as `opt`
            and whatever is to be laid over it, such as `train: {total_iter: 300}`. The seed, the processes and the
            folders are those of this run, and so is the reward model that it starts from.
        fresh: samples that the current generator makes of lq of that file's training set; 0: none.
        share: of them among the samples that the reward model is trained on.
    """

    rm_1: str | dict[str, Any] | None = None
    rm_2: str | dict[str, Any] | None = None
    fresh: int = 256
    share: float = 0.25

    def __post_init__(self) -> None:
        if self.fresh < 0 or not 0 < self.share < 1:
            raise ValueError(f'expected fresh >= 0 and share in (0, 1), got {self.fresh} and {self.share}')


def growth_folder(run: Mapping[str, Any], stage: int) -> Path:
    """What a run makes at the switch to `stage` lies here."""
    return Path(run['path']['experiments_root']) / 'growth' / f'stage_{stage}'


def rm_options(growth: GrowthOptions, stage: int, run: Mapping[str, Any]) -> dict[str, Any]:
    """Options, as `read_options` returns them, of the training of RM_k within a run.

    Args:
        growth: the section.
        stage: k, 1 or 2.
        run: options of the run, as `read_options` returns them.

    Raises:
        ConfigError: no file, or one that does not train RM_k.
    """
    where, given = f'$.train.ccl.growth.rm_{stage}', {1: growth.rm_1, 2: growth.rm_2}[stage]
    section = {'opt': given} if isinstance(given, str) else dict(given or {})
    file = section.pop('opt', None)
    if not isinstance(file, str):
        raise ConfigError(
            [f'{where}: expected the YAML file that RM_{stage} is trained by, or a section with it as opt']
        )
    unread = collect(lambda: check_yaml(file))
    if unread:
        raise ConfigError([f'{where}.opt: {problem.removeprefix("-opt: ")}' for problem in unread])
    raw = copy.deepcopy(merge(check_yaml(file), section))
    found = _check_purpose(raw, stage)
    if found:
        raise ConfigError([f'{where}{problem}' for problem in found])
    folder = growth_folder(run, stage)
    paths = {name: str(folder / name) for name in ('models', 'training_states', 'visualization')}
    scale = {'scale': raw['scale']} if 'scale' in raw else {}
    options = {
        **raw,
        **{key: run[key] for key in OF_THE_RUN},
        'name': f'rm_{stage}',
        'is_train': True,
        'auto_resume': True,
        'datasets': {k: {**part, **scale, 'phase': k.split('_')[0]} for k, part in raw['datasets'].items()},
        'path': {**paths, 'experiments_root': str(folder), 'log': str(folder), 'resume_state': None},
        'logger': {**(raw.get('logger') or {}), 'use_tb_logger': False},
    }
    fit(options)
    return options


def _check_purpose(raw: Mapping[str, Any], stage: int) -> list[str]:
    """What makes a file something else than one that trains RM_k on an FGR set."""
    train, network = (raw.get('datasets') or {}).get('train') or {}, raw.get('network_g') or {}
    wanted = (
        ('model_type', raw.get('model_type'), 'FinPercepRMModel'),
        ('network_g.stage', network.get('stage'), stage),
        ('datasets.train.type', train.get('type'), 'FinPercepFGRDataset'),
    )
    return [f'.{key}: expected {right!r}, got {value!r}' for key, value, right in wanted if value != right]


def check_growth(growth: GrowthOptions, stages: Sequence[int], run: Mapping[str, Any]) -> list[str]:
    """What is wrong with how the reward models of `stages`, all but the first, are trained; files are looked for.

    Args:
        growth: the section.
        stages: that have steps, in order.
        run: options of the run, as `read_options` returns them.
    """
    if len(stages) < 2:
        return [f'$.train.ccl.reward_update: at_switch is for stages to switch between; only {list(stages)} has steps']
    problems = []
    for stage in stages[1:]:
        found = collect(lambda stage=stage: check_options(rm_options(growth, stage, run)))
        where = f'$.train.ccl.growth.rm_{stage}'
        problems += [line if line.startswith(where) else f'{where}{line.removeprefix("$")}' for line in found]
    return problems
