"""What is put around BasicSR's functions. Each maker takes the original and returns its wrapper; with a GPU and
nothing of ours, it is the original.
"""

from __future__ import annotations

import atexit
import datetime
import logging
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, Callable

__all__ = [
    'add_jpg_compression',
    'build_dataloader',
    'build_model',
    'init_dist',
    'load_resume_state',
    'model_to_device',
]
__all__ += ['parse_options', 'relocated']

_EXPONENT = re.compile(r'[-+]?\d+(\.\d*)?[eE][-+]?\d+')
_dist_params: dict[str, Any] = {}  # of the YAML being parsed; BasicSR passes them on for slurm only


def parse_options(original: Callable) -> Callable:
    """Options are checked before anything is loaded, and fitted to this machine."""

    def wrapper(root_path: str, *args: Any, **kwargs: Any) -> Any:
        from finpercep_plugin.checks import check_options, check_yaml

        sys.argv[1:] = [re.sub(r'^--local-rank\b', '--local_rank', a) for a in sys.argv[1:]]
        raw = check_yaml(_yaml_argument())
        _dist_params.clear()
        _dist_params.update(raw.get('dist_params') or {})
        result = original(_writable(root_path), *args, **kwargs)
        opt = result[0] if isinstance(result, tuple) else result
        _fit(opt)
        check_options(opt)
        _patch_caller()
        return result

    return wrapper


def _yaml_argument() -> str | None:
    arguments = sys.argv[1:]
    for i, argument in enumerate(arguments):
        if argument in ('-opt', '--opt') and i + 1 < len(arguments):
            return arguments[i + 1]
        if argument.startswith(('-opt=', '--opt=')):
            return argument.partition('=')[2]
    return None


def _writable(path: str) -> str:
    """`python -m basicsr.train` takes the folder above the package for the repository; were that site-packages, use
    the current folder.
    """
    parts = Path(path).parts
    for name in ('site-packages', 'dist-packages'):
        if name in parts:
            return os.path.join(os.getcwd(), *parts[parts.index(name) + 1 :])
    return path


def _fit(opt: dict[str, Any]) -> None:
    """Numbers that PyYAML reads as strings, a GPU count that this machine does not have, and the logger's keys."""
    import torch

    if isinstance(opt.get('train'), dict):
        opt['train'] = _numbers(opt['train'])
    if opt.get('is_train') and isinstance(opt.setdefault('logger', {}), dict):
        for key, value in {'print_freq': 100, 'save_checkpoint_freq': 5000, 'use_tb_logger': False}.items():
            opt['logger'].setdefault(key, value)
    if opt.get('num_gpu') and not torch.cuda.is_available():
        logging.getLogger('finpercep_plugin').warning('num_gpu: %s, but there is no GPU: using the CPU', opt['num_gpu'])
        opt['num_gpu'] = 0


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


def _patch_caller() -> None:
    """`python basicsr/train.py` runs its own load_resume_state, in `__main__`: reached here, since its module has run
    by now.
    """
    main = sys.modules['__main__']
    function = getattr(main, 'load_resume_state', None)
    if 'current_device' in getattr(getattr(function, '__code__', None), 'co_names', ()):
        main.load_resume_state = load_resume_state(function)


def load_resume_state(original: Callable) -> Callable:
    """Without a GPU the original asks for the current CUDA device."""

    def wrapper(opt: dict[str, Any]) -> Any:
        import torch

        if torch.cuda.is_available():
            return original(opt)
        from finpercep_plugin.integrations.checkpoints import load_resume_state as load

        return load(opt)

    return wrapper


def relocated(original: Callable) -> Callable:
    """For functions whose only argument is a folder below the root: see `_writable`."""

    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return original(*(_writable(a) for a in args), **{k: _writable(v) for k, v in kwargs.items()})

    return wrapper


