"""Steps that draw: their Gaussian with a floor, which of them draw, and rollouts that are stored exactly."""

import math
from types import SimpleNamespace

import pytest
import torch

from finpercep_plugin.algorithms.noisy_steps import NoisySteps
from finpercep_plugin.algorithms.policy import StepPolicy, policy_rollout, step_gaussian
from finpercep_plugin.config import ConfigError, parse
from finpercep_plugin.diffusion.flow_sde import cps_step, sde_step
from finpercep_plugin.diffusion.steps import gaussian_log_prob, step
from finpercep_plugin.rollout import rollout


def _numbers(*values):
    return [torch.tensor([value]) for value in values]


def generator_of(prediction, steps=10, **more):
    return SimpleNamespace(prediction=prediction, steps=torch.arange(steps, 0, -1), **more)


def test_step_of_each_kind():
    x, out, level, after = _numbers(1.0, 0.5, 0.36, 0.64)
    for ours, theirs in zip(
        StepPolicy('ddim', 1.0).gaussian(x, out, level, after, 'eps'), step(x, out, level, after, 'eps', 1.0)
    ):
        assert torch.equal(ours, theirs)
    x, out, level, after = _numbers(1.0, 0.5, 0.8, 0.6)
    assert StepPolicy('sde', 0.7).gaussian(x, out, level, after, 'flow') == sde_step(x, out, level, after, 0.7)
    assert StepPolicy('cps', 0.7).gaussian(x, out, level, after, 'flow') == cps_step(x, out, level, after, 0.7)


def test_floor_by_hand():
    # a = 0.36, a' = 0.64, x = 1, eps = 0.5: x0 = 1; std of eta = 0.1 is 0.0496, raised to 0.3: 0.36 - 0.09 is left
    mean, std = StepPolicy('ddim', 0.1, floor=0.3).gaussian(*_numbers(1.0, 0.5, 0.36, 0.64), 'eps')
    assert std.item() == pytest.approx(0.3) and mean.item() == pytest.approx(0.8 + math.sqrt(0.27) * 0.5)
    # the last step: x0, and the floor alone
    mean, std = StepPolicy('ddim', 1.0, floor=0.3).gaussian(*_numbers(1.0, 0.5, 0.36, 1.0), 'eps')
    assert std.item() == pytest.approx(0.3) and mean.item() == pytest.approx(1.0)
    # above the floor: as it is
    mean, std = StepPolicy('ddim', 1.0, floor=0.3).gaussian(*_numbers(1.0, 0.5, 0.36, 0.64), 'eps')
    assert std.item() == pytest.approx(math.sqrt(0.24609375))


def test_steps_that_draw():
    eps, flow = generator_of('eps'), generator_of('flow')
    assert NoisySteps().indices(eps, 10, 0, 1) == list(range(8))
    assert NoisySteps().indices(flow, 10, 0, 1) == list(range(9))
    assert NoisySteps(std_floor=0.1).indices(generator_of('eps', 1), 1, 0, 1) == [0]
    assert NoisySteps(window=3, window_start=4, drop_last=0).indices(eps, 10, 0, 1) == [4, 5, 6]
    starts = {NoisySteps(window=3).indices(eps, 10, 0, i)[0] for i in range(60)}
    assert starts == set(range(6))
    assert all(len(NoisySteps(window=3).indices(eps, 10, 0, i)) == 3 for i in range(5))


def test_policy_of_a_generator():
    assert NoisySteps(std_floor=0.2).policy(generator_of('v')) == StepPolicy('ddim', 1.0, 0.2)
    assert NoisySteps(eta=0.5).policy(generator_of('eps')) == StepPolicy('ddim', 0.5)
    assert NoisySteps().policy(generator_of('flow')) == StepPolicy('sde', 0.7)
    assert NoisySteps(sde='cps', std_free=True).policy(generator_of('flow')) == StepPolicy('cps', 0.8, std_free=True)


