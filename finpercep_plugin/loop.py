"""The training loop, for a run of its own (`train.py`) and for one within another (`models/growth.py`)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.utils.data import DataLoader

from finpercep_plugin.integrations.checkpoints import get_rng, set_rng

__all__ = ['fit', 'validate']


def fit(
    model: Any,
    opt: dict[str, Any],
    loader: DataLoader,
    validation: list[DataLoader],
    start: int,
    tb_logger: Any = None,
    on_step: Callable[[int, int], None] | None = None,
) -> bool:
    """BasicSR's loop: log, save and validate as often as the options say.

    Args:
        model: of BasicSR or of the plugin.
        opt: options, as `read_options` returns them.
        loader: of `train_loader(opt, start)`.
        validation: of `val_loaders(opt)`.
        start: iterations done already.
        tb_logger: TensorBoard writer; None for none, and then `logger.use_tb_logger` is false.
        on_step: called with (iteration, total iterations) after each step.

    Returns:
        Whether the last iteration was validated.
    """
    from basicsr.utils import AvgTimer, MessageLogger

    message, iter_timer, data_timer = MessageLogger(opt, start, tb_logger), AvgTimer(), AvgTimer()
    total, freq, validated = int(opt['train']['total_iter']), opt['logger'], False
    epoch_size = len(loader.dataset) * opt['datasets']['train'].get('dataset_enlarge_ratio', 1)
    for current_iter, data in enumerate(loader, start + 1):
        data_timer.record()
        epoch = (current_iter - 1) * loader.sampler.global_batch // epoch_size
        model.update_learning_rate(current_iter, warmup_iter=opt['train'].get('warmup_iter', -1))
        model.feed_data(data)
        model.optimize_parameters(current_iter)
        iter_timer.record()
        if current_iter % freq.get('print_freq', 100) == 0:
            times = {'time': iter_timer.get_avg_time(), 'data_time': data_timer.get_avg_time()}
            rates = {'epoch': int(epoch), 'iter': current_iter, 'lrs': model.get_current_learning_rate()}
            message({**rates, **times, **model.get_current_log()})
        if current_iter % freq.get('save_checkpoint_freq', 5000) == 0:
            model.save(int(epoch), current_iter)
        validated = bool(opt.get('val')) and current_iter % opt['val'].get('val_freq', total + 1) == 0
        if validated:
            validate(model, opt, validation, current_iter, tb_logger)
        if on_step:
            on_step(current_iter, total)
        data_timer.start()
        iter_timer.start()
    return validated


def validate(model: Any, opt: dict[str, Any], loaders: list[DataLoader], current_iter: int, tb_logger: Any) -> None:
    """Validation leaves the random number generators as they were: a resumed run does not repeat it."""
    before = get_rng()
    for loader in loaders if opt.get('val') else []:
        model.validation(loader, current_iter, tb_logger, opt['val'].get('save_img', False))
    set_rng(before)
