"""A weighted sum of rewards, each put on one scale first."""

from __future__ import annotations

from typing import Any, Literal, Mapping, Sequence

import torch
from torch import Tensor, nn

from finpercep_plugin.config import ConfigError, arguments, build, collect
from finpercep_plugin.curriculum.statistics import mean_and_spread
from finpercep_plugin.registry import REWARDS, nearest
from finpercep_plugin.rewards.base import RewardOutput

__all__ = ['Groups', 'WeightedReward', 'normalise_groups']

Groups = Tensor | Sequence[int]


def normalise_groups(
    values: Tensor, groups: Groups, by: Literal['spread', 'range'] = 'spread', floor: float = 1e-4
) -> Tensor:
    """(r - mean) / sd, or (r - min) / (max - min), within each group.

    A value depends on its group alone. In a group whose sd or range is below `floor` no sample is better than another:
    all get 0 (by spread) or 0.5 (by range), without a gradient. Mean, sd, min and max count as constants in the
    gradient, which would otherwise sum to 0 over a group.

    Args:
        values: (N,).
        groups: N group ids, e.g. of the lq images that samples were drawn for.
        by: 'spread': mean and (population) sd, as in GRPO; 'range': minimum and maximum, as in DP2O-SR.
        floor: see above.

    Returns:
        (N,), float32.

    Raises:
        ValueError: another number of ids than of values.

    >>> normalise_groups(torch.tensor([1.0, 3.0, 30.0, 10.0]), [7, 7, 9, 9])
    tensor([-1.,  1.,  1., -1.])
    """
    ids = torch.as_tensor(groups, device=values.device).flatten()
    if len(ids) != len(values):
        raise ValueError(f'expected a group id for each of {len(values)} samples, got {len(ids)}')
    result = torch.empty_like(values, dtype=torch.float32)
    for group in ids.unique():
        inside = ids == group
        part = values[inside].double()
        seen = part.detach()
        if by == 'spread':
            shift, scale, tie = seen.mean(), seen.std(correction=0), 0.0
        else:
            shift, scale, tie = seen.min(), seen.max() - seen.min(), 0.5
        scaled = (part - shift) / scale if scale >= floor else torch.full_like(seen, tie)
        result[inside] = scaled.float()
    return result


