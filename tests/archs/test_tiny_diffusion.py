"""FinPercepTinyDiffusion: any size, zero start, gradient, bad options."""

import pytest
import torch

pytest.importorskip('diffusers')
from finpercep_plugin.archs.tiny_diffusion_arch import FinPercepTinyDiffusion  # noqa: E402


def _network(**options):
    torch.manual_seed(0)
    network = FinPercepTinyDiffusion(**{'channels': [8, 8], 'norm_groups': 4, **options})
    torch.nn.init.normal_(network.unet.conv_out.weight, std=0.1)
    return network


@pytest.mark.parametrize('shuffle', [2, 4])
@pytest.mark.parametrize('size', [(32, 32), (33, 50), (7, 16)])
def test_any_size(shuffle, size):
    x = torch.randn(2, 3, *size)
    assert _network(shuffle=shuffle)(x, torch.tensor([3, 900]), torch.rand(2, 3, *size)).shape == x.shape


def test_attention():
    x = torch.randn(1, 3, 16, 32)
    assert _network(attention=True)(x, 3, torch.rand(1, 3, 16, 32)).shape == x.shape
    assert 'unet.mid_block.attentions.0.to_q.weight' in _network(attention=True).state_dict()


def test_starts_at_zero_and_every_parameter_gets_gradient_after_it():
    fresh = FinPercepTinyDiffusion(channels=[8, 8], norm_groups=4)
    x, lq_up, t = torch.randn(1, 3, 32, 32), torch.rand(1, 3, 32, 32), torch.tensor([10])
    assert not fresh(x, t, lq_up).any()
    network = _network()
    network(x, t, lq_up).square().sum().backward()
    assert [name for name, value in network.named_parameters() if value.grad is None or not value.grad.any()] == []


def test_condition_and_timestep_matter():
    network, x, lq_up = _network(), torch.randn(1, 3, 16, 16), torch.rand(1, 3, 16, 16)
    out = network(x, 5, lq_up)
    assert not torch.allclose(out, network(x, 800, lq_up))
    assert not torch.allclose(out, network(x, 5, lq_up.flip(-1)))
    assert torch.equal(out, network(x, torch.tensor([5]), lq_up))


def test_independent_of_batch():
    network, x, lq_up, t = _network(), torch.randn(3, 3, 16, 24), torch.rand(3, 3, 16, 24), torch.tensor([1, 50, 700])
    whole = network(x, t, lq_up)
    parts = torch.cat([network(x[i : i + 1], t[i : i + 1], lq_up[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(whole, parts, atol=1e-6, rtol=1e-5)


def test_bad_widths():
    with pytest.raises(ValueError, match=r'divisible by norm_groups \(8\), got \[12\]'):
        FinPercepTinyDiffusion(channels=[12])
    with pytest.raises(ValueError, match='at least one width'):
        FinPercepTinyDiffusion(channels=[])
