"""Frozen weights in bfloat16: which are cast, and that a step under autocast is nearly that in float32."""

import pytest
import torch
from torch import nn

from finpercep_plugin.models.precision import cast_frozen


def network():
    torch.manual_seed(0)
    return nn.ModuleDict(
        {
            'conv': nn.Conv2d(3, 8, 3, padding=1),
            'up': nn.ConvTranspose2d(8, 8, 2, 2),
            'norm': nn.GroupNorm(2, 8),
            'embedding': nn.Embedding(4, 8),
            'linear': nn.Linear(8, 8, bias=False),
            'attention': nn.MultiheadAttention(8, 2, batch_first=True),
            'out': nn.Linear(8, 1),
        }
    )


def test_frozen_linear_and_convolution_layers_alone():
    net = network().requires_grad_(False)
    net['out'].bias.requires_grad_()  # a layer is cast as a whole or not at all
    count = cast_frozen(net)
    kinds = {name: value.dtype for name, value in net.named_parameters()}
    low = {name for name, dtype in kinds.items() if dtype == torch.bfloat16}
    attention = {'in_proj_weight', 'in_proj_bias', 'out_proj.weight', 'out_proj.bias'}
    attention = {f'attention.{name}' for name in attention}
    assert low == {'conv.weight', 'conv.bias', 'up.weight', 'up.bias', 'linear.weight', *attention}
    assert set(kinds.values()) == {torch.bfloat16, torch.float32}
    assert count == 8 * 3 * 9 + 8 + 8 * 8 * 4 + 8 + 64 + 4 * (64 + 8)


def test_nothing_that_trains():
    net = network()
    assert cast_frozen(net) == 0 and {value.dtype for value in net.parameters()} == {torch.float32}
    assert cast_frozen(nn.Linear(2, 2).requires_grad_(False), torch.float16) == 6


def test_the_layers_below_a_lora_are_cast_and_the_adapters_are_not():
    pytest.importorskip('peft')
    from finpercep_plugin.generators.lora import add_lora, lora_parameters

    net = network().requires_grad_(False)
    add_lora(net, 2, 2.0, ['conv', 'linear'])
    for value in net.parameters():
        value.requires_grad_(False)
    for value in lora_parameters(net).values():
        value.requires_grad_()
    cast_frozen(net)
    low = {name for name, value in net.named_parameters() if value.dtype == torch.bfloat16}
    assert {'conv.base_layer.weight', 'linear.base_layer.weight'} <= low
    assert not [name for name in low if '.lora_' in name]


def run(net, image):
    hidden = net['norm'](net['up'](net['conv'](image))).mean((2, 3)) + net['embedding'](torch.tensor([1]))
    hidden = hidden + net['attention'](*[hidden[:, None]] * 3, need_weights=False)[0][:, 0]
    return net['out'](net['linear'](hidden)).float().sum()


def test_a_step_under_autocast_equals_that_of_float32_weights():
    """Autocast would round the weights to bfloat16 at every call; holding them so changes nothing."""
    image, results = torch.rand(1, 3, 4, 4, generator=torch.Generator().manual_seed(1)), []
    for cast in (False, True):
        net = network().requires_grad_(False)
        net['norm'].requires_grad_()
        if cast:
            assert cast_frozen(net)
        with torch.autocast('cpu', torch.bfloat16):
            loss = run(net, image)
        loss.backward()
        results.append((loss.detach(), net['norm'].weight.grad))
    assert results[0][0].dtype == torch.float32 and results[1][1].any()
    torch.testing.assert_close(*[value for value, _ in results], atol=0, rtol=0)
    torch.testing.assert_close(*[gradient for _, gradient in results], atol=0, rtol=0)
