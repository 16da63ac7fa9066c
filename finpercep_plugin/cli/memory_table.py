"""finpercep-memory-table: what a training step of the released generators takes, in GiB, for several settings, without
a GPU and without weights.

The networks are built at their released sizes with tensors that have shapes and no values. One step runs on them: the
network, without guidance, the VAE's decoder, and the backward pass; what is alive is counted. A cell of a precision
says what the forward pass leaves for the backward pass / the most that is alive, less weights and gradients. Weights:
those of the network, which fsdp shards, + the VAE's.
"""

from __future__ import annotations

import argparse
import itertools
import platform
import shlex
import sys
import time
import weakref
from pathlib import Path
from typing import Any, Callable, Iterable, Iterator, NamedTuple

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from finpercep_plugin.cli.tiny.released import released
from finpercep_plugin.generators.condition import Condition

__all__ = ['GENERATORS', 'Setting', 'Usage', 'main', 'measure']

GIB = 2**30
GENERATORS = ('SeeSR', 'OSEDiff', 'StableSR', 'DiffBIR', 'DiT4SR')
BEGIN, END = '<!-- finpercep-memory-table -->', '<!-- end -->'
ADAM = 8
"""Bytes of AdamW's two moments, a parameter."""


class Setting(NamedTuple):
    """What a step is measured with.

    Attributes:
        generator: of GENERATORS.
        train: 'released', 'lora' or 'all', as `generator.train`.
        precision: 'fp32' or 'bf16', as `train.precision`.
        checkpointing: as `generator.checkpointing`.
        side: of sr, in pixels.
        batch: samples.
    """

    generator: str
    train: str
    precision: str
    checkpointing: bool
    side: int
    batch: int = 1


class Usage(NamedTuple):
    """Bytes.

    Attributes:
        network: parameters of `generator.network`, which fsdp shards.
        trained: how many of them train, a number.
        frozen: parameters of the VAE.
        activations: what the forward pass leaves for the backward pass.
        peak: the most that was alive in the step, less parameters and gradients.
    """

    network: int
    trained: int
    frozen: int
    activations: int
    peak: int


