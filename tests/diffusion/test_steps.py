"""Sampler steps by hand and against diffusers' schedulers; log-density against torch.distributions."""

import math

import pytest
import torch

from finpercep_plugin.diffusion.schedule import DiscreteSchedule, FlowSchedule, alphas_cumprod, respaced_timesteps
from finpercep_plugin.diffusion.steps import gaussian_log_prob, step

BETAS = {'beta_schedule': 'scaled_linear', 'beta_start': 0.00085, 'beta_end': 0.012}


def _pair(seed=0):
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(2, 4, 6, 6, generator=rng), torch.randn(2, 4, 6, 6, generator=rng)


def _levels(index, timesteps, like):
    schedule = DiscreteSchedule(alphas_cumprod('scaled_linear').to(like))
    t_prev = int(timesteps[index + 1]) if index + 1 < len(timesteps) else -1
    return schedule.level(int(timesteps[index]), like), schedule.level(t_prev, like)


def test_ddim_by_hand():
    # a = 0.36, a' = 0.64, x = 1, eps = 0.5: x0 = (1 - 0.8 * 0.5) / 0.6 = 1
    x, eps, a, b = (torch.tensor([value]) for value in (1.0, 0.5, 0.36, 0.64))
    mean, std = step(x, eps, a, b, 'eps', eta=0.0)
    assert (mean.item(), std.item()) == (pytest.approx(0.8 * 1 + 0.6 * 0.5), 0.0)
    # eta = 1: std^2 = 0.36 / 0.64 * (1 - 0.36 / 0.64) = 0.5625 * 0.4375; mean = 0.8 + sqrt(0.36 - std^2) * 0.5
    mean, std = step(x, eps, a, b, 'eps', eta=1.0)
    assert std.item() == pytest.approx(math.sqrt(0.24609375))
    assert mean.item() == pytest.approx(0.8 + math.sqrt(0.36 - 0.24609375) * 0.5)


def test_flow_by_hand():
    mean, std = step(torch.tensor([1.0]), torch.tensor([2.0]), torch.tensor([0.75]), torch.tensor([0.5]), 'flow')
    assert (mean.item(), std.item()) == (0.5, 0.0)


@pytest.mark.parametrize('eta', [0.0, 0.3, 1.0])
@pytest.mark.parametrize(('prediction', 'name'), [('eps', 'epsilon'), ('v', 'v_prediction')])
def test_ddim_equals_diffusers(eta, prediction, name, in_float64):
    diffusers = pytest.importorskip('diffusers')
    scheduler = diffusers.DDIMScheduler(
        1000, prediction_type=name, timestep_spacing='trailing', clip_sample=False, **BETAS
    )
    scheduler.set_timesteps(10)
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
    timesteps, (x, out), noise = respaced_timesteps(10), _pair(), _pair(1)[0]
    for index in range(10):
        mean, std = step(x, out, *_levels(index, timesteps, x), prediction, eta)
        theirs = scheduler.step(out, int(timesteps[index]), x, eta=eta, variance_noise=noise).prev_sample
        torch.testing.assert_close(mean + std * noise, theirs, atol=1e-6, rtol=0)


def test_eta_one_equals_respaced_ddpm(in_float64):
    diffusers = pytest.importorskip('diffusers')
    scheduler = diffusers.DDPMScheduler(1000, timestep_spacing='trailing', clip_sample=False, **BETAS)
    scheduler.set_timesteps(10)
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
    timesteps, (x, out) = respaced_timesteps(10), _pair()
    for index in range(9):
        mean, std = step(x, out, *_levels(index, timesteps, x), 'eps', eta=1.0)
        theirs = scheduler.step(out, int(timesteps[index]), x, generator=torch.Generator().manual_seed(5)).prev_sample
        drawn = torch.randn(x.shape, generator=torch.Generator().manual_seed(5))
        torch.testing.assert_close(mean + std * drawn, theirs, atol=1e-6, rtol=0)
        assert std.square().item() == pytest.approx(scheduler._get_variance(int(timesteps[index])).item(), abs=1e-6)


def test_last_step_is_x0_without_noise():
    x, out = _pair()
    a = torch.full((1, 1, 1, 1), 0.49)
    mean, std = step(x, out, a, torch.ones_like(a), 'eps', eta=1.0)
    assert std.item() == 0.0
    torch.testing.assert_close(mean, (x - math.sqrt(0.51) * out) / 0.7)


def test_flow_equals_diffusers():
    diffusers = pytest.importorskip('diffusers')
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(1000, shift=3.0)
    scheduler.set_timesteps(6)
    schedule, (x, out) = FlowSchedule(3.0), _pair()
    timesteps = [*schedule.timesteps(6), torch.tensor(0.0)]
    for now, after, theirs_t in zip(timesteps, timesteps[1:], scheduler.timesteps):
        mean, std = step(x, out, schedule.level(now, x), schedule.level(after, x), 'flow')
        assert std.item() == 0.0
        torch.testing.assert_close(mean, scheduler.step(out, theirs_t, x).prev_sample, atol=1e-6, rtol=0)


def test_log_prob_is_the_mean_over_dimensions():
    x, mean = _pair()
    std = torch.tensor([0.5, 2.0]).reshape(2, 1, 1, 1)
    theirs = torch.distributions.Normal(mean, std.expand_as(mean)).log_prob(x).flatten(1).mean(1)
    torch.testing.assert_close(gaussian_log_prob(x, mean, std), theirs)
    # one dimension, by hand: x - mean = 2, std = 2: -1/2 - ln 2 - ln(2 pi) / 2
    by_hand = gaussian_log_prob(torch.tensor([[3.0]]), torch.tensor([[1.0]]), torch.tensor(2.0)).item()
    assert by_hand == pytest.approx(-0.5 - math.log(2) - 0.5 * math.log(2 * math.pi))


def test_log_prob_gradient_goes_through_the_mean_only():
    x, mean = (tensor.requires_grad_() for tensor in _pair())
    gaussian_log_prob(x, mean, torch.tensor(0.5)).sum().backward()
    assert x.grad is None
    torch.testing.assert_close(mean.grad, (x - mean).detach() / 0.25 / mean[0].numel())


def test_errors():
    one = torch.ones(1, 1)
    with pytest.raises(ValueError, match='no density'):
        gaussian_log_prob(one, one, torch.zeros(1, 1))
    with pytest.raises(ValueError, match='eta must be in 0..1'):
        step(one, one, one * 0.5, one * 0.7, 'eps', eta=2.0)
    with pytest.raises(ValueError, match='needs eta = 0'):
        step(one, one, one * 0.5, one * 0.3, 'flow', eta=1.0)
