"""DiT4SR's transformer: any size, checkpointing, functional calls, autocast, batches, names, bad input."""

import pytest
import torch

pytest.importorskip('diffusers')
from diffusers import SD3Transformer2DModel  # noqa: E402

from finpercep_plugin.archs.dit4sr_arch import DiT4SRNetwork, DiT4SRTransformer, is_inert  # noqa: E402

CONFIG = {
    'sample_size': 16, 'patch_size': 2, 'in_channels': 4, 'out_channels': 4, 'num_layers': 3, 'attention_head_dim': 4,
    'num_attention_heads': 2, 'joint_attention_dim': 12, 'caption_projection_dim': 8, 'pooled_projection_dim': 10,
    'pos_embed_max_size': 12, 'dual_attention_layers': [0, 1], 'qk_norm': 'rms_norm',
}  # fmt: skip


def _network(variant='r1', **options):
    """Random everywhere, so that everything matters."""
    torch.manual_seed(0)
    network = DiT4SRNetwork(DiT4SRTransformer(variant, **{**CONFIG, **options}))
    with torch.no_grad():
        for value in network.parameters():
            value.copy_(
                torch.randn(value.shape) * value[0].numel() ** -0.5 if value.ndim > 1 else torch.rand_like(value)
            )
    return network


def _inputs(batch=2, height=8, width=12):
    rng = torch.Generator().manual_seed(1)
    latent = (batch, 4, height, width)
    shapes = latent, (batch, 5, 12), (batch, 10), latent
    x, text, pooled, lq = (torch.randn(shape, generator=rng) for shape in shapes)
    return x, torch.linspace(950.0, 100.0, batch), text, pooled, lq


def _gradients(network, run, inputs):
    x = inputs[0].clone().requires_grad_()
    named = {name: value for name, value in network.named_parameters() if value.requires_grad}
    values = torch.autograd.grad(run(x, *inputs[1:]).square().sum(), [x, *named.values()], allow_unused=True)
    return dict(zip(['x', *named], values))


def _assert_equal(ours, expected, tolerance=1e-5):
    assert ours.keys() == expected.keys()
    for name, value in expected.items():
        assert (ours[name] is None) == (value is None), name
        if value is not None:
            assert (ours[name] - value).abs().max() <= tolerance * value.abs().max(), name


@pytest.mark.parametrize('size', [(8, 8), (8, 12), (12, 8), (2, 24)])
def test_any_size_and_everything_gets_gradient(size):
    network = _network()
    assert network(*_inputs(2, *size)).shape == (2, 4, *size)
    gradients = _gradients(network, network, _inputs(2, *size))
    dead = [name for name, value in gradients.items() if value is None or not value.any()]
    last = 'transformer.transformer_blocks.2.attn.'  # has no use for what its text asks, in Stable Diffusion 3 too
    assert dead == [last + 'add_q_proj.weight', last + 'add_q_proj.bias', last + 'norm_added_q.weight']


def test_a_transposed_latent_gives_the_transposed_result():
    network = _network()
    x, t, text, pooled, lq = _inputs(1, 8, 12)
    expected = network(x, t, text, pooled, lq).mT
    transformer = network.transformer
    with torch.no_grad():
        grid = transformer.pos_embed.pos_embed.unflatten(1, (12, 12))
        grid.copy_(grid.transpose(1, 2).clone())
        for name, value in network.named_parameters():
            if name.endswith(('control_conv.weight', 'pos_embed.proj.weight')):
                value.copy_(value.mT.clone())
        for value in (transformer.proj_out.weight, transformer.proj_out.bias):  # its rows: (patch, patch, C)
            value.copy_(value.unflatten(0, (2, 2, 4)).transpose(0, 1).flatten(0, 2).clone())
    torch.testing.assert_close(network(x.mT, t, text, pooled, lq.mT), expected, rtol=1e-4, atol=1e-5)


def test_v1_does_not_read_its_control_key():
    gradients = _gradients(network := _network('v1'), network, _inputs())
    dead = {name for name, value in gradients.items() if value is None or not value.any()}
    assert {name for name in gradients if '.to_k_control.' in name} == {name for name in dead if 'control' in name}


