"""Leaving stages: slopes by hand, noise, plateaus, hacking, bounds, resuming."""

import io
import math

import numpy as np
import pytest
import torch

from finpercep_plugin.config import ConfigError, parse
from finpercep_plugin.curriculum.adaptive import AdaptiveOptions, AdaptivePolicy, problems, trend
from finpercep_plugin.curriculum.schedule import CCLSchedule

QUICK = {'window': 4, 'smoothing': 0.0, 'min_steps': 1, 'patience': 2, 'flat': 2.0, 'min_gain': 0.05, 'drop': 0.5}


def adaptive(stages=(100, 100, 100), **options):
    return CCLSchedule(stages, policy=AdaptivePolicy(AdaptiveOptions(**{**QUICK, **options})))


def decisions(schedule, values, every=1):
    """Of observations one after the other: (reward, measure, measure, ...)."""
    return [
        schedule.observe(every * k, {'reward': row[0], **{f'm{i}': v for i, v in enumerate(row[1:])}})
        for k, row in enumerate(values, start=1)
    ]


def test_trend_by_hand():
    assert trend([0, 10, 20], [1.0, 2.0, 3.0]) == (0.1, 0.0)
    # Line 0.6 x + 1.2; residuals 0.2, -0.4, 0.0, 0.4, -0.2: their squares 0.4, of 3 degrees; spread of x 10.
    slope, error = trend([0, 1, 2, 3, 4], [1.4, 1.4, 2.4, 3.4, 3.4])
    assert (slope, error) == pytest.approx((0.6, math.sqrt(0.4 / 3 / 10)))


def test_a_flat_measure_ends_the_stage_and_one_that_rises_does_not():
    flat = decisions(adaptive(), [(0.1 * k, 1.0) for k in range(5)])
    assert [d.reason for d in flat] == ['short', 'short', 'short', 'patience', 'flat']
    assert [d.leave for d in flat] == [False] * 4 + [True]
    rising = decisions(adaptive(), [(0.1 * k, 1.0, 0.1 * k) for k in range(9)])
    assert {d.reason for d in rising[3:]} == {'rising'}


def test_the_evidence_is_what_the_decision_was_made_from():
    schedule = adaptive()
    values = [1.4, 1.4, 2.4, 3.4]  # line 0.7 x + 1.1; residuals 0.3, -0.4, -0.1, 0.2: squares 0.3, of 2 degrees
    decision = decisions(schedule, [(0.0, v) for v in values], every=10)[-1]
    assert decision.evidence['m0_rise'] == pytest.approx(2.1)
    assert decision.evidence['m0_se'] == pytest.approx(3 * math.sqrt(0.3 / 2 / 5))
    assert (decision.evidence['steps'], decision.evidence['flat'], decision.evidence['monitor']) == (40, 0, 0)
    assert (
        decision.reason == 'rising'
        and 'stage 0 stays after step 40: rising (steps 40, reward_rise 0' in decision.text()
    )


def test_a_slope_is_flat_below_its_noise():
    noisy = [(0.0, v) for v in (0.0, 1.0, 0.0, 1.0)]  # slope 0.2, standard error 0.283
    assert decisions(adaptive(), noisy)[-1].evidence['flat'] == 1
    assert decisions(adaptive(flat=0.5), noisy)[-1].reason == 'rising'


def test_a_rise_below_the_least_gain_is_flat_however_sure():
    values = [(0.0, 0.01 * k) for k in range(4)]
    assert decisions(adaptive(), values)[-1].evidence['flat'] == 1
    assert decisions(adaptive(min_gain=0.02), values)[-1].reason == 'rising'


def test_smoothing_by_hand():
    values = [0.0, 1.0, 2.0, 3.0, 0.0]  # slopes 1 and, of 1 2 3 0, -0.2; smoothed 1, then 0.75 x 1 - 0.25 x 0.2
    seen = decisions(adaptive(smoothing=0.75), [(0.0, v) for v in values])
    assert [d.evidence['m0_rise'] for d in seen[3:]] == pytest.approx([3.0, 3 * 0.7])


