"""Stage boundaries, and a schedule that is saved and resumed."""

import io

import pytest
import torch

from finpercep_plugin.curriculum.schedule import CCLSchedule


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
