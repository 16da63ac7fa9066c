"""What a generator computes once per low-quality image."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Callable, Dict, Optional, Sequence, Tuple, Union

import torch

__all__ = ['Condition']

Index = Union[slice, Sequence[int], torch.Tensor]


@dataclass(frozen=True)
class Condition:
    """A batch of conditions; every tensor has the batch first.

    Args:
        lq: (B, 3, h, w), RGB, [0, 1], the input.
        lq_up: (B, 3, H, W), the input at the output size.
        prompts: B texts, or None where the generator has none.
        tensors: what else the generator needs, by name: latents, tags, text and image embeddings, each (B, ...).

    Raises:
        ValueError: parts of different batch sizes.

    >>> cond = Condition(torch.rand(4, 3, 8, 8), torch.rand(4, 3, 32, 32), prompts=('a', 'b', 'c', 'd'))
    >>> len(cond), cond[1:3].prompts, cond[[3]].prompts, cond[:2].repeat(2).prompts
    (4, ('b', 'c'), ('d',), ('a', 'a', 'b', 'b'))
    """

    lq: torch.Tensor
    lq_up: torch.Tensor
    prompts: Optional[Tuple[str, ...]] = None
    tensors: Dict[str, torch.Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        sizes = {'lq_up': len(self.lq_up), **{name: len(value) for name, value in self.tensors.items()}}
        if self.prompts is not None:
            sizes['prompts'] = len(self.prompts)
        wrong = {name: size for name, size in sizes.items() if size != len(self.lq)}
        if wrong:
            raise ValueError(f'a condition of {len(self.lq)} images has parts of other batch sizes: {wrong}')

    def __len__(self) -> int:
        return len(self.lq)

    def __getitem__(self, index: Index) -> Condition:
        """The samples of a slice, or of a list or tensor of indices; always a batch.

        Raises:
            TypeError: a plain number, which would drop the batch dimension.
        """
        if isinstance(index, int):
            raise TypeError(f'index a condition by a slice or a list: cond[{index}:{index + 1}], not cond[{index}]')
        numbers = range(len(self))[index] if isinstance(index, slice) else torch.as_tensor(index).tolist()
        rows = torch.tensor(list(numbers), dtype=torch.long)
        prompts = None if self.prompts is None else tuple(self.prompts[i] for i in numbers)
        if isinstance(index, slice):
            return self._map(lambda x: x[index], prompts)
        return self._map(lambda x: x[rows.to(x.device)], prompts)

    def repeat(self, times: int) -> Condition:
        """Each sample `times` times in a row: group i is rows i * times .. (i + 1) * times - 1."""
        return self[[i for i in range(len(self)) for _ in range(times)]]

    def to(self, device: Union[torch.device, str]) -> Condition:
        return self._map(lambda x: x.to(device), self.prompts)

    def detach(self) -> Condition:
        return self._map(torch.Tensor.detach, self.prompts)

    def _map(self, function: Callable[[torch.Tensor], torch.Tensor], prompts: Optional[Tuple[str, ...]]) -> Condition:
        tensors = {name: function(value) for name, value in self.tensors.items()}
        return Condition(function(self.lq), function(self.lq_up), prompts, tensors)