class _Alive(TorchDispatchMode):
    """Counts the bytes of the tensors made inside that are alive, those of `before` and their views aside."""

    def __init__(self, before: Iterable[torch.Tensor]) -> None:
        super().__init__()
        self.now = self.most = 0
        self._known: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()
        for tensor in before:
            self._known[tensor.untyped_storage()] = True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self._count(tensor.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        if storage not in self._known:
            self._known[storage] = True
            self.now += storage.nbytes()
            self.most = max(self.most, self.now)
            weakref.finalize(storage, self._free, storage.nbytes())

    def _free(self, size: int) -> None:
        self.now -= size

    def leave_out(self, parameter: nn.Parameter) -> None:
        """Its gradient, which is there now, is counted no more."""
        self.now -= parameter.grad.untyped_storage().nbytes()


def measure(
    setting: Setting, build: Callable[[str], tuple[nn.Module, dict[str, tuple[int, ...]]]] | None = None
) -> Usage:
    """One training step of a generator on tensors without values.

    Args:
        setting: of the step.
        build: name -> the generator, with networks, and shapes of its condition beside the latent; the released one.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    with torch.device('meta'):
        generator, shapes = (build or released)(setting.generator)
        _prepare(generator, setting)
    with FakeTensorMode(allow_non_fake_inputs=True):
        _on_cpu(generator)
        parameters = list(generator.network.parameters())
        cond, x_t, t = _inputs(generator, shapes, setting)
        with _Alive([*generator.parameters(), *generator.buffers()]) as alive:
            with torch.autocast('cpu', torch.bfloat16, enabled=setting.precision == 'bf16'):
                if hasattr(generator, 'lq_posterior'):
                    x_t = generator.lq_posterior(cond.lq_up)[0]
                latent = generator.predict(x_t, t, cond)
                image = generator.decode(latent, cond)
            activations = alive.now
            for parameter in parameters:
                if parameter.requires_grad:
                    parameter.register_post_accumulate_grad_hook(alive.leave_out)
            image.mean().backward()
        trained = sum(p.numel() for p in parameters if p.requires_grad)
        return Usage(_bytes(parameters), trained, _bytes(generator.vae.parameters()), activations, alive.most)


def _on_cpu(generator: nn.Module) -> None:
    """Tensors of the meta device replaced by fake ones, which autocast and attention take for those of a CPU."""
    made: dict[int, torch.Tensor] = {}
    for module in generator.modules():
        for held in (module._parameters, module._buffers):
            for name, value in held.items():
                if value is not None and id(value) not in made:
                    fake = torch.empty(value.shape, dtype=value.dtype, device='cpu')
                    made[id(value)] = nn.Parameter(fake, value.requires_grad) if held is module._parameters else fake
                if value is not None:
                    held[name] = made[id(value)]


def _bytes(parameters: Any) -> int:
    return sum(p.numel() * p.element_size() for p in parameters)


def _prepare(generator: nn.Module, setting: Setting) -> None:
    """As `latent_files.load`, `trainable` and `cast_frozen` leave a generator."""
    from finpercep_plugin.generators import lora
    from finpercep_plugin.generators.choice import TrainedPart
    from finpercep_plugin.models.precision import cast_frozen

    network = generator.network
    generator.part = part = TrainedPart(network, generator.released_names)
    if setting.checkpointing:
        for module in generator.modules():
            if hasattr(module, 'enable_gradient_checkpointing') and module is not generator:
                module.enable_gradient_checkpointing()
    generator.requires_grad_(False).eval()
    if setting.train == 'lora' and not lora.has_lora(network):
        part.add_lora(8, 8.0)
    if setting.train == 'lora':
        for parameter in lora.lora_parameters(network).values():
            parameter.requires_grad_(True)
    else:
        part.choose(setting.train, 8, 8.0, reference=False)
    if setting.precision == 'bf16':
        cast_frozen(generator)


def _inputs(
    generator: Any, shapes: dict[str, tuple[int, ...]], setting: Setting
) -> tuple[Condition, torch.Tensor, torch.Tensor]:
    batch, side = setting.batch, setting.side
    lq, lq_up = torch.zeros(batch, 3, side // 4, side // 4), torch.zeros(batch, 3, side, side)
    channels, cells = generator.vae.config.latent_channels, side // generator.stride
    tensors = {name: torch.zeros(batch, *shape) for name, shape in shapes.items()}
    pictures = {name: lq_up for name in ('image', 'cleaned')}
    tensors |= {**pictures, 'latent': torch.zeros(batch, channels, cells, cells)}
    x_t = torch.zeros(batch, channels, cells, cells)
    return Condition(lq, lq_up, None, tensors), x_t, torch.full((batch,), 500.0)


def _table(args: argparse.Namespace) -> Iterator[str]:
    """Lines: a row for each generator, side, batch and what trains; a column for each precision and checkpointing."""
    columns = list(itertools.product(args.precision, args.checkpointing))
    heads = [
        'generator',
        'sr',
        'batch',
        'trains',
        'M trained',
        *(f'weights, {p}' for p in args.precision),
        'gradient + AdamW',
    ]
    heads += [f'{precision}, {"" if on == "on" else "no "}checkpointing' for precision, on in columns]
    yield f'| {" | ".join(heads)} |'
    yield f'| --- |{" ---: |" * 2} --- |{" ---: |" * (len(heads) - 4)}'
    for name, side, batch, train in itertools.product(args.generators, args.side, args.batch, args.train):
        usages = {c: measure(Setting(name, train, c[0], c[1] == 'on', side, batch)) for c in columns}
        trained = usages[columns[0]].trained
        cells = [name, f'{side}', f'{batch}', train, f'{trained / 1e6:.1f}']
        for precision in args.precision:
            usage = usages[precision, args.checkpointing[0]]
            cells.append(f'{usage.network / GIB:.2f} + {usage.frozen / GIB:.2f}')
        cells.append(f'{trained * (4 + ADAM) / GIB:.2f}')
        cells += [f'{usages[c].activations / GIB:.2f} / {usages[c].peak / GIB:.2f}' for c in columns]
        yield f'| {" | ".join(cells)} |'


def main(argv: list[str] | None = None) -> int:
    """Print the table, or put it between the marks of a page."""
    parser = argparse.ArgumentParser(prog='finpercep-memory-table', description=__doc__)
    parser.add_argument('--generators', nargs='+', choices=GENERATORS, default=list(GENERATORS), metavar='NAME')
    parser.add_argument('--side', nargs='+', type=int, default=[512], help='of sr, in pixels (default: 512)')
    parser.add_argument('--batch', nargs='+', type=int, default=[1], help='samples (default: 1)')
    parser.add_argument('--train', nargs='+', choices=('released', 'lora', 'all'), default=['lora', 'all'])
    parser.add_argument('--precision', nargs='+', choices=('fp32', 'bf16'), default=['fp32', 'bf16'])
    parser.add_argument('--checkpointing', nargs='+', choices=('on', 'off'), default=['on', 'off'])
    parser.add_argument('--page', type=Path, help=f'write the table into this file, between {BEGIN} and {END}')
    args = parser.parse_args(argv)
    started, lines = time.strftime('%Y-%m-%d'), []
    for line in _table(args):
        lines.append(line)
        print(line, flush=True)
    if args.page:
        words = shlex.join(sys.argv[1:] if argv is None else argv)
        machine = f'torch {torch.__version__}, Python {platform.python_version()}, {platform.machine()}, no GPU'
        told = f'`finpercep-memory-table {words}` ({machine}, {started}):'
        _replace(args.page, '\n'.join(['', told, '', *lines, '']))
    return 0


def _replace(page: Path, text: str) -> None:
    """
    Raises:
        ValueError: the page has no marks.
    """
    before, begin, rest = page.read_text(encoding='utf-8').partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f'{page} has no lines {BEGIN} and {END}')
    page.write_text(f'{before}{BEGIN}\n{text}\n{END}{after}', encoding='utf-8')


if __name__ == '__main__':
    raise SystemExit(main())
