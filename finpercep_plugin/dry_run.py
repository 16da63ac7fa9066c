"""What a training run would take: its parameters, and the memory of one real step, measured."""

from __future__ import annotations

import itertools
import logging
import re
import subprocess
import sys
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

__all__ = ['dry_run', 'dry_runs', 'parameter_table', 'variations']

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


def variations(words: list[str]) -> tuple[list[str], list[list[str]]]:
    """The settings after `--vary`, every choice of the one with every choice of the others, as `--force_yml` takes them.

    Args:
        words: a command line.

    Returns:
        The other words, and the settings of each run; none where nothing varies.

    >>> variations(['-opt', 'a.yml', '--vary', 'train:precision=fp32,bf16', 'generator:train=lora'])
    (['-opt', 'a.yml'], [['train:precision=fp32', 'generator:train=lora'], ['train:precision=bf16', 'generator:train=lora']])
    """
    if '--vary' not in words:
        return words, []
    first = words.index('--vary') + 1
    last = next((i for i in range(first, len(words)) if words[i].startswith('-')), len(words))
    keys = [word.partition('=') for word in words[first:last]]
    choices = [[f'{key}={value}' for value in values.split(',')] for key, _, values in keys]
    return words[: first - 1] + words[last:], [list(choice) for choice in itertools.product(*choices)]


def dry_runs(words: list[str], settings: list[list[str]]) -> str:
    """A table of dry runs, each in a process of its own.

    Args:
        words: the command line of `finpercep_plugin.train`.
        settings: of each run, over those of the file and of `--force_yml`.
    """
    lines = ['| setting | trained | before the step, GiB | peak, GiB | s |', '| --- | ---: | ---: | ---: | ---: |']
    forced = words.index('--force_yml') if '--force_yml' in words else len(words)
    end = next((i for i in range(forced + 1, len(words)) if words[i].startswith('-')), len(words))
    for setting in settings:
        options = ['--force_yml', *words[forced + 1 : end], *setting]  # the last one of a key counts
        command = [sys.executable, '-m', 'finpercep_plugin.train', *words[:forced], *words[end:], *options, '--dry-run']
        result = subprocess.run(command, capture_output=True, text=True)
        found = [re.search(pattern, result.stdout) for pattern in (_TOTAL, _BEFORE, _PEAK, _TOOK)]
        failed = (result.stderr.strip().splitlines() or ['no report'])[-1].replace('|', '/')
        cells = [match[1] for match in found if match] if all(found) else [failed, '', '', '']
        lines.append(f'| {" ".join(setting)} | {" | ".join(cells)} |')
    return '\n'.join(lines)


_TOTAL, _BEFORE = r'total +[\d,]+ +([\d,]+)', r'before the step: +([\d.]+)'
_PEAK, _TOOK = r'peak in one step: +([\d.]+)', r'that step took: +([\d.]+)'


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
