"""DiT4SR's blocks: attention against the stock one, the convolution of lq tokens by hand."""

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip('diffusers')
from diffusers.models.attention_processor import JointAttnProcessor2_0  # noqa: E402

from finpercep_plugin.archs.dit4sr_blocks import ControlBlock, ControlFeedForward  # noqa: E402

WIDTH, HEADS = 8, 2


def _block(variant, **options):
    torch.manual_seed(0)
    options = {'context_pre_only': False, 'qk_norm': 'rms_norm', 'use_dual_attention': True, **options}
    return ControlBlock(variant, dim=WIDTH, num_attention_heads=HEADS, attention_head_dim=WIDTH // HEADS, **options)


def _heads(tokens):
    return tokens.unflatten(2, (HEADS, -1)).transpose(1, 2)


@pytest.mark.parametrize('variant', ['v1', 'r1'])
def test_attention_to_copies_of_the_noise_tokens_is_the_stock_attention(variant):
    attn = _block(variant).attn2
    for name in ('q', 'k', 'v'):
        torch.nn.init.eye_(attn.get_submodule(f'to_{name}_control').weight)
    noise = torch.randn(2, 5, WIDTH)
    out, lq_out = attn(torch.cat([noise, noise], dim=1)).chunk(2, dim=1)
    torch.testing.assert_close(out, JointAttnProcessor2_0()(attn, noise))  # a key that is there twice weighs as once
    query, key = attn.norm_q(_heads(attn.to_q(noise))), attn.norm_k(_heads(attn.to_k(noise)))
    inside = F.scaled_dot_product_attention(query, key, _heads(attn.to_v(noise))).transpose(1, 2).flatten(2)
    torch.testing.assert_close(lq_out, attn.to_out_control(inside + noise))


@pytest.mark.parametrize('variant', ['v1', 'r1'])
def test_the_key_of_the_lq_tokens_is_what_the_variants_differ_in(variant):
    block = _block(variant)
    tokens, text = torch.randn(1, 8, WIDTH), torch.randn(1, 3, WIDTH)
    torch.nn.init.normal_(block.attn.to_v_control.weight)
    before, _ = block.attn(tokens, text)
    torch.nn.init.normal_(block.attn.to_k_control.weight)
    after, _ = block.attn(tokens, text)
    assert torch.equal(before, after) == (variant == 'v1')


def test_last_block_gives_no_text():
    block = _block('r1', context_pre_only=True, use_dual_attention=False, qk_norm=None)
    tokens, text = block(torch.randn(1, 8, WIDTH), torch.randn(1, 3, WIDTH), torch.randn(1, WIDTH), (2, 2), 1.0)
    assert tokens.shape == (1, 8, WIDTH) and text is None


@pytest.mark.parametrize('grid', [(2, 3), (3, 2), (1, 6)])
def test_noise_token_receives_the_lq_token_above_it(grid):
    rows, columns = grid
    torch.manual_seed(0)
    ff = ControlFeedForward(WIDTH)
    with torch.no_grad():
        ff.control_conv.weight[:, 0, 0, 1] = 2.0  # what is above, twice
    noise, lq = torch.randn(1, rows * columns, WIDTH), torch.randn(1, rows * columns, WIDTH)
    out, lq_out = ff(torch.cat([noise, lq], dim=1), grid, 1.2).chunk(2, dim=1)
    hidden = ff.net[0](noise)
    for place in range(columns, rows * columns):
        hidden[:, place] += 1.2 * 2.0 * ff.net[0](lq)[:, place - columns]
    torch.testing.assert_close(out, ff.net[2](hidden))
    torch.testing.assert_close(lq_out, ff.net[2](ff.net[0](lq)))


def test_control_starts_from_nothing_but_the_output():
    block = _block('v1')
    for attn in (block.attn, block.attn2):
        assert torch.equal(attn.to_out_control.weight, attn.to_out[0].weight)
    zero = [name for name, value in block.named_parameters() if 'control' in name and 'to_out' not in name]
    assert len(zero) == 14 and not any(block.get_parameter(name).any() for name in zero)
