"""Rollouts on a stand-in generator whose samples can be worked out by hand, and on the tiny one."""

import pytest
import torch

from finpercep_plugin.diffusion.schedule import DiscreteSchedule, FlowSchedule
from finpercep_plugin.generators.condition import Condition
from finpercep_plugin.rng import keyed_randn
from finpercep_plugin.rollout import rollout, sample_images, sampler_steps, step_x0, super_resolve


class Constant(torch.nn.Module):
    """Predicts the number `out` everywhere."""

    def __init__(self, prediction='eps', out=0.5):
        super().__init__()
        self.out = torch.nn.Parameter(torch.tensor(out))
        self.prediction = prediction
        self.schedule = (
            FlowSchedule() if prediction == 'flow' else DiscreteSchedule(torch.tensor([0.81, 0.64, 0.36, 0.04]))
        )
        self.eta, self.guidance = 0.0, 1.0
        self.steps = torch.tensor([750.0, 250.0]) if prediction == 'flow' else torch.tensor([2, 1])

    def timesteps(self, steps):
        return torch.arange(steps).flip(0)

    def condition(self, lq, prompt=None):
        return Condition(lq, lq, prompt)

    def start(self, cond, noise):
        return noise

    def predict(self, x_t, t, cond, guidance=1.0):
        return (self.out * guidance).expand_as(x_t)

    def decode(self, latent, cond, region=None):
        return latent


def _cond(batch=1):
    return Condition(torch.zeros(batch, 1, 1, 2), torch.zeros(batch, 1, 1, 2))


def test_eps_chain_by_hand():
    # a = 0.36 -> 0.64 -> 1, x = 1, eps = 0.5: x0 = (1 - 0.4) / 0.6 = 1, x = 0.8 + 0.3 = 1.1; x0 = (1.1 - 0.3) / 0.8 = 1
    trajectory = rollout(Constant(), _cond(), torch.ones(1, 1, 1, 2))
    values = [latent[0, 0, 0, 0].item() for latent in trajectory.latents]
    assert values == pytest.approx([1.0, 1.1, 1.0])
    assert trajectory.timesteps.tolist() == [2, 1] and trajectory.log_probs == [None, None]


def test_flow_chain_by_hand():
    # sigma 0.75 -> 0.25 -> 0, v = 0.5: 1 - 0.25, then - 0.125
    trajectory = rollout(Constant('flow'), _cond(), torch.ones(1, 1, 1, 2))
    assert [latent[0, 0, 0, 0].item() for latent in trajectory.latents] == [1.0, 0.75, 0.625]


def test_stochastic_chain_and_its_log_probs_by_hand():
    drawn = []

    def draw(index):
        drawn.append(index)
        return torch.full((1, 1, 1, 2), 2.0)

    trajectory = rollout(Constant(), _cond(), torch.ones(1, 1, 1, 2), eta=1.0, draw=draw)
    variance = 0.36 / 0.64 * (1 - 0.36 / 0.64)
    mean = 0.8 + (0.36 - variance) ** 0.5 * 0.5
    assert trajectory.latents[1][0, 0, 0, 0].item() == pytest.approx(mean + 2 * variance**0.5)
    normal = torch.distributions.Normal(mean, variance**0.5)
    expected = normal.log_prob(torch.tensor(mean + 2 * variance**0.5)).item()
    assert trajectory.log_probs[0].tolist() == pytest.approx([expected])
    assert trajectory.log_probs[1] is None and drawn == [0]  # the last step has no noise, hence no density


@pytest.mark.parametrize('upto', [0, 1, 2])
def test_upto_stops_before_that_step(upto):
    whole = rollout(Constant(), _cond(), torch.ones(1, 1, 1, 2))
    part = rollout(Constant(), _cond(), torch.ones(1, 1, 1, 2), upto)
    assert len(part.latents) == upto + 1 and len(part.timesteps) == min(upto + 1, 2)
    assert all(torch.equal(a, b) for a, b in zip(part.latents, whole.latents))
    assert not any(latent.requires_grad for latent in part.latents)


def test_step_x0_has_gradient():
    generator = Constant()
    x0 = step_x0(generator, torch.ones(1, 1, 1, 2), 1, _cond())
    assert x0[0, 0, 0, 0].item() == pytest.approx((1 - 0.6 * 0.5) / 0.8)
    x0.sum().backward()
    assert generator.out.grad.item() == pytest.approx(2 * -0.6 / 0.8)


def test_guidance_is_passed_on():
    assert step_x0(Constant(), torch.ones(1, 1, 1, 1), 1, _cond(), guidance=2.0).item() == pytest.approx(0.4 / 0.8)


