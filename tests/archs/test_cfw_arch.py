"""The CFW decoder: the fusion by hand, the stock decoder at weight 0, gradient checkpointing."""

import copy

import pytest
import torch

pytest.importorskip('diffusers')
from diffusers import AutoencoderKL  # noqa: E402

from finpercep_plugin.archs.cfw_arch import CFWAutoencoder, FusionLayer  # noqa: E402

CONFIG = {
    'block_out_channels': [32, 32, 64, 32], 'layers_per_block': 1, 'latent_channels': 4,
    'down_block_types': ['DownEncoderBlock2D'] * 4, 'up_block_types': ['UpDecoderBlock2D'] * 4,
}  # fmt: skip


@pytest.fixture(scope='module')
def vae():
    torch.manual_seed(0)
    return CFWAutoencoder(**CONFIG).eval()


def inputs():
    rng = torch.Generator().manual_seed(1)
    return torch.rand(2, 3, 32, 48, generator=rng) * 2 - 1, torch.randn(2, 4, 4, 6, generator=rng)


def test_fusion_by_hand():
    layer = FusionLayer(32)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.zero_()
        # The first block gives the mean of both features, 4; an RRDB of zeros x + 0.2 x; the last block adds 1.
        both = torch.cat([torch.eye(32), torch.eye(32)], dim=1) / 2
        layer.encode_enc_1.conv_out.weight.copy_(both[..., None, None])
        layer.encode_enc_3.conv2.bias.fill_(1.0)
    encoder, decoder = torch.full((1, 32, 2, 2), 6.0), torch.full((1, 32, 2, 2), 2.0)
    torch.testing.assert_close(layer(encoder, decoder, 0.5), torch.full((1, 32, 2, 2), 2 + 0.5 * (4 * 1.2 * 1.2 + 1)))


def test_rrdb_by_hand():
    block = FusionLayer(32).encode_enc_2[0]
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.zero_()
        for dense in (block.rdb1, block.rdb2, block.rdb3):
            dense.conv5.bias.fill_(1.0)
    # Each dense block adds 0.2 * 1, so the third one gives x + 0.6, of which 0.2 is added to x.
    x = torch.full((1, 32, 2, 2), 3.0)
    torch.testing.assert_close(block(x), x + 0.2 * (x + 0.6))


def test_levels_and_names(vae):
    extra = set(vae.state_dict()) - set(AutoencoderKL(**CONFIG).state_dict())
    assert {name.split('.')[1] for name in extra} == {'fusion_layer_1', 'fusion_layer_2'}
    with torch.no_grad():
        features = vae.features(inputs()[0])
    assert {level: tuple(value.shape[1:]) for level, value in features.items()} == {1: (32, 16, 24), 2: (64, 8, 12)}


def test_weight_0_is_the_stock_decoder(vae):
    image, latent = inputs()
    with torch.no_grad():
        features = vae.features(image)
        plain = vae.decode_with(latent, features, 0.0)
        torch.testing.assert_close(plain, vae.decode(latent).sample, atol=1e-6, rtol=1e-5)
        half, whole = (vae.decode_with(latent, features, weight) for weight in (0.5, 1.0))
    assert (half - plain).abs().max() > 1e-3 and (whole - half).abs().max() > 1e-3


def test_both_features_and_the_latent_get_gradients_with_and_without_checkpointing(vae):
    image, latent = inputs()
    saving = copy.deepcopy(vae)
    saving.enable_gradient_checkpointing()
    ends = []
    for network in (vae, saving):
        with torch.no_grad():
            features = network.features(image)
        leaves = [value.clone().requires_grad_() for value in (latent, *features.values())]
        out = network.decode_with(leaves[0], dict(zip(features, leaves[1:])), 0.5)
        ends.append(torch.autograd.grad(out.square().mean(), leaves))
    for plain, saved in zip(*ends):
        assert plain.abs().max() > 0
        torch.testing.assert_close(saved, plain, atol=0, rtol=1e-6)


def test_without_features(vae):
    image, latent = inputs()
    with pytest.raises(ValueError, match=r'features of levels \[1, 2\], got \[1\]'):
        vae.decode_with(latent, {1: vae.features(image)[1]}, 0.5)
