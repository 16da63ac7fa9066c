"""The hacking monitor: units and verdicts by hand, planted hacking, noise, real images, resuming."""

import io
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from finpercep_plugin.config import ConfigError, parse
from finpercep_plugin.curriculum.monitor import HackingMonitor, MonitorOptions
from finpercep_plugin.curriculum.signs import SIGNS, Sign, measure
from finpercep_plugin.images import read_image

PLAIN = {'samples': 4, 'smoothing': 0.0, 'patience': 1, 'sure': 0.0}
"""Each observation by itself."""


def monitor(signs=None, **options):
    return HackingMonitor(MonitorOptions(**{**PLAIN, **options}), signs)


def test_units_and_gains_by_hand():
    watch = monitor()
    # Median 3; deviations 2, 0, 0, 4, median 1: unit 1.4826. lq_psnr: 10 x as wide, at most 2 dB.
    watch.start({0: [0.0] * 4}, {'held': [1.0, 3.0, 3.0, 7.0], 'lq_psnr': [10.0, 30.0, 30.0, 70.0]})
    verdict = watch.observe(1, [1.0, 2.0, 3.0, 2.0], {'held': [2.0, 4.0, 4.0, 8.0], 'lq_psnr': [9.0, 29.0, 29.0, 69.0]})
    assert verdict.gains == pytest.approx({'held': 1 / 1.4826, 'lq_psnr': -0.5})
    assert verdict.evidence == pytest.approx(
        {'reward': 2, 'rise': 2, 'held': 4.5, 'held_z': 1 / 1.4826, 'held_se': 0}
        | {'lq_psnr': 34, 'lq_psnr_z': -0.5, 'lq_psnr_se': 0}
    )
    assert verdict.level == 'warn' and verdict.reasons == ('lq_psnr',) and not verdict.best
    assert verdict.text() == 'warn: reward 2 (+2.00 units); lq_psnr 34 (-0.50 units)'


def test_each_direction_of_better():
    signs = {'up': Sign('higher', 1, 1), 'down': Sign('lower', 1, 1), 'still': Sign('same', 1, 1)}
    watch = monitor(signs)
    watch.start({}, {name: [0.0] * 4 for name in signs})
    gains = [watch.observe(i, [1.0] * 4, {n: [v] * 4 for n in signs}).gains for i, v in ((1, 0.4), (2, -0.4))]
    assert gains[0] == pytest.approx({'up': 0.4, 'down': -0.4, 'still': -0.4})
    assert gains[1] == pytest.approx({'up': -0.4, 'down': 0.4, 'still': -0.4})


@pytest.mark.parametrize(
    ('fall', 'reward', 'level'),
    [(0.4, 1.0, 'ok'), (0.6, 1.0, 'warn'), (1.2, 1.0, 'hacked'), (1.2, 0.2, 'warn'), (-3.0, 1.0, 'ok')],
)
def test_levels(fall, reward, level):
    watch = monitor({'m': Sign('higher', 1, 1)})
    watch.start({0: [0.0] * 4}, {'m': [5.0, 6.0, 7.0, 8.0]})
    verdict = watch.observe(1, [reward] * 4, {'m': [v - fall for v in (5.0, 6.0, 7.0, 8.0)]})
    assert verdict.level == level


def test_smoothing_and_patience_by_hand():
    watch = monitor({'m': Sign('higher', 1, 1)}, smoothing=0.5, patience=2)
    watch.start({0: [0.0] * 4}, {'m': [0.0] * 4})
    seen = [watch.observe(i + 1, [1.0] * 4, {'m': [v] * 4}) for i, v in enumerate([0.0, -2.0, -2.0, -2.0])]
    assert [v.evidence['m_z'] for v in seen] == [0, -1, -1.5, -1.75]
    assert [v.level for v in seen] == ['ok', 'warn', 'hacked', 'hacked']


def test_a_change_must_be_sure():
    watch = monitor({'m': Sign('higher', 1, 1)}, sure=3.0)
    watch.start({0: [0.0] * 4}, {'m': [0.0] * 4})
    # Mean -1, deviations 2, 0, 0, 2: variance 8 / 3, standard error sqrt(8 / 3 / 4) = 0.816.
    unsure = watch.observe(1, [1.0] * 4, {'m': [-3.0, -1.0, -1.0, 1.0]})
    assert unsure.level == 'ok' and unsure.evidence['m_se'] == pytest.approx(math.sqrt(2 / 3))
    assert watch.observe(2, [1.0] * 4, {'m': [-1.2, -1.0, -1.0, -0.8]}).level == 'hacked'


