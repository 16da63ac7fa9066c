"""What is compared: a cell is a variant (algorithm, reward, curriculum) at a seed."""

from __future__ import annotations

import dataclasses
import fnmatch
from typing import Any, Literal, Mapping, Sequence

__all__ = ['ALGORITHMS', 'VARIANTS', 'Cell', 'Variant', 'cells', 'variant']

Curriculum = Literal['global', 'rm_2', 'ccl', 'none']
RMs = Literal['', 'no_map_', 'pixel_']

ALGORITHMS = {
    'ReFL': 'ccl_refl_small',
    'DPO': 'ccl_dpo_small',
    'FlowGRPO': 'ccl_grpo_small',
    'RFSR': 'ccl_rfsr_small',
}
"""{algorithm: the YAML file that its cells are run by}."""


@dataclasses.dataclass(frozen=True)
class Variant:
    """One way to fine-tune.

    Attributes:
        algorithm: a key of `ALGORITHMS`.
        name: of the variant, unique for the algorithm.
        title: what it is, in the tables.
        curriculum: 'global': RM_0 throughout; 'rm_2': RM_2 throughout; 'ccl': thirds of RM_0, RM_1, RM_2; 'none': a reward without stages.
        rms: prefix of the reward models RM_1 and RM_2.
        changes: to the options of the YAML file.
        seeds: how many.
        cost: of a step, against the algorithm's usual.
        extra: seconds of one core beside its steps.
    """

    algorithm: str
    name: str
    title: str
    curriculum: Curriculum = 'ccl'
    rms: RMs = ''
    changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    seeds: int = 3
    cost: float = 1.0
    extra: float = 0.0


@dataclasses.dataclass(frozen=True)
class Cell:
    """A variant at a seed."""

    variant: Variant
    seed: int

    @property
    def name(self) -> str:
        """
        >>> Cell(variant('ReFL', 'ccl'), 0).name
        'refl-ccl-0'
        """
        return f'{self.variant.algorithm.lower()}-{self.variant.name}-{self.seed}'


def _algorithm(**options: Any) -> dict[str, Any]:
    return {'train': {'algorithm': options}}


def _trio(algorithm: str, seeds: int = 3) -> list[Variant]:
    """What every algorithm is run with."""
    return [
        Variant(algorithm, 'rm_2', 'RM_2 from the start (no CCL)', 'rm_2', seeds=seeds),
        Variant(algorithm, 'ccl', 'CCL, fixed thirds', seeds=seeds),
        Variant(algorithm, 'global', 'global score alone (RM_0)', 'global'),
    ]


RANK_ONLY = {'reward': {'l2': 0.0}}
NIQE = {'type': 'Function', 'function': 'finpercep_plugin.replication.niqe:niqe', 'higher_is_better': False}

VARIANTS: tuple[Variant, ...] = (
    *_trio('ReFL', seeds=5),
    Variant('ReFL', 'no_map', 'CCL, reward models without map', rms='no_map_', changes=RANK_ONLY),
    Variant('ReFL', 'pixel_labels', 'CCL, pixel-only labels', rms='pixel_'),
    Variant('ReFL', 'ccl_adaptive', 'CCL, adaptive'),
    Variant('ReFL', 'dense', 'CCL, dense reward', changes=_algorithm(dense=1.0)),
    Variant('ReFL', 'rank_only', 'RM_2 without map, from the start', 'rm_2', 'no_map_', RANK_ONLY),
    Variant('ReFL', 'ssim', 'SSIM', 'none', changes={'reward': {'type': 'SSIM'}}),
    Variant('ReFL', 'sharpness', 'Sharpness', 'none', changes={'reward': {'type': 'Sharpness'}}),
    Variant('ReFL', 'at_switch', 'CCL, reward models trained at the switches', extra=120.0),
    *_trio('DPO'),
    *_trio('FlowGRPO'),
    Variant('FlowGRPO', 'niqe_32', 'NIQE, blocks of 32 px', 'none', changes={'reward': NIQE}),
    Variant('FlowGRPO', 'dense', 'CCL, advantages by region', changes=_algorithm(dense=0.5, region_size=16)),
    *_trio('RFSR'),
    Variant('RFSR', 'gram', 'CCL, with a Gram term (random VGG19)', changes=_algorithm(gram_share=0.1), cost=2.0),
    Variant('RFSR', 'no_ll', 'CCL, no LL term', changes=_algorithm(ll_weight=0.0)),
    Variant('RFSR', 'reward_early', 'CCL, reward at early steps', changes=_algorithm(late=[0, 2])),
    Variant('RFSR', 'reward_all', 'CCL, reward at all steps', changes=_algorithm(late=[0, 7])),
)


def variant(algorithm: str, name: str) -> Variant:
    """
    Raises:
        KeyError: there is none.
    """
    return {(v.algorithm, v.name): v for v in VARIANTS}[algorithm, name]


def cells(algorithms: Sequence[str] | None = None, seeds: Sequence[int] | None = None, only: str = '*') -> list[Cell]:
    """The chosen cells in the order they are run: seed by seed, so that a run that is cut short has whole comparisons.

    Args:
        algorithms: None for all.
        seeds: None for all.
        only: shell pattern of cell names.

    >>> [cell.name for cell in cells(['DPO'], [0])]
    ['dpo-rm_2-0', 'dpo-ccl-0', 'dpo-global-0']
    """
    found = []
    for algorithm in ALGORITHMS:
        own = [v for v in VARIANTS if v.algorithm == algorithm]
        found += [Cell(v, seed) for seed in range(max(v.seeds for v in own)) for v in own if seed < v.seeds]
    return [
        cell
        for cell in found
        if cell.variant.algorithm in (algorithms or ALGORITHMS)
        and (seeds is None or cell.seed in seeds)
        and fnmatch.fnmatch(cell.name, only)
    ]
