"""What is put around BasicSR's functions. Each maker takes the original and returns its wrapper; with a GPU and
nothing of ours, it is the original.
"""

from __future__ import annotations

import atexit
import datetime
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Callable

from finpercep_plugin.integrations.fitting import check_forced, fit, forced, settle_seed, yaml_argument

__all__ = [
    'add_jpg_compression',
    'build_dataloader',
    'build_model',
    'init_dist',
    'leave_group',
    'load_resume_state',
    'lost_peer',
    'mkdir_and_rename',
    'model_to_device',
    'parse_options',
    'relocated',
]

_yaml: dict[str, Any] = {}  # being parsed: BasicSR tells init_dist its dist_params for slurm only, and never num_gpu


def parse_options(original: Callable) -> Callable:
    """Options are checked before anything is loaded, and fitted to this machine."""

    def wrapper(root_path: str, *args: Any, **kwargs: Any) -> Any:
        from finpercep_plugin.checks import check_options, check_yaml, uses_plugin

        sys.argv[1:] = [re.sub(r'^--local-rank\b', '--local_rank', a) for a in sys.argv[1:]]
        raw = check_yaml(yaml_argument())
        if raw:
            check_forced(raw)
        _yaml.clear()
        _yaml.update({**raw, **{k: v for k, v in forced().items() if k == 'num_gpu'}})
        result = original(_writable(root_path), *args, **kwargs)
        opt = result[0] if isinstance(result, tuple) else result
        fit(opt)
        check_options(opt)
        if raw and uses_plugin(raw):
            settle_seed(opt, raw)
        _patch_caller()
        return result

    return wrapper


def _writable(path: str) -> str:
    """`python -m basicsr.train` takes the folder above the package for the repository; were that site-packages, use
    the current folder.
    """
    parts = Path(path).parts
    for name in ('site-packages', 'dist-packages'):
        if name in parts:
            return os.path.join(os.getcwd(), *parts[parts.index(name) + 1 :])
    return path


def _patch_caller() -> None:
    """`python basicsr/train.py` runs its own load_resume_state, in `__main__`: reached here, since its module has run
    by now.
    """
    main = sys.modules['__main__']
    function = getattr(main, 'load_resume_state', None)
    if 'current_device' in getattr(getattr(function, '__code__', None), 'co_names', ()):
        main.load_resume_state = load_resume_state(function)


def load_resume_state(original: Callable) -> Callable:
    """Without a GPU, the original asks for the current CUDA device all the same."""

    def wrapper(opt: dict[str, Any]) -> Any:
        import torch

        if torch.cuda.is_available() and opt.get('num_gpu') != 0:
            return original(opt)
        from finpercep_plugin.integrations.checkpoints import load_resume_state as load

        return load(opt)

    return wrapper


def relocated(original: Callable) -> Callable:
    """For functions whose only argument is a folder below the root: see `_writable`."""

    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return original(*(_writable(a) for a in args), **{k: _writable(v) for k, v in kwargs.items()})

    return wrapper


def mkdir_and_rename(original: Callable) -> Callable:
    """As `relocated`. An old folder is renamed after the second it is; one that was renamed in the same second stands
    in the way of the next, which waits.
    """

    def wrapper(path: str) -> None:
        path = _writable(path)
        try:
            original(path)
        except OSError:
            time.sleep(1.1)
            original(path)

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
        if not self.opt['dist'] or self.device.type == 'cuda':
            return original(self, net)
        import torch

        unused = self.opt.get('find_unused_parameters', False)
        return torch.nn.parallel.DistributedDataParallel(net.to(self.device), find_unused_parameters=unused)

    return wrapper


def init_dist(original: Callable) -> Callable:
    """gloo where no GPU is there or wanted (`num_gpu: 0`); `dist_params: {backend, timeout (minutes)}` for every
    launcher; the group is left in order at exit.
    """

    def wrapper(launcher: str, backend: str = 'nccl', **kwargs: Any) -> None:
        import torch

        settings = dict(_yaml.get('dist_params') or {})
        backend = settings.pop('backend', backend)
        minutes = settings.pop('timeout', None)
        limit = {} if minutes is None else {'timeout': datetime.timedelta(minutes=float(minutes))}
        kwargs.pop('timeout', None)
        gpu = torch.cuda.is_available() and str(_yaml.get('num_gpu')) != '0'
        if gpu and not (launcher == 'slurm' and limit):  # the original's branch for slurm takes no limit
            original(launcher, backend=backend, **kwargs, **limit)
        else:
            port = kwargs.get('port', settings.get('port'))
            _init_group(launcher, port, backend=backend if gpu else 'gloo', **limit)
        atexit.register(leave_group)

    return wrapper


def _init_group(launcher: str, port: int | None, backend: str, **limit: Any) -> None:
    """What the original does, with a time limit for slurm too, and no GPU for gloo."""
    import torch
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
        if backend != 'gloo':
            os.environ['LOCAL_RANK'] = str(int(os.environ['RANK']) % torch.cuda.device_count())
            torch.cuda.set_device(int(os.environ['LOCAL_RANK']))
    elif launcher != 'pytorch':
        raise ValueError(f'Invalid launcher type: {launcher}')
    dist.init_process_group(backend=backend, **limit)


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


_LOST = re.compile(r'gloo|nccl|connection (closed|reset)|timed out|broken pipe|clients joined', re.IGNORECASE)


def lost_peer(error: RuntimeError) -> str | None:
    """What to tell of an error that means that another process of the run is gone or stands still; None for any other.
    The group is left at once: nobody would come to the end that is waited for otherwise.
    """
    import torch.distributed as dist

    known = getattr(dist, 'DistError', ())
    if not (dist.is_available() and (isinstance(error, known) or (dist.is_initialized() and _LOST.search(str(error))))):
        return None
    rank = dist.get_rank() if dist.is_initialized() else int(os.environ.get('RANK', 0))
    if dist.is_initialized():
        dist.destroy_process_group()
    minutes = (_yaml.get('dist_params') or {}).get('timeout')
    limit = (
        'within the time limit (dist_params.timeout)'
        if minutes is None
        else f'for {float(minutes):g} minutes (dist_params.timeout)'
    )
    reason = str(error).strip().splitlines()[0]
    return (
        f'rank {rank}: another process of the run is gone, or has not answered {limit}: {reason}\n'
        'Start all processes again with --auto_resume: they go on from the last state.'
    )
