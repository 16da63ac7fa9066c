"""StableSR's networks: what SPADE adds, where the condition goes, names, gradient checkpointing, functional calls."""

import copy

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip('diffusers')
from diffusers import UNet2DConditionModel  # noqa: E402

from finpercep_plugin.archs.stablesr_arch import Spade, StableSRNetwork, StructureEncoder, add_spade  # noqa: E402

UNET = {
    'block_out_channels': [32, 64], 'layers_per_block': 1, 'cross_attention_dim': 12, 'attention_head_dim': [2, 4],
    'down_block_types': ['CrossAttnDownBlock2D', 'DownBlock2D'], 'use_linear_projection': True,
    'up_block_types': ['UpBlock2D', 'CrossAttnUpBlock2D'],
}  # fmt: skip


def make(seed=0):
    torch.manual_seed(seed)
    return StableSRNetwork(
        add_spade(UNet2DConditionModel(**UNET), 32), StructureEncoder(4, 32, 32, 1, (1, 2), (1, 2))
    ).eval()


def inputs(height=8, width=12):
    rng = torch.Generator().manual_seed(1)
    latent = torch.randn(2, 2, 4, height, width, generator=rng)
    return latent[0], torch.tensor([999, 5]), torch.randn(2, 7, 12, generator=rng), latent[1]


def test_spade_by_hand():
    spade = Spade(32, 1, hidden=2)
    with torch.no_grad():
        for parameter in spade.parameters():
            parameter.zero_()
        spade.param_free_norm.weight.fill_(2.0)
        spade.mlp_shared[0].bias.copy_(torch.tensor([3.0, -1.0]))  # after ReLU: 3, 0
        spade.mlp_gamma.weight[:, :, 1, 1] = 0.5
        spade.mlp_beta.bias.fill_(10.0)
    x = torch.tensor([1.0, -1.0]).view(1, 1, 1, 2).expand(1, 32, 1, 2)
    # normed: 2 * +-1; gamma = 0.5 * 3 = 1.5; 2 * 2.5 + 10 = 15
    expected = torch.tensor([15.0, 5.0]).view(1, 1, 1, 2).expand_as(x)
    torch.testing.assert_close(spade(x, torch.zeros(1, 1, 1, 2)), expected, atol=1e-3, rtol=0)


def test_names_are_the_stock_ones_and_spade():
    ours, stock = make().unet.state_dict(), UNet2DConditionModel(**UNET).state_dict()
    extra = set(ours) - set(stock)
    blocks = {name.rpartition('.norm1.')[0] for name in stock if '.resnets.' in name and name.endswith('.norm1.weight')}
    assert set(stock) <= set(ours) and {name.split('.spade.')[0] for name in extra} == blocks


def test_spade_that_does_nothing_leaves_the_stock_unet():
    """With norm weight and gamma 0 and beta the identity it would not be stock: so bypass SPADE and compare."""
    network = make()
    stock = UNet2DConditionModel(**UNET)
    stock.load_state_dict({name: value for name, value in network.unet.state_dict().items() if '.spade.' not in name})
    for module in network.unet.modules():
        if isinstance(module, Spade):
            module.forward = lambda x, feature: x
    x, t, text, z_lq = inputs()
    with torch.no_grad():
        torch.testing.assert_close(network(x, t, text, z_lq), stock(x, t, text).sample, atol=1e-6, rtol=1e-5)


def test_a_condition_belongs_to_its_call():
    """Nothing of one call is left for the next, and a batch is its rows."""
    network, (x, t, text, z_lq) = make(), inputs()
    with torch.no_grad():
        first = network(x, t, text, z_lq)
        other = network(x, t, text, z_lq.flip(0))
        assert (first - other).abs().max() > 1e-3
        torch.testing.assert_close(network(x, t, text, z_lq), first, atol=0, rtol=0)
        for i in range(2):
            row = slice(i, i + 1)
            torch.testing.assert_close(network(x[row], t[row], text[row], z_lq[row]), first[row], atol=1e-5, rtol=1e-5)


def test_the_encoder_is_told_the_time():
    """Two channels a normalised group: of one, the normalisation would take the time's shift away."""
    encoder, z_lq = StructureEncoder(4, 64, 64, 1, (1, 2), (1, 1)), inputs()[-1]
    early, late = (encoder(z_lq, torch.tensor([t, t])) for t in (1, 900))
    assert list(early) == list(late) == [(8, 12), (4, 6)]
    assert all((early[size] - late[size]).abs().max() > 1e-3 for size in early)


@pytest.mark.parametrize('height, width', [(7, 10), (9, 5), (2, 2)])
def test_odd_sizes(height, width):
    x, t, text, z_lq = inputs(height, width)
    assert make()(x, t, text, z_lq).shape == x.shape


def test_gradients_with_checkpointing_are_the_same():
    plain = make()
    saving = copy.deepcopy(plain)
    saving.enable_gradient_checkpointing()
    x, t, text, z_lq = inputs()
    ends = []
    for network in (plain, saving):
        condition = z_lq.clone().requires_grad_()
        first = network(x, t, text, condition)
        with torch.no_grad():
            network(-x, t.flip(0), text, -z_lq)  # another call before the first one's backward pass
        F.mse_loss(first, x).backward()
        ends.append((condition.grad, {name: p.grad for name, p in network.named_parameters()}))
    (condition, gradients), (condition_saving, gradients_saving) = ends
    torch.testing.assert_close(condition_saving, condition, atol=0, rtol=1e-6)
    for name, gradient in gradients.items():
        assert gradient is not None and gradient.abs().max() > 0, name
        torch.testing.assert_close(gradients_saving[name], gradient, atol=0, rtol=1e-6)


def test_checkpointing_keeps_less():
    network, (x, t, text, z_lq) = make(), inputs()
    kept = []
    for _ in range(2):
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda v, sizes=sizes: sizes.append(v.numel()) or v, lambda v: v):
            network(x, t, text, z_lq)
        kept.append(sum(sizes))
        network.enable_gradient_checkpointing()
    assert kept[1] < 0.5 * kept[0]


def test_functional_call_reaches_every_part():
    network, other, (x, t, text, z_lq) = make(), make(seed=1), inputs()
    with torch.no_grad():
        found = torch.func.functional_call(network, dict(other.named_parameters()), (x, t, text, z_lq))
        torch.testing.assert_close(found, other(x, t, text, z_lq), atol=0, rtol=0)
        spade = {name: value for name, value in other.named_parameters() if '.spade.' in name}
        changed = torch.func.functional_call(network, spade, (x, t, text, z_lq))
    assert (changed - network(x, t, text, z_lq)).abs().max() > 1e-3


def test_calls_without_features_or_with_those_of_another_size():
    network, (x, t, text, z_lq) = make(), inputs()
    with pytest.raises(ValueError, match='timestep_cond=features'):
        network.unet(x, t, text)
    with pytest.raises(ValueError, match=r'no structure feature of size \(8, 12\), only \[\(6, 12\), \(3, 6\)\]'):
        network(x, t, text, z_lq[:, :, :6])