@pytest.mark.parametrize(
    ('options', 'prediction', 'number', 'message'),
    [
        ({'eta': 0.5}, 'flow', 10, 'eta is for eps and v models; set noise_level for SimpleNamespace'),
        ({'std_floor': 0.5}, 'flow', 10, 'std_floor is for eps and v models'),
        ({'sde': 'cps'}, 'eps', 10, 'are for flow models; set eta for SimpleNamespace, which predicts eps'),
        ({'noise_level': 0.5}, 'v', 10, 'are for flow models'),
        (
            {'window': 9},
            'eps',
            10,
            r'a window of 9 from step 0 does not fit: the sampler has 10 steps, of which the last 2',
        ),
        ({'window': 2, 'window_start': 7}, 'eps', 10, 'a window of 2 from step 7 does not fit'),
        ({}, 'eps', 2, 'the sampler has 2 steps, of which the last 2 never draw'),
        ({'drop_last': 0}, 'eps', 10, 'ends clean, so it has no noise and no density: set drop_last to 1 or more'),
        ({'drop_last': 0, 'sde': 'cps'}, 'flow', 10, 'ends clean'),
        ({}, 'eps', 1, r'ends clean, so it has no noise and no density: set std_floor \(such as 0.1\)'),
    ],
)
def test_what_is_not_defined(options, prediction, number, message):
    with pytest.raises(ValueError, match=message):
        NoisySteps(**options).check(generator_of(prediction), number)


def test_what_is_defined():
    for options, prediction, number in (
        ({}, 'eps', 3), ({}, 'flow', 2), ({'drop_last': 0}, 'flow', 3), ({'std_floor': 0.1}, 'eps', 1),
        ({'std_floor': 0.1, 'drop_last': 0}, 'v', 10), ({'window': 8}, 'eps', 10), ({'sde': 'cps'}, 'flow', 2),
    ):  # fmt: skip
        NoisySteps(**options).check(generator_of(prediction), number)


def test_options_out_of_range():
    for options, message in (
        ({'window': 0}, 'window must be 1 or more'),
        ({'drop_last': -1}, 'drop_last must not be negative'),
        ({'eta': 0.0}, 'since a step without noise has no density'),
        ({'noise_level': 1.5, 'sde': 'cps'}, "at most 1 for 'cps', got 1.5"),
        ({'window_start': 2}, 'so it needs window'),
    ):
        with pytest.raises(ValueError, match=message):
            NoisySteps(**options)
    with pytest.raises(ConfigError, match=r'\$.noise: window must be 1 or more'):
        parse(NoisySteps, {'window': 0}, '$.noise')
    with pytest.raises(ConfigError, match="noise.windw: unknown key; did you mean 'window'"):
        parse(NoisySteps, {'windw': 1}, '$.noise')


@pytest.mark.parametrize(
    ('kind', 'policy'),
    [('eps', StepPolicy('ddim', 1.0)), ('flow', StepPolicy('sde', 0.7)), ('flow', StepPolicy('cps', 0.8))],
)
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_rollout_is_the_sampler_with_noise_where_it_draws(tiny, kind, policy, dtype):
    generator, (lq, _) = tiny.make(kind), tiny.data(2)
    cond, rng = generator.condition(lq), torch.Generator().manual_seed(4)
    start, noises = torch.randn(2, 3, 16, 16, generator=rng), torch.randn(4, 2, 3, 16, 16, generator=rng)

    def roll(drawn):
        return policy_rollout(
            generator, cond, start, generator.steps, 1.0, policy, drawn, lambda index: noises[index], dtype
        )

    plain = rollout(generator, cond, start, eta=0.0)
    assert torch.equal(roll([]).final, plain.latents[-1])
    stored = roll([1, 2])
    assert sorted(stored.before) == sorted(stored.after) == sorted(stored.log_probs) == [1, 2]
    assert torch.equal(stored.before[1], plain.latents[1].to(dtype))
    assert torch.equal(stored.before[2], stored.after[1]) and stored.before[2].dtype == dtype
    for index in (1, 2):  # what is stored gives the log-probability back, to the bit
        x, after = stored.before[index].float(), stored.after[index].float()
        with torch.no_grad():
            mean, std = step_gaussian(generator, x, index, generator.steps, cond, 1.0, policy)
        assert torch.equal(gaussian_log_prob(after, mean, std), stored.log_probs[index])
        torch.testing.assert_close(after, (mean + std * noises[index]).to(dtype).float())
    assert not any(value.requires_grad for value in stored.log_probs.values())


def test_every_step_with_eta_is_the_sampler_with_eta(tiny):
    generator, (lq, _) = tiny.make('eps'), tiny.data(2)
    cond, rng = generator.condition(lq), torch.Generator().manual_seed(4)
    start, noises = torch.randn(2, 3, 16, 16, generator=rng), torch.randn(4, 2, 3, 16, 16, generator=rng)
    theirs = rollout(generator, cond, start, eta=1.0, draw=lambda index: noises[index])
    ours = policy_rollout(
        generator, cond, start, generator.steps, 1.0, StepPolicy('ddim', 1.0), [0, 1, 2], lambda index: noises[index]
    )
    torch.testing.assert_close(ours.final, theirs.latents[-1])
    for index in range(3):
        torch.testing.assert_close(ours.log_probs[index], theirs.log_probs[index])
