"""Stage boundaries, and a schedule that is saved and resumed."""

import io

import pytest
import torch

from finpercep_plugin.curriculum.schedule import CCLSchedule, Decision


def test_boundaries_count_from_one_and_the_last_stage_runs_on():
    schedule = CCLSchedule([3, 2, 4])
    assert [schedule.stage(step) for step in range(1, 13)] == [0, 0, 0, 1, 1, 2, 2, 2, 2, 2, 2, 2]
    assert [schedule.stage(step) for step in (6, 5, 1)] == [2, 1, 0], 'the stage is a function of the step'


@pytest.mark.parametrize(
    ('lengths', 'used', 'stages'),
    [([0, 0, 5], [2], [2, 2, 2]), ([1, 0, 1], [0, 2], [0, 2, 2]), ([1, 1, 0], [0, 1], [0, 1, 1])],
)
def test_stages_of_no_steps_are_left_out(lengths, used, stages):
    schedule = CCLSchedule(lengths)
    assert schedule.used_stages() == used and [schedule.stage(step) for step in (1, 2, 9)] == stages


def test_round_trip():
    schedule, buffer = CCLSchedule([3, 2, 4]), io.BytesIO()
    schedule.statistics.set(1, 0.5, 0.25)
    schedule.stage(4)
    schedule.observe(4, {'r_reward': 0.5})
    torch.save(schedule.state_dict(), buffer)
    buffer.seek(0)
    state = torch.load(buffer, weights_only=True)
    assert (state['step'], state['stage']) == (4, 1)
    again = CCLSchedule([3, 2, 4])
    again.load_state_dict(state)
    assert again.step == 4 and again.statistics.moments(1) == (0.5, 0.25)
    assert again.state_dict() == schedule.state_dict()


def test_resuming_with_other_stages_is_refused():
    with pytest.raises(ValueError, match='set the stages as they were'):
        CCLSchedule([3, 5, 4]).load_state_dict(CCLSchedule([3, 2, 4]).state_dict())


@pytest.mark.parametrize('lengths', [[1, 2], [0, 0, 0], [1, -1, 1], [0.5, 1, 1]])
def test_bad_lengths(lengths):
    with pytest.raises(ValueError, match='expected the steps of stage 0, 1 and 2'):
        CCLSchedule(lengths)


def test_steps_count_from_one():
    with pytest.raises(ValueError, match='counts steps from 1, got 0'):
        CCLSchedule([1, 1, 1]).stage(0)


class Leaves:
    """A policy that leaves after the steps it is given, and notes what it was asked."""

    def __init__(self, *steps):
        self.steps, self.asked = list(steps), []

    def decide(self, step, stage, first, last, statistics, hacked):
        self.asked.append((step, stage, first, last))
        return Decision(step, stage, step in self.steps, 'told so', dict(statistics))

    def state_dict(self):
        return {'asked': [list(a) for a in self.asked]}

    def load_state_dict(self, state):
        self.asked = [tuple(a) for a in state['asked']]


def test_without_a_policy_observing_decides_nothing():
    schedule = CCLSchedule([3, 2, 4])
    assert schedule.observe(2, {}, hacked=True) is None and schedule.step == 2
    assert schedule.starts == schedule.planned == {0: 1, 1: 4, 2: 6}


def test_leaving_early_moves_what_is_to_come_and_no_stage_gets_longer():
    policy = Leaves(4, 11)
    schedule = CCLSchedule([10, 6, 8], policy=policy)
    stages = []
    for step in range(1, 21):
        stages.append(schedule.stage(step))
        decision = schedule.observe(step, {'reward': 0.5})
        assert (decision is None) == (stages[-1] == 2)
    # Stage 0 leaves after 4 of 10; stage 1, from 5, would end with 10 by itself.
    assert stages == [0] * 4 + [1] * 6 + [2] * 10
    assert schedule.starts == {0: 1, 1: 5, 2: 11} and schedule.planned == {0: 1, 1: 11, 2: 17}
    assert policy.asked[3] == (4, 0, 1, 10) and policy.asked[4] == (5, 1, 5, 10)
    assert [schedule.stage(step) for step in (1, 4, 5, 10, 11)] == [0, 0, 1, 1, 2], 'steps gone by keep their stage'


def test_leaving_at_the_planned_end_moves_nothing():
    schedule = CCLSchedule([3, 0, 4], policy=Leaves(3))
    assert schedule.observe(3, {}).leave and schedule.starts == schedule.planned


def test_an_adaptive_schedule_resumes_where_it_was():
    schedule, buffer = CCLSchedule([10, 6, 8], policy=Leaves(4)), io.BytesIO()
    for step in range(1, 6):
        schedule.observe(step, {})
    torch.save(schedule.state_dict(), buffer)
    buffer.seek(0)
    again = CCLSchedule([10, 6, 8], policy=Leaves(4))
    again.load_state_dict(torch.load(buffer, weights_only=True))
    assert again.state_dict() == schedule.state_dict() and again.starts == {0: 1, 1: 5, 2: 11}
    assert again.policy.asked == schedule.policy.asked and again.stage(5) == 1
    with pytest.raises(ValueError, match='start at steps {0: 1, 1: 11, 2: 17}, the YAML says {0: 1, 1: 10, 2: 16}'):
        CCLSchedule([9, 6, 8], policy=Leaves()).load_state_dict(schedule.state_dict())


def test_fixed_and_adaptive_do_not_resume_each_other():
    fixed, adaptive = CCLSchedule([2, 2, 2]), CCLSchedule([2, 2, 2], policy=Leaves())
    with pytest.raises(ValueError, match='has adaptive CCL stages, the YAML fixed ones'):
        fixed.load_state_dict(adaptive.state_dict())
    with pytest.raises(ValueError, match='has fixed CCL stages, the YAML adaptive ones'):
        adaptive.load_state_dict(fixed.state_dict())


def test_states_of_runs_that_knew_no_policy_are_read():
    state = {k: v for k, v in CCLSchedule([2, 2, 2]).state_dict().items() if k not in ('planned', 'policy')}
    schedule = CCLSchedule([2, 2, 2])
    schedule.load_state_dict({**state, 'step': 3})
    assert schedule.step == 3 and schedule.starts == {0: 1, 1: 3, 2: 5}
