"""What the entries train and test share: options from the command line or a caller, a log file, a tidy end."""

from __future__ import annotations

import logging
import os
import platform
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Callable, Iterator

import torch

from finpercep_plugin import __version__
from finpercep_plugin.config import ConfigError
from finpercep_plugin.curriculum.monitor import RewardHacked
from finpercep_plugin.data.fgr_format import FGRError
from finpercep_plugin.data.lmdb_io import StoreError
from finpercep_plugin.integrations.basicsr import require
from finpercep_plugin.integrations.fitting import settle_seed
from finpercep_plugin.integrations.wrappers import leave_group, lost_peer

__all__ = ['blame', 'leave_group', 'open_log', 'read_options', 'run', 'write_options']


def run(pipeline: Callable[[str], Any], argv: list[str] | None = None) -> int:
    """`pipeline(current folder)`, with what the user got wrong as a few lines instead of a traceback.

    Args:
        pipeline: reads sys.argv.
        argv: command line without the program's name; None leaves sys.argv.

    Returns:
        Exit code: 0, 1 for a run that diverged, whose reward was hacked, or that lost another process, 2 for bad options
        or data, and for files that cannot be written.
    """
    if argv is not None:
        sys.argv[1:] = argv
    try:
        pipeline(os.getcwd())
    except (ConfigError, FGRError, StoreError) as error:
        text = str(error)
        if 'Original Traceback' in text:  # of a data worker
            text = text.strip().splitlines()[-1].partition(': ')[2]
        print(f'error: {text}', file=sys.stderr)
        return 2
    except (FloatingPointError, RewardHacked) as error:
        print(f'error: {error}', file=sys.stderr)
        return 1
    except ImportError as error:
        if error.name != 'basicsr':
            raise
        print(f'error: {error}', file=sys.stderr)
        return 2
    except OSError as error:  # a full disk, above all
        print(f'error: {error}', file=sys.stderr)
        return 2
    except RuntimeError as error:
        lost = lost_peer(error)
        if lost is None:
            raise
        print(f'error: {lost}', file=sys.stderr)
        return 1
    return 0


@contextmanager
def blame(path: str) -> Iterator[None]:
    """What is built inside from options at the YAML path `path` and refuses them is a mistake of the options.

    Raises:
        ConfigError: in place of a ValueError or an OSError.

    >>> with blame('$.path'):
    ...     open('nowhere')
    Traceback (most recent call last):
    finpercep_plugin.config.ConfigError: $.path: [Errno 2] No such file or directory: 'nowhere'
    """
    try:
        yield
    except ConfigError:
        raise
    except (ValueError, OSError) as error:
        raise ConfigError([f'{path}: {error}']) from error


def read_options(
    root_path: str, opt: Mapping[str, Any] | str | None, is_train: bool
) -> tuple[dict[str, Any], Path, str]:
    """BasicSR's parse_options, on sys.argv or on what a caller gives.

    Args:
        root_path: the folder that experiments/ and results/ are made in.
        opt: the content of a YAML file, its path, or None for sys.argv.
        is_train: False for a test.

    Returns:
        The options, the name of their YAML file and its text. The seed is 0 where the YAML has none, so that a run
        can be resumed.

    Raises:
        ConfigError: the options are wrong; see `finpercep_plugin.checks`.
    """
    require()
    import yaml
    from basicsr.utils.options import ordered_yaml, parse_options

    argv = list(sys.argv)
    with tempfile.TemporaryDirectory() as folder:
        if isinstance(opt, Mapping):
            file = Path(folder) / f'{opt.get("name", "options")}.yml'
            file.write_text(yaml.dump(opt, Dumper=ordered_yaml()[1]), encoding='utf-8')
            sys.argv[1:] = ['-opt', str(file)]
        elif opt is not None:
            sys.argv[1:] = ['-opt', str(opt)]
        try:
            parsed, args = parse_options(root_path, is_train=is_train)
            text = Path(args.opt).read_text(encoding='utf-8')
            settle_seed(parsed, yaml.load(text, Loader=ordered_yaml()[0]))
        finally:
            sys.argv[:] = argv
    parsed['root_path'] = root_path
    return parsed, Path(args.opt), text


def write_options(opt: dict[str, Any], file: Path, text: str) -> None:
    """Keep the YAML with the experiment."""
    if opt['rank'] == 0:
        command = ' '.join(sys.argv)
        kept = Path(opt['path']['experiments_root']) / file.name
        kept.write_text(f'# GENERATE TIME: {time.asctime()}\n# CMD:\n# {command}\n\n{text}', encoding='utf-8')


def open_log(opt: dict[str, Any], kind: str, console: bool = True) -> logging.Logger:
    """BasicSR's logger with a new file in `path.log`, also in a process that has run before; without `console`, in
    the file alone.
    """
    from basicsr.utils import get_env_info, get_root_logger, get_time_str
    from basicsr.utils import logger as logger_module
    from basicsr.utils.options import dict2str

    logger_module.initialized_logger.pop('basicsr', None)
    logger = logging.getLogger('basicsr')
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        handler.close()
    file = Path(opt['path']['log']) / f'{kind}_{opt["name"]}_{get_time_str()}.log'
    logger = get_root_logger(log_level=logging.INFO, log_file=str(file))
    if not console:
        for handler in [h for h in logger.handlers if not isinstance(h, logging.FileHandler)]:
            logger.removeHandler(handler)
    logger.info(get_env_info() + _environment())
    logger.info(dict2str(opt))
    return logger


def _environment() -> str:
    """What BasicSR's version information leaves out, in its manner."""
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    facts = {
        'finpercep_plugin': __version__,
        'Python': platform.python_version(),
        'Machine': f'{platform.node()}, {platform.system()} {platform.machine()}, {os.cpu_count()} cores',
        'GPU': ', '.join(gpus) or 'none',
        'Threads': torch.get_num_threads(),
    }
    return ''.join(f'\n\t{name}: {value}' for name, value in facts.items())
