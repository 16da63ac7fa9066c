"""What a training run would take: its parameters, and the memory of one real step, measured."""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Iterator

import torch
from torch import nn

from finpercep_plugin.config import ConfigError
from finpercep_plugin.data.loaders import train_loader
from finpercep_plugin.integrations.basicsr import install
from finpercep_plugin.integrations.entry import blame, leave_group, read_options

__all__ = ['dry_run', 'parameter_table']

GIB = 2**30
log = logging.getLogger(__name__)


def dry_run(opt: Mapping[str, Any] | str | None = None) -> str:
    """Build the model of the options, take one training step on real data, and say what it took; nothing is kept.

    The reward is not calibrated, the step with gradient is the sampler's first, and the reward is the last stage's: the
    memory is that of any step, the time is not.

    Args:
        opt: the content of a YAML file, its path, or None for sys.argv.

    Returns:
        The report, lines of text.

    Raises:
        ConfigError: the options are wrong.
    """
    install()
    with tempfile.TemporaryDirectory() as folder:
        options, _, _ = read_options(folder, opt, is_train=True)
        from basicsr.models import build_model

        with blame('$'):
            model = build_model(options)
        if not hasattr(model, 'prepare_dry_run'):
            raise ConfigError([f"$.model_type: --dry-run is for the plugin's models, got {options['model_type']}"])
        model.prepare_dry_run()
        data = next(iter(train_loader(options, 0)))
        model.update_learning_rate(1)
        model.feed_data(data)
        before, started = _memory(model.device, reset=True), time.perf_counter()
        model.optimize_parameters(int(options['train']['total_iter']))
        seconds, peak = time.perf_counter() - started, _memory(model.device)
        leave_group()
    shape = {name: tuple(value.shape) for name, value in data.items() if torch.is_tensor(value)}
    place = torch.cuda.get_device_name(model.device) if model.device.type == 'cuda' else 'CPU, resident memory'
    return '\n'.join(
        [
            *parameter_table(model),
            '',
            f'batch: {", ".join(f"{name} {sides}" for name, sides in shape.items())}; precision {"bf16" if model.bf16 else "fp32"}',
            f'memory before the step: {before / GIB:.2f} GiB ({place})',
            f'peak in one step:       {peak / GIB:.2f} GiB',
            f'that step took:         {seconds:.1f} s (the first, with the sampler cut short)',
        ]
    )


def parameter_table(model: Any) -> list[str]:
    """Lines: each part of the generator and the reward, with its parameters, how many train, and their memory."""
    rows = [('part', 'parameters', 'trained', 'GiB', 'held in')]
    total = trained = size = 0
    for name, module in _parts(model):
        parameters = list(module.parameters())
        if not parameters:
            continue
        numbers = sum(p.numel() for p in parameters), sum(p.numel() for p in parameters if p.requires_grad)
        bytes_ = sum(p.numel() * p.element_size() for p in parameters)
        kinds = sorted({str(p.dtype).rpartition('.')[2] for p in parameters})
        rows.append((name, f'{numbers[0]:,}', f'{numbers[1]:,}', f'{bytes_ / GIB:.3f}', ' + '.join(kinds)))
        total, trained, size = total + numbers[0], trained + numbers[1], size + bytes_
    rows.append(('total', f'{total:,}', f'{trained:,}', f'{size / GIB:.3f}', ''))
    widths = [max(len(row[i]) for row in rows) for i in range(5)]
    aligned = [
        '  '.join(v.ljust(w) if i in (0, 4) else v.rjust(w) for i, (v, w) in enumerate(zip(r, widths))) for r in rows
    ]
    return [line.rstrip() for line in aligned]


def _parts(model: Any) -> Iterator[tuple[str, nn.Module]]:
    """The generator's parts, its network's apart, and the reward; a module that stands in two places once."""
    seen: set[int] = set()
    for name, module in model.net_g.named_children():
        inner = list(module.named_children()) if name == 'network' else []
        for part, child in [(f'{name}.{n}', c) for n, c in inner] or [(name, module)]:
            if id(child) not in seen:
                seen.add(id(child))
                yield part, child
    for name in ('reward', *(getattr(model, 'heldout', None) or {})):
        module = model.heldout[name] if name != 'reward' else getattr(model, 'reward', None)
        if isinstance(module, nn.Module):
            yield name, module


def _memory(device: torch.device, reset: bool = False) -> int:
    """Peak bytes since the last reset: of tensors on a GPU, of the process on a CPU."""
    if device.type == 'cuda':
        torch.cuda.synchronize(device)
        if reset:
            torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.max_memory_allocated(device)
    if reset:
        try:
            Path('/proc/self/clear_refs').write_text('5')
        except OSError:
            log.warning('the peak before the step cannot be told from that of the step on this system')
    for line in Path('/proc/self/status').read_text().splitlines():
        if line.startswith('VmHWM'):
            return int(line.split()[1]) * 1024
    raise OSError('/proc/self/status has no VmHWM')
