"""How much is trained for a budget of minutes: a table of measured costs, never the clock, so that a budget gives one set of figures."""

from __future__ import annotations

import dataclasses

from finpercep_plugin.replication.grid import VARIANTS

__all__ = ['COSTS', 'FIXED', 'Plan', 'minutes', 'plan_for']

CORES = 2

COSTS = {
    'pairs': 0.02,
    'triplets': 0.04,
    'generator': 0.27,
    'rm': 0.4,
    'ReFL': 0.4,
    'DPO': 1.0,
    'FlowGRPO': 1.2,
    'RFSR': 0.25,
}
"""Seconds of one core for a sample of a data set, and for a training step, at a 64 px crop: processor time on an x86_64
server that other work shared, torch 2.15."""

FIXED = 25.0
"""Seconds of one core that a cell takes beside its training steps: calibration, scoring, start."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """Sizes of everything.

    Attributes:
        size: side of the crops in pixels.
        pairs, triplets, crops: samples of the set that generators train on, of the reward models', and crops to measure on.
        generator, rm_0, rm_1, rm_2: training steps.
        held_out_rm: steps of the two stages of the reward model that is never optimised.
        steps: {algorithm: training steps of a cell}.
        points: of a cell's reward curve, the start left out.
        curve_crops: of the crops, those that the curve is measured on.
        calibration: see `train.ccl.calibration`.
    """

    size: int = 64
    pairs: int = 1000
    triplets: int = 1600
    crops: int = 80
    generator: int = 1000
    rm_0: int = 240
    rm_1: int = 80
    rm_2: int = 240
    held_out_rm: tuple[int, int] = (240, 240)
    steps: dict[str, int] = dataclasses.field(
        default_factory=lambda: {'ReFL': 84, 'DPO': 36, 'FlowGRPO': 36, 'RFSR': 84}
    )
    points: int = 12
    curve_crops: int = 16
    calibration: int = 32


def minutes(plan: Plan) -> float:
    """What a plan takes for the whole grid on two cores, by the table."""
    data = COSTS['pairs'] * (plan.pairs + plan.crops) + COSTS['triplets'] * plan.triplets
    rms = plan.rm_0 + 3 * (plan.rm_1 + plan.rm_2) + sum(plan.held_out_rm)
    alone = COSTS['generator'] * plan.generator  # one process, nothing beside it
    cells = sum(v.seeds * (FIXED + v.extra + COSTS[v.algorithm] * v.cost * plan.steps[v.algorithm]) for v in VARIANTS)
    return (alone + (data + COSTS['rm'] * rms + cells) / CORES) / 60


def plan_for(budget: float) -> Plan:
    """The plan whose training steps are the standard one's times the factor that fits the budget.

    Args:
        budget: minutes for the whole grid on two cores.

    Raises:
        ValueError: not even the shortest plan fits.
    """
    shortest = minutes(_scaled(0.0))
    if budget < shortest:
        raise ValueError(f'--budget: expected {shortest:.0f} minutes or more, got {budget:g}')
    low, high = 0.0, 1.0
    while minutes(_scaled(high)) < budget:
        low, high = high, 2 * high
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if minutes(_scaled(middle)) <= budget else (low, middle)
    return _scaled(low)


def _scaled(factor: float) -> Plan:
    """The standard plan with its steps and samples multiplied; no fewer than it takes for every part to run."""
    plan = Plan()

    def times(count: int, least: int, unit: int = 1) -> int:
        return max(least, unit * round(factor * count / unit))

    samples = {name: times(getattr(plan, name), 24) for name in ('pairs', 'triplets')}
    trainings = {name: times(getattr(plan, name), 2) for name in ('generator', 'rm_0', 'rm_1', 'rm_2')}
    first, second = (times(count, 2) for count in plan.held_out_rm)
    steps = {name: times(count, 36, 12) for name, count in plan.steps.items()}
    return dataclasses.replace(plan, **samples, **trainings, held_out_rm=(first, second), steps=steps)
