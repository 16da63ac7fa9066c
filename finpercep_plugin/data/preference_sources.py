"""The data and the reward of a preference build, from their YAML sections, and what of these decides the result."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, Mapping

import torch
from torch.utils.data import Dataset

from finpercep_plugin.config import ConfigError, build
from finpercep_plugin.data.loader_options import LoaderOptions
from finpercep_plugin.generator_section import meaning, weight_files
from finpercep_plugin.registry import DATASETS, REWARDS
from finpercep_plugin.run_folder import digest

__all__ = ['build_data', 'build_reward', 'identity']


def build_data(section: Mapping[str, Any]) -> Dataset:
    """The data set of a section under `datasets:`, the plugin's or BasicSR's.

    Raises:
        ConfigError: options that are wrong, or a set that holds preferences already.
    """
    section = {**section, 'phase': section.get('phase', 'train')}
    if section['type'] in DATASETS.names():
        kind = DATASETS.get(section['type'])
        if hasattr(kind, 'models'):
            raise ConfigError(
                [f'$.datasets.train.type: {section["type"]} holds preferences; name the data to make them of']
            )
        return kind(section)
    from finpercep_plugin.integrations.basicsr import require

    require()
    from basicsr.data import build_dataset

    return build_dataset(section)


def build_reward(section: Mapping[str, Any], stage: int | None, device: torch.device | str) -> tuple[Any, int | None]:
    """The reward of a `reward:` section on a device, at a stage: that asked for, or its last.

    Returns:
        the reward and its stage; None for one that has none, or the one of its file.

    Raises:
        ConfigError: options that are wrong, a stage that there is none of, parts that are not measured.
    """
    reward = build(REWARDS, section, '$.reward').to(device)
    unmeasured = [] if getattr(reward, 'needs_groups', False) else _unmeasured(reward, section)
    if unmeasured:
        raise ConfigError(
            [f'$.reward.statistics: mean and sd of {", ".join(unmeasured)} are missing; give them, or normalise: range']
        )
    stages = [k for k in getattr(reward, 'files', ()) if k is not None]
    if not stages:
        if stage is not None:
            raise ConfigError([f'--stage: {section["type"]} has no stages to choose from here'])
        return reward, None
    if stage is not None and stage not in stages:
        raise ConfigError([f'--stage: there are reward models for stage {", ".join(map(str, sorted(stages)))}'])
    reward.stage = max(stages) if stage is None else stage
    reward.load([reward.stage], device)
    return reward, reward.stage


def _unmeasured(reward: Any, section: Mapping[str, Any]) -> list[str]:
    options = {key: value for key, value in section.items() if key != 'type'}
    return reward.uncalibrated(options) if hasattr(reward, 'uncalibrated') else []


def identity(
    generator: Mapping[str, Any], reward: Mapping[str, Any], stage: int | None, data: Mapping[str, Any], precision: str
) -> dict[str, Any]:
    """What decides the records beside `PreferenceBuild`, JSON-ready: weight files by their content.

    Args:
        generator: its section.
        reward: its section.
        stage: of the reward.
        data: its section.
        precision: of the sampler.

    Raises:
        OSError: a weight file cannot be read.
    """
    unread = {field.name for field in dataclasses.fields(LoaderOptions)} - {'type', 'io_backend'}
    options = {
        'generator': meaning(generator),
        'weights': _by_content(weight_files(generator)),
        'reward': _by_content(dict(reward)),
        'reward_stage': stage,
        'data': {key: value for key, value in data.items() if key not in unread},
        'precision': precision,
    }
    return json.loads(json.dumps(options, default=str))


def _by_content(value: Any) -> Any:
    """Names of files and folders that are there with a hash of what they hold."""
    if isinstance(value, Mapping):
        return {key: _by_content(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_by_content(item) for item in value]
    path = Path(value).expanduser() if isinstance(value, str) else None
    return f'{path.name} {digest(path)}' if path is not None and path.exists() else value
