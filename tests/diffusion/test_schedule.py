"""Schedules against diffusers' and against numbers worked out by hand."""

import pytest
import torch

from finpercep_plugin.diffusion.schedule import (
    DiscreteSchedule,
    FlowSchedule,
    alphas_cumprod,
    respaced_timesteps,
    zero_terminal_snr,
)

diffusers = pytest.importorskip('diffusers')


@pytest.mark.parametrize(
    ('kind', 'name'), [('linear', 'linear'), ('scaled_linear', 'scaled_linear'), ('cosine', 'squaredcos_cap_v2')]
)
def test_alphas_equal_diffusers(kind, name):
    theirs = diffusers.DDPMScheduler(1000, beta_start=0.00085, beta_end=0.012, beta_schedule=name).alphas_cumprod
    assert torch.equal(alphas_cumprod(kind, 1000, 0.00085, 0.012), theirs)


def test_alphas_by_hand():
    # betas 0.1, 0.2, 0.3 -> 0.9, 0.9 * 0.8, 0.9 * 0.8 * 0.7
    torch.testing.assert_close(alphas_cumprod('linear', 3, 0.1, 0.3), torch.tensor([0.9, 0.72, 0.504]))
    # square roots 0.1, 0.2, 0.3 -> betas 0.01, 0.04, 0.09
    torch.testing.assert_close(
        alphas_cumprod('scaled_linear', 3, 0.01, 0.09), torch.tensor([0.99, 0.99 * 0.96, 0.99 * 0.96 * 0.91])
    )


def test_zero_terminal_snr_equals_diffusers():
    theirs = diffusers.DDPMScheduler(
        1000, beta_start=0.00085, beta_end=0.012, beta_schedule='scaled_linear', rescale_betas_zero_snr=True
    ).alphas_cumprod
    ours = zero_terminal_snr(alphas_cumprod('scaled_linear'))
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-3)
    assert ours[-1] == 0


@pytest.mark.parametrize('spacing', ['leading', 'trailing', 'linspace'])
@pytest.mark.parametrize('steps', [1, 4, 7, 50, 1000])
def test_timesteps_equal_diffusers(spacing, steps):
    scheduler = diffusers.DDIMScheduler(1000, timestep_spacing=spacing, steps_offset=1 if spacing == 'leading' else 0)
    scheduler.set_timesteps(steps)
    assert torch.equal(respaced_timesteps(steps, 1000, spacing, scheduler.config.steps_offset), scheduler.timesteps)


@pytest.mark.parametrize('shift', [1.0, 3.0])
@pytest.mark.parametrize('steps', [1, 5, 40])
def test_flow_timesteps_equal_diffusers(shift, steps):
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(1000, shift=shift)
    scheduler.set_timesteps(steps)
    torch.testing.assert_close(FlowSchedule(shift).timesteps(steps), scheduler.timesteps, rtol=1e-5, atol=1e-3)


def test_levels():
    like = torch.zeros(3, 1, 2, 2)
    discrete = DiscreteSchedule(torch.tensor([0.9, 0.6, 0.2]))
    levels = discrete.level(torch.tensor([2, 0, -1]), like)
    assert levels.shape == (3, 1, 1, 1) and levels.flatten().tolist() == pytest.approx([0.2, 0.9, 1.0])
    assert discrete.level(1, like).shape == (1, 1, 1, 1)
    assert FlowSchedule().level(torch.tensor([250.0, 0.0]), like).flatten().tolist() == [0.25, 0.0]
    with pytest.raises(IndexError):
        discrete.level(3, like)


def test_bad_settings():
    with pytest.raises(ValueError, match='beta_start <= beta_end'):
        alphas_cumprod('linear', 10, 0.2, 0.1)
    with pytest.raises(ValueError, match="got 'quadratic'"):
        alphas_cumprod('quadratic')
    with pytest.raises(ValueError, match='1..1000, got 0'):
        respaced_timesteps(0)
    with pytest.raises(ValueError, match="got 'karras'"):
        respaced_timesteps(4, spacing='karras')
