import pytest
import torch
from diffusers import AutoencoderKL, ControlNetModel, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from finpercep_plugin.archs.ldm_keys import controlnet_keys, fit, text_inert, text_keys, text_state, unet_keys, vae_keys

UNET = {
    'block_out_channels': (32, 64, 64),
    'layers_per_block': 2,
    'down_block_types': ('CrossAttnDownBlock2D', 'CrossAttnDownBlock2D', 'DownBlock2D'),
    'cross_attention_dim': 16,
    'attention_head_dim': 2,
    'use_linear_projection': True,
}
TEXT = CLIPTextConfig(
    vocab_size=20, hidden_size=8, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
    max_position_embeddings=5, hidden_act='gelu',
)  # fmt: skip


def names(kind, *args, **options):
    with torch.device('meta'):
        return list(kind(*args, **options).state_dict())


def open_clip_state(layers=3, width=8):
    """A text tower in open_clip's layout whose values are all different."""
    shapes = {
        'ln_1.weight': [width], 'ln_1.bias': [width], 'attn.in_proj_weight': [3 * width, width],
        'attn.in_proj_bias': [3 * width], 'attn.out_proj.weight': [width, width], 'attn.out_proj.bias': [width],
        'ln_2.weight': [width], 'ln_2.bias': [width], 'mlp.c_fc.weight': [4 * width, width],
        'mlp.c_fc.bias': [4 * width], 'mlp.c_proj.weight': [width, 4 * width], 'mlp.c_proj.bias': [width],
    }  # fmt: skip
    every = {f'transformer.resblocks.{i}.{name}': shape for i in range(layers) for name, shape in shapes.items()}
    every.update(
        {'token_embedding.weight': [20, width], 'positional_embedding': [5, width], 'text_projection': [width, width]},
        **{'logit_scale': [], 'ln_final.weight': [width], 'ln_final.bias': [width]},
    )
    rng = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=rng) for name, shape in every.items()}


def test_a_unet_of_three_levels_by_hand():
    up = ('UpBlock2D', 'CrossAttnUpBlock2D', 'CrossAttnUpBlock2D')
    keys = unet_keys(names(UNet2DConditionModel, **UNET, up_block_types=up))
    expected = {
        'conv_in.weight': 'input_blocks.0.0.weight',
        'time_embedding.linear_2.bias': 'time_embed.2.bias',
        'down_blocks.0.resnets.1.norm2.weight': 'input_blocks.2.0.out_layers.0.weight',
        'down_blocks.0.attentions.1.transformer_blocks.0.attn2.to_out.0.bias': (
            'input_blocks.2.1.transformer_blocks.0.attn2.to_out.0.bias'
        ),
        'down_blocks.0.downsamplers.0.conv.weight': 'input_blocks.3.0.op.weight',
        'down_blocks.1.resnets.0.conv_shortcut.bias': 'input_blocks.4.0.skip_connection.bias',
        'down_blocks.2.resnets.1.time_emb_proj.weight': 'input_blocks.8.0.emb_layers.1.weight',
        'mid_block.resnets.1.conv1.weight': 'middle_block.2.in_layers.2.weight',
        'mid_block.attentions.0.proj_in.weight': 'middle_block.1.proj_in.weight',
        'up_blocks.0.upsamplers.0.conv.weight': 'output_blocks.2.1.conv.weight',  # no attention before it
        'up_blocks.1.upsamplers.0.conv.weight': 'output_blocks.5.2.conv.weight',
        'up_blocks.2.attentions.2.norm.weight': 'output_blocks.8.1.norm.weight',
        'conv_norm_out.bias': 'out.0.bias',
        'conv_out.weight': 'out.2.weight',
    }
    assert {name: keys[name] for name in expected} == expected
    assert len(set(keys.values())) == len(keys)


def test_what_was_added_below_a_residual_block_passes_through():
    stock = [f'down_blocks.0.resnets.{i}.norm1.weight' for i in range(2)]
    added = ['down_blocks.1.resnets.0.spade.mlp_gamma.weight', 'mid_block.resnets.1.spade.mlp_gamma.weight']
    keys = unet_keys([*stock, *added, 'up_blocks.1.resnets.2.conv1x.weight'])
    assert [keys[name] for name in added] == [
        'input_blocks.4.0.spade.mlp_gamma.weight',
        'middle_block.2.spade.mlp_gamma.weight',
    ]
    assert keys['up_blocks.1.resnets.2.conv1x.weight'] == 'output_blocks.5.0.conv1x.weight'  # only whole words change


def test_a_name_without_a_place():
    with pytest.raises(ValueError, match='add_embedding.linear_1.weight has no place'):
        unet_keys(['conv_in.weight', 'add_embedding.linear_1.weight'])
    with pytest.raises(ValueError, match='vision_model.bias has no place'):
        text_keys(['vision_model.bias'])