def build_model(original: Callable) -> Callable:
    """Any model built gets the curriculum hook, if it holds a reward that wants it, and checkpoints that are whole or
    absent.
    """

    def wrapper(opt: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        from finpercep_plugin.checks import uses_plugin
        from finpercep_plugin.integrations.checkpoints import protect

        model = original(opt, *args, **kwargs)
        if uses_plugin(opt):
            from finpercep_plugin.curriculum.hook import attach

            attach(model, opt)
        protect(model)
        return model

    return wrapper


def build_dataloader(original: Callable) -> Callable:
    """A training set smaller than its batch gives an empty loader, over which BasicSR's loop turns for ever."""

    def wrapper(dataset: Any, dataset_opt: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        loader = original(dataset, dataset_opt, *args, **kwargs)
        if dataset_opt.get('phase') == 'train' and len(loader) == 0:
            from finpercep_plugin.config import ConfigError

            raise ConfigError(
                [
                    f'$.datasets.train: {len(dataset)} items do not fill one batch of {loader.batch_size} per process; expected a '
                    f'smaller batch_size_per_gpu, a larger dataset_enlarge_ratio, or python -m finpercep_plugin.train, which wraps'
                ]
            )
        return loader

    return wrapper


def add_jpg_compression(original: Callable) -> Callable:
    """OpenCV takes whole JPEG qualities only."""

    def wrapper(img: Any, quality: float = 90) -> Any:
        return original(img, int(quality))

    return wrapper


def model_to_device(original: Callable) -> Callable:
    """DistributedDataParallel on a CPU has no device_ids."""

    def wrapper(self: Any, net: Any) -> Any:
        import torch

        if not self.opt['dist'] or torch.cuda.is_available():
            return original(self, net)
        unused = self.opt.get('find_unused_parameters', False)
        return torch.nn.parallel.DistributedDataParallel(net.to(self.device), find_unused_parameters=unused)

    return wrapper


def init_dist(original: Callable) -> Callable:
    """gloo where there is no GPU; `dist_params: {backend, timeout (minutes)}` for every launcher; the group is left
    in order at exit.
    """

    def wrapper(launcher: str, backend: str = 'nccl', **kwargs: Any) -> None:
        import torch

        settings = dict(_dist_params)
        backend = settings.pop('backend', backend)
        minutes = settings.pop('timeout', None)
        limit = {} if minutes is None else {'timeout': datetime.timedelta(minutes=float(minutes))}
        kwargs.pop('timeout', None)
        if torch.cuda.is_available():
            original(launcher, backend=backend, **kwargs, **(limit if launcher == 'pytorch' else {}))
        else:
            _init_gloo(launcher, kwargs.get('port', settings.get('port')), limit)
        atexit.register(leave_group)

    return wrapper


def _init_gloo(launcher: str, port: int | None, limit: dict[str, Any]) -> None:
    import torch.distributed as dist
    import torch.multiprocessing as mp

    if mp.get_start_method(allow_none=True) is None:
        mp.set_start_method('spawn')
    if launcher == 'slurm':
        nodes = os.environ['SLURM_NODELIST']
        os.environ['MASTER_ADDR'] = subprocess.run(
            ['scontrol', 'show', 'hostname', nodes], check=True, capture_output=True, text=True
        ).stdout.split()[0]
        os.environ['MASTER_PORT'] = str(port or os.environ.get('MASTER_PORT', 29500))
        os.environ['RANK'], os.environ['WORLD_SIZE'] = os.environ['SLURM_PROCID'], os.environ['SLURM_NTASKS']
    elif launcher != 'pytorch':
        raise ValueError(f'Invalid launcher type: {launcher}')
    dist.init_process_group(backend='gloo', **limit)


def leave_group() -> None:
    """Wait for the other processes, then leave the group: gloo aborts now and then if a process goes while another
    still talks to it.
    """
    import torch.distributed as dist

    if not (dist.is_available() and dist.is_initialized()):
        return
    if dist.get_backend() == 'gloo' and not hasattr(sys, 'last_value'):  # after an error, the others may never come
        dist.monitored_barrier(timeout=datetime.timedelta(seconds=60))
    dist.destroy_process_group()