@REWARDS.register('Weighted')
class WeightedReward(nn.Module):
    """`sum_i w_i N(r_i)`; a reward that is lower for better images enters negated.

    Each is normalised before the sum, or the one with the widest scale would decide alone:

    - 'group': mean 0, sd 1 within each group of samples of one lq; 'range': 0 to 1 within the group. The caller passes
      the group ids, and a score then depends on the whole group, but on nothing else in the batch. For objectives that
      compare samples of one lq (GRPO, DPO).
    - 'statistics': by each reward's mean and sd on outputs of the starting generator, measured once. For objectives
      that follow the gradient (ReFL).
    - 'none': as they are.

    Args:
        rewards: {name: section with `type`, as in YAML}; rewards that are built already will do.
        weights: {name: w}; 1 for those left out. A negative one asks for worse images by that reward.
        normalise: see above.
        statistics: {name: (mean, sd)}, on the reward's own scale, for 'statistics'; without it call `measure`.
        floor: smallest sd, or range, that is divided by; below it see `normalise_groups`.

    Attributes:
        differentiable: whether every reward is.
        needs: what any of them needs.

    Raises:
        ValueError: no rewards, weights or statistics for one that is not there, a spread that is not positive, or a
            section that is wrong.
    """

    differentiable: bool
    needs: frozenset[str]
    higher_is_better = True
    loads_weights = True

    def __init__(
        self,
        rewards: dict[str, Any],
        weights: dict[str, float] | None = None,
        normalise: Literal['group', 'range', 'statistics', 'none'] = 'group',
        statistics: dict[str, tuple[float, float]] | None = None,
        floor: float = 1e-4,
    ):
        super().__init__()
        _check_names(rewards, weights, statistics)
        if normalise not in ('group', 'range', 'statistics', 'none'):
            raise ValueError(f"normalise: expected 'group', 'range', 'statistics' or 'none', got {normalise!r}")
        if not floor > 0:
            raise ValueError(f'floor: expected a number above 0, got {floor:g}')
        self.rewards = nn.ModuleDict(
            {
                name: reward if isinstance(reward, nn.Module) else build(REWARDS, reward, f'rewards.{name}')
                for name, reward in rewards.items()
            }
        )
        self.weights = {name: float((weights or {}).get(name, 1.0)) for name in rewards}
        self.normalise, self.floor = normalise, floor
        self.statistics = {name: (float(mean), float(sd)) for name, (mean, sd) in (statistics or {}).items()}
        self.differentiable = all(reward.differentiable for reward in self.rewards.values())
        self.needs = frozenset().union(*(reward.needs for reward in self.rewards.values()))

    @classmethod
    def check(cls, options: Mapping[str, Any], path: str) -> None:
        """Look through the sections of `rewards` without building one.

        Raises:
            ConfigError: everything that is wrong with them, with its YAML path.
        """
        sections = options.get('rewards') or {}
        problems = collect(lambda: _check_names(sections, options.get('weights'), options.get('statistics')))
        problems = [f'{path}: {problem}' for problem in problems]
        for name, section in sections.items():
            problems += _check_section(section, f'{path}.rewards.{name}')
        if problems:
            raise ConfigError(problems)

    @property
    def encoders(self) -> list[nn.Module]:
        """Of all the rewards that have any."""
        return [encoder for reward in self.rewards.values() for encoder in getattr(reward, 'encoders', ())]

    def forward(
        self,
        sr: Tensor,
        lq: Tensor | None = None,
        gt: Tensor | None = None,
        prompt: list[str] | None = None,
        groups: Groups | None = None,
    ) -> RewardOutput:
        """
        Args:
            sr: (B, 3, H, W), RGB, [0, 1].
            lq, gt, prompt: passed on.
            groups: B ids; whole groups, for 'group' and 'range'. Where a group is spread over calls or processes, pass
                what they return as terms to `combine`.

        Returns:
            score; terms: each reward by its name, on its own scale, its terms as name_term, and what entered the sum,
            without its weight, as name_normalised; maps as name_map.

        Raises:
            ValueError: see `combine`; whatever a reward raises.
            RuntimeError: see `combine`.
        """
        terms, maps = {}, {}
        for name, reward in self.rewards.items():
            out = reward(sr, lq=lq, gt=gt, prompt=prompt)
            terms[name] = out.score.float()
            terms.update({f'{name}_{key}': value for key, value in out.terms.items()})
            maps.update({f'{name}_{key}': value for key, value in out.maps.items()})
        parts = self.normalised(terms, groups)
        terms.update({f'{name}_normalised': part for name, part in parts.items()})
        return RewardOutput(self._sum(parts), terms, maps)

    def combine(self, terms: Mapping[str, Tensor], groups: Groups | None = None) -> Tensor:
        """The score from terms that are there already, e.g. gathered from all processes.

        Args:
            terms: {name: (N,)}, each reward on its own scale, as `forward` returns them; others are not looked at.
            groups: N ids, for 'group' and 'range'.

        Returns:
            (N,).

        Raises:
            ValueError: no group ids where they are needed, or another number of them.
            RuntimeError: 'statistics' that are not measured yet.
        """
        return self._sum(self.normalised(terms, groups))

    def normalised(self, terms: Mapping[str, Tensor], groups: Groups | None = None) -> dict[str, Tensor]:
        """{name: (N,)}, higher better, on one scale, without the weights; see `combine`."""
        if groups is None and self.normalise in ('group', 'range'):
            raise ValueError(
                f"reward Weighted, normalise '{self.normalise}': pass the group id of each sample as groups=, or use "
                "normalise 'statistics'"
            )
        parts = {}
        for name, reward in self.rewards.items():
            sign = 1.0 if reward.higher_is_better else -1.0
            value = sign * terms[name].float()
            if self.normalise == 'statistics':
                if name not in self.statistics:
                    raise RuntimeError(f'reward Weighted: mean and sd of {name} are not measured yet')
                mean, sd = self.statistics[name]
                value = (value - sign * mean) / sd
            elif self.normalise != 'none':
                value = normalise_groups(value, groups, 'spread' if self.normalise == 'group' else 'range', self.floor)
            parts[name] = value
        return parts

    def measure(self, terms: Mapping[str, Tensor]) -> None:
        """Set `statistics` from scores of the starting generator's outputs; those set already stay.

        Args:
            terms: {name: (N,)}, N >= 2, each reward on its own scale, as `forward` returns them.

        Raises:
            ValueError: fewer than two values, or one that is not finite.
        """
        for name in self.rewards:
            raw = terms[name].detach()
            if len(raw) < 2 or not bool(torch.isfinite(raw).all()):
                raise ValueError(f'reward Weighted: {name} needs the finite scores of at least 2 images, got {raw!r}')
            self.statistics.setdefault(name, mean_and_spread(raw, self.floor))

    def _sum(self, parts: Mapping[str, Tensor]) -> Tensor:
        return torch.stack([self.weights[name] * part for name, part in parts.items()]).sum(0)


def _check_names(rewards: Any, weights: Mapping[str, float] | None, statistics: Mapping[str, Any] | None) -> None:
    if not isinstance(rewards, Mapping) or not rewards:
        raise ValueError(f'rewards: expected at least one, as name: section, got {rewards!r}')
    for key, given in (('weights', weights), ('statistics', statistics)):
        unknown = [name for name in given or {} if name not in rewards]
        if unknown:
            raise ValueError(f'{key}: no reward is called {unknown[0]!r}{nearest(unknown[0], rewards)}')
    spread = {name: moments[1] for name, moments in (statistics or {}).items() if not moments[1] > 0}
    if spread:
        raise ValueError(f'statistics: expected (mean, sd) with sd above 0, got sd {spread}')


def _check_section(section: Any, path: str) -> list[str]:
    kind = section.get('type') if isinstance(section, Mapping) else None
    if kind not in REWARDS.names():
        return collect(lambda: build(REWARDS, section, path))  # which says what is wrong
    reward, options = REWARDS.get(kind), {k: v for k, v in section.items() if k != 'type'}
    problems = collect(lambda: arguments(reward, options, path))
    return problems or (collect(lambda: reward.check(options, path)) if hasattr(reward, 'check') else [])
