"""Options as BasicSR's parse_options makes them, fitted to this machine and made complete."""

from __future__ import annotations

import argparse
import logging
import re
import sys
from typing import Any, Mapping

from finpercep_plugin.config import ConfigError

__all__ = ['check_forced', 'fit', 'forced', 'settle_seed', 'yaml_argument']

_EXPONENT = re.compile(r'[-+]?\d+(\.\d*)?[eE][-+]?\d+')
_log = logging.getLogger('finpercep_plugin')


def yaml_argument() -> str | None:
    arguments = sys.argv[1:]
    for i, argument in enumerate(arguments):
        if argument in ('-opt', '--opt') and i + 1 < len(arguments):
            return arguments[i + 1]
        if argument.startswith(('-opt=', '--opt=')):
            return argument.partition('=')[2]
    return None


def _entries() -> list[str]:
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument('--force_yml', nargs='+', default=[])
    return parser.parse_known_args(sys.argv[1:])[0].force_yml


def forced() -> dict[str, str]:
    """The top-level keys of `--force_yml`, with the text given for them."""
    entries = (entry.partition('=') for entry in _entries())
    return {key.strip(): value.strip() for key, _, value in entries}


def check_forced(raw: Mapping[str, Any]) -> None:
    """Look for entries of `--force_yml` that BasicSR trips over.

    Args:
        raw: the content of the YAML file.

    Raises:
        ConfigError: one is not `key:key=value`, or belongs into a section that the file does not have.
    """
    problems = []
    for entry in _entries():
        keys = [key.strip() for key in entry.partition('=')[0].split(':')]
        section: Any = raw
        for key in keys[:-1]:
            section = section.get(key) if isinstance(section, Mapping) else None
        if entry.count('=') != 1:
            problems.append(f'--force_yml: expected section:key=value, with one =, got {entry!r}')
        elif not isinstance(section, Mapping):
            problems.append(f'--force_yml {entry}: the YAML file has no section {":".join(keys[:-1])}; write it there')
    if problems:
        raise ConfigError(problems)


def settle_seed(opt: dict[str, Any], raw: Mapping[str, Any]) -> None:
    """The seed of the YAML or of `--force_yml`, and 0 where there is none: BasicSR would draw another on each rank, and
    does not seed with one that is forced.

    Args:
        opt: as parse_options returns them.
        raw: the content of the YAML file.
    """
    from basicsr.utils import set_random_seed

    given = 'manual_seed' in forced()
    seed = opt['manual_seed'] if given else raw.get('manual_seed')
    if seed is None and opt['manual_seed'] != 0 and opt['rank'] == 0:
        _log.warning('no manual_seed: using 0')
    if seed is None or given:
        opt['manual_seed'] = seed or 0
        set_random_seed(opt['manual_seed'] + opt['rank'])


def fit(opt: dict[str, Any]) -> None:
    """Numbers that PyYAML reads as strings, a GPU count that this machine or the model cannot use, and keys that BasicSR
    reads without asking whether they are there.
    """
    import torch

    from finpercep_plugin.checks import uses_plugin
    from finpercep_plugin.registry import MODELS

    if isinstance(opt.get('train'), dict):
        opt['train'] = _numbers(opt['train'])
    if opt.get('is_train') and isinstance(opt.setdefault('logger', {}), dict):
        for key, value in {'print_freq': 100, 'save_checkpoint_freq': 5000, 'use_tb_logger': False}.items():
            opt['logger'].setdefault(key, value)
    if uses_plugin(opt):
        if not opt.get('is_train') and opt.get('val') is None:
            opt['val'] = {}
        if isinstance(opt.get('val'), dict):
            defaults = {'val_freq': 1000, 'save_img': False} if opt.get('is_train') else {'save_img': False}
            opt['val'].update({k: v for k, v in defaults.items() if k not in opt['val']})
    gpus = opt.get('num_gpu')
    if gpus and not torch.cuda.is_available():
        _log.warning('num_gpu: %s, but there is no GPU: using the CPU', gpus)
        opt['num_gpu'] = 0
    elif isinstance(gpus, int) and gpus > 1 and not opt.get('dist') and opt.get('model_type') in MODELS.names():
        _log.warning(
            'num_gpu: %d, but %s takes one GPU a process: using 1; torchrun and --launcher pytorch use them all',
            gpus,
            opt['model_type'],
        )
        opt['num_gpu'] = 1  # BasicSR multiplies the batch by it, for DataParallel


def _numbers(value: Any) -> Any:
    """Strings such as '1e-4' below `value` become floats, in place where that can be.

    >>> _numbers({'lr': '1e-4', 'betas': ['9e-1', 0.99], 'type': 'Adam'})
    {'lr': 0.0001, 'betas': [0.9, 0.99], 'type': 'Adam'}
    """
    if isinstance(value, dict):
        for key in value:
            value[key] = _numbers(value[key])
    elif isinstance(value, list):
        value[:] = [_numbers(v) for v in value]
    elif isinstance(value, str) and _EXPONENT.fullmatch(value):
        return float(value)
    return value
