"""Stochastic steps of flow models: by hand, their limits, and that the marginals of the flow are kept."""

import math

import pytest
import torch

from finpercep_plugin.diffusion.flow_sde import cps_step, sde_step, std_free_log_prob
from finpercep_plugin.diffusion.schedule import FlowSchedule
from finpercep_plugin.diffusion.steps import gaussian_log_prob, step


def _numbers(*values):
    return [torch.tensor([value]) for value in values]


def _pair(seed=0):
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(2, 4, 6, 6, generator=rng), torch.randn(2, 4, 6, 6, generator=rng)


def test_sde_by_hand():
    # sigma 0.8 -> 0.6, a = 0.5: s^2 = 0.25 * 0.8 / 0.2 = 1, s^2 / (2 sigma) = 0.625, dt = -0.2
    # mean = 1 (1 - 0.125) + 2 (1 + 0.625 * 0.2) (-0.2) = 0.875 - 0.45; std = sqrt(0.2)
    mean, std = sde_step(*_numbers(1.0, 2.0, 0.8, 0.6), noise_level=0.5)
    assert mean.item() == pytest.approx(0.425) and std.item() == pytest.approx(math.sqrt(0.2))


def test_sde_at_sigma_one():
    # sigma 1 -> 0.9, a = 0.7: only the denominator takes 0.9, so s^2 = 0.49 * 1 / 0.1 = 4.9
    # mean = 1 (1 + 2.45 * -0.1) + 2 (1 + 2.45 * 0) (-0.1) = 0.755 - 0.2; std = sqrt(4.9 * 0.1)
    mean, std = sde_step(*_numbers(1.0, 2.0, 1.0, 0.9), noise_level=0.7)
    assert mean.item() == pytest.approx(0.555) and std.item() == pytest.approx(0.7)
    # straight to clean: s^2 = a^2
    mean, std = sde_step(*_numbers(1.0, 2.0, 1.0, 0.0), noise_level=0.5)
    assert mean.item() == pytest.approx(1 - 0.125 - 2) and std.item() == pytest.approx(0.5)


def test_cps_by_hand():
    # sigma 0.8 -> 0.6, a = 2/3: sin 60 degrees; x0 = 1 - 1.6 = -0.6, x1 = 1 + 0.4 = 1.4
    mean, std = cps_step(*_numbers(1.0, 2.0, 0.8, 0.6), noise_level=2 / 3)
    assert std.item() == pytest.approx(0.6 * math.sqrt(0.75))
    assert mean.item() == pytest.approx(0.4 * -0.6 + 0.3 * 1.4)


@pytest.mark.parametrize('function', [sde_step, cps_step])
def test_no_noise_is_the_euler_step(function):
    (x, v), timesteps, schedule = _pair(), [*FlowSchedule(3.0).timesteps(6), torch.tensor(0.0)], FlowSchedule(3.0)
    for now, after in zip(timesteps, timesteps[1:]):
        sigma, sigma_prev = schedule.level(now, x), schedule.level(after, x)
        mean, std = function(x, v, sigma, sigma_prev, 0.0)
        torch.testing.assert_close(mean, step(x, v, sigma, sigma_prev, 'flow')[0], atol=1e-6, rtol=1e-6)
        assert std.item() == 0
        small = function(x, v, sigma, sigma_prev, 1e-3)
        torch.testing.assert_close(small[0], mean, atol=1e-4, rtol=1e-4)
        assert 0 <= small[1].item() < 0.1


def test_cps_that_replaces_all_noise_equals_diffusers():
    """a = 1 is what its scheduler calls stochastic sampling: x0 with new noise."""
    diffusers = pytest.importorskip('diffusers')
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(1000, shift=3.0, stochastic_sampling=True)
    scheduler.set_timesteps(6)
    schedule, (x, v) = FlowSchedule(3.0), _pair()
    timesteps = [*schedule.timesteps(6), torch.tensor(0.0)]
    for now, after, theirs_t in zip(timesteps, timesteps[1:], scheduler.timesteps):
        mean, std = cps_step(x, v, schedule.level(now, x), schedule.level(after, x), 1.0)
        theirs = scheduler.step(v, theirs_t, x, generator=torch.Generator().manual_seed(5)).prev_sample
        drawn = torch.randn(x.shape, generator=torch.Generator().manual_seed(5))
        torch.testing.assert_close(mean + std * drawn, theirs, atol=1e-6, rtol=0)


