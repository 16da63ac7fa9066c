"""Several samples of one low-quality image: how they are numbered, what noise each gets, what they are conditioned on."""

from __future__ import annotations

from collections import Counter
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple, Union

import torch

from finpercep_plugin.algorithms.unfit import Unfit
from finpercep_plugin.generators.condition import Condition
from finpercep_plugin.rewards.base import RewardOutput
from finpercep_plugin.rng import keyed_randn

__all__ = [
    'Exchange',
    'Member',
    'Update',
    'alone',
    'check_varied',
    'chunks',
    'condition_rows',
    'member_randn',
    'number_members',
    'reward_rows',
    'reward_terms',
]

Exchange = Callable[[torch.Tensor, torch.Tensor], Tuple[torch.Tensor, torch.Tensor]]
Update = Iterator[Tuple[torch.Tensor, Dict[str, torch.Tensor]]]  # the (loss, diagnostics) of its micro-batches


class Member(NamedTuple):
    """One of the samples of a low-quality image.

    Args:
        row: of its image in the batch.
        image: global sample index of that image.
        number: of the sample among those of the image.
    """

    row: int
    image: int
    number: int


def alone(values: torch.Tensor, ids: torch.Tensor) -> Tuple[torch.Tensor, torch.Tensor]:
    """The exchange of a process without others."""
    return values, ids


def number_members(samples: Sequence[int], count: int, first: int = 0) -> List[Member]:
    """`count` members of each image, image by image; an image that comes again in the batch goes on counting.

    Args:
        samples: global sample index of each image.
        count: members an entry of the batch.
        first: number of the first member.

    >>> [tuple(member) for member in number_members([7, 8, 7], 2)]
    [(0, 7, 0), (0, 7, 1), (1, 8, 0), (1, 8, 1), (2, 7, 2), (2, 7, 3)]
    """
    seen: Counter = Counter()
    members = []
    for row, image in enumerate(map(int, samples)):
        members += [Member(row, image, first + seen[image] + i) for i in range(count)]
        seen[image] += count
    return members


def chunks(items: Sequence[Any], size: int) -> List[List[Any]]:
    """Runs of at most `size` items.

    >>> chunks('abcde', 2)
    [['a', 'b'], ['c', 'd'], ['e']]
    """
    return [list(items[i : i + size]) for i in range(0, len(items), size)]


def member_randn(
    shape: Sequence[int], members: Sequence[Member], *key: Union[int, str], device: Union[torch.device, str] = 'cpu'
) -> torch.Tensor:
    """Standard normal noise (n, *shape), row i keyed on (*key, image, number) of member i."""
    return torch.cat([keyed_randn(shape, [m.number], *key, m.image) for m in members]).to(device)


def condition_rows(generator: Any, lq: torch.Tensor, rows: Sequence[int]) -> Condition:
    """What the generator computes of lq[rows], (B, 3, h, w), once for each row that comes several times."""
    unique = sorted(set(rows))
    cond = generator.condition(lq[unique])
    return cond[[unique.index(row) for row in rows]]


def reward_rows(
    reward_fn: Callable[..., RewardOutput],
    sr: torch.Tensor,
    lq: torch.Tensor,
    gt: Optional[torch.Tensor],
    rows: Sequence[int],
    prompts: Sequence[str],
) -> RewardOutput:
    """The reward of sr (n, 3, H, W), where sample i is of row rows[i] of lq and gt."""
    return reward_fn(sr, lq=lq[list(rows)], gt=None if gt is None else gt[list(rows)], prompt=prompts)


def reward_terms(outputs: Sequence[RewardOutput]) -> Dict[str, torch.Tensor]:
    """Mean and spread of the score and of each term over several batches, detached scalars.

    >>> seen = reward_terms([RewardOutput(torch.tensor([1.0])), RewardOutput(torch.tensor([3.0]))])
    >>> {name: value.item() for name, value in seen.items()}
    {'reward': 2.0, 'reward_std': 1.0}
    """
    columns = {'reward': [output.score for output in outputs]}
    for name in outputs[0].terms:
        columns[f'reward_{name}'] = [output.terms[name] for output in outputs]
    seen = {}
    for name, parts in columns.items():
        values = torch.cat([part.detach().float() for part in parts])
        seen |= {name: values.mean(), f'{name}_std': values.std(unbiased=False)}
    return seen


def check_varied(generator: Any, algorithm: str) -> None:
    """A generator whose samples of one image hardly differ has nothing to compare.

    Raises:
        Unfit: it adds no noise to its only step's start.
    """
    if len(generator.steps) == 1 and getattr(generator, 'noise_t', 0) is None:
        raise Unfit(
            f'{algorithm}: {type(generator).__name__} takes one step, and its samples of one image hardly differ; set '
            'noise_t of the generator (such as 250, with denoise_t 100), which adds noise to the start',
            {'generator.noise_t': 250, 'generator.denoise_t': 100},
        )
