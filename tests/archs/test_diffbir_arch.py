import pytest
import torch

pytest.importorskip('diffusers')
from diffusers import ControlNetModel, UNet2DConditionModel  # noqa: E402

from finpercep_plugin.archs.diffbir_arch import DiffBIRNetwork, IRControlNet  # noqa: E402

CONTROL = {
    'in_channels': 8,
    'block_out_channels': [32, 32],
    'down_block_types': ['CrossAttnDownBlock2D', 'DownBlock2D'],
    'layers_per_block': 1,
    'cross_attention_dim': 8,
    'attention_head_dim': 2,
}
UNET = {**CONTROL, 'in_channels': 4, 'out_channels': 4, 'up_block_types': ['UpBlock2D', 'CrossAttnUpBlock2D']}


@pytest.fixture
def network():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return DiffBIRNetwork(UNet2DConditionModel(**UNET), IRControlNet(**CONTROL)).eval()


@pytest.fixture
def inputs():
    rng = torch.Generator().manual_seed(0)
    x, latent = torch.randn(2, 2, 4, 8, 8, generator=rng)
    return x, torch.tensor([10, 900]), latent, torch.randn(2, 5, 8, generator=rng)


def test_its_names_are_those_of_a_stock_controlnet_without_the_embedding(network):
    with torch.device('meta'):
        stock = ControlNetModel(**CONTROL).state_dict()
    own = network.controlnet.state_dict()
    assert own.keys() == {name for name in stock if not name.startswith('controlnet_cond_embedding.')}
    assert network.controlnet.config.in_channels == 8


def test_a_new_controlnet_changes_nothing(network, inputs):
    """Its last convolutions start at zero."""
    x, t, _, text = inputs
    assert torch.equal(network(*inputs), network.unet(x, t, text).sample)


def test_the_condition_enters_beside_the_latent_and_is_scaled(network, inputs):
    x, t, latent, text = inputs
    with torch.no_grad():
        network.controlnet.controlnet_down_blocks[0].weight.copy_(torch.eye(32)[..., None, None])
        first = network.controlnet.conv_in(torch.cat([x, latent], 1))  # the first skip is the input layer's output
        torch.testing.assert_close(network.controlnet.control(*inputs)[0][0], first)
        torch.testing.assert_close(network.controlnet.control(*inputs, 0.5)[0][0], 0.5 * first)
        assert not torch.equal(network(*inputs), network(x, t, latent + 1, text))
        assert torch.equal(network(*inputs, 0.0), network.unet(x, t, text).sample)


def test_gradients_reach_both_latents_and_the_controlnet_under_checkpointing(network, inputs):
    with torch.no_grad():
        for module in (*network.controlnet.controlnet_down_blocks, network.controlnet.controlnet_mid_block):
            module.weight.fill_(0.1)
    grads = []
    for checkpointing in (False, True):
        if checkpointing:
            network.unet.enable_gradient_checkpointing()
            network.controlnet.enable_gradient_checkpointing()
        given = [value.clone().requires_grad_(value.is_floating_point()) for value in inputs]
        network.zero_grad()
        network(*given).square().sum().backward()
        grads.append([given[0].grad, given[2].grad, network.controlnet.conv_in.weight.grad.clone()])
    for plain, checkpointed in zip(*grads):
        assert plain.abs().max() > 0
        assert (plain - checkpointed).abs().max() <= 1e-5 * plain.abs().max()


def test_a_condition_of_another_size(network, inputs):
    x, t, latent, text = inputs
    with pytest.raises(RuntimeError, match='Sizes of tensors must match'):
        network(x, t, latent[..., :4], text)
