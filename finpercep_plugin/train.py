"""Train any BasicSR model: `python -m finpercep_plugin.train -opt X.yml [--auto_resume] [--launcher
none|pytorch|slurm] [--force_yml a:b=c ...] [--dry-run [--vary a:b=c,d ...]]`.

BasicSR's loop with the data position kept over a resume (`data/sampler.py`), experiments in the current folder, and
an orderly end.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from finpercep_plugin.data.loaders import train_loader, val_loaders
from finpercep_plugin.integrations.basicsr import install
from finpercep_plugin.integrations.checkpoints import load_resume_state, remove_leftovers
from finpercep_plugin.integrations.entry import blame, leave_group, open_log, read_options, run, write_options
from finpercep_plugin.loop import fit, validate

__all__ = ['main', 'train_pipeline']

install()  # at import: a spawned worker imports this module before it unpickles a BasicSR data set


def train_pipeline(
    root_path: str,
    opt: Mapping[str, Any] | str | None = None,
    on_step: Callable[[int, int], None] | None = None,
    console: bool = True,
) -> Any:
    """Train as the options say.

    Args:
        root_path: the folder that experiments/ and tb_logger/ are made in.
        opt: the content of a YAML file, its path, or None for sys.argv.
        on_step: called with (iteration, total iterations) after each step.
        console: log to the console too, not to the file alone.

    Returns:
        The model.

    Raises:
        ConfigError: the options are wrong, the training set is empty, there is nothing to resume from, or what there is
            does not fit.
    """
    opt, file, text = read_options(root_path, opt, is_train=True)
    from basicsr.models import build_model

    torch.backends.cudnn.benchmark = True
    state = load_resume_state(opt)
    start = state['iter'] if state else 0
    tb_logger = _prepare_folders(opt, fresh=state is None)
    write_options(opt, file, text)
    logger = open_log(opt, 'train', console)
    loader, validation = train_loader(opt, start), val_loaders(opt)
    with blame('$'):
        model = build_model(opt)
    if state:
        with blame('$.path.resume_state'):
            model.resume_training(state)
        logger.info(f'Resuming training from iter {start}.')
    validated = fit(model, opt, loader, validation, start, tb_logger, on_step)
    logger.info('End of training. Save the latest model.')
    model.save(-1, -1)
    if not validated:
        validate(model, opt, validation, max(start, int(opt['train']['total_iter'])), tb_logger)
    if tb_logger:
        tb_logger.close()
    leave_group()
    return model


def _prepare_folders(opt: dict[str, Any], fresh: bool) -> Any:
    """Experiment folders, an old experiment of the name moved aside; returns the TensorBoard writer or None."""
    from basicsr.train import init_tb_loggers
    from basicsr.utils import make_exp_dirs, mkdir_and_rename

    if fresh:
        make_exp_dirs(opt)
        if opt['logger'].get('use_tb_logger') and 'debug' not in opt['name'] and opt['rank'] == 0:
            mkdir_and_rename(os.path.join(opt['root_path'], 'tb_logger', opt['name']))
    if opt['rank'] == 0:
        remove_leftovers(opt)
    if opt['dist']:
        torch.distributed.barrier()
    Path(opt['path']['log']).mkdir(parents=True, exist_ok=True)
    return init_tb_loggers(opt)


def main(argv: list[str] | None = None) -> int:
    """Train; with --dry-run, say what it would take, and with --vary too, for every choice of some settings."""
    words = sys.argv[1:] if argv is None else list(argv)
    if '--dry-run' not in words:
        return run(train_pipeline, argv)
    from finpercep_plugin.dry_run import dry_run, dry_runs, variations

    words, settings = variations([word for word in words if word != '--dry-run'])
    return run(lambda root_path: print(dry_runs(words, settings) if settings else dry_run()), words)


if __name__ == '__main__':
    raise SystemExit(main())