def test_control_scale_and_condition_matter():
    network, (x, t, text, pooled, lq) = _network(), _inputs()
    out = network(x, t, text, pooled, lq)
    assert torch.equal(out, network(x, t, text, pooled, lq, 1.2))
    mixed = network(x, t, text, pooled, lq, torch.tensor([1.2, 1.0]))
    torch.testing.assert_close(mixed, torch.stack([out[0], network(x, t, text, pooled, lq, 1.0)[1]]))
    for other in [(x, t, text, pooled, lq, 1.0), (x, t / 2, text, pooled, lq), (x, t, -text, pooled, lq),
                  (x, t, text, -pooled, lq), (x, t, text, pooled, -lq)]:  # fmt: skip
        assert (network(*other) - out).abs().max() > 1e-3


def test_checkpointing_gives_the_same_gradients():
    network, inputs = _network(), _inputs()
    expected = _gradients(network, network, inputs)
    network.transformer.enable_gradient_checkpointing()
    _assert_equal(_gradients(network, network, inputs), expected)


@pytest.mark.parametrize('checkpointing', [False, True])
def test_functional_call_uses_the_given_tensors_forwards_and_backwards(checkpointing):
    network, inputs = _network(), _inputs()
    names = [name for name, _ in network.named_parameters() if 'control' in name]
    given = {name: (0.5 * network.get_parameter(name)).detach() for name in names}
    other = _network()
    other.load_state_dict(given, strict=False)
    for name in names:
        network.get_parameter(name).requires_grad_(False)
        other.get_parameter(name).requires_grad_(False)
    expected = _gradients(other, other, inputs)
    if checkpointing:
        network.transformer.enable_gradient_checkpointing()
    ours = _gradients(network, lambda *args: torch.func.functional_call(network, given, args), inputs)
    _assert_equal(ours, expected)


@pytest.mark.parametrize('checkpointing', [False, True])
def test_autocast_with_frozen_weights_in_half_precision(checkpointing):
    network, inputs = _network(), _inputs()
    exact = network(*inputs)
    for name, value in network.named_parameters():
        value.requires_grad_('control' in name)
        if 'control' not in name:
            value.data = value.data.to(torch.bfloat16)
    if checkpointing:
        network.transformer.enable_gradient_checkpointing()
    with torch.autocast('cpu', torch.bfloat16):
        out = network(*inputs)
    assert (out.float() - exact).abs().max() < 0.1 * exact.abs().max()
    out.float().square().sum().backward()
    gradients = [value.grad for value in network.parameters() if value.requires_grad]
    assert gradients and all(value.dtype == torch.float32 and value.any() for value in gradients)


def test_independent_of_batch():
    network, inputs = _network(), _inputs(3)
    whole = network(*inputs)
    parts = torch.cat([network(*(value[i : i + 1] for value in inputs)) for i in range(3)])
    torch.testing.assert_close(whole, parts, atol=1e-5, rtol=1e-5)


def test_names_are_those_of_the_stock_transformer_and_control():
    with torch.device('meta'):
        ours = {name: value.shape for name, value in DiT4SRTransformer('v1', **CONFIG).state_dict().items()}
        stock = {name: value.shape for name, value in SD3Transformer2DModel(**CONFIG).state_dict().items()}
    assert {name: shape for name, shape in ours.items() if 'control' not in name} == stock
    assert len(ours) - len(stock) == 3 * 2 + (3 + 2) * 8  # control_conv; four linear layers in every attention
    assert not any(map(is_inert, ours))


def test_bad_input():
    with pytest.raises(ValueError, match="'v1' or 'r1', got 'r2'"):
        DiT4SRTransformer('r2', **CONFIG)
    with pytest.raises(ValueError, match='caption_projection_dim must be 2 x 4, .* got 9'):
        DiT4SRTransformer('v1', **{**CONFIG, 'caption_projection_dim': 9})
    x, t, text, pooled, lq = _inputs(1, 8, 8)
    with pytest.raises(ValueError, match=r'one shape, .* got \(1, 4, 8, 8\) and \(1, 4, 8, 6\)'):
        _network()(x, t, text, pooled, lq[..., :6])
    with pytest.raises(ValueError, match='divisible by 2'):
        _network()(x[..., :7], t, text, pooled, lq[..., :7])