@pytest.mark.parametrize('noise_level', [0.3, 0.8, 1.0])
def test_cps_keeps_the_variance(noise_level):
    """The coefficient of the noise in the mean and the new noise: their squares add up to sigma'^2."""
    sigma, sigma_prev = _numbers(0.8, 0.6)
    x0, x1 = 0.0, 1.0  # x = (1 - sigma) x0 + sigma x1, v = x1 - x0
    mean, std = cps_step(torch.tensor([0.2 * x0 + 0.8 * x1]), torch.tensor([x1 - x0]), sigma, sigma_prev, noise_level)
    assert mean.item() ** 2 + std.item() ** 2 == pytest.approx(0.36)


@pytest.mark.parametrize(('steps', 'tolerance'), [(250, 0.03), (2000, 0.004)])
def test_sde_keeps_the_marginals_of_the_flow(steps, tolerance):
    """Data N(1, 0.5^2): v is linear in x, so mean and variance of the chain follow without a draw."""
    sigmas, data_mean, data_var = torch.linspace(0.99, 0.02, steps + 1), 1.0, 0.25

    def velocity(x, s):  # E[x1 - x0 | x] of the Gaussian (x0, x1)
        return -data_mean + (s - (1 - s) * data_var) / ((1 - s) ** 2 * data_var + s**2) * (x - (1 - s) * data_mean)

    mean, variance = 0.01 * data_mean, 0.01**2 * data_var + 0.99**2
    for sigma, sigma_prev in zip(sigmas[:, None], sigmas[1:, None]):
        moved, std = sde_step(torch.tensor([mean]), velocity(mean, sigma), sigma, sigma_prev, 0.7)
        further, _ = sde_step(torch.tensor([mean + 1]), velocity(mean + 1, sigma), sigma, sigma_prev, 0.7)
        slope = (further - moved).item()
        mean, variance = moved.item(), slope**2 * variance + std.item() ** 2
    assert mean == pytest.approx(0.98 * data_mean, abs=tolerance)
    assert variance == pytest.approx(0.98**2 * data_var + 0.02**2, abs=tolerance)


@pytest.mark.parametrize('function', [sde_step, cps_step])
def test_is_computed_in_float32(function):
    (x, v), (sigma, sigma_prev) = _pair(), _numbers(0.8, 0.6)
    for result in function(x.bfloat16(), v.bfloat16(), sigma, sigma_prev):
        assert result.dtype == torch.float32
    expected = function(x.bfloat16().float(), v.bfloat16().float(), sigma, sigma_prev)[0]
    assert torch.equal(function(x.bfloat16(), v.bfloat16(), sigma, sigma_prev)[0], expected)


def test_std_free_log_prob():
    x, mean = (tensor.requires_grad_() for tensor in _pair())
    std = torch.tensor(0.3)
    free, full = std_free_log_prob(x, mean), gaussian_log_prob(x, mean, std)
    # two samples of one step: the difference of log-densities times 2 std^2
    assert (free[0] - free[1]).item() == pytest.approx(2 * 0.09 * (full[0] - full[1]).item(), rel=1e-4)
    free.sum().backward()
    assert x.grad is None
    torch.testing.assert_close(mean.grad, 2 * (x - mean).detach() / mean[0].numel())


def test_errors():
    one = torch.ones(1)
    with pytest.raises(ValueError, match='must not be negative, got -1'):
        sde_step(one, one, one, 0.5 * one, -1)
    with pytest.raises(ValueError, match='in 0..1, got 1.5'):
        cps_step(one, one, one, 0.5 * one, 1.5)
    for function in (sde_step, cps_step):
        with pytest.raises(ValueError, match='must descend within 0..1, got .0.5. to .0.75.'):
            function(one, one, 0.5 * one, 0.75 * one)
