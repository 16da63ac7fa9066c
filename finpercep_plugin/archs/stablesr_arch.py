"""StableSR's network: Stable Diffusion 2.1's UNet, each of whose residual blocks is modulated by features of the
low-quality latent (Wang et al., "Exploiting Diffusion Prior for Real-World Image Super-Resolution", IJCV 2024, §3.1).
"""

from __future__ import annotations

from typing import Any, Dict, NamedTuple, Optional, Sequence, Tuple

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.embeddings import TimestepEmbedding, get_timestep_embedding
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

__all__ = ['Features', 'Spade', 'SpadeResnetBlock', 'StableSRNetwork', 'StructureEncoder', 'add_spade']

Features = Dict[Tuple[int, int], Tensor]
"""(height, width) -> (B, C, height, width): one feature of the low-quality image for each size in the UNet."""


class _ResBlock(nn.Module):
    """Residual block with a time shift, under the names of the latent-diffusion code."""

    def __init__(self, channels: int, out_channels: int, time_channels: int):
        super().__init__()
        self.in_layers = nn.Sequential(
            nn.GroupNorm(32, channels), nn.SiLU(), nn.Conv2d(channels, out_channels, 3, padding=1)
        )
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(time_channels, out_channels))
        self.out_layers = nn.Sequential(
            nn.GroupNorm(32, out_channels),
            nn.SiLU(),
            nn.Identity(),  # where the original has its dropout of 0
            nn.Conv2d(out_channels, out_channels, 3, padding=1),
        )
        if channels != out_channels:
            self.skip_connection: nn.Module = nn.Conv2d(channels, out_channels, 1)
        else:
            self.skip_connection = nn.Identity()

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        h = self.in_layers(x) + self.emb_layers(time)[:, :, None, None]
        return self.skip_connection(x) + self.out_layers(h)


