"""A weighted sum of rewards, each put on one scale first."""

from __future__ import annotations

from typing import Any, Iterable, Literal, Mapping

import torch
from torch import Tensor, nn

from finpercep_plugin.config import ConfigError, arguments, build, collect
from finpercep_plugin.curriculum.statistics import mean_and_spread
from finpercep_plugin.registry import REWARDS, nearest
from finpercep_plugin.rewards.base import RewardOutput
from finpercep_plugin.rewards.groups import Groups, normalise_groups
from finpercep_plugin.rewards.kind import RewardKind, reward_kind

__all__ = ['WeightedReward']

_NESTED = "a weighted sum inside another needs statistics of its own, or normalise 'none'; or name its rewards in the outer one"


@REWARDS.register('Weighted')
class WeightedReward(nn.Module):
    """`sum_i w_i N(r_i)`; a reward that is lower for better images enters negated.

    Each is normalised before the sum, or the one with the widest scale would decide alone:

    - 'group': mean 0, sd 1 within each group of samples of one lq; 'range': 0 to 1 within the group. `combine` is told
      the groups, and such a score depends on the whole group, but on nothing else in the batch. For objectives that
      compare samples of one lq (GRPO, DPO). A sample by itself has the score of 'statistics'.
    - 'statistics': by each reward's mean and sd on outputs of the starting generator, measured once. For objectives
      that follow the gradient (ReFL).
    - 'none': as they are.

    The map, for what follows one, is the mean of the maps of those rewards that give one and have a positive weight,
    by these weights.

    Args:
        rewards: {name: section with `type`, as in YAML}; rewards that are built already will do.
        weights: {name: w}; 1 for those left out. A negative one asks for worse images by that reward.
        normalise: see above.
        statistics: {name: (mean, sd)}, on the reward's own scale; for those left out call `measure`.
        floor: smallest sd, or range, that is divided by; below it see `normalise_groups`.

    Attributes:
        differentiable: whether every reward is.
        needs: what any of them needs.
        gives_map: whether any of them has a map and a positive weight.
        needs_groups: whether `combine` wants groups.

    Raises:
        ValueError: no rewards, weights or statistics for one that is not there, a spread that is not positive, a
            section that is wrong, or a weighted sum in it that would have to be measured by itself.
    """

    differentiable: bool
    needs: frozenset[str]
    gives_map: bool
    needs_groups: bool
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
        self.normalise, self.floor, self.needs_groups = normalise, floor, normalise in ('group', 'range')
        self.statistics = {name: (float(mean), float(sd)) for name, (mean, sd) in (statistics or {}).items()}
        self.differentiable = all(reward.differentiable for reward in self.rewards.values())
        self.needs = frozenset().union(*(reward.needs for reward in self.rewards.values()))
        maps = [name for name, reward in self.rewards.items() if getattr(reward, 'gives_map', False)]
        self.gives_map = any(self.weights[name] > 0 for name in maps)
        for name, reward in self.rewards.items():
            if isinstance(reward, WeightedReward) and _unmeasured(reward.rewards, reward.normalise, reward.statistics):
                raise ValueError(f'rewards.{name}: {_NESTED}')

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

    @classmethod
    def kind(cls, options: Mapping[str, Any]) -> RewardKind:
        """What the sum with these options will be, by the sections of its rewards."""
        kinds = {name: reward_kind(section) for name, section in options['rewards'].items()}
        weights = options.get('weights') or {}
        return RewardKind(
            all(kind.differentiable for kind in kinds.values()),
            frozenset().union(*(kind.needs for kind in kinds.values())),
            any(kind.gives_map and float(weights.get(name, 1.0)) > 0 for name, kind in kinds.items()),
            options.get('normalise', 'group') in ('group', 'range'),
        )

    @classmethod
    def uncalibrated(cls, options: Mapping[str, Any]) -> list[str]:
        """Rewards that calibration must measure before a sample by itself has a score."""
        return _unmeasured(options['rewards'], options.get('normalise', 'group'), options.get('statistics') or {})

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
            groups: B ids, of whole groups. Where a group is spread over calls or processes, pass what they return as terms
                to `combine`.

        Returns:
            score; terms: each reward by its name, on its own scale, its terms as name_term, and what entered the sum,
            without its weight, as name_normalised; maps as name_map, and map where any reward has one.

        Raises:
            RuntimeError: see `combine`.
            ValueError: the same; whatever a reward raises.
        """
        terms, maps, places = {}, {}, {}
        for name, reward in self.rewards.items():
            out = reward(sr, lq=lq, gt=gt, prompt=prompt)
            terms[name] = out.score.float()
            terms.update({f'{name}_{key}': value for key, value in out.terms.items()})
            maps.update({f'{name}_{key}': value for key, value in out.maps.items()})
            if 'map' in out.maps and self.weights[name] > 0:
                places[name] = out.maps['map']
        if places:
            total = sum(self.weights[name] for name in places)
            maps['map'] = sum(self.weights[name] / total * place for name, place in places.items())
        parts = self.normalised(terms, groups)
        terms.update({f'{name}_normalised': part for name, part in parts.items()})
        return RewardOutput(self._sum(parts), terms, maps)

    def terms(
        self, sr: Tensor, lq: Tensor | None = None, gt: Tensor | None = None, prompt: list[str] | None = None
    ) -> dict[str, Tensor]:
        """{name: (B,)}, each reward on its own scale: what `measure` and `combine` take. Arguments as of `forward`."""
        return {name: reward(sr, lq=lq, gt=gt, prompt=prompt).score.float() for name, reward in self.rewards.items()}

    def combine(
        self,
        terms: Mapping[str, Tensor],
        groups: Groups | None = None,
        everywhere: tuple[Mapping[str, Tensor], Groups] | None = None,
    ) -> Tensor:
        """The score from terms that are there already, e.g. those of several calls.

        Args:
            terms: {name: (N,)}, each reward on its own scale, as `forward` returns them; others are not looked at.
            groups: N ids, for 'group' and 'range'; without them the score is that of 'statistics'.
            everywhere: terms and ids of all processes, these included, where groups span processes.

        Returns:
            (N,).

        Raises:
            RuntimeError: statistics that are not measured yet.
            ValueError: another number of ids.
        """
        return self._sum(self.normalised(terms, groups, everywhere))

    def normalised(
        self,
        terms: Mapping[str, Tensor],
        groups: Groups | None = None,
        everywhere: tuple[Mapping[str, Tensor], Groups] | None = None,
    ) -> dict[str, Tensor]:
        """{name: (N,)}, higher better, on one scale, without the weights; see `combine`."""
        parts = {}
        for name, reward in self.rewards.items():
            sign = 1.0 if reward.higher_is_better else -1.0
            value = sign * terms[name].float()
            if self.needs_groups and groups is not None:
                pool = None if everywhere is None else (sign * everywhere[0][name].float(), everywhere[1])
                by = 'spread' if self.normalise == 'group' else 'range'
                value = normalise_groups(value, groups, by, self.floor, pool)
            elif self.normalise != 'none':
                if name not in self.statistics:
                    raise RuntimeError(
                        f'reward Weighted: mean and sd of {name} are not measured yet; give statistics, or normalise: none'
                    )
                mean, sd = self.statistics[name]
                value = (value - sign * mean) / sd
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


def _unmeasured(names: Iterable[str], normalise: str, statistics: Mapping[str, Any]) -> list[str]:
    return [name for name in names if normalise != 'none' and name not in statistics]


def _check_section(section: Any, path: str) -> list[str]:
    kind = section.get('type') if isinstance(section, Mapping) else None
    if kind not in REWARDS.names():
        return collect(lambda: build(REWARDS, section, path))  # which says what is wrong
    reward, options = REWARDS.get(kind), {k: v for k, v in section.items() if k != 'type'}
    problems = collect(lambda: arguments(reward, options, path))
    if problems or not hasattr(reward, 'check'):
        return problems
    nested = issubclass(reward, WeightedReward) and reward.uncalibrated(options)
    return ([f'{path}: {_NESTED}'] if nested else []) + collect(lambda: reward.check(options, path))
