"""What is asked for on the command line -> a section that says what is computed."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import Any, Mapping

import yaml

from finpercep_plugin.config import arguments
from finpercep_plugin.registry import REWARDS, nearest
from finpercep_plugin.rewards.kind import reward_kind
from finpercep_plugin.scoring import basicsr_metric
from finpercep_plugin.scoring.protocols import Protocol

__all__ = ['Request', 'file_hash', 'parse_request', 'resolve', 'version_of']


@dataclasses.dataclass(frozen=True)
class Request:
    """One metric.

    Args:
        label: its column.
        name: of it, as asked for.
        section: `{type: ..., options}` of what computes it.
        needs: of 'gt', 'lq', 'prompt', what it compares with.
        higher_is_better: whether larger values are better.
    """

    label: str
    name: str
    section: Mapping[str, Any]
    needs: frozenset[str]
    higher_is_better: bool


def parse_request(text: str) -> tuple[str, str, dict[str, Any]]:
    """Label, name and options of `[LABEL=]NAME[:KEY=VALUE,...]`; values as in YAML.

    Raises:
        ValueError: it is not of that form.

    >>> parse_request('psnr'), parse_request('y=psnr:test_y_channel=true,crop_border=4')
    (('psnr', 'psnr', {}), ('y', 'psnr', {'test_y_channel': True, 'crop_border': 4}))
    """
    head, _, tail = text.partition(':')
    label, separator, name = head.partition('=')
    name = name if separator else label
    options: dict[str, Any] = {}
    for part in tail.split(',') if tail else ():
        key, equals, value = part.partition('=')
        if not key or not equals:
            raise ValueError(f'--metrics {text}: expected [LABEL=]NAME[:KEY=VALUE,...]')
        options[key.strip()] = yaml.safe_load(value)
    if not label or not name:
        raise ValueError(f'--metrics {text}: expected [LABEL=]NAME[:KEY=VALUE,...]')
    return label, name, options


def resolve(text: str, protocol: Protocol) -> Request:
    """A metric of pyiqa, a registered reward, or what the protocol puts in its place; nothing is loaded.

    Raises:
        ValueError: there is none of that name, or it does not take these options.
        ImportError: what it needs to tell is not installed.
    """
    label, name, options = parse_request(text)
    if name in protocol.metrics:
        section = dict(protocol.metrics[name])
    elif name in REWARDS.names():
        section = {'type': name}
    else:
        section = {'type': 'PyIQA', 'metric': name}
    if section['type'] in ('PyIQA', 'BasicSR'):
        section['options'] = {**section.get('options', {}), **options}
    else:
        section |= options
    try:
        return Request(label, name, section, *_kind(section))
    except ValueError as error:
        raise ValueError(f'--metrics {text}: {error}') from None


def _kind(section: Mapping[str, Any]) -> tuple[frozenset[str], bool]:
    """What it needs, and whether higher is better."""
    if section['type'] == 'BasicSR':
        return basicsr_metric.check(section['metric'], section['options'])
    reward = REWARDS.get(section['type'])
    options = {key: value for key, value in section.items() if key != 'type'}
    if section['type'] == 'PyIQA':
        from pyiqa.default_model_configs import DEFAULT_CONFIGS

        if section['metric'] not in DEFAULT_CONFIGS:
            near = nearest(section['metric'], [*DEFAULT_CONFIGS, *REWARDS.names()])
            raise ValueError(f'neither pyiqa nor this project has a metric {section["metric"]!r}{near}')
    if hasattr(reward, 'combine'):
        raise ValueError(f'{section["type"]} is made of others; ask for those')
    if hasattr(reward, 'check'):
        reward.check(options, section['type'])
    options = arguments(reward, options, section['type'])
    needs = reward_kind({'type': section['type'], **options}).needs
    if section['type'] == 'PyIQA':
        return needs, not DEFAULT_CONFIGS[section['metric']].get('lower_better', False)
    return needs, bool(options.get('higher_is_better', getattr(reward, 'higher_is_better', True)))


def version_of(section: Mapping[str, Any]) -> str:
    """What identifies the values of a metric: package, its version, options, hashes of the files named in them.

    >>> version_of({'type': 'Sharpness'}).startswith('finpercep_plugin ')
    True
    """
    if section['type'] == 'PyIQA':
        import pyiqa

        package = f'pyiqa {pyiqa.__version__}'
    elif section['type'] == 'BasicSR':
        from basicsr.version import __version__ as version

        package = f'basicsr {version}'
    else:
        from finpercep_plugin import __version__ as version

        package = f'finpercep_plugin {version}'
    options = {key: value for key, value in section.items() if key not in ('type', 'metric')}
    options |= options.pop('options', None) or {}
    words = [package, section.get('metric', section['type'])]
    words += [f'{key}={_identity(value)}' for key, value in sorted(options.items())]
    return ' '.join(words)


def file_hash(path: str | Path) -> str:
    """SHA-256 of a file."""
    with open(path, 'rb') as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _identity(value: Any) -> str:
    if isinstance(value, str) and Path(value).is_file():
        return f'{Path(value).name}@{file_hash(value)[:16]}'
    return str(value)
