"""LoRA on a network by peft, without a wrapper around it: names, freshness, switching off, merging."""

from __future__ import annotations

import contextlib
import re
from typing import Dict, Iterator, List, Optional, Sequence

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import nn

__all__ = ['add_lora', 'adapters_off', 'has_lora', 'is_fresh', 'lora_parameters', 'merged_state', 'weight_deltas']

_ADAPTER = 'default'


def add_lora(
    network: nn.Module, rank: int, alpha: float, targets: Optional[Sequence[str]] = None, seed: int = 0
) -> List[str]:
    """Put LoRA adapters into linear and convolution modules, in place.

    Their B starts at zero, so the network's function is kept; A is drawn from `seed`, the global generator is left
    alone.

    Args:
        network: receives the adapters.
        rank: of every adapter.
        alpha: the adapter's output is scaled by alpha / rank.
        targets: full module names; None: every Linear and Conv2d.
        seed: of the start values.

    Returns:
        the names of the adapted modules.

    Raises:
        ValueError: there are none to adapt.
    """
    if targets is None:
        targets = [name for name, module in network.named_modules() if isinstance(module, (nn.Linear, nn.Conv2d))]
    if not targets:
        raise ValueError('a LoRA needs linear or convolution layers, and there are none among the chosen parameters')
    exactly = '|'.join(re.escape(name) for name in targets)  # a list would be taken for endings of names too
    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=exactly, lora_dropout=0.0)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed GPUs too
        inject_adapter_in_model(config, network, adapter_name=_ADAPTER)
    return list(targets)


def has_lora(network: nn.Module) -> bool:
    return any(isinstance(module, LoraLayer) for module in network.modules())


def lora_parameters(network: nn.Module) -> Dict[str, nn.Parameter]:
    """{name: parameter} of the adapters' A and B."""
    return {name: value for name, value in network.named_parameters() if '.lora_A.' in name or '.lora_B.' in name}


def is_fresh(network: nn.Module) -> bool:
    """Whether all adapters are still at B = 0, so that switching them off gives the same function."""
    return all(not value.any() for name, value in lora_parameters(network).items() if '.lora_B.' in name)


@contextlib.contextmanager
def adapters_off(network: nn.Module) -> Iterator[None]:
    """The network without its adapters, inside the block; `requires_grad` flags are as before afterwards."""
    layers = [module for module in network.modules() if isinstance(module, LoraLayer)]
    flags = {name: value.requires_grad for name, value in network.named_parameters()}
    try:
        for layer in layers:
            layer.enable_adapters(False)
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)
        for name, value in network.named_parameters():
            value.requires_grad_(flags[name])


def weight_deltas(network: nn.Module) -> Dict[str, torch.Tensor]:
    """{name of a plain weight: what its adapter adds to it}, for the adapters of `add_lora`."""
    return {
        f'{name}.weight': module.get_delta_weight(_ADAPTER).detach()
        for name, module in network.named_modules()
        if isinstance(module, LoraLayer) and _ADAPTER in module.lora_A
    }


def merged_state(network: nn.Module) -> Dict[str, torch.Tensor]:
    """The state dict of the plain network with every adapter added to its weight; the network itself is not changed."""
    state = {
        name.replace('.base_layer.', '.'): value.detach().clone()
        for name, value in network.state_dict().items()
        if '.lora_' not in name
    }
    for name, delta in weight_deltas(network).items():
        state[name] += delta
    return state