class _Attention(nn.Module):
    """Self-attention over positions, qkv in the legacy layout (heads, 3, channels of a head)."""

    def __init__(self, channels: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm = nn.GroupNorm(32, channels)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = nn.Conv1d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        x = x.flatten(2)
        qkv = self.qkv(self.norm(x)).view(batch, self.heads, 3, channels // self.heads, height * width)
        q, k, v = qkv.transpose(-1, -2).unbind(2)
        out = F.scaled_dot_product_attention(q, k, v).transpose(-1, -2).reshape(batch, channels, -1)
        return (x + self.proj_out(out)).view(batch, channels, height, width)


class _Downsample(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)


class _Stage(nn.Sequential):
    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        for layer in self:
            x = layer(x, time) if isinstance(layer, _ResBlock) else layer(x)
        return x


class StructureEncoder(nn.Module):
    """Time-aware features of the low-quality latent: half a UNet, one more residual block at each size.

    Parameter names are the released ones. The defaults are the released size, 52.5 M parameters.

    Args:
        in_channels: of the latent.
        model_channels: width of the first level.
        out_channels: of every feature.
        num_res_blocks: residual blocks a level.
        attention_resolutions: downsampling factors at which there is attention.
        channel_mult: width of each level, in units of `model_channels`.
        num_heads: of the attention.

    >>> encoder = StructureEncoder(4, 32, 32, 1, (2, 1), (1, 2))
    >>> list(encoder(torch.randn(1, 4, 8, 12), torch.tensor([999])))
    [(8, 12), (4, 6)]
    """

    def __init__(
        self,
        in_channels: int = 4,
        model_channels: int = 256,
        out_channels: int = 256,
        num_res_blocks: int = 2,
        attention_resolutions: Sequence[int] = (4, 2, 1),
        channel_mult: Sequence[int] = (1, 1, 2, 2),
        num_heads: int = 4,
    ):
        super().__init__()
        self.model_channels, self.checkpointing = model_channels, False
        time = 4 * model_channels
        self.time_embed = nn.Sequential(nn.Linear(model_channels, time), nn.SiLU(), nn.Linear(time, time))
        self.input_blocks = nn.ModuleList([_Stage(nn.Conv2d(in_channels, model_channels, 3, padding=1))])
        self.fea_tran = nn.ModuleList()
        width = model_channels
        for level, multiple in enumerate(channel_mult):
            if level:
                self.input_blocks.append(_Stage(_Downsample(width)))
            for _ in range(num_res_blocks):
                stage = _Stage(_ResBlock(width, multiple * model_channels, time))
                width = multiple * model_channels
                if 2**level in attention_resolutions:
                    stage.append(_Attention(width, num_heads))
                self.input_blocks.append(stage)
            self.fea_tran.append(_ResBlock(width, out_channels, time))
        self.middle_block = _Stage(
            _ResBlock(width, width, time), _Attention(width, num_heads), _ResBlock(width, width, time)
        )

    def forward(self, z_lq: Tensor, t: Tensor) -> Features:
        """
        Args:
            z_lq: (B, C, h, w), the clean latent of the low-quality image.
            t: (B,), timestep indices of the training schedule.

        Returns:
            a feature for each size of the UNet, largest first. The original finds them by width alone.
        """
        time = get_timestep_embedding(t, self.model_channels, flip_sin_to_cos=True, downscale_freq_shift=0)
        time = self.time_embed(time.to(z_lq.dtype))
        h, ends = z_lq, []
        for stage in self.input_blocks:
            if isinstance(stage[0], _Downsample):
                ends.append(h)
            h = self._run(stage, h, time)
        ends.append(self._run(self.middle_block, h, time))
        return {tuple(end.shape[-2:]): self._run(block, end, time) for block, end in zip(self.fea_tran, ends)}

    def _run(self, block: nn.Module, h: Tensor, time: Tensor) -> Tensor:
        if self.checkpointing and torch.is_grad_enabled():
            return checkpoint(block, h, time, use_reentrant=False)
        return block(h, time)


class Spade(nn.Module):
    """`norm(x) (1 + gamma) + beta`, where gamma and beta are made from a feature (Park et al. 2019, Eq. 1).

    Args:
        channels: of x.
        feature_channels: of the feature.
        hidden: channels between feature and gamma, beta.
    """

    def __init__(self, channels: int, feature_channels: int, hidden: int = 128):
        super().__init__()
        self.param_free_norm = nn.GroupNorm(32, channels)  # its released name; it has parameters
        self.mlp_shared = nn.Sequential(nn.Conv2d(feature_channels, hidden, 3, padding=1), nn.ReLU())
        self.mlp_gamma = nn.Conv2d(hidden, channels, 3, padding=1)
        self.mlp_beta = nn.Conv2d(hidden, channels, 3, padding=1)

    def forward(self, x: Tensor, feature: Tensor) -> Tensor:
        """x: (B, C, h, w); feature: (B, F, h, w) -> (B, C, h, w)."""
        hidden = self.mlp_shared(feature)
        return self.param_free_norm(x) * (1 + self.mlp_gamma(hidden)) + self.mlp_beta(hidden)


class _Conditioned(NamedTuple):
    """What the UNet hands to each residual block in the place of the time embedding."""

    time: Tensor
    features: Features


class _SpadeTimeEmbedding(TimestepEmbedding):
    """Sends the features, which the UNet's `timestep_cond` brings, along with the time embedding."""

    def __init__(self, stock: TimestepEmbedding):
        with torch.device('meta'):
            super().__init__(stock.linear_1.in_features, stock.linear_1.out_features)
        _adopt(self, stock)

    def forward(self, sample: Tensor, condition: Optional[Features] = None) -> Any:
        if condition is None:
            raise ValueError('this UNet needs structure features: unet(x_t, t, text, timestep_cond=features)')
        return _Conditioned(super().forward(sample), condition)


class SpadeResnetBlock(ResnetBlock2D):
    """A stock residual block with SPADE after its second convolution, before the skip is added.

    Args:
        stock: the block, whose parts are taken over.
        feature_channels: of the structure features.
    """

    def __init__(self, stock: ResnetBlock2D, feature_channels: int):
        with torch.device('meta'):
            super().__init__(
                in_channels=stock.in_channels,
                out_channels=stock.out_channels,
                temb_channels=stock.time_emb_proj.in_features,
                groups=stock.norm1.num_groups,
                eps=stock.norm1.eps,
            )
        _adopt(self, stock)
        self.spade = Spade(stock.out_channels, feature_channels)

    def forward(self, input_tensor: Tensor, temb: _Conditioned) -> Tensor:
        """input_tensor: (B, C, h, w); temb: time embedding and features, one of which is of size (h, w)."""
        time, features = temb
        h = self.conv1(self.nonlinearity(self.norm1(input_tensor)))
        h = h + self.time_emb_proj(self.nonlinearity(time))[:, :, None, None]
        h = self.conv2(self.dropout(self.nonlinearity(self.norm2(h))))
        size = tuple(h.shape[-2:])
        if size not in features:
            raise ValueError(f'no structure feature of size {size}, only {list(features)}: latents of different sizes?')
        h = self.spade(h, features[size])
        return h + (input_tensor if self.conv_shortcut is None else self.conv_shortcut(input_tensor))


def add_spade(unet: UNet2DConditionModel, feature_channels: int = 256) -> UNet2DConditionModel:
    """Put SPADE into every residual block, in place, as `resnets.i.spade`.

    The UNet is then called as `unet(x_t, t, text, timestep_cond=features)`: the features travel with the time embedding
    as arguments of the blocks, so gradient checkpointing and `functional_call` see them.

    Args:
        unet: a stock UNet.
        feature_channels: of the structure features.

    Returns:
        the same UNet.
    """
    unet.time_embedding = _SpadeTimeEmbedding(unet.time_embedding)
    for part in [*unet.down_blocks, unet.mid_block, *unet.up_blocks]:
        part.resnets = nn.ModuleList(SpadeResnetBlock(stock, feature_channels) for stock in part.resnets)
    return unet


def _adopt(module: nn.Module, stock: nn.Module) -> None:
    for name, child in stock.named_children():
        setattr(module, name, child)


class StableSRNetwork(nn.Module):
    """UNet and structure encoder, all that StableSR trains.

    Args:
        unet: after `add_spade`.
        structure: the encoder.
    """

    def __init__(self, unet: UNet2DConditionModel, structure: StructureEncoder):
        super().__init__()
        self.unet, self.structure = unet, structure

    def enable_gradient_checkpointing(self) -> None:
        """Recompute activations in the backward pass instead of keeping them."""
        self.unet.enable_gradient_checkpointing()
        self.structure.checkpointing = True

    def forward(self, x_t: Tensor, t: Tensor, text: Tensor, z_lq: Tensor) -> Tensor:
        """The prediction, (B, 4, h, w).

        Args:
            x_t: (B, 4, h, w), noisy latent.
            t: (B,), timestep indices of the training schedule.
            text: (B, tokens, D), text embeddings.
            z_lq: (B, 4, h, w), the clean latent of the low-quality image.
        """
        return self.unet(x_t, t, text, timestep_cond=self.structure(z_lq, t)).sample
