"""StableSR's controllable feature wrapping: a VAE decoder that is shown features of the low-quality image
(Wang et al., "Exploiting Diffusion Prior for Real-World Image Super-Resolution", IJCV 2024, §3.2, Eq. 2).
"""

from __future__ import annotations

from typing import Any, Callable, Dict, Optional

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

__all__ = ['CFWAutoencoder', 'FusionLayer']


class _ResBlock(nn.Module):
    def __init__(self, channels: int, out_channels: int):
        super().__init__()
        self.norm1 = nn.GroupNorm(32, channels, eps=1e-6)
        self.conv1 = nn.Conv2d(channels, out_channels, 3, padding=1)
        self.norm2 = nn.GroupNorm(32, out_channels, eps=1e-6)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        if channels != out_channels:
            self.conv_out: nn.Module = nn.Conv2d(channels, out_channels, 1)
        else:
            self.conv_out = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv2(F.silu(self.norm2(self.conv1(F.silu(self.norm1(x))))))
        return self.conv_out(x) + h


class _DenseBlock(nn.Module):
    """Five convolutions, each of which sees all before it (ESRGAN's)."""

    def __init__(self, channels: int, growth: int = 32):
        super().__init__()
        for i in range(1, 6):
            out = channels if i == 5 else growth
            setattr(self, f'conv{i}', nn.Conv2d(channels + (i - 1) * growth, out, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        seen = x
        for conv in (self.conv1, self.conv2, self.conv3, self.conv4):
            seen = torch.cat([seen, F.leaky_relu(conv(seen), 0.2)], dim=1)
        return x + 0.2 * self.conv5(seen)


class _RRDB(nn.Module):
    """Three dense blocks with a residual around them (Wang et al. 2018, Fig. 4)."""

    def __init__(self, channels: int):
        super().__init__()
        self.rdb1, self.rdb2, self.rdb3 = (_DenseBlock(channels) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        return x + 0.2 * self.rdb3(self.rdb2(self.rdb1(x)))


class FusionLayer(nn.Module):
    """`decoder + weight f(encoder, decoder)`, Eq. 2; parameter names are the released ones.

    Args:
        channels: of the decoder's and of the encoder's feature, each.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.encode_enc_1 = _ResBlock(2 * channels, channels)
        self.encode_enc_2 = nn.Sequential(_RRDB(channels), _RRDB(channels))
        self.encode_enc_3 = _ResBlock(channels, channels)

    def forward(self, encoder: Tensor, decoder: Tensor, weight: float) -> Tensor:
        """encoder, decoder: (B, C, h, w) -> (B, C, h, w)."""
        both = torch.cat([encoder, decoder], dim=1)
        return decoder + weight * self.encode_enc_3(self.encode_enc_2(self.encode_enc_1(both)))


class CFWAutoencoder(AutoencoderKL):
    """A stock autoencoder with a fusion layer at each decoder level but the smallest and the largest.

    Level i works at 1 / 2^i of the image's size. Of the released size, levels 2 and 1 have 44.4 M parameters, as
    `decoder.fusion_layer_{i}`. `enable_gradient_checkpointing` is AutoencoderKL's.

    Args:
        config: of AutoencoderKL. The encoder makes the features, so its weights are the CFW checkpoint's own.

    >>> sizes = {'block_out_channels': [32, 32, 32], 'down_block_types': ['DownEncoderBlock2D'] * 3}
    >>> vae = CFWAutoencoder(**sizes, up_block_types=['UpDecoderBlock2D'] * 3)
    >>> features = vae.features(torch.zeros(1, 3, 16, 24))
    >>> {level: tuple(feature.shape) for level, feature in features.items()}
    {1: (1, 32, 8, 12)}
    >>> vae.decode_with(torch.zeros(1, 4, 4, 6), features, weight=0.5).shape
    torch.Size([1, 3, 16, 24])
    """

    def __init__(self, **config: Any):
        super().__init__(**config)
        self.widths = self.config.block_out_channels
        for level in self._fused():
            setattr(self.decoder, f'fusion_layer_{level}', FusionLayer(self.widths[level]))

    def features(self, image: Tensor) -> Dict[int, Tensor]:
        """The encoder's feature at each level with fusion, {level: (B, C, H / 2^level, W / 2^level)}.

        Args:
            image: (B, 3, H, W), [-1, 1], the low-quality image at the output size.
        """
        features = {}
        h = self.encoder.conv_in(image)
        for level, block in enumerate(self.encoder.down_blocks[:-1]):
            for resnet in block.resnets:
                h = resnet(h, None)
            if level in self._fused():
                features[level] = h
            for downsample in block.downsamplers:
                h = downsample(h)
        return features

    def decode_with(self, latent: Tensor, features: Dict[int, Tensor], weight: float = 0.5) -> Tensor:
        """The image, (B, 3, H, W), about [-1, 1].

        Args:
            latent: (B, 4, H / 8, W / 8), in the VAE's own scale.
            features: of `features`.
            weight: of the fusion: 0 is the plain decoder, 1 is closest to the low-quality image.

        Raises:
            ValueError: features of other levels.
        """
        if set(features) != set(self._fused()):
            raise ValueError(f'expected features of levels {sorted(self._fused())}, got {sorted(features)}')
        decoder = self.decoder
        h = decoder.conv_in(self.post_quant_conv(latent))
        h = self._run(decoder.mid_block, h)
        for level in reversed(range(len(self.widths))):
            h = self._run(self._up, level, h, features.get(level), weight)
        return decoder.conv_out(decoder.conv_act(decoder.conv_norm_out(h)))

    def _fused(self) -> range:
        return range(len(self.widths) - 2, 0, -1)

    def _up(self, level: int, h: Tensor, feature: Optional[Tensor], weight: float) -> Tensor:
        block = self.decoder.up_blocks[len(self.widths) - 1 - level]
        for resnet in block.resnets:
            h = resnet(h, None)
        if level in self._fused():
            h = getattr(self.decoder, f'fusion_layer_{level}')(feature, h, weight)
        for upsample in block.upsamplers or ():
            h = upsample(h)
        return h

    def _run(self, function: Callable[..., Tensor], *inputs: Any) -> Tensor:
        if self.decoder.gradient_checkpointing and torch.is_grad_enabled():
            return checkpoint(function, *inputs, use_reentrant=False)
        return function(*inputs)