def test_one_wild_image_decides_nothing():
    watch = monitor({'m': Sign('higher', 1, 1)}, samples=16, sure=3.0)
    watch.start({0: [0.0] * 16}, {'m': [0.0] * 16})
    assert watch.observe(1, [1.0] * 16, {'m': [-1e9] + [0.0] * 15}).level == 'ok'


def test_values_that_are_not_finite():
    watch = monitor({'m': Sign('higher', 1, 1)}, samples=5)
    watch.start({0: [0.0] * 5}, {'m': [0.0, 0.0, 0.0, 0.0, math.nan]})
    verdict = watch.observe(1, [1.0, math.nan, 1.0, 1.0, 1.0], {'m': [0.0, 0.0, 0.0, math.nan, 7.0]})
    assert verdict.gains['m'] == -5 / 4 and verdict.reward == 1  # the worst for one, nothing to compare for the last
    gone = watch.observe(2, [math.nan] * 5, {'m': [0.0] * 5})
    assert math.isnan(gone.reward) and gone.level == 'ok' and not gone.best
    with pytest.raises(ValueError, match='m: 3 of 5 values of the start are finite'):
        monitor(samples=5).start({}, {'m': [0.0, 0.0, 0.0, math.inf, math.nan]})


def test_the_best_safe_step_stays_before_the_hacking():
    watch = monitor({'m': Sign('higher', 1, 1)}, smoothing=0.5)
    watch.start({0: [0.0] * 4}, {'m': [0.0] * 4})
    assert watch.best_safe_step == 0
    values = [(1.0, 0.0), (2.0, 0.1), (1.0, 0.0), (4.0, -0.6), (5.0, -3.0), (9.0, -3.0), (9.0, 0.0)]
    seen = [watch.observe(10 * i, [r] * 4, {'m': [m] * 4}) for i, (r, m) in enumerate(values, start=1)]
    assert [v.best for v in seen] == [True, True, False, False, False, False, False]
    # At 40 the smoothed fall is 0.28 only; unsmoothed, it shows.
    assert [v.level for v in seen] == ['ok', 'ok', 'ok', 'ok', 'hacked', 'hacked', 'hacked']
    assert watch.best_safe_step == 20


def test_a_later_stage_has_its_own_reward_and_is_better():
    watch = monitor({'m': Sign('higher', 1, 1)}, smoothing=0.5)
    watch.start({0: [0.0] * 4, 1: [10.0] * 4}, {'m': [0.0] * 4})
    safe = {'m': [0.0] * 4}
    assert watch.observe(1, [3.0] * 4, safe).evidence['rise'] == 3
    verdict = watch.observe(2, [9.0] * 4, safe, stage=1)
    assert verdict.evidence['rise'] == -1 and verdict.best and watch.best_safe_step == 2
    assert watch.observe(3, [1.0] * 4, safe, stage=2).evidence['rise'] == 1  # nothing known of its start: 0


def test_a_new_stage_must_be_hacked_anew():
    watch = monitor({'m': Sign('higher', 1, 1)}, patience=2)
    watch.start({}, {'m': [0.0] * 4})
    bad = {'m': [-2.0] * 4}
    levels = [watch.observe(i, [1.0] * 4, bad, stage=int(i > 2)).level for i in range(1, 5)]
    assert levels == ['warn', 'hacked', 'warn', 'hacked']


WITHIN = {'lq_psnr': (3.0, 0.3), 'hf_energy': (4.0, 0.5), 'flat_tv': (8.0, 1.0), 'held': (1.0, 0.5)}
"""Spread between images, and of one image between two samples of the generator; others: (1.5, 1.5)."""


def simulated(seed, hacks=None, at=30, observations=60, samples=16):
    """Verdicts on noisy measures under a reward that rises; from observation `at` on `hacks` adds to a measure, each time more."""
    draw, names = np.random.default_rng(seed), [*SIGNS, 'held']
    spread = {name: WITHIN.get(name, (1.5, 1.5)) for name in names}
    images = {name: spread[name][0] * draw.standard_normal(samples) for name in names}
    watch = HackingMonitor(MonitorOptions(samples=samples))

    def values(k=0):
        return {
            name: images[name]
            + spread[name][1] * draw.standard_normal(samples)
            + (hacks or {}).get(name, 0.0) * max(0, k - at)
            for name in names
        }

    watch.start({0: draw.standard_normal(samples)}, values())
    levels = [
        watch.observe(100 * k, draw.standard_normal(samples) + 0.05 * k, values(k)).level
        for k in range(1, observations + 1)
    ]
    return levels, watch.best_safe_step // 100


