"""CCL: from one reward model to the next (paper §4.3; METHOD.md §4)."""

from __future__ import annotations

import dataclasses
from typing import Any, Mapping, Protocol, Sequence

from finpercep_plugin.curriculum.statistics import ScoreStatistics

__all__ = ['CCLSchedule', 'Decision', 'SwitchPolicy', 'planned_starts']


@dataclasses.dataclass(frozen=True)
class Decision:
    """Whether to leave a stage after a step.

    Attributes:
        step, stage: when, and which.
        leave: the next step is of the next stage.
        reason: a word for it.
        evidence: the numbers behind it, by name.
    """

    step: int
    stage: int
    leave: bool
    reason: str
    evidence: dict[str, float]

    def text(self) -> str:
        """One line for the log.

        >>> Decision(900, 0, True, 'flat', {'gain': 0.01234}).text()
        'stage 0 is left after step 900: flat (gain 0.0123)'
        """
        numbers = ', '.join(f'{name} {value:.3g}' for name, value in self.evidence.items())
        return f'stage {self.stage} {"is left" if self.leave else "stays"} after step {self.step}: {self.reason} ({numbers})'


class SwitchPolicy(Protocol):
    """Decides when a stage is left before its planned end; `adaptive.py` has one."""

    def decide(
        self, step: int, stage: int, first: int, last: int, statistics: Mapping[str, float], hacked: bool
    ) -> Decision:
        """
        Args:
            step: the one just done.
            stage: in force at `step`, from step `first` to `last` as things stand.
            statistics: measured after `step`, equal on all ranks.
            hacked: a monitor says so.
        """
        ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


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

    The stage is a function of the step and of `starts`, the first step of each stage. Without a policy they stay as
    planned; a policy may leave a stage early in `observe`, which moves the starts to come, so that no stage gets longer
    than planned but the last. Nothing else changes for those who ask for the stage.

    Args:
        stages: steps of stage 0, 1, 2, see `planned_starts`. A step is one BasicSR iteration: a rollout batch with all
            its inner updates.
        statistics: mu_k, sd_k; empty if None.
        policy: says when to leave a stage early; None for never.

    Attributes:
        step: the last step asked for or observed; 0 before the first.
        planned, starts: {stage: first step}, as planned, and with the stages left early.

    Raises:
        ValueError: see `planned_starts`.

    >>> schedule = CCLSchedule([2, 1, 1])
    >>> [schedule.stage(step) for step in range(1, 7)]
    [0, 0, 1, 2, 2, 2]
    """

    def __init__(
        self,
        stages: Sequence[int],
        statistics: ScoreStatistics | None = None,
        policy: SwitchPolicy | None = None,
    ):
        self.planned = planned_starts(stages)
        self.starts, self.policy = dict(self.planned), policy
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

    def observe(self, step: int, statistics: Mapping[str, float], hacked: bool = False) -> Decision | None:
        """Let the policy decide whether the stage ends with `step`; a leaving moves the starts to come.

        Args:
            step: the one just done.
            statistics: what was measured after it, by name, equal on all ranks; without a policy they are not read.
            hacked: the monitor's verdict on the same step.

        Returns:
            None without a policy, and in the last stage.
        """
        stage = self.stage(step)
        following = min((k for k in self.starts if k > stage), default=None)
        if self.policy is None or following is None:
            return None
        last = self.starts[following] - 1
        decision = self.policy.decide(self.step, stage, self.starts[stage], last, statistics, hacked)
        if decision.leave:
            earlier = last - self.step
            self.starts = {k: first - earlier if k > stage else first for k, first in self.starts.items()}
        return decision

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers, for `torch.load(weights_only=True)`."""
        current = self.stage(self.step) if self.step else next(iter(self.starts))
        return {
            'step': self.step,
            'stage': current,
            'planned': dict(self.planned),
            'starts': dict(self.starts),
            'policy': None if self.policy is None else self.policy.state_dict(),
            'statistics': self.statistics.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of `state_dict`.

        Raises:
            ValueError: the state is of a run with other stages, or of an adaptive one and this is not, or vice versa.
        """
        starts = {int(k): int(v) for k, v in state['starts'].items()}
        planned = {int(k): int(v) for k, v in state.get('planned', starts).items()}
        if planned != self.planned:
            raise ValueError(
                f'the run to resume has CCL stages that start at steps {planned}, the YAML says {self.planned}; '
                'set the stages as they were'
            )
        policy = state.get('policy')
        if (policy is None) != (self.policy is None):
            kinds = ('fixed', 'adaptive')
            raise ValueError(
                f'the run to resume has {kinds[policy is not None]} CCL stages, the YAML '
                f'{kinds[self.policy is not None]} ones; set train.ccl as it was'
            )
        if self.policy is not None and policy is not None:
            self.policy.load_state_dict(policy)
        self.step, self.starts = int(state['step']), starts
        self.statistics.load_state_dict(state['statistics'])