def test_hacking_by_hand():
    values = [(0.1 * k, 1.0 - 0.2 * k, 0.1 * k) for k in range(6)]  # -0.6 over the window, while another rises
    seen = decisions(adaptive(), values)
    assert [d.reason for d in seen] == ['short'] * 3 + ['patience', 'hacked', 'short']
    assert seen[5].stage == 1, 'the stage was left after the fifth'
    slight = decisions(adaptive(), [(0.1 * k, -0.1 * k, 0.1 * k) for k in range(9)])
    assert {d.reason for d in slight[3:]} == {'rising'}, 'a fall of 0.3 is below drop'
    honest = decisions(adaptive(), [(0.0, -0.2 * k, 0.1 * k) for k in range(9)])
    assert {d.reason for d in honest[3:]} == {'rising'}, 'the reward does not rise'


def test_the_monitor_s_word_counts_at_once_but_not_before_the_shortest_stage():
    schedule = adaptive(min_steps=3)
    seen = [schedule.observe(k, {'reward': 0.0, 'm': 0.0}, hacked=True) for k in (1, 2, 3)]
    assert [d.reason for d in seen] == ['short', 'short', 'hacked'] and seen[2].evidence['monitor'] == 1
    assert schedule.stage(4) == 1


def test_bounds():
    flat = [(0.0, 0.0)] * 60
    schedule = adaptive((20, 30, 5), min_steps=10)
    seen = decisions(schedule, flat)
    left = [d for d in seen if d is not None and d.leave]
    assert [(d.step, d.reason) for d in left] == [(10, 'flat'), (20, 'flat')] and seen[-1] is None
    rising = adaptive((20, 30, 5))
    seen = decisions(rising, [(0.0, 0.1 * k) for k in range(60)])
    assert [(d.step, d.reason) for d in seen if d is not None and d.leave] == [(20, 'limit'), (50, 'limit')]
    assert rising.starts == rising.planned


def test_each_stage_is_judged_by_its_own_observations():
    values = [(0.0, 0.0)] * 5 + [(0.0, v) for v in (9.0, 8.0, 7.0)]
    seen = decisions(adaptive(), values)
    assert seen[4].leave and [d.reason for d in seen[5:]] == ['short'] * 3


def test_only_the_named_measures_count():
    values = [(0.0, 0.0, 0.1 * k) for k in range(5)]
    assert decisions(adaptive(metrics=('m0',)), values)[-1].reason == 'flat'
    assert decisions(adaptive(metrics=('m0', 'm1')), values)[-1].reason == 'rising'


def test_numbers_that_are_not_finite_are_not_used():
    values = [(0.0, 0.0), (0.0, math.nan), (math.inf, 0.0), (0.0, 0.0), (0.0, 0.0), (0.0, 0.0), (0.0, 0.0)]
    seen = decisions(adaptive(), values)
    assert [d.reason for d in seen] == ['short', 'not finite', 'not finite', 'short', 'short', 'patience', 'flat']


def simulated(curve, seed, noise=0.1, measures=8, observations=100):
    """(observation, reason) of leaving a stage of 100 observations; curve(k) = reward and the first measures."""
    draw = np.random.default_rng(seed)
    schedule = CCLSchedule([100 * observations, 1, 1], policy=AdaptivePolicy())
    for k in range(1, observations + 1):
        values = np.zeros(1 + measures)
        values[: len(curve(k))] = curve(k)
        values += noise * draw.standard_normal(1 + measures)
        decision = schedule.observe(
            100 * k, {name: v for name, v in zip(['reward', *map(str, range(measures))], values)}
        )
        if decision.leave:
            return k, decision.reason


RUNS = range(30)


def test_noise_around_a_plateau_is_flat_and_never_hacking():
    left = [simulated(lambda k: (0.05 * k,), seed) for seed in RUNS]
    assert {reason for _, reason in left} == {'flat'}
    assert np.median([k for k, _ in left]) <= 15 and max(k for k, _ in left) <= 35  # 14 is the first that can be


def test_a_stage_that_still_gives_something_goes_on_to_its_end():
    left = [simulated(lambda k: (0.05 * k, 0.05 * k), seed) for seed in RUNS]
    assert {reason for _, reason in left} == {'limit'}


