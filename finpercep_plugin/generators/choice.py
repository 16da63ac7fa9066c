"""Which parameters of a network are trained, and what their values were at the start."""

from __future__ import annotations

import contextlib
import fnmatch
from typing import Any, ContextManager, Dict, Iterable, Iterator, List, Optional, Sequence, Union

import torch
from torch import nn

from finpercep_plugin.generators import lora
from finpercep_plugin.generators.swapped import swapped
from finpercep_plugin.registry import nearest

__all__ = ['TrainedPart', 'match_names']


def match_names(choice: Union[str, Sequence[str]], names: Iterable[str], released: Sequence[str] = ('*',)) -> List[str]:
    """The parameter names that a choice means, in the network's order.

    Args:
        choice: 'all', 'released' or a list of shell patterns.
        names: of the network's parameters.
        released: the patterns that 'released' stands for.

    Raises:
        ValueError: another word, or a pattern that fits no name.

    >>> match_names(['down.*', '*.bias'], ['down.0.weight', 'mid.weight', 'mid.bias'])
    ['down.0.weight', 'mid.bias']
    """
    names = list(names)
    patterns = {'all': ['*'], 'released': released}.get(choice) if isinstance(choice, str) else list(choice)
    if not patterns:
        words = nearest(str(choice), ['all', 'released', 'lora'])
        raise ValueError(f'no choice {choice!r} of trained parameters{words}; or a list of patterns')
    dead = [pattern for pattern in patterns if not any(fnmatch.fnmatchcase(name, pattern) for name in names)]
    if dead:
        beginnings = sorted({'.'.join(name.split('.')[:2]) for name in names})
        raise ValueError(f'patterns that fit no parameter of the network: {dead}; its names begin with {beginnings}')
    return [name for name in names if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)]


class TrainedPart:
    """The trained part of a generator's network, its LoRA included, and the policy that training started from.

    Args:
        network: of the generator, which calls it through this object.
        released: the patterns that the choice 'released' stands for.

    Attributes:
        names: of the trained parameters, in the network; empty before `choose`.
        lora: {'rank', 'alpha'} of the adapters, or None.
    """

    def __init__(self, network: nn.Module, released: Sequence[str] = ('*',)):
        self.network, self.released = network, released
        self.names: List[str] = []
        self.lora: Optional[Dict[str, Any]] = None
        self._start: Optional[Dict[str, torch.Tensor]] = None  # None: a fresh LoRA, to be switched off
        self._kept = False
        self._use_start = self._in_place = False

    def __call__(self, *inputs: Any) -> Any:
        """The network's output; inside `reference`, that of the starting policy, without gradient.

        Without, since activations that are recomputed in a backward pass would see the present weights.
        """
        if not self._use_start:
            return self.network(*inputs)
        with torch.no_grad():
            if self._start is None or self._in_place:
                return self.network(*inputs)
            device = next(self.network.parameters()).device
            start = {name: value.to(device) for name, value in self._start.items()}
            return torch.func.functional_call(self.network, start, inputs)

    def choose(
        self, choice: Union[str, Sequence[str]], rank: int, alpha: float, reference: bool = True
    ) -> Dict[str, nn.Parameter]:
        """Sets `requires_grad` on the chosen parameters only; their present values become the starting policy.

        Args:
            choice: 'all', 'released', 'lora', or a list of shell patterns.
            rank: of the LoRA.
            alpha: of the LoRA; its output is scaled by alpha / rank.
            reference: keep a copy of the trained tensors for `reference`; a fresh LoRA needs none.

        Returns:
            {name in the network: parameter}.

        Raises:
            ValueError: see `match_names` and `add_lora`.
        """
        if choice == 'lora':
            self.add_lora(rank, alpha)
            chosen = lora.lora_parameters(self.network)
        else:
            parameters = dict(self.network.named_parameters())
            chosen = {name: parameters[name] for name in match_names(choice, parameters, self.released)}
        for name, parameter in self.network.named_parameters():
            parameter.requires_grad_(name in chosen)
        self.names = list(chosen)
        fresh = choice == 'lora' and lora.is_fresh(self.network)
        self._kept = fresh or reference
        self._start = (
            {name: value.detach().clone() for name, value in chosen.items()} if reference and not fresh else None
        )
        return chosen

    def add_lora(self, rank: int, alpha: float) -> None:
        """Adapters of that rank and alpha, unless they are there already.

        Raises:
            ValueError: there are others.
        """
        wanted = {'rank': rank, 'alpha': float(alpha)}
        if self.lora is None:
            device = next(self.network.parameters()).device
            lora.add_lora(self.network, rank, alpha, self._lora_targets())
            self.network.to(device)
            self.lora = wanted
        elif self.lora != wanted:
            raise ValueError(f'the generator has a LoRA with {self.lora} already, which cannot become {wanted}')

    def _lora_targets(self) -> List[str]:
        """The linear and convolution modules whose weights the choice 'released' trains; grouped convolutions are left out."""
        modules = {
            f'{name}.weight': name
            for name, module in self.network.named_modules()
            if isinstance(module, nn.Linear) or isinstance(module, nn.Conv2d) and module.groups == 1
        }
        parameters = [name for name, _ in self.network.named_parameters()]
        chosen = set(match_names('released', parameters, self.released))
        return [module for weight, module in modules.items() if weight in chosen]

    def exchange_in_place(self) -> None:
        """From now on, `reference` puts the starting values into the parameters themselves, for a network that was sharded
        since `choose`: it gathers its own parameters, and would not see others.
        """
        self._in_place = True
        if self._start is not None:
            parameters = dict(self.network.named_parameters())
            self._start = {name: parameters[name].detach().clone() for name in self._start}

    @contextlib.contextmanager
    def reference(self) -> Iterator[None]:
        """Inside, a call is the starting policy: a fresh LoRA off, else the trained tensors as `choose` found them.

        Raises:
            RuntimeError: nothing was chosen, or `choose` kept no start to refer to.
        """
        if not self.names or not self._kept:
            raise RuntimeError('reference() needs a starting policy: call trainable(...) first, with reference=True')
        before, self._use_start = self._use_start, True
        try:
            with self._as_at_start():
                yield
        finally:
            self._use_start = before

    def _as_at_start(self) -> ContextManager[None]:
        if self._start is None:
            return lora.adapters_off(self.network)
        return (
            swapped(dict(self.network.named_parameters()), self._start) if self._in_place else contextlib.nullcontext()
        )
