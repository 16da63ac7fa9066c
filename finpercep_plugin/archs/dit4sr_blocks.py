"""Blocks of DiT4SR's transformer: stock ones of Stable Diffusion 3, through which the tokens of the lq latent go too.

What DiT4SR (Duan et al., ICCV 2025) adds are the modules with 'control' in their name. A sequence holds N noise tokens,
then the N lq tokens of the same places.
"""

from __future__ import annotations

from typing import List, Literal, Optional, Tuple, Union

import torch
import torch.nn.functional as F
from diffusers.models.attention import FeedForward, JointTransformerBlock
from diffusers.models.attention_processor import Attention
from torch import nn

__all__ = ['ControlAttention', 'ControlBlock', 'ControlFeedForward', 'Grid', 'Scale', 'Variant']

Variant = Literal['v1', 'r1']
Grid = Tuple[int, int]
Scale = Union[float, torch.Tensor]


class ControlAttention:
    """Attention over noise, lq and (where there is a text) text tokens; processor of a stock `Attention`.

    lq tokens go through the noise tokens' projections and then their own, `to_{q,k,v}_control`; what comes out of the
    attention is added to what went in, before `to_out_control`.

    Args:
        variant: of the released code. 'r1': the lq keys are `norm_k(to_k_control(..))`; 'v1': they are the noise keys,
            normalised once more, so that `to_k_control` is without effect.
    """

    def __init__(self, variant: Variant):
        self.variant = variant

    def __call__(
        self,
        attn: Attention,
        hidden_states: torch.Tensor,
        encoder_hidden_states: Optional[torch.Tensor] = None,
        attention_mask: None = None,
    ) -> Union[torch.Tensor, Tuple[torch.Tensor, torch.Tensor]]:
        """
        Args:
            attn: with the projections.
            hidden_states: (B, 2 N, C), noise tokens, then lq tokens.
            encoder_hidden_states: (B, M, C), text tokens.
            attention_mask: stock attention passes one; there is none.

        Returns:
            (B, 2 N, C), and (B, M, C) where there is a text.
        """
        noise, lq = hidden_states.chunk(2, dim=1)
        heads = self._with_lq(attn, noise, lq)
        if encoder_hidden_states is not None:
            text = self._of_text(attn, encoder_hidden_states)
            heads = [torch.cat(pair, dim=2) for pair in zip(heads, text)]
        query, key, value = heads
        out = F.scaled_dot_product_attention(query.to(value.dtype), key.to(value.dtype), value)
        out = out.transpose(1, 2).flatten(2)
        count = noise.shape[1]
        noise_out, lq_out, text_out = out[:, :count], out[:, count : 2 * count], out[:, 2 * count :]
        tokens = torch.cat([attn.to_out[1](attn.to_out[0](noise_out)), attn.to_out_control(lq_out + lq)], dim=1)
        if encoder_hidden_states is None:
            return tokens
        return tokens, text_out if attn.context_pre_only else attn.to_add_out(text_out)

    def _with_lq(self, attn: Attention, noise: torch.Tensor, lq: torch.Tensor) -> List[torch.Tensor]:
        """Query, key, value, each (B, heads, 2 N, C / heads)."""
        query = _normed(attn.norm_q, _heads(attn, attn.to_q(noise)))
        query_lq = _normed(attn.norm_q, _heads(attn, attn.to_q_control(attn.to_q(lq))))
        key = _normed(attn.norm_k, _heads(attn, attn.to_k(noise)))
        key_lq = key if self.variant == 'v1' else _heads(attn, attn.to_k_control(attn.to_k(lq)))
        key_lq = _normed(attn.norm_k, key_lq)
        value, value_lq = _heads(attn, attn.to_v(noise)), _heads(attn, attn.to_v_control(attn.to_v(lq)))
        return [torch.cat(pair, dim=2) for pair in ((query, query_lq), (key, key_lq), (value, value_lq))]

    @staticmethod
    def _of_text(attn: Attention, text: torch.Tensor) -> List[torch.Tensor]:
        """Query, key, value, each (B, heads, M, C / heads)."""
        query = _normed(attn.norm_added_q, _heads(attn, attn.add_q_proj(text)))
        key = _normed(attn.norm_added_k, _heads(attn, attn.add_k_proj(text)))
        return [query, key, _heads(attn, attn.add_v_proj(text))]