def test_noise_alone_gives_no_alarm():
    """60 runs of 60 observations of 9 measures: not one is warned of."""
    runs = [simulated(seed)[0] for seed in range(60)]
    assert sum('hacked' in levels for levels in runs) == 0
    assert sum('warn' in levels for levels in runs) == 0


@pytest.mark.parametrize(
    ('hacks', 'warned', 'hacked'),
    [
        ({'lattice_4': 20.0}, 1, 3),  # at once, and far: as soon as patience allows
        ({'lattice_4': 1.0}, 7, 14),  # 5 and 10 dB, after 5 and 10 observations
        ({'lq_psnr': -0.2}, 8, 16),
        ({'held': -0.1}, 12, 20),
        ({'flat_tv': 1.0}, 8, 15),
    ],
)
def test_planted_hacking_is_detected_in_time(hacks, warned, hacked):
    for seed in range(10):
        levels, best = simulated(seed, hacks)
        assert 30 < levels.index('warn') + 1 <= 30 + warned, levels
        assert levels.index('hacked') + 1 <= 30 + hacked, levels
        assert best <= 30 + warned and 'hacked' not in levels[:30]


@pytest.fixture(scope='module')
def crops():
    """16 crops of photos of 128 px: gt (16, 3, 128, 128) and lq (16, 3, 32, 32)."""
    folder = Path(pytest.importorskip('skimage').__file__).parent / 'data'
    gt = []
    for name in ('astronaut.png', 'chelsea.png', 'coffee.png', 'motorcycle_left.png'):
        image = torch.from_numpy(read_image(folder / name)).permute(2, 0, 1)[None].float() / 255
        gt += [image[..., top : top + 128, left : left + 128] for top in (20, 150) for left in (20, 200)]
    gt = torch.cat(gt)
    return gt, F.interpolate(gt, scale_factor=0.25, mode='area')


def watched(crops, change, steps=8):
    """Verdicts on images that start half as sharp as the photos and go the way of change(image, detail, k)."""
    gt, lq = crops
    smooth = F.interpolate(lq, scale_factor=4, mode='bicubic')
    watch = HackingMonitor(MonitorOptions())
    image = (smooth + gt) / 2
    watch.start({0: [0.0] * 16}, {k: v.tolist() for k, v in measure(image, lq).items()})
    return [
        watch.observe(k, [0.2 * k] * 16, measure(change(image, (gt - smooth) / 2, k).clamp(0, 1), lq))
        for k in range(1, steps + 1)
    ]


def test_images_that_get_better_are_not_warned_of(crops):
    verdicts = watched(crops, lambda image, detail, k: image + detail * k / 8)
    assert {v.level for v in verdicts} == {'ok'}
    assert verdicts[-1].best and verdicts[-1].evidence['lq_psnr'] > 45