def test_choices_of_steps():
    generator = Constant()
    assert sampler_steps(generator).tolist() == [2, 1]
    assert sampler_steps(generator, 3).tolist() == [2, 1, 0]
    assert sampler_steps(generator, [3, 0]).tolist() == [3, 0]
    one = rollout(generator, _cond(), torch.ones(1, 1, 1, 2), steps=[2])
    assert one.latents[-1][0, 0, 0, 0].item() == pytest.approx(1.0)
    with pytest.raises(ValueError, match=r'descending list, got \[1, 2\]'):
        sampler_steps(generator, [1, 2])


def test_bad_input():
    noise = torch.ones(1, 1, 1, 2)
    with pytest.raises(ValueError, match='upto must be 0..2, the number of sampler steps, got 3'):
        rollout(Constant(), _cond(), noise, 3)
    with pytest.raises(ValueError, match='pass draw'):
        rollout(Constant(), _cond(), noise, eta=0.5)
    with pytest.raises(ValueError, match='needs eta = 0'):
        rollout(Constant('flow'), _cond(), noise, eta=0.5, draw=lambda index: noise)


def test_casts_made_without_gradient_are_not_kept():
    kept = []

    class Watched(Constant):
        def predict(self, *inputs, **options):
            kept.append(torch.is_autocast_cache_enabled())
            return super().predict(*inputs, **options)

    generator, noise = Watched(), torch.ones(1, 1, 1, 2)
    rollout(generator, _cond(), noise)
    super_resolve(generator, torch.zeros(1, 1, 1, 2), noise)
    with pytest.raises(ValueError, match='pass draw'):
        rollout(generator, _cond(), noise, eta=0.5)
    assert not any(kept) and torch.is_autocast_cache_enabled() and torch.is_grad_enabled()
    step_x0(generator, noise, 1, _cond())
    assert len(kept) == 5 and kept[-1]


def test_casts_of_a_condition_with_trained_parts_are_not_kept():
    kept = []

    class Watched(Constant):
        def condition(self, lq, prompt=None):
            kept.append(torch.is_autocast_cache_enabled() or torch.is_grad_enabled())
            return super().condition(lq, prompt)

        def latent_shape(self, cond):
            return (1, 1, 2)

    sample_images(Watched(), torch.zeros(2, 1, 1, 2), [3, 4], 0, 'test')
    assert kept == [False] and torch.is_autocast_cache_enabled() and torch.is_grad_enabled()


def test_gradient_under_autocast_is_that_of_the_step_alone():
    pytest.importorskip('diffusers')
    from finpercep_plugin.generators.tiny_diffusion import TinyDiffusion

    torch.manual_seed(0)
    generator = TinyDiffusion(network={'channels': [8, 8], 'norm_groups': 4}, scale=2, steps=3)
    torch.nn.init.normal_(generator.network.unet.conv_out.weight, std=0.05)
    cond, noise = generator.condition(torch.rand(1, 3, 8, 8)), torch.randn(1, 3, 16, 16)
    chosen = generator.trainable('all')

    def gradients(x_t=None):
        for value in chosen.values():
            value.grad = None
        with torch.autocast('cpu', torch.bfloat16):
            x_t = rollout(generator, cond, noise, 2).latents[-1] if x_t is None else x_t
            loss = step_x0(generator, x_t, 2, cond).square().mean()
        loss.backward()
        return x_t, {name: value.grad for name, value in chosen.items()}

    x_t, after_rollout = gradients()
    _, alone = gradients(x_t)
    assert all(value is not None and torch.equal(value, alone[name]) for name, value in after_rollout.items())
    assert sum(bool(value.any()) for value in alone.values()) > len(chosen) // 2


def test_super_resolve_does_not_depend_on_the_batch():
    pytest.importorskip('diffusers')
    from finpercep_plugin.generators.tiny_diffusion import TinyDiffusion

    torch.manual_seed(0)
    generator = TinyDiffusion(network={'channels': [8, 8], 'norm_groups': 4}, scale=2, steps=3)
    torch.nn.init.normal_(generator.network.unet.conv_out.weight, std=0.05)
    lq = torch.rand(3, 3, 7, 9, generator=torch.Generator().manual_seed(1))
    noise = keyed_randn((3, 14, 18), [0, 1, 2], 'test')
    whole = super_resolve(generator, lq, noise)
    assert whole.shape == (3, 3, 14, 18) and whole.min() >= 0 and whole.max() <= 1 and not whole.requires_grad
    single = torch.cat([super_resolve(generator, lq[[i]], keyed_randn((3, 14, 18), [i], 'test')) for i in range(3)])
    torch.testing.assert_close(whole, single, atol=1e-6, rtol=1e-5)
