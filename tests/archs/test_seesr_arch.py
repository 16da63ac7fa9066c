"""SeeSR's networks: where the image tokens act, names, gradient checkpointing, copies, released configs."""

import copy

import pytest
import torch

pytest.importorskip('diffusers')
from diffusers import ControlNetModel, UNet2DConditionModel  # noqa: E402

from finpercep_plugin.archs.seesr_arch import SeeSRControlNet, SeeSRNetwork, SeeSRUNet  # noqa: E402

CONFIG = {
    'block_out_channels': [16, 24, 24], 'layers_per_block': 1, 'norm_num_groups': 4, 'cross_attention_dim': 12,
    'attention_head_dim': [2, 3, 3], 'use_linear_projection': True,
    'down_block_types': ['CrossAttnDownBlock2D', 'CrossAttnDownBlock2D', 'DownBlock2D'],
}  # fmt: skip
UNET = {**CONFIG, 'up_block_types': ['UpBlock2D', 'CrossAttnUpBlock2D', 'CrossAttnUpBlock2D']}
CONTROLNET = {**CONFIG, 'conditioning_embedding_out_channels': [4, 8, 12, 16]}
NOTES = {'_class_name': 'UNet2DConditionModel', '_diffusers_version': '0.21.0', 'use_image_cross_attention': True}


def _network():
    torch.manual_seed(0)
    network = SeeSRNetwork(SeeSRUNet(image_dim=20, **UNET), SeeSRControlNet(image_dim=20, **CONTROLNET))
    with torch.no_grad():  # a fresh ControlNet adds nothing
        for name, parameter in network.controlnet.named_parameters():
            if name.startswith(('controlnet_down', 'controlnet_mid', 'controlnet_cond_embedding.conv_out')):
                parameter += 0.2 * torch.randn(parameter.shape)
    return network


def _inputs(batch=2, height=8, width=12):
    torch.manual_seed(1)
    latent = torch.randn(batch, 4, height, width)
    texts, tokens = torch.randn(batch, 7, 12), torch.randn(batch, 10, 20)
    return latent, torch.tensor([3, 950])[:batch], texts, tokens, torch.rand(batch, 3, 8 * height, 8 * width)


def test_names_are_the_stock_ones_and_the_image_attentions():
    network = _network()
    for ours, stock, blocks in [
        (network.unet, UNet2DConditionModel(**UNET), 5),
        (network.controlnet, ControlNetModel(**CONTROLNET), 3),
    ]:
        extra = set(ours.state_dict()) - set(stock.state_dict())
        assert set(stock.state_dict()) <= set(ours.state_dict())
        assert {name.split('.image_attentions.')[0] for name in extra} == {
            f'{part}' for part in ('down_blocks.0', 'down_blocks.1', 'mid_block', 'up_blocks.1', 'up_blocks.2')[:blocks]
        }
    weight = 'down_blocks.1.image_attentions.0.transformer_blocks.0.attn2.to_k.weight'
    assert network.unet.state_dict()[weight].shape == (24, 20)


def test_without_the_image_attentions_it_is_the_stock_network():
    network, (x, t, text, tokens, image) = _network(), _inputs()
    stock_unet, stock_control = UNet2DConditionModel(**UNET), ControlNetModel(**CONTROLNET)
    stock_unet.load_state_dict({k: v for k, v in network.unet.state_dict().items() if 'image_att' not in k})
    stock_control.load_state_dict({k: v for k, v in network.controlnet.state_dict().items() if 'image_att' not in k})
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if 'image_attentions' in name and '.proj_out.' in name:  # the transformer's residual branch
                parameter.zero_()
        down, mid = stock_control(x, t, text, image, 0.7, return_dict=False)
        expected = stock_unet(
            x, t, text, down_block_additional_residuals=down, mid_block_additional_residual=mid, return_dict=False
        )[0]
        torch.testing.assert_close(network(x, t, text, tokens, image, 0.7), expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    'place', ['controlnet.down_blocks.0', 'controlnet.mid_block', 'unet.mid_block', 'unet.up_blocks.2']
)
def test_every_input_and_every_image_attention_matters(place):
    network, inputs = _network(), _inputs()
    with torch.no_grad():
        out = network(*inputs)
        for i in range(1, 5):
            other = [value.flip(0) if k == i else value for k, value in enumerate(inputs)]
            assert not torch.allclose(network(*other), out, atol=1e-4), f'input {i} does not matter'
        assert not torch.allclose(network(*inputs, conditioning_scale=0.0), out, atol=1e-4)
        network.get_submodule(f'{place}.image_attentions.0.proj_out').weight.mul_(2)
        assert not torch.allclose(network(*inputs), out, atol=1e-5)


def test_independent_of_batch():
    network, inputs = _network(), _inputs()
    with torch.no_grad():
        parts = torch.cat([network(*(value[i : i + 1] for value in inputs)) for i in range(2)])
        torch.testing.assert_close(network(*inputs), parts, atol=1e-5, rtol=1e-4)


def _backward(network, inputs):
    kept = 0

    def pack(value):
        nonlocal kept
        kept += value.numel()
        return value

    network.zero_grad()
    x, t, *rest = (value.clone() for value in inputs)
    leaves = [value.requires_grad_() for value in (x, *rest)]
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
        out = network(x, t, *rest)
    out.square().sum().backward()
    grads = {name: parameter.grad for name, parameter in network.named_parameters()}
    return {**grads, **{f'input {i}': leaf.grad for i, leaf in enumerate(leaves)}}, kept


def test_checkpointing_gives_the_same_gradients_and_keeps_less():
    network, inputs = _network(), _inputs()
    plain, kept = _backward(network, inputs)
    network.enable_gradient_checkpointing()
    again, kept_again = _backward(network, inputs)
    assert [name for name, value in plain.items() if value is None] == []
    for name, value in plain.items():
        assert (again[name] - value).abs().max() <= 1e-5 * value.abs().max(), name
    assert kept_again < 0.5 * kept
    network.disable_gradient_checkpointing()
    assert _backward(network, inputs)[1] == kept


def test_checkpointing_covers_the_image_attentions():
    network = _network()
    network.enable_gradient_checkpointing()
    modules = [m for name, m in network.named_modules() if name.split('.')[-2:-1] == ['image_attentions']]
    assert len(modules) == 2 + 1 + 4 + 2 + 1 and all(module.gradient_checkpointing for module in modules)


def test_a_copy_has_image_attentions_of_its_own():
    network, inputs = _network(), _inputs()
    with torch.no_grad():
        out, twin = network(*inputs), copy.deepcopy(network)
        twin.unet.mid_block.image_attentions[0].proj_out.weight.zero_()
        assert torch.equal(network(*inputs), out) and not torch.allclose(twin(*inputs), out, atol=1e-5)
        start = {'unet.mid_block.image_attentions.0.proj_out.weight': torch.zeros(24, 24)}
        torch.testing.assert_close(torch.func.functional_call(network, start, inputs), twin(*inputs))


def test_released_config_and_bad_ones():
    assert SeeSRUNet(**UNET, **NOTES).config.cross_attention_dim == 12
    with pytest.raises(ValueError, match='not a network of SeeSR'):
        SeeSRControlNet(**CONTROLNET, use_image_cross_attention=False)
    with pytest.raises(TypeError, match='down_blocks'):
        SeeSRUNet(**UNET, down_blocks=3)
    x, t, text, _, _ = _inputs()
    with pytest.raises(ValueError, match='image_encoder_hidden_states'):
        _network().unet(x, t, text)
