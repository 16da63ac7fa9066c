"""A generator's network in shards, one a process, by FSDP2 (`torch.distributed.fsdp.fully_shard`)."""

from __future__ import annotations

import contextlib
import fnmatch
from typing import Any, Collection, Iterator, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils._pytree import tree_map

__all__ = ['fitting', 'shard', 'sharded_units', 'whole']

SHARE = 8
"""Without a list of its own, a network is gathered in modules of an eighth of it at the most, an eighth of that at the
least.
"""


def sharded_units(network: nn.Module, patterns: Sequence[str] | None) -> list[str]:
    """Names of the modules that are gathered one at a time when they run; what is left over is gathered at once.

    Args:
        network: of a generator.
        patterns: shell patterns of names; a star stays within one part of a name. None: by size.

    Returns:
        names, none inside another.

    >>> block = lambda: nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    >>> network = nn.ModuleDict({'blocks': nn.ModuleList([block(), block()]), 'out': nn.Linear(2, 2)})
    >>> sharded_units(network, ['blocks.*'])
    ['blocks.0', 'blocks.1']
    """
    if patterns is None:
        return _by_size(network, '', sum(p.numel() for p in network.parameters()) // SHARE)
    found: list[str] = []
    for name, module in network.named_modules():
        meant = any(fnmatch.fnmatchcase(name, p) and name.count('.') == p.count('.') for p in patterns)
        if (
            meant
            and not any(name.startswith(f'{outer}.') for outer in found)
            and any(True for _ in module.parameters())
        ):
            found.append(name)
    return found


def _by_size(module: nn.Module, path: str, limit: int) -> list[str]:
    """The outermost modules of at most `limit` parameters that are called as modules and are not too small to count."""
    found = []
    for name, child in module.named_children():
        size, inside = sum(p.numel() for p in child.parameters()), f'{path}.{name}' if path else name
        container = isinstance(child, (nn.ModuleList, nn.ModuleDict))
        leaf = isinstance(child, nn.MultiheadAttention) or not any(True for _ in child.children())
        if leaf or size < limit // SHARE:
            continue
        found += _by_size(child, inside, limit) if container or size > limit else [inside]
    return found


def shard(network: nn.Module, patterns: Sequence[str] | None, device: torch.device) -> list[str]:
    """Leave on this process its part of every parameter, on `device`, and gather them when their module runs.

    Trained and frozen parameters alike; each keeps its dtype. Gradients are averaged over processes in float32.

    Args:
        network: alike on all processes, called through its `forward` alone.
        patterns: of `sharded_units`.
        device: the processes', whose group is there.

    Returns:
        the names of the modules that are gathered one at a time.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    units = sharded_units(network, patterns)
    # No `param_dtype`, which would round norms and timesteps too: autocast casts, and frozen weights are in bfloat16.
    policy = MixedPrecisionPolicy(reduce_dtype=torch.float32, cast_forward_inputs=False)
    options = {
        'mesh': init_device_mesh(device.type, (dist.get_world_size(),)),
        'mp_policy': policy,
        'reshard_after_forward': True,  # of the whole as well: values are exchanged between calls
    }
    for name in units:
        fully_shard(network.get_submodule(name), **options)
    network.register_forward_hook(lambda module, inputs, outputs: tree_map(_own, outputs))
    fully_shard(network, **options)
    return units


def _own(output: Any) -> Any:
    """A view's copy: what is written into a view in place goes past the hook that gathers for the backward pass."""
    return output.clone() if torch.is_tensor(output) and output._is_view() else output


def fitting(value: Tensor, like: Tensor) -> Tensor:
    """A whole tensor in the form of `like`: this process's part of it where that is a shard; a shard stays what it is.

    Args:
        value: whole and the same on all processes, or a shard.
        like: of the same shape.
    """
    from torch.distributed.tensor import DTensor, distribute_tensor

    value = value.to(like.device)
    if not isinstance(like, DTensor) or isinstance(value, DTensor):
        return value
    return distribute_tensor(value, like.device_mesh, like.placements)


@contextlib.contextmanager
def whole(network: nn.Module, names: Collection[str], keep: bool) -> Iterator[None]:
    """Inside, the network's parameters of these names are whole, on the CPU, where `keep` is true: it can be saved.

    All processes enter. There, shards of other names are empty inside.

    Args:
        network: of `shard`, or what holds it; not called inside.
        names: of its parameters.
        keep: on one process.
    """
    from torch.distributed.tensor import DTensor

    held: list[tuple[nn.Module, str, Any]] = []
    try:
        for name, parameter in list(network.named_parameters()):
            if not isinstance(parameter, DTensor):
                continue
            value = parameter.detach().full_tensor().cpu() if name in names else torch.empty(0)
            if keep:
                path, _, leaf = name.rpartition('.')
                module = network.get_submodule(path)
                held.append((module, leaf, parameter))
                module._parameters[leaf] = nn.Parameter(value, requires_grad=parameter.requires_grad)
        yield
    finally:
        for module, leaf, parameter in held:
            module._parameters[leaf] = parameter
