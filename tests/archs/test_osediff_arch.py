"""OSEDiff's network: which modules hold adapters, what these add, its two entries, checkpointing."""

import pytest
import torch

pytest.importorskip('diffusers')
pytest.importorskip('peft')
from diffusers import AutoencoderKL, UNet2DConditionModel  # noqa: E402

from finpercep_plugin.archs.osediff_arch import (  # noqa: E402
    ALPHA,
    UNET_LISTS,
    VAE_LISTS,
    OSEDiffNetwork,
    adapted_names,
    add_adapters,
    module_lists,
)

UNET = {
    'block_out_channels': [8, 12], 'layers_per_block': 1, 'norm_num_groups': 4, 'cross_attention_dim': 12,
    'attention_head_dim': [2, 3], 'use_linear_projection': True,
    'down_block_types': ['CrossAttnDownBlock2D', 'DownBlock2D'], 'up_block_types': ['UpBlock2D', 'CrossAttnUpBlock2D'],
}  # fmt: skip
VAE = {
    'block_out_channels': [8] * 4, 'layers_per_block': 1, 'latent_channels': 4, 'norm_num_groups': 4,
    'down_block_types': ['DownEncoderBlock2D'] * 4, 'up_block_types': ['UpDecoderBlock2D'] * 4,
}  # fmt: skip
RANK = 2


def plain():
    torch.manual_seed(0)
    return UNet2DConditionModel(**UNET), AutoencoderKL(**VAE)


def adapted(fresh=False):
    """(network, the VAE it has its encoder from); B is not zero unless `fresh`."""
    unet, vae = plain()
    lists = module_lists(unet, vae)
    for module, names in ((unet, UNET_LISTS), (vae, VAE_LISTS)):
        add_adapters(module, {adapter: lists[name] for name, adapter in names.items()}, RANK)
    network = OSEDiffNetwork(unet, vae)
    rng = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, value in network.named_parameters():
            if '.lora_B.' in name and not fresh:
                value.copy_(0.1 * torch.randn(value.shape, generator=rng))
    return network.eval(), vae


def inputs():
    rng = torch.Generator().manual_seed(1)
    image, latent = (torch.randn(*shape, generator=rng) for shape in ((2, 3, 32, 48), (2, 4, 4, 6)))
    return image.clamp(-1, 1), latent, torch.tensor([999, 5]), torch.randn(2, 7, 12, generator=rng)


def test_lists_hold_what_is_trained():
    unet, vae = plain()
    lists = module_lists(unet, vae)
    encoder, decoder, others = (lists[name] for name in UNET_LISTS)
    assert encoder[0] == 'conv_in' and decoder[-1] == 'conv_out'
    assert all(name.startswith('mid_block.') for name in others) and 'mid_block.resnets.0.conv1' in others
    every = [*encoder, *decoder, *others]
    assert len(set(every)) == len(every) and not [name for name in every if 'time_emb' in name or 'norm' in name]
    assert 'down_blocks.0.attentions.0.transformer_blocks.0.ff.net.0.proj' in encoder


def test_the_list_of_the_vae_repeats_names_as_the_release_does():
    names = module_lists(*plain())['vae_lora_encoder_modules']
    counts = {name: names.count(name) for name in names}
    assert counts['encoder.conv_in'] == 2  # 'conv' and 'conv_in'
    assert counts['encoder.mid_block.attentions.0.to_out.0'] == 1
    assert counts['quant_conv'] == 10 and 'post_quant_conv' not in counts
    assert not [name for name in counts if name.startswith('decoder.')]


def test_one_adapter_a_module_and_all_on():
    network, _ = adapted()
    found = {name.split('.lora_A.')[1] for name, _ in network.unet.named_parameters() if '.lora_A.' in name}
    assert found == {f'{adapter}.weight' for adapter in UNET_LISTS.values()}
    for module in network.modules():
        if hasattr(module, 'lora_A'):
            assert len(module.lora_A) == 1 and module.active_adapters == list(module.lora_A)
            assert set(module.scaling.values()) == {ALPHA / RANK}


def test_a_fresh_adapter_adds_nothing_and_another_adds_scaled_b_a():
    fresh, _ = adapted(fresh=True)
    unet, vae = plain()
    image, latent, t, text = inputs()
    with torch.no_grad():
        torch.testing.assert_close(fresh('predict', latent, t, text), unet(latent, t, text).sample)
        torch.testing.assert_close(fresh('encode', image)[0], vae.encode(image).latent_dist.mean)
        network, _ = adapted()
        layer, stock = network.unet.conv_out, unet.conv_out
        down, up = layer.lora_A['default_decoder'].weight, layer.lora_B['default_decoder'].weight
        weight = stock.weight + ALPHA / RANK * torch.einsum('or,rikl->oikl', up[..., 0, 0], down)
        x = torch.randn(1, 8, 4, 4)
        torch.testing.assert_close(layer(x), torch.conv2d(x, weight, stock.bias, padding=1))


def test_encode_is_the_posterior_of_the_adapted_vae():
    network, vae = adapted()
    image = inputs()[0]
    with torch.no_grad():
        expected = vae.encode(image).latent_dist
        mean, std = network('encode', image)
    assert torch.equal(mean, expected.mean) and torch.equal(std, expected.std)
    assert not [name for name, _ in network.named_parameters() if 'decoder' in name and name.startswith('vae.')]


def test_entries_and_names_that_are_not_there():
    network, _ = adapted()
    with pytest.raises(ValueError, match="entries 'encode' and 'predict', not 'decode'"):
        network('decode', torch.zeros(1))
    with pytest.raises(ValueError, match=r"UNet2DConditionModel has no modules \['conv_im', 'mid.x'\]"):
        add_adapters(plain()[0], {'default_encoder': ['conv_in', 'mid.x'], 'default_others': ['conv_im']}, RANK)


def test_names_of_the_adapted_network():
    unet, vae = plain()
    lists = module_lists(unet, vae)
    targets = [name for key in UNET_LISTS for name in lists[key]]
    names = adapted_names(unet.state_dict(), targets)
    network, _ = adapted()
    assert list(names) == [name for name in network.unet.state_dict() if '.lora_' not in name]
    assert torch.equal(names['conv_in.base_layer.weight'], unet.conv_in.weight)


def test_adapters_leave_the_global_generator_alone_and_are_reproducible():
    unet, _ = plain()
    state = torch.get_rng_state()
    add_adapters(unet, {'default_encoder': ['conv_in']}, RANK, seed=4)
    assert torch.equal(torch.get_rng_state(), state)
    other, _ = plain()
    add_adapters(other, {'default_encoder': ['conv_in']}, RANK, seed=4)
    a, b = (x.conv_in.lora_A['default_encoder'].weight for x in (unet, other))
    assert torch.equal(a, b) and not unet.conv_in.lora_B['default_encoder'].weight.any()


def test_gradients_with_and_without_checkpointing():
    image, latent, t, text = inputs()

    def gradients(checkpointing):
        network, _ = adapted()
        network.requires_grad_(True)
        if checkpointing:
            network.enable_gradient_checkpointing()
            network.unet.enable_gradient_checkpointing()
            assert network.vae['encoder'].gradient_checkpointing
        mean, std = network('encode', image)
        network('predict', mean + std * latent, t, text).square().mean().backward()
        return {name: value.grad for name, value in network.named_parameters()}

    kept, recomputed = gradients(False), gradients(True)
    assert all(value is not None for value in kept.values())
    for name, value in kept.items():
        torch.testing.assert_close(recomputed[name], value, rtol=1e-5, atol=1e-5 * float(value.abs().max()))
