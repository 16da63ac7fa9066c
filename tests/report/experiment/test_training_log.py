import pytest

from finpercep_plugin.curriculum.schedule import Decision
from finpercep_plugin.report.experiment.training_log import Observation, read_log


def test_numbers_are_those_of_the_message_logger(make_run):
    made = make_run().begin()
    made.step(1200, l_map=0.5, score=-2.0, odd=float('nan'))
    log = read_log(made.folder)
    assert log.scalars.pop('odd')[1200] != log.scalars
    assert log.scalars == {
        'losses/l_map': {1200: 0.5},
        'score': {1200: -2.0},
        'learning rate': {1200: 1e-4},
        'seconds an iteration': {1200: 0.5},
    }
    (session,) = log.sessions
    assert session.facts == {'BasicSR': '1.4.2', 'Machine': 'host, 2 cores'}
    assert (session.resumed, session.reached, session.over) == (0, 1200, False)


def test_verdicts_decisions_and_stages_come_back(staged):
    log = read_log(staged.folder)
    assert log.stages == {21: 1}
    assert [o.level for o in log.observations.values()] == ['ok'] * 2 + ['warn'] * 3 + ['hacked'] * 3
    assert log.observations[15] == Observation('warn', 'reward 1.5 (+0.75 units); lq_psnr 38.5 (-0.60 units)')
    assert [(d.step, d.leave, d.reason) for d in log.decisions.values()] == [
        (5, False, 'rising'),
        (10, False, 'rising'),
        (15, False, 'rising'),
        (20, True, 'hacked'),
    ]
    evidence = {'steps': 20.0, 'reward_rise': 0.5, 'reward_se': 0.1, 'lq_psnr_rise': -0.6, 'lq_psnr_se': 0.05}
    assert log.decisions[20].evidence == {**evidence, 'flat': 0.0, 'hacked': 2.0, 'monitor': 0.0}
    assert log.warnings == [] and log.sessions[-1].over


@pytest.mark.parametrize('reason', ['not finite', 'limit'])
def test_every_reason_is_read(make_run, reason):
    made = make_run().begin()
    made.say(f'iter 7: {Decision(7, 1, False, reason, {"steps": 7.0}).text()}')
    assert read_log(made.folder).decisions[7] == Decision(7, 1, False, reason, {'steps': 7.0})


@pytest.mark.parametrize('line', ['Resuming training from iter 2.', 'Resuming training from epoch: 3, iter: 2.'])
def test_what_is_done_again_counts_once(make_run, line):
    made = make_run().begin()
    for i in (1, 2, 3):
        made.step(i, reward=float(i))
    made.say('iter 3: hacked: reward 3')
    made.say('iter 3: CCL stage 1')
    made.begin()
    made.say(line)
    made.step(3, reward=-3.0)
    log = read_log(made.folder)
    assert log.scalars['reward'] == {1: 1.0, 2: 2.0, 3: -3.0}
    assert log.observations == {} and log.stages == {}
    assert [(s.resumed, s.reached) for s in log.sessions] == [(0, 3), (2, 3)]


def test_reward_models_that_grow_within_a_run_are_kept_apart(make_run):
    made = make_run().begin()
    made.step(8, reward=1.0)
    made.say('CCL: RM_1 is trained, in growth/stage_1')
    made.step(4, l_map=0.25)
    made.say('iter 9: CCL stage 1')
    made.step(9, reward=2.0)
    log = read_log(made.folder)
    assert log.scalars['reward'] == {8: 1.0, 9: 2.0} and 'losses/l_map' not in log.scalars
    assert log.grown[1]['losses/l_map'] == {4: 0.25}
    assert log.sessions[0].reached == 9


def test_a_half_line_and_other_text_do_no_harm(make_run):
    made = make_run().begin()
    made.step(1, reward=1.0)
    made.say('iter 1: loss nan or its gradient is not finite; step skipped (1 of at most 20)', 'WARNING')
    with made.file.open('ab') as stream:
        stream.write(
            b'\xff\xfe no line of a log\n2026-01-01 13:00:09,000 INFO: [run..][epoch:  0, iter:       2, lr:(1.0'
        )
    log = read_log(made.folder)
    assert log.scalars['reward'] == {1: 1.0}
    assert len(log.warnings) == 1 and 'step skipped' in log.warnings[0]


def test_no_log_is_an_empty_one(tmp_path):
    assert read_log(tmp_path).sessions == []
