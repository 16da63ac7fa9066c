"""What the papers say of these comparisons, and whether it came out here."""

from __future__ import annotations

import dataclasses

import numpy as np

from finpercep_plugin.replication.grid import variant
from finpercep_plugin.replication.results import CURVE_FIGURES, MEASURES, Results
from finpercep_plugin.report.bootstrap import Interval

__all__ = ['CLAIMS', 'HACKED_BY', 'Claim', 'Outcome', 'judge', 'judge_hacked']


@dataclasses.dataclass(frozen=True)
class Claim:
    """`first` is better than `second` in a measure.

    Attributes:
        source: where it is said.
        text: what is said.
        algorithm: whose variants are compared.
        first, second: variants; 'base' as the second: the starting generator.
        measure: of `MEASURES` or `CURVE_FIGURES`.
    """

    source: str
    text: str
    algorithm: str
    first: str
    second: str
    measure: str


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What came out.

    Attributes:
        verdict: 'reproduced', 'contradicted', 'not shown' (the interval holds 0, or there are too few seeds) or 'not run'.
        interval: of first - second; None where it was not run.
        agreeing, seeds: how many seeds have their mean on the side of the claim, of how many.
    """

    verdict: str
    interval: Interval | None
    agreeing: int = 0
    seeds: int = 0


LEAST_SEEDS = 3
"""A verdict takes."""

HACKED_BY = ('held_out', 'lq_psnr', 'lattice_4')
"""Measures that a hacked reward makes worse."""

FIGURE, TABLE, SUPPLEMENT, RFSR, OURS = 'paper, Fig. 1b', 'paper, Table 4', 'supplement, Table 1', 'RFSR', 'METHOD.md'

CLAIMS: tuple[Claim, ...] = (
    Claim(FIGURE, 'without CCL, the reward of RM_2 swings more, late', 'ReFL', 'ccl', 'rm_2', 'variance'),
    Claim(FIGURE, 'and so does that of the training batches', 'ReFL', 'ccl', 'rm_2', 'training_variance'),
    Claim(FIGURE, 'and falls deeper on its way', 'ReFL', 'ccl', 'rm_2', 'drop'),
    Claim(FIGURE, 'the global score is smooth: it falls less deep than RM_2', 'ReFL', 'global', 'rm_2', 'drop'),
    Claim(FIGURE, 'CCL ends with a higher reward than RM_2 from the start', 'ReFL', 'ccl', 'rm_2', 'reward'),
    Claim(FIGURE, 'CCL ends with a higher reward than the global score alone', 'ReFL', 'ccl', 'global', 'reward'),
    Claim(TABLE, 'CCL gives better pictures than RM_2 from the start', 'ReFL', 'ccl', 'rm_2', 'held_out'),
    Claim(TABLE, 'and keeps closer to the input', 'ReFL', 'ccl', 'rm_2', 'lq_psnr'),
    Claim(TABLE, 'and closer to the ground truth', 'ReFL', 'ccl', 'rm_2', 'distance'),
    Claim(TABLE, 'the map helps: without it the pictures are worse', 'ReFL', 'ccl', 'no_map', 'held_out'),
    Claim(TABLE, 'and have more artifacts', 'ReFL', 'ccl', 'no_map', 'artifacts'),
    Claim(TABLE, 'labels of pixels alone are worse than with features', 'ReFL', 'ccl', 'pixel_labels', 'held_out'),
    Claim(TABLE, 'and leave more artifacts', 'ReFL', 'ccl', 'pixel_labels', 'artifacts'),
    Claim(SUPPLEMENT, 'CCL gives better pictures than RM_2 from the start, DPO', 'DPO', 'ccl', 'rm_2', 'held_out'),
    Claim(SUPPLEMENT, 'the same, Flow-GRPO', 'FlowGRPO', 'ccl', 'rm_2', 'held_out'),
    Claim(SUPPLEMENT, 'the same, RFSR', 'RFSR', 'ccl', 'rm_2', 'held_out'),
    Claim(RFSR, 'the LL term keeps the structure', 'RFSR', 'ccl', 'no_ll', 'lq_psnr'),
    Claim(RFSR, 'a reward at late steps beats one at early steps', 'RFSR', 'ccl', 'reward_early', 'held_out'),
    Claim(RFSR, 'and one at all steps', 'RFSR', 'ccl', 'reward_all', 'held_out'),
    Claim(RFSR, 'the Gram term holds hacking back', 'RFSR', 'gram', 'ccl', 'lattice_4'),
    Claim(OURS, 'an adaptive CCL beats fixed thirds', 'ReFL', 'ccl_adaptive', 'ccl', 'held_out'),
    Claim(OURS, 'reward models trained at the switches beat those made before', 'ReFL', 'at_switch', 'ccl', 'held_out'),
    Claim(OURS, 'a dense reward beats the scalar one', 'ReFL', 'dense', 'ccl', 'held_out'),
    Claim(OURS, 'and leaves fewer artifacts', 'ReFL', 'dense', 'ccl', 'artifacts'),
    Claim(OURS, 'advantages by region beat the scalar one, Flow-GRPO', 'FlowGRPO', 'dense', 'ccl', 'held_out'),
)
"""In the order of the report."""


def judge(results: Results, claim: Claim) -> Outcome:
    """Whether the interval of first - second lies wholly on the side that the claim says."""
    pair = variant(claim.algorithm, claim.first), variant(claim.algorithm, claim.second)
    interval, means = results.difference(*pair, claim.measure), results.seed_means(*pair, claim.measure)
    if interval is None:
        return Outcome('not run', None)
    side = 1 if (MEASURES | CURVE_FIGURES)[claim.measure].higher else -1
    low, high = sorted((side * interval.low, side * interval.high))
    verdict = 'reproduced' if low > 0 else 'contradicted' if high < 0 else 'not shown'
    agreeing = sum(side * mean > 0 for mean in means)
    return Outcome(verdict if len(means) >= LEAST_SEEDS else 'not shown', interval, agreeing, len(means))


def judge_hacked(results: Results, algorithm: str, measure: str) -> tuple[Outcome, Interval | None]:
    """Whether the global score rose while a measure that was never optimised got worse.

    Returns:
        its outcome, with the change of the measure since the start; the change of the score that was optimised.
    """
    alone = variant(algorithm, 'global')
    if not results.seeds(alone):
        return Outcome('not run', None), None
    rise, change = results.optimised(alone), results.against_base(alone, measure)
    side = 1 if MEASURES[measure].higher else -1
    low, high = sorted((side * change.low, side * change.high))
    means = [float(np.mean(values - results.of_base(measure))) for values in results.of(alone, measure).values()]
    verdict = 'not shown'
    if rise.low > 0 and len(means) >= LEAST_SEEDS:
        verdict = 'reproduced' if high < 0 else 'contradicted' if low > 0 else 'not shown'
    return Outcome(verdict, change, sum(side * mean < 0 for mean in means), len(means)), rise
