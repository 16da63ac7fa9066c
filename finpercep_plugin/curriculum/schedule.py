"""CCL: from one reward model to the next (paper §4.3; METHOD.md §4)."""

from __future__ import annotations

from typing import Any, Mapping, Sequence

from finpercep_plugin.curriculum.statistics import ScoreStatistics

__all__ = ['CCLSchedule', 'planned_starts']


def planned_starts(lengths: Sequence[int]) -> dict[int, int]:
    """{stage: its first step}, of the stages that have steps, in order.

    Args:
        lengths: steps of stage 0, 1, 2; a stage of length 0 is left out, and the last of the others runs on.

    Raises:
        ValueError: not three lengths, a negative one, or none above 0.

    >>> planned_starts([10, 10, 5]), planned_starts([0, 0, 1])
    ({0: 1, 1: 11, 2: 21}, {2: 1})
    """
    if len(lengths) != 3 or any(n < 0 or n != int(n) for n in lengths) or not any(lengths):
        raise ValueError(f'CCL stages: expected the steps of stage 0, 1 and 2, not all 0, got {list(lengths)}')
    starts, first = {}, 1
    for stage, length in enumerate(lengths):
        if length:
            starts[stage] = first
            first += int(length)
    return starts


class CCLSchedule:
    """Which reward model is in force, and the scales of all of them.

    The stage is a function of the step and of `starts`, the first step of each stage. The policy here keeps the planned
    ones; a policy that switches early moves the starts to come in `observe`, and nothing else changes for those who ask
    for the stage.

    Args:
        stages: steps of stage 0, 1, 2, see `planned_starts`. A step is one BasicSR iteration: a rollout batch with all
            its inner updates.
        statistics: mu_k, sd_k; empty if None.

    Attributes:
        step: the last step asked for or observed; 0 before the first.
        starts: {stage: first step}.

    Raises:
        ValueError: see `planned_starts`.

    >>> schedule = CCLSchedule([2, 1, 1])
    >>> [schedule.stage(step) for step in range(1, 7)]
    [0, 0, 1, 2, 2, 2]
    """

    def __init__(self, stages: Sequence[int], statistics: ScoreStatistics | None = None):
        self.starts = planned_starts(stages)
        self.statistics = ScoreStatistics() if statistics is None else statistics
        self.step = 0

    def used_stages(self) -> list[int]:
        """The stages that have steps, in order."""
        return list(self.starts)

    def stage(self, step: int) -> int:
        """The stage in force at `step`, counted from 1.

        Raises:
            ValueError: a step below 1.
        """
        if step < 1:
            raise ValueError(f'CCL counts steps from 1, got {step}')
        self.step = int(step)
        return max(stage for stage, first in self.starts.items() if first <= step)

    def observe(self, step: int, statistics: Mapping[str, float]) -> None:
        """What `step` measured, by name. The fixed policy notes the step and leaves `starts` as planned."""
        self.step = int(step)

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers, for `torch.load(weights_only=True)`."""
        current = self.stage(self.step) if self.step else next(iter(self.starts))
        return {
            'step': self.step,
            'stage': current,
            'starts': dict(self.starts),
            'statistics': self.statistics.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of `state_dict`.

        Raises:
            ValueError: the state is of a run with other stages.
        """
        starts = {int(k): int(v) for k, v in state['starts'].items()}
        if starts != self.starts:
            raise ValueError(
                f'the run to resume has CCL stages that start at steps {starts}, the YAML says {self.starts}; '
                'set the stages as they were'
            )
        self.step = int(state['step'])
        self.statistics.load_state_dict(state['statistics'])
