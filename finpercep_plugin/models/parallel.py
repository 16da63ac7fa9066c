"""How the processes of a run share the work on a model: each with the whole network, or each with a part of it.

`train.parallel` chooses. `Replicated` is 'ddp', and a process alone; it averages gradients once per update. `Sharded`
is 'fsdp', and averages them in every backward pass. Neither wraps the network, which a generator calls as often as it
likes.
"""

from __future__ import annotations

import contextlib
import math
from pathlib import Path
from typing import Any, Callable, ContextManager, Iterable, Iterator, Mapping, NamedTuple, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from finpercep_plugin.generators.checkpoint import write_weights
from finpercep_plugin.models import sharding
from finpercep_plugin.models.lockstep import Lockstep
from finpercep_plugin.models.steps import buckets

__all__ = ['Replicated', 'Sharded', 'Trained', 'check_parallel', 'choose']

BUCKET = 2**26
"""Gradient elements that ranks exchange at once: 256 MiB."""
OLDEST = (2, 6)


def check_parallel(opt: Mapping[str, Any]) -> list[str]:
    """What stands in the way of `train.parallel: fsdp`, one line a problem."""
    train = opt.get('train') or {}
    if train.get('parallel') != 'fsdp':
        return []
    version = tuple(int(part) for part in torch.__version__.split('.')[:2])
    if version >= OLDEST:
        return []
    return [f'$.train.parallel: fsdp needs torch >= {".".join(map(str, OLDEST))}, this is {torch.__version__}']


def choose(opt: Mapping[str, Any], device: torch.device, precision: Callable[[], ContextManager]) -> Replicated:
    """What the options of a model ask for.

    Args:
        opt: of the run.
        device: the process's.
        precision: makes the context of every forward pass.
    """
    wanted = (opt.get('train') or {}).get('parallel') == 'fsdp' and opt.get('is_train', True)
    return (Sharded if wanted and opt['world_size'] > 1 else Replicated)(opt, device, precision)


class Trained(NamedTuple):
    """The trained parameters.

    Attributes:
        named: by name.
        numbered: as the optimiser numbers them.
    """

    named: Mapping[str, nn.Parameter]
    numbered: Sequence[nn.Parameter]

    def owner(self, keys: tuple[str, ...]) -> nn.Parameter | None:
        """The parameter that the tensor of a training state at `keys` belongs to."""
        if keys[0] != 'optimizers':
            return self.named.get(keys[1])
        number = int(keys[3])
        return self.numbered[number] if number < len(self.numbered) else None