def test_a_controlnet_leaves_its_conditioning_embedding_out():
    ours = names(ControlNetModel, in_channels=8, **UNET)
    keys = controlnet_keys(ours)
    assert {name for name in ours if name not in keys} == {
        n for n in ours if n.startswith('controlnet_cond_embedding.')
    }
    assert keys['controlnet_down_blocks.8.weight'] == 'zero_convs.8.0.weight'
    assert keys['controlnet_mid_block.bias'] == 'middle_block_out.0.bias'
    assert len(set(keys.values())) == len(keys)


def test_a_vae_by_hand():
    widths = {'block_out_channels': (32, 32, 64), 'layers_per_block': 1}
    types = {'down_block_types': ['DownEncoderBlock2D'] * 3, 'up_block_types': ['UpDecoderBlock2D'] * 3}
    keys = vae_keys([*names(AutoencoderKL, **widths, **types), 'decoder.fusion_layer_1.conv1.weight'])
    expected = {
        'encoder.down_blocks.2.resnets.0.conv_shortcut.weight': 'encoder.down.2.block.0.nin_shortcut.weight',
        'encoder.down_blocks.0.downsamplers.0.conv.bias': 'encoder.down.0.downsample.conv.bias',
        'encoder.mid_block.resnets.1.conv2.weight': 'encoder.mid.block_2.conv2.weight',
        'encoder.mid_block.attentions.0.to_out.0.weight': 'encoder.mid.attn_1.proj_out.weight',
        'decoder.mid_block.attentions.0.group_norm.bias': 'decoder.mid.attn_1.norm.bias',
        'decoder.mid_block.attentions.0.to_q.weight': 'decoder.mid.attn_1.q.weight',
        'decoder.up_blocks.0.resnets.1.norm1.weight': 'decoder.up.2.block.1.norm1.weight',  # LDM counts from the end
        'decoder.up_blocks.1.upsamplers.0.conv.weight': 'decoder.up.1.upsample.conv.weight',
        'decoder.conv_norm_out.weight': 'decoder.norm_out.weight',
        'decoder.conv_out.weight': 'decoder.conv_out.weight',
        'quant_conv.weight': 'quant_conv.weight',
        'decoder.fusion_layer_1.conv1.weight': 'decoder.fusion_layer_1.conv1.weight',
    }
    assert {name: keys[name] for name in expected} == expected
    assert len(set(keys.values())) == len(keys)


def test_text_tensors_are_split_in_three_where_they_must():
    state, ours = open_clip_state(), names(CLIPTextModel, TEXT)
    found = text_state(state, ours)
    assert list(found) == ours
    fused = state['transformer.resblocks.1.attn.in_proj_weight']
    for part, rows in {'q': fused[:8], 'k': fused[8:16], 'v': fused[16:]}.items():
        assert torch.equal(found[f'encoder.layers.1.self_attn.{part}_proj.weight'], rows)
    assert torch.equal(found['embeddings.position_embedding.weight'], state['positional_embedding'])
    assert torch.equal(found['encoder.layers.0.layer_norm2.bias'], state['transformer.resblocks.0.ln_2.bias'])


def test_text_names_of_older_transformers():
    new, old = names(CLIPTextModel, TEXT), [f'text_model.{name}' for name in names(CLIPTextModel, TEXT)]
    assert list(text_keys(old).values()) == list(text_keys(new).values()) and list(text_keys(old)) == old


def test_every_text_tensor_is_used_or_inert():
    state = open_clip_state()
    used = {key for key, _ in text_keys(names(CLIPTextModel, TEXT)).values()}
    inert = text_inert(state)
    assert used | set(inert) == set(state) and not used & set(inert)
    assert {name for name in inert if 'resblocks' not in name} == {'text_projection', 'logit_scale'}
    assert all(name.startswith('transformer.resblocks.2.') for name in inert if 'resblocks' in name)


def test_what_the_file_lacks_is_left_out():
    state = open_clip_state()
    del state['ln_final.bias']
    ours = names(CLIPTextModel, TEXT)
    assert set(ours) - set(text_state(state, ours)) == {'final_layer_norm.bias'}


def test_fit_changes_trailing_ones_only():
    value = torch.arange(6.0).reshape(3, 2, 1, 1)
    assert torch.equal(fit(value, torch.Size([3, 2])), value[..., 0, 0])
    assert torch.equal(fit(value[..., 0, 0], torch.Size([3, 2, 1, 1])), value)
    assert fit(value, torch.Size([2, 3])) is value
    assert fit(value, torch.Size([3, 2, 2, 1])) is value