class ControlFeedForward(FeedForward):
    """Stock feed-forward of noise and lq tokens, in whose hidden layer the noise tokens receive the lq tokens.

    Args:
        dim: width of a token; the hidden layer is four times as wide.
    """

    def __init__(self, dim: int):
        super().__init__(dim=dim, dim_out=dim, activation_fn='gelu-approximate')
        hidden = self.net[2].in_features
        self.control_conv = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        nn.init.zeros_(self.control_conv.weight)
        nn.init.zeros_(self.control_conv.bias)

    def forward(self, tokens: torch.Tensor, grid: Grid, control_scale: Scale) -> torch.Tensor:
        """
        Args:
            tokens: (B, 2 N, C), noise tokens, then lq tokens.
            grid: rows and columns of tokens, N in all.
            control_scale: factor of the convolved lq tokens, a number or (B, 1, 1).

        Returns:
            (B, 2 N, C).
        """
        noise, lq = self.net[1](self.net[0](tokens)).chunk(2, dim=1)
        control = self.control_conv(lq.transpose(1, 2).unflatten(2, grid)).flatten(2).transpose(1, 2)
        return self.net[2](torch.cat([noise + (control_scale * control).to(noise.dtype), lq], dim=1))


class ControlBlock(JointTransformerBlock):
    """A stock block with `ControlAttention` and `ControlFeedForward`.

    Args:
        variant: see `ControlAttention`.
        block: of JointTransformerBlock.
    """

    def __init__(self, variant: Variant, **block: object):
        super().__init__(**block)
        for attn in filter(None, (self.attn, self.attn2)):
            _add_control(attn)
            attn.set_processor(ControlAttention(variant))
        self.ff = ControlFeedForward(block['dim'])

    def forward(
        self, tokens: torch.Tensor, text: torch.Tensor, temb: torch.Tensor, grid: Grid, control_scale: Scale
    ) -> Tuple[torch.Tensor, Optional[torch.Tensor]]:
        """
        Args:
            tokens: (B, 2 N, C), noise tokens, then lq tokens.
            text: (B, M, C).
            temb: (B, C), embedded timestep and pooled text.
            grid: rows and columns of tokens.
            control_scale: see `ControlFeedForward`.

        Returns:
            the new tokens and text; the last block has no new text.
        """
        normed, gate, shift, scale, gate_ff, *second = self.norm1(tokens, emb=temb)
        if self.context_pre_only:
            normed_text, of_text = self.norm1_context(text, temb), None
        else:
            normed_text, *of_text = self.norm1_context(text, emb=temb)
        out, text_out = self.attn(hidden_states=normed, encoder_hidden_states=normed_text)
        tokens = tokens + gate[:, None] * out
        if self.use_dual_attention:
            tokens = tokens + second[1][:, None] * self.attn2(hidden_states=second[0])
        modulated = _modulated(self.norm2(tokens), shift, scale)
        tokens = tokens + gate_ff[:, None] * self.ff(modulated, grid, control_scale)
        if of_text is None:
            return tokens, None
        gate, shift, scale, gate_ff = of_text
        text = text + gate[:, None] * text_out
        text = text + gate_ff[:, None] * self.ff_context(_modulated(self.norm2_context(text), shift, scale))
        return tokens, text


def _add_control(attn: Attention) -> None:
    """lq projections, which start from zero, and an lq output like that of the noise tokens."""
    for name in ('to_q', 'to_k', 'to_v'):
        width = getattr(attn, name).out_features
        control = nn.Linear(width, width)
        nn.init.zeros_(control.weight)
        nn.init.zeros_(control.bias)
        attn.add_module(f'{name}_control', control)
    attn.to_out_control = nn.Linear(attn.to_out[0].in_features, attn.to_out[0].out_features)
    attn.to_out_control.load_state_dict(attn.to_out[0].state_dict())


def _heads(attn: Attention, tokens: torch.Tensor) -> torch.Tensor:
    """(B, N, C) -> (B, heads, N, C / heads)."""
    return tokens.unflatten(2, (attn.heads, -1)).transpose(1, 2)


def _normed(norm: Optional[nn.Module], heads: torch.Tensor) -> torch.Tensor:
    return heads if norm is None else norm(heads)


def _modulated(tokens: torch.Tensor, shift: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    return tokens * (1 + scale[:, None]) + shift[:, None]
