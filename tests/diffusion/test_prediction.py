"""x0, eps and noising for the three kinds of prediction, by hand and against diffusers."""

import pytest
import torch

from finpercep_plugin.diffusion.prediction import add_noise, target, to_eps, to_x0
from finpercep_plugin.diffusion.schedule import DiscreteSchedule, alphas_cumprod

KINDS = ['eps', 'v', 'flow']


def test_by_hand():
    # a = 0.36: sqrt(a) = 0.6, sqrt(1 - a) = 0.8; x0 = 2, noise = -1
    x0, noise, a = torch.tensor([2.0]), torch.tensor([-1.0]), torch.tensor([0.36])
    x_t = add_noise(x0, noise, a, 'eps')
    assert x_t.item() == pytest.approx(0.6 * 2 - 0.8)
    v = target(x0, noise, a, 'v')
    assert v.item() == pytest.approx(-0.6 - 0.8 * 2)
    assert to_x0(x_t, noise, a, 'eps').item() == pytest.approx(2.0)
    assert to_x0(x_t, v, a, 'v').item() == pytest.approx(0.6 * 0.4 - 0.8 * -2.2)
    assert to_eps(x_t, v, a, 'v').item() == pytest.approx(0.6 * -2.2 + 0.8 * 0.4)
    # flow, sigma = 0.25: x_t = 0.75 * 2 - 0.25 = 1.25, v = -1 - 2 = -3
    x_t = add_noise(x0, noise, torch.tensor([0.25]), 'flow')
    assert x_t.item() == 1.25
    assert to_x0(x_t, torch.tensor([-3.0]), torch.tensor([0.25]), 'flow').item() == 2.0
    assert to_eps(x_t, torch.tensor([-3.0]), torch.tensor([0.25]), 'flow').item() == -1.0


@pytest.mark.parametrize('kind', KINDS)
def test_exact_output_gives_back_image_and_noise(kind):
    rng = torch.Generator().manual_seed(0)
    x0, noise = torch.randn(4, 3, 5, 5, generator=rng), torch.randn(4, 3, 5, 5, generator=rng)
    level = torch.tensor([0.9, 0.5, 0.2, 0.05]).reshape(4, 1, 1, 1)
    x_t, out = add_noise(x0, noise, level, kind), target(x0, noise, level, kind)
    torch.testing.assert_close(to_x0(x_t, out, level, kind), x0, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(to_eps(x_t, out, level, kind), noise, atol=1e-5, rtol=1e-5)


def test_equal_diffusers():
    diffusers = pytest.importorskip('diffusers')
    scheduler = diffusers.DDPMScheduler(1000, beta_schedule='scaled_linear', beta_start=0.00085, beta_end=0.012)
    rng = torch.Generator().manual_seed(1)
    x0, noise = torch.randn(3, 4, 6, 6, generator=rng), torch.randn(3, 4, 6, 6, generator=rng)
    t = torch.tensor([3, 500, 999])
    level = DiscreteSchedule(alphas_cumprod()).level(t, x0)
    torch.testing.assert_close(add_noise(x0, noise, level, 'eps'), scheduler.add_noise(x0, noise, t))
    torch.testing.assert_close(target(x0, noise, level, 'v'), scheduler.get_velocity(x0, noise, t))


def test_zero_terminal_snr_only_v():
    x_t, out, zero = torch.randn(2, 1), torch.randn(2, 1), torch.tensor([[0.5], [0.0]])
    assert torch.equal(to_x0(x_t, out, zero, 'v')[1], -out[1])
    assert torch.equal(to_eps(x_t, out, zero, 'v')[1], x_t[1])
    with pytest.raises(ValueError, match='zero terminal SNR'):
        to_x0(x_t, out, zero, 'eps')


def test_half_precision_is_raised_to_float32():
    x = torch.ones(1, 1, dtype=torch.bfloat16)
    for kind in KINDS:
        assert to_x0(x, x, torch.tensor([[0.3]]), kind).dtype == torch.float32


def test_unknown_prediction():
    with pytest.raises(ValueError, match="got 'x0'"):
        to_x0(torch.ones(1), torch.ones(1), torch.tensor(0.5), 'x0')
