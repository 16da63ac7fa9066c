"""Checkpoints of BasicSR's own models: whole or absent, with the random number generators beside them, and safe to
load.
"""

from __future__ import annotations

import logging
import os
import random
import re
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from finpercep_plugin.config import ConfigError
from finpercep_plugin.generators.checkpoint import why_refused, write_weights

__all__ = ['get_rng', 'load_resume_state', 'protect', 'remove_leftovers', 'set_rng']

_log = logging.getLogger('basicsr')


# ---------------------------------------------------------------- random number generators


def get_rng() -> dict[str, Any]:
    """States of the python, numpy and torch generators, of kinds that `torch.load(weights_only=True)` takes."""
    name, keys, pos, has_gauss, gauss = np.random.get_state()
    return {
        'python': random.getstate(),
        'numpy': [str(name), torch.from_numpy(keys.astype(np.int64)), int(pos), int(has_gauss), float(gauss)],
        'torch': torch.get_rng_state(),
        'cuda': torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_rng(state: dict[str, Any]) -> None:
    """Put back what `get_rng` returned.

    >>> state = get_rng()
    >>> first = random.random(), np.random.rand(), torch.rand(1)
    >>> set_rng(state)
    >>> first == (random.random(), np.random.rand(), torch.rand(1))
    True
    """
    version, internal, gauss = state['python']
    random.setstate((version, tuple(internal), gauss))
    name, keys, *rest = state['numpy']
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state['torch'])
    if state['cuda'] and len(state['cuda']) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state['cuda'])


# ---------------------------------------------------------------- saving


def protect(model: Any) -> None:
    """Make `model.save` all or nothing, and carry the RNG states over a resume.

    The model saves into hidden folders, from which the files are renamed, the `.state` last: what BasicSR's resume
    looks for exists only once everything
    it needs does. The plugin's own models do this themselves.
    """
    if type(model).__module__.startswith('finpercep_plugin.') or not model.opt.get('is_train'):
        return
    for scheduler in model.schedulers:
        if hasattr(scheduler, 'milestones'):  # a Counter, which older torch refuses to load safely
            scheduler.milestones = dict(scheduler.milestones)
    save, resume = model.save, model.resume_training

    def save_whole(epoch: int, current_iter: int, *args: Any, **kwargs: Any) -> None:
        paths = model.opt['path']
        final = {key: paths[key] for key in ('models', 'training_states')}
        if current_iter != -1:
            write_weights(get_rng(), Path(final['training_states']) / _rng_name(current_iter))
        _barrier()
        hidden = {key: os.path.join(folder, '.unfinished') for key, folder in final.items()}
        if _rank() == 0:
            for folder in hidden.values():
                shutil.rmtree(folder, ignore_errors=True)
                os.makedirs(folder)
        paths.update(hidden)
        try:
            save(epoch, current_iter, *args, **kwargs)
        finally:
            paths.update(final)
        if _rank() == 0:
            for key in ('models', 'training_states'):
                _publish(Path(hidden[key]), Path(final[key]))

    def resume_exactly(state: dict[str, Any]) -> Any:
        result = resume(state)
        _restore_rng(model.opt, int(state['iter']))
        return result

    model.save, model.resume_training = save_whole, resume_exactly


def _publish(hidden: Path, final: Path) -> None:
    """Move the files of `hidden` to `final`, `.state` files last.

    Raises:
        OSError: a file was not written to its end; nothing is moved.
    """
    files = sorted((f for f in hidden.iterdir()), key=lambda f: (f.suffix == '.state', f.name))
    for file in files:
        if file.suffix in ('.pth', '.state') and not zipfile.is_zipfile(file):
            raise OSError(f'checkpoint {final / file.name} could not be written (is the disk full?)')
        with open(file, 'rb') as handle:
            os.fsync(handle.fileno())
    for file in files:
        os.replace(file, final / file.name)
    hidden.rmdir()