def test_a_curve_that_levels_out_is_left_soon_after():
    left = [simulated(lambda k: (0.0, 1 - math.exp(-k / 10), 1 - math.exp(-k / 10)), seed) for seed in RUNS]
    assert {reason for _, reason in left} == {'flat'}
    # At 20 there are 0.14 of 1.0 to come, at 45 there is 0.01.
    assert min(k for k, _ in left) >= 20 and max(k for k, _ in left) <= 45


def test_planted_hacking_is_left_within_ten_observations():
    left = [simulated(lambda k: (0.05 * k, 0.05 * k, -0.1 * max(0, k - 30)), seed) for seed in RUNS]
    assert {reason for _, reason in left} == {'hacked'}
    assert all(30 < k <= 40 for k, _ in left), left


def test_resumed_it_decides_the_same():
    draw = np.random.default_rng(0)
    falls = np.maximum(0, np.arange(1, 61) - 40)
    rows = [(0.1 * k, 0.05 * min(k, 10), -0.2 * falls[k - 1]) for k in range(1, 61)]
    rows = [[float(v + 0.02 * draw.standard_normal()) for v in row] for row in rows]

    def fresh():
        return adaptive((50, 50, 50), smoothing=0.5, patience=3)

    whole, states, expected = fresh(), [], []
    for k, (reward, *rest) in enumerate(rows, start=1):
        states.append(whole.state_dict())
        expected.append(whole.observe(k, {'reward': reward, 'a': rest[0], 'b': rest[1]}))
    assert sum(d.leave for d in expected if d) == 2
    for done in (0, 1, 5, 12, 20, 45):
        buffer = io.BytesIO()
        torch.save(states[done], buffer)
        buffer.seek(0)
        again = fresh()
        again.load_state_dict(torch.load(buffer, weights_only=True))
        rest = [
            again.observe(k, {'b': row[2], 'a': row[1], 'reward': row[0]})
            for k, row in enumerate(rows[done:], start=done + 1)
        ]
        assert rest == expected[done:] and again.state_dict() == whole.state_dict()


def test_mistakes_of_the_caller():
    schedule = adaptive()
    with pytest.raises(ValueError, match=r"needs \['reward'\]; there are \['r_reward'\]"):
        schedule.observe(1, {'r_reward': 0.0})
    with pytest.raises(ValueError, match='needs measures'):
        schedule.observe(1, {'reward': 0.0})
    with pytest.raises(ValueError, match=r"needs \['m1'\]; there are \['m0', 'reward'\]"):
        adaptive(metrics=('m1',)).observe(1, {'reward': 0.0, 'm0': 0.0})
    schedule.observe(5, {'reward': 0.0, 'm0': 0.0})
    with pytest.raises(ValueError, match=r"were \['m0', 'reward'\], not \['m1'\]"):
        schedule.observe(6, {'reward': 0.0, 'm1': 0.0})
    with pytest.raises(ValueError, match='has seen step 5; got 5'):
        schedule.observe(5, {'reward': 0.0, 'm0': 0.0})


def test_options_from_yaml():
    options = parse(AdaptiveOptions, {'min_gain': '5e-2', 'metrics': ['held']}, '$.train.ccl.adaptive')
    assert (options.min_gain, options.metrics, options.window) == (0.05, ('held',), 12)
    for section, message in (
        ({'window': 3}, 'expected window >= 4'),
        ({'smoothing': 1.0}, r'smoothing in \[0, 1\)'),
        ({'metrics': ['reward']}, r"not optimised, got \['reward'\]"),
        ({'min_step': 3}, "did you mean 'min_steps'"),
    ):
        with pytest.raises(ConfigError, match=message):
            parse(AdaptiveOptions, section, '$.train.ccl.adaptive')


def test_settings_that_can_decide_nothing_are_named():
    options = AdaptiveOptions(window=4, patience=2, min_steps=300)
    assert problems(options, [300, 300, 10], every=60) == []
    assert problems(options, [0, 200, 10], every=60) == [
        'stage 1 has at most 200 steps; a decision takes 300: min_steps'
    ]
    assert problems(options, [0, 0, 10], every=60) == []
    assert problems(options, [300, 300, 10], every=0) == [
        'adaptive stages are decided on what the monitor observes; set train.monitor.every'
    ]