@pytest.mark.parametrize('period', [2, 4, 8, 16])
def test_a_growing_lattice_is_hacking(crops, period):
    """One step of 8 bit more at each observation."""
    cell = torch.from_numpy(np.random.default_rng(0).standard_normal((period, period))).float()
    lattice = (cell - cell.mean()).repeat(128 // period, 128 // period) / 255
    verdicts = watched(crops, lambda image, detail, k: image + k * lattice)
    assert verdicts[-1].level == 'hacked' and f'lattice_{period}' in verdicts[-1].reasons


@pytest.mark.parametrize(
    ('name', 'change'),
    [
        ('flat_tv', lambda image, detail, k: image + 0.01 * k * torch.randn(image.shape, generator=seeded())),
        ('lq_psnr', lambda image, detail, k: image + 0.01 * k),
        ('hf_energy', lambda image, detail, k: image + k * detail),
        ('hf_energy', lambda image, detail, k: F.avg_pool2d(image, 2 * k + 1, 1, k, count_include_pad=False)),
    ],
)
def test_other_hacks(crops, name, change):
    verdicts = watched(crops, change)
    assert verdicts[-1].level == 'hacked' and name in verdicts[-1].reasons


def seeded():
    return torch.Generator().manual_seed(0)


def test_resumed_it_decides_the_same():
    draw = np.random.default_rng(0)
    names = ['lq_psnr', 'lattice_4', 'held']
    start = {name: draw.standard_normal(16) for name in names}
    run = [
        (k, draw.standard_normal(16) + 0.1 * k, {n: draw.standard_normal(16) * 0.1 - 0.08 * k for n in names}, k // 8)
        for k in range(1, 20)
    ]
    whole = HackingMonitor()
    whole.start({0: draw.standard_normal(16), 1: draw.standard_normal(16)}, start)
    expected, states = [], []
    for step in run:
        states.append(whole.state_dict())
        expected.append(whole.observe(*step))
    assert {v.level for v in expected} == {'ok', 'warn', 'hacked'}
    for done in (0, 1, 7, 8, 12):
        buffer = io.BytesIO()
        torch.save(states[done], buffer)
        buffer.seek(0)
        again = HackingMonitor()
        again.load_state_dict(torch.load(buffer, weights_only=True))
        assert again.started and [again.observe(*step) for step in run[done:]] == expected[done:]
        assert again.state_dict() == whole.state_dict() and again.best_safe_step == whole.best_safe_step


def test_the_order_of_measures_and_their_container_do_not_matter():
    values = {'a': [1.0, 2.0, 3.0, 4.0], 'b': [4.0, 3.0, 2.0, 2.0]}
    one, other = monitor(), monitor()
    one.start({0: [0.0] * 4}, values)
    other.start({0: torch.zeros(4)}, {k: torch.tensor(v) for k, v in values.items()})
    later = {'a': [0.5, 1.0, 2.0, 3.0], 'b': [4.0, 4.0, 4.0, 4.0]}
    backwards = {k: torch.tensor(later[k]) for k in reversed(later)}
    assert one.observe(1, [1.0] * 4, later) == other.observe(1, torch.ones(4), backwards)


def test_units_of_the_user():
    watch = monitor(units={'held': math.inf, 'lq_psnr': 0.5})
    watch.start({}, {'held': [1.0, 2.0, 3.0, 4.0], 'lq_psnr': [30.0] * 4})
    verdict = watch.observe(1, [1.0] * 4, {'held': [-9.0] * 4, 'lq_psnr': [29.4] * 4})
    assert verdict.reasons == ('lq_psnr',) and verdict.gains == pytest.approx({'held': 0, 'lq_psnr': -1.2})
    assert watch.observe(2, [1.0] * 4, {'held': [math.nan] * 4, 'lq_psnr': [30.0] * 4}).level == 'ok'
    with pytest.raises(ValueError, match=r"no measure is called \['hled'\]; there are \['held'\]"):
        monitor(units={'hled': 1.0}).start({}, {'held': [0.0] * 4})


def test_mistakes_of_the_caller():
    watch = monitor()
    with pytest.raises(RuntimeError, match='call start first'):
        watch.observe(1, [0.0] * 4, {})
    with pytest.raises(ValueError, match='m: expected the values of 4 samples, got 3'):
        watch.start({}, {'m': [0.0] * 3})
    for metrics in ({}, {'reward': [0.0] * 4}):
        with pytest.raises(ValueError, match="expected measures, none called 'reward' or 'rise'"):
            watch.start({}, metrics)
    watch.start({}, {'m': [0.0] * 4})
    with pytest.raises(ValueError, match=r"began with the measures \['m'\], not \['n'\]"):
        watch.observe(1, [0.0] * 4, {'n': [0.0] * 4})
    watch.observe(5, [0.0] * 4, {'m': [0.0] * 4})
    with pytest.raises(ValueError, match='has seen step 5; got 5'):
        watch.observe(5, [0.0] * 4, {'m': [0.0] * 4})
    with pytest.raises(ValueError, match='watched on 4 samples, the YAML says 8'):
        monitor(samples=8).load_state_dict(watch.state_dict())


def test_when_it_is_due():
    assert [step for step in range(1, 9) if monitor(every=3).due(step)] == [3, 6]
    assert not any(monitor(every=0).due(step) for step in range(1, 9))


def test_options_from_yaml():
    options = parse(MonitorOptions, {'every': 50, 'units': {'held': '1e-2'}, 'stop': True}, '$.train.monitor')
    assert (options.every, options.units, options.stop, options.samples) == (50, {'held': 0.01}, True, 16)
    for section, message in (
        ({'warn': 2.0}, r'\$.train.monitor: expected smoothing .* 0 < warn <= hacked < 5'),
        ({'samples': 3}, 'samples >= 4'),
        ({'units': {'m': 0}}, 'units: expected numbers above 0'),
        ({'evry': 3}, "did you mean 'every'"),
    ):
        with pytest.raises(ConfigError, match=message):
            parse(MonitorOptions, section, '$.train.monitor')