class Replicated:
    """Every process holds all parameters.

    Args:
        opt: of the run.
        device: the process's.
        precision: makes the context of every forward pass.
    """

    sharded = False

    def __init__(self, opt: Mapping[str, Any], device: torch.device, precision: Callable[[], ContextManager]):
        self.dist, self.rank, self.world_size = opt['dist'], opt['rank'], opt['world_size']
        self.device, self.precision = device, precision

    def place(self, generator: nn.Module) -> None:
        """Move a generator, whose trained parameters are chosen, to where it is trained."""
        generator.to(self.device)

    def begin(self, network: nn.Module) -> None:
        """All ranks start from rank 0's tensors."""
        if self.dist:
            for tensor in network.state_dict().values():
                dist.broadcast(tensor, 0)

    def average(self, parameters: Sequence[nn.Parameter], total: Tensor) -> bool:
        """Average the gradients and the loss over ranks, in place; False if anything anywhere is not finite.

        Ranks exchange flat pieces of `BUCKET` elements, so that the copy beside the gradients stays small.
        """
        pieces = buckets([*_gradients(parameters), total.reshape(1)], BUCKET)
        if self.dist:
            for piece in pieces:
                flat = torch.cat([g.flatten() for g in piece])
                dist.all_reduce(flat)
                flat /= self.world_size
                for g, value in zip(piece, flat.split([g.numel() for g in piece])):
                    g.copy_(value.view_as(g))
        return all(_finite(g) for piece in pieces for g in piece)

    def clip(self, parameters: Iterable[nn.Parameter], limit: float | None) -> Tensor:
        """The norm of the whole gradient, which is scaled down to `limit` where it is above."""
        return nn.utils.clip_grad_norm_(list(parameters), limit or math.inf)

    def uneven(self) -> ContextManager[None]:
        """Inside, ranks may sample different numbers of times, without gradient, each once at the least."""
        return contextlib.nullcontext()

    def whole(self, network: nn.Module, names: Iterable[str] | None) -> ContextManager[bool]:
        """Inside, rank 0, which gets True, can save the network's parameters `names`, or all of them."""
        return contextlib.nullcontext(self.rank == 0)

    def full(self, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The same tensors, whole (a collective call)."""
        return tensors

    def write_state(self, state: dict[str, Any], path: Path) -> None:
        """Write a training state; it appears whole or not at all."""
        if self.rank == 0:
            write_weights(state, path)

    def read_state(self, state: dict[str, Any], folder: Path, trained: Trained) -> dict[str, Any]:
        """A training state of any number of processes, its tensors in the form that they have here.

        Args:
            state: the content of the file.
            folder: where it lies.
            trained: the parameters by name, and as the optimiser numbers them.

        Raises:
            ValueError: it is damaged.
        """
        if 'shards' not in state:
            return state
        from finpercep_plugin.models.sharded_state import read_state

        return read_state(state, folder, lambda keys, size: torch.empty(size), True)


class Sharded(Replicated):
    """Every process holds a part of each parameter of a generator's network, its gradient, EMA and optimiser state.

    The rest, VAE and text encoders and rewards, is whole everywhere. All start from the same files, which each reads.
    """

    sharded = True
    units: list[str] = []

    def place(self, generator: nn.Module) -> None:
        """
        Raises:
            ValueError: the generator has no network to shard.
        """
        from finpercep_plugin.generators.choice import TrainedPart

        network, part = getattr(generator, 'network', None), getattr(generator, 'part', None)
        if not isinstance(network, nn.Module) or not isinstance(part, TrainedPart):
            raise ValueError(
                f'train.parallel: fsdp shards `network` of a generator, called through a TrainedPart `part`; '
                f'{type(generator).__name__} has none: set ddp'
            )
        generator.network = None  # goes to the device a module at a time, and never lies there as a whole
        generator.to(self.device)
        generator.network = network
        self.units = sharding.shard(network, getattr(generator, 'sharded_units', None), self.device)
        part.exchange_in_place()
        self.lockstep = Lockstep(network, self.device, self.precision)

    def begin(self, network: nn.Module) -> None:
        pass

    def average(self, parameters: Sequence[nn.Parameter], total: Tensor) -> bool:
        """The gradients are averaged already, in the backward pass."""
        good = all(_finite(g.to_local()) for g in _gradients(parameters))
        verdict = torch.stack([total, total.new_tensor(0.0 if good else math.nan)])
        dist.all_reduce(verdict)
        total.copy_(verdict[0] / self.world_size)
        return bool(torch.isfinite(verdict).all())

    def clip(self, parameters: Iterable[nn.Parameter], limit: float | None) -> Tensor:
        return super().clip(parameters, limit).full_tensor()

    def uneven(self) -> ContextManager[None]:
        return self.lockstep.uneven()

    @contextlib.contextmanager
    def whole(self, network: nn.Module, names: Iterable[str] | None) -> Iterator[bool]:
        everything = [name for name, _ in network.named_parameters()]
        with sharding.whole(network, set(everything if names is None else names), self.rank == 0):
            yield self.rank == 0

    def full(self, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        return {name: value.detach().full_tensor() for name, value in tensors.items()}

    def write_state(self, state: dict[str, Any], path: Path) -> None:
        from finpercep_plugin.models.sharded_state import write_state

        write_state(state, path)

    def read_state(self, state: dict[str, Any], folder: Path, trained: Trained) -> dict[str, Any]:
        if 'shards' in state:
            from finpercep_plugin.models.sharded_state import read_state

            return read_state(state, folder, lambda keys, size: _empty(trained.owner(keys), size), False)
        sections = {
            section: {name: _placed(value, trained.named.get(name)) for name, value in state[section].items()}
            for section in ('trained', 'ema')
        }
        return {**state, **sections, 'optimizers': [_placed_optimizer(o, trained) for o in state['optimizers']]}


def _placed_optimizer(saved: Mapping[str, Any], trained: Trained) -> dict[str, Any]:
    """The state dict of an optimiser, its tensors in the form of the parameters that they belong to."""
    entries = {
        number: {
            name: _placed(value, trained.owner(('optimizers', '0', 'state', str(number))))
            for name, value in entry.items()
        }
        for number, entry in saved['state'].items()
    }
    return {**saved, 'state': entries}


def _placed(value: Any, parameter: Tensor | None) -> Any:
    """A whole tensor as a shard, where it has the shape of its parameter; a number of steps is the same everywhere."""
    fits = parameter is not None and torch.is_tensor(value) and value.shape == parameter.shape
    return sharding.fitting(value, parameter.detach()) if fits else value


def _empty(parameter: Tensor | None, size: torch.Size) -> Tensor:
    fits = parameter is not None and parameter.shape == size
    return torch.empty_like(parameter.detach()) if fits else torch.empty(size)


def _gradients(parameters: Iterable[nn.Parameter]) -> list[Tensor]:
    """Their gradients, made where the loss does not depend on one."""
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    return [parameter.grad for parameter in parameters]


def _finite(gradient: Tensor) -> bool:
    return bool(torch.isfinite(gradient.sum())) or bool(torch.isfinite(gradient).all())
