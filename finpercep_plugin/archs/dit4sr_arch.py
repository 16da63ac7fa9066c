"""DiT4SR's transformer: Stable Diffusion 3.5's, with a second stream of tokens for the low-quality latent.

The parameters have the names and shapes of the released checkpoints, less the inert ones (`is_inert`).
"""

from __future__ import annotations

import re
from typing import Callable, Dict, Optional, Sequence, Tuple

import torch
from diffusers import SD3Transformer2DModel
from torch import nn
from torch.utils.checkpoint import checkpoint

from finpercep_plugin.archs.dit4sr_blocks import ControlBlock, Scale, Variant

__all__ = ['DiT4SRNetwork', 'DiT4SRTransformer', 'Variant', 'is_inert']

_INERT = re.compile(
    r'(.*\.)?transformer_blocks\.\d+\.attn2\.(add_[qkv]_proj|norm_added_[qk]|to_add_out)\.(weight|bias)'
)


def is_inert(name: str) -> bool:
    """Is this a parameter that the released files hold and that nothing reads?

    The second attention of a block sees no text, but was built with the text's projections.

    >>> is_inert('transformer_blocks.3.attn2.add_q_proj.bias'), is_inert('transformer_blocks.3.attn.add_q_proj.bias')
    (True, False)
    """
    return _INERT.fullmatch(name) is not None


class DiT4SRTransformer(SD3Transformer2DModel):
    """Velocity of a noisy latent, given the latent of the low-quality image and a text.

    The lq latent goes through the same patch embedding as the noisy one; its tokens follow the noisy one's through all
    blocks and are dropped at the end. Latents may have any sides that patches divide, up to `pos_embed_max_size`
    patches.

    Args:
        variant: see `ControlAttention`.
        num_layers: blocks.
        attention_head_dim: width of a head; a token is as wide as all heads.
        num_attention_heads: of every attention.
        dual_attention_layers: blocks with a second attention, without text.
        qk_norm: normalisation of queries and keys.
        config: the other arguments of SD3Transformer2DModel, whose defaults are the ones here too.

    Raises:
        ValueError: an unknown variant, or text tokens of another width than image tokens.
    """

    def __init__(
        self,
        variant: Variant = 'v1',
        num_layers: int = 18,
        attention_head_dim: int = 64,
        num_attention_heads: int = 18,
        dual_attention_layers: Sequence[int] = (),
        qk_norm: Optional[str] = None,
        **config: object,
    ):
        if variant not in ('v1', 'r1'):
            raise ValueError(f"variant must be 'v1' or 'r1', got {variant!r}")
        width = num_attention_heads * attention_head_dim
        if config.setdefault('caption_projection_dim', width) != width:
            raise ValueError(
                f'caption_projection_dim must be {num_attention_heads} x {attention_head_dim}, as wide as all heads, '
                f'got {config["caption_projection_dim"]}'
            )
        heads = dict(num_attention_heads=num_attention_heads, attention_head_dim=attention_head_dim, qk_norm=qk_norm)
        super().__init__(num_layers=0, dual_attention_layers=tuple(dual_attention_layers), **heads, **config)
        self.register_to_config(num_layers=num_layers)
        self.transformer_blocks = nn.ModuleList(
            ControlBlock(
                variant,
                dim=width,
                context_pre_only=i == num_layers - 1,
                use_dual_attention=i in dual_attention_layers,
                **heads,
            )
            for i in range(num_layers)
        )

    def forward(
        self,
        x_t: torch.Tensor,
        t: torch.Tensor,
        text: torch.Tensor,
        pooled: torch.Tensor,
        lq_latent: torch.Tensor,
        control_scale: Scale = 1.2,
    ) -> torch.Tensor:
        """
        Args:
            x_t: (B, C, h, w), noisy latent.
            t: (B,), timesteps, 1000 sigma.
            text: (B, M, joint_attention_dim).
            pooled: (B, pooled_projection_dim).
            lq_latent: (B, C, h, w), of the upscaled low-quality image.
            control_scale: factor of the lq tokens in the feed-forward, a number or (B,); 1.2 in sampling, 1.0 in
                training.

        Returns:
            (B, out_channels, h, w), noise - image.

        Raises:
            ValueError: latents of different shapes, or with sides that patches do not divide.
        """
        patch = self.config.patch_size
        if x_t.shape != lq_latent.shape or any(side % patch for side in x_t.shape[-2:]):
            raise ValueError(
                f'x_t and lq_latent must have one shape, with sides divisible by {patch}; '
                f'got {tuple(x_t.shape)} and {tuple(lq_latent.shape)}'
            )
        if isinstance(control_scale, torch.Tensor):
            control_scale = control_scale.reshape(-1, 1, 1)
        grid = (x_t.shape[-2] // patch, x_t.shape[-1] // patch)
        tokens = torch.cat([self.pos_embed(x_t), self.pos_embed(lq_latent)], dim=1)
        temb, text = self.time_text_embed(t, pooled), self.context_embedder(text)
        for block in self.transformer_blocks:
            call = _checkpointed(block) if self.gradient_checkpointing and torch.is_grad_enabled() else block
            tokens, text = call(tokens, text, temb, grid, control_scale)
        out = self.proj_out(self.norm_out(tokens.chunk(2, dim=1)[0], temb))
        out = out.unflatten(1, grid).unflatten(3, (patch, patch, self.out_channels))
        return out.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)


class DiT4SRNetwork(nn.Module):
    """What DiT4SR may train, under `transformer`.

    Args:
        transformer: called by `forward`.
    """

    def __init__(self, transformer: DiT4SRTransformer):
        super().__init__()
        self.transformer = transformer

    def forward(self, x_t: torch.Tensor, t: torch.Tensor, *condition: object) -> torch.Tensor:
        """See `DiT4SRTransformer.forward`."""
        return self.transformer(x_t, t, *condition)


def _checkpointed(block: nn.Module) -> Callable[..., Tuple[torch.Tensor, Optional[torch.Tensor]]]:
    """`block`, computed again in the backward pass with the tensors that it has now.

    A caller may have put other tensors in its place for the time of the call (torch.func.functional_call), and the
    backward pass comes after that. A sharded block gathers its own, both times.
    """
    if hasattr(block, 'unshard'):
        return lambda *inputs: checkpoint(block, *inputs, use_reentrant=False)
    tensors: Dict[str, torch.Tensor] = {**dict(block.named_parameters()), **dict(block.named_buffers())}

    def run(*inputs: object) -> Tuple[torch.Tensor, Optional[torch.Tensor]]:
        return torch.func.functional_call(block, tensors, inputs)

    return lambda *inputs: checkpoint(run, *inputs, use_reentrant=False)