def remove_leftovers(opt: dict[str, Any]) -> None:
    """Delete what runs that were killed while writing left in the experiment's folders: `<name>.<pid>.tmp` of processes
    that are gone, and `<iter>.shards.tmp`. For the start of a run, on rank 0.
    """
    for key in ('models', 'training_states'):
        for file in Path(opt['path'][key]).glob('*.tmp'):
            found = re.search(r'\.(\d+)\.tmp$', file.name)
            if found and not _alive(int(found[1])):
                file.unlink(missing_ok=True)
        for folder in Path(opt['path'][key]).glob('*.shards.tmp'):
            shutil.rmtree(folder, ignore_errors=True)


def _alive(pid: int) -> bool:
    """Whether another process has this number; where that cannot be asked for safely, yes."""
    if pid == os.getpid():
        return False
    if os.name != 'posix':
        return True
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def _rank() -> int:
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def _barrier() -> None:
    if dist.is_available() and dist.is_initialized():
        dist.barrier()


def _rng_name(iteration: int) -> str:
    return f'{iteration}.rng' if _rank() == 0 else f'{iteration}.rank{_rank()}.rng'


def _restore_rng(opt: dict[str, Any], iteration: int) -> None:
    folder = Path(opt['path'].get('resume_state') or Path(opt['path']['training_states']) / 'x').parent
    file = folder / _rng_name(iteration)
    if file.is_file():
        try:
            set_rng(torch.load(file, map_location='cpu', weights_only=True))
        except Exception as error:  # what a cut-off pickle or zip raises is anything
            raise ValueError(f'{file} is not the state of random number generators: {why_refused(error)}') from error
    else:
        _log.warning('%s is not there: the generators start from the seed, not where the run was', file)


# ---------------------------------------------------------------- resuming


def load_resume_state(opt: dict[str, Any]) -> dict[str, Any] | None:
    """The state to go on from, or None for a new run; `opt.path` is rewritten as BasicSR's check_resume does.

    `--auto_resume` takes the newest state of the experiment that can be read and whose networks are there.

    Raises:
        ConfigError: `path.resume_state` is not there or cannot be read, or every state of the experiment is broken.
    """
    if opt['auto_resume']:
        return _newest(opt)
    file = opt['path'].get('resume_state')
    return None if not file else _load(opt, Path(file), '$.path.resume_state')


def _newest(opt: dict[str, Any]) -> dict[str, Any] | None:
    folder = Path(opt['path']['training_states'])
    files = [f for f in folder.glob('*.state') if f.stem.isdigit()] if folder.is_dir() else []
    problems: list[str] = []
    for file in sorted(files, key=lambda f: int(f.stem), reverse=True):
        before = dict(opt['path'])
        opt['path']['resume_state'] = str(file)
        try:
            return _load(opt, file, f'--auto_resume: {file.name}')
        except ConfigError as error:
            opt['path'].clear()
            opt['path'].update(before)
            problems += error.problems
            _log.warning('%s; trying the state before it', error)
    if problems:
        raise ConfigError(problems)
    return None


def _load(opt: dict[str, Any], file: Path, where: str) -> dict[str, Any]:
    from basicsr.utils import check_resume

    if not file.is_file():
        raise ConfigError([f'{where}: no training state at {file.absolute()}'])
    try:
        state = torch.load(file, map_location='cpu', weights_only=True)
    except Exception as error:  # what a cut-off pickle or zip raises is anything
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ConfigError([f'{where}: {file} is not a whole, safe training state: {reason}']) from error
    if not isinstance(state, dict) or not isinstance(state.get('iter'), int):
        raise ConfigError([f'{where}: {file} is not a training state of BasicSR (no `iter` in it)'])
    from finpercep_plugin.models.resuming import check_model

    try:
        check_model(state, opt.get('model_type', state.get('model')))
        if isinstance(state.get('shards'), str):
            from finpercep_plugin.models.sharded_state import check_shards

            check_shards(file.parent / state['shards'])
    except ValueError as error:
        raise ConfigError([f'{where}: {error}']) from error
    check_resume(opt, state['iter'])
    for network in (key for key in opt if key.startswith('network_')):
        weights = opt['path'].get(f'pretrain_{network}')
        if weights and not zipfile.is_zipfile(weights):
            raise ConfigError([f'{where}: its network {weights} is missing or only half written'])
    return state
