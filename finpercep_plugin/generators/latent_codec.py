"""Pictures to latents of a VAE and back: padding, tiles, parts of a picture, colour fix."""

from __future__ import annotations

from typing import ClassVar, Mapping, Optional, Tuple

import torch
import torch.nn.functional as F
from torch import nn

from finpercep_plugin.generators.color_fix import ColorFix, check_kind, color_fix
from finpercep_plugin.generators.condition import Condition
from finpercep_plugin.generators.pixels import Kernel, Region, crop, straight_through_clamp, upscale
from finpercep_plugin.generators.tiling import Window, check_tiles, tiled

__all__ = ['LatentCodec']


class LatentCodec(nn.Module):
    """The picture side of a generator of latents.

    Args:
        color_fix: how sr takes on the colours of the upscaled lq.
        vae_tile: side of the tiles, in latent cells, that the VAE encodes and decodes; 0 for the whole at once.
        vae_tile_overlap: of these.

    Attributes:
        scale: side of sr / side of lq.
        stride: pixels of sr per latent cell.
        upscale_kernel: how lq is enlarged to the size of sr; what the generator's own project does.
        clamps_before_fix: the colour fix gets a picture within [0, 1], as an 8-bit one is; else the decoder's own.
        spatial: {name of a tensor of the condition: its pixels per latent cell}: what is cut with a latent.
        vae: a diffusers AutoencoderKL, set by a subclass.
    """

    scale: ClassVar[int] = 4
    stride: ClassVar[int] = 8
    upscale_kernel: ClassVar[Kernel] = 'torch'
    clamps_before_fix: ClassVar[bool] = True
    spatial: ClassVar[Mapping[str, int]] = {'latent': 1}

    vae: nn.Module

    def __init__(self, color_fix: ColorFix, vae_tile: int, vae_tile_overlap: int):
        super().__init__()
        check_kind(color_fix)
        check_tiles(vae_tile, vae_tile_overlap, 'vae_tile')
        self.color_fix, self.vae_tile, self.vae_tile_overlap = color_fix, vae_tile, vae_tile_overlap

    def encode(self, image: torch.Tensor, cond: Condition) -> torch.Tensor:
        """image: (B, 3, H, W), [0, 1] -> its latent, (B, C, h, w): the posterior's mean, scaled.

        Raises:
            ValueError: the image is not `scale` times the size of lq.
        """
        if image.shape != cond.lq_up.shape:
            raise ValueError(
                f'gt of shape {tuple(image.shape)} does not fit lq of {tuple(cond.lq.shape)} at scale {self.scale}: '
                f'expected {tuple(cond.lq_up.shape)}'
            )
        return self.posterior(self.padded(image))[0]

    def decode(self, latent: torch.Tensor, cond: Condition, region: Optional[Region] = None) -> torch.Tensor:
        """sr, (B, 3, H, W), [0, 1], with gradient.

        Args:
            latent: (B, C, h, w).
            cond: of the same batch.
            region: (top, left, height, width) in pixels of sr, top and left multiples of `stride`: only that part's
                latents are decoded, and that part is returned.

        Raises:
            ValueError: a region off the grid of latents, or outside the picture.
        """
        target_image = crop(cond.lq_up, region)
        top, left = (0, 0) if region is None else region[:2]
        if top % self.stride or left % self.stride:
            raise ValueError(f'a region must begin at multiples of {self.stride}, got {(top, left)}')
        height, width = (-(-side // self.stride) for side in target_image.shape[-2:])
        window = Window(top // self.stride, left // self.stride, height, width)
        image = self.pixels(window.cut(latent), self.window(cond, window))
        image = image[..., : target_image.shape[-2], : target_image.shape[-1]]
        reference = crop(self.color_reference(cond), region)
        image = straight_through_clamp(image) if self.clamps_before_fix else image
        return straight_through_clamp(color_fix(image, reference, self.color_fix))

    def channels_last(self) -> None:
        """Lay out the VAE's kernels, and with them what it computes, channels last; where it is loaded."""
        if hasattr(self, 'vae'):
            self.vae.to(memory_format=torch.channels_last)

    def upscaled(self, lq: torch.Tensor) -> torch.Tensor:
        """(B, 3, h, w), [0, 1] -> (B, 3, h * scale, w * scale), [0, 1], bicubic."""
        return upscale(lq, self.scale, self.upscale_kernel)

    def padded(self, image: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W), edges replicated below and to the right up to multiples of `stride`."""
        height, width = image.shape[-2:]
        return F.pad(image, (0, -width % self.stride, 0, -height % self.stride), mode='replicate')

    def color_reference(self, cond: Condition) -> torch.Tensor:
        """(B, 3, H, W), [0, 1], whose colours sr takes on; the upscaled lq unless overridden."""
        return cond.lq_up

    def posterior(self, image: torch.Tensor) -> Tuple[torch.Tensor, torch.Tensor]:
        """Mean and standard deviation of the VAE's latent, scaled: image (B, 3, H, W), [0, 1] -> two (B, C, h, w)."""
        stride = self.stride
        height, width = image.shape[-2] // stride, image.shape[-1] // stride

        def one(window: Window) -> torch.Tensor:
            moments = self.moments(window.cut(image, stride) * 2 - 1).float()
            mean, logvar = moments.chunk(2, dim=1)
            return torch.cat([mean, torch.exp(0.5 * logvar.clamp(-30, 20))], dim=1)

        mean, std = tiled(one, height, width, self.vae_tile, self.vae_tile_overlap).chunk(2, dim=1)
        config = self.vae.config
        return (mean - (config.get('shift_factor') or 0.0)) * config.scaling_factor, std * config.scaling_factor

    def moments(self, image: torch.Tensor) -> torch.Tensor:
        """The VAE encoder's raw output, (B, 2 C, h, w), of an image in [-1, 1]."""
        vae = self.vae
        moments = vae.encoder(image)
        return moments if vae.quant_conv is None else vae.quant_conv(moments)

    def pixels(self, latent: torch.Tensor, cond: Condition) -> torch.Tensor:
        """The VAE's picture of a latent, (B, 3, h * stride, w * stride), about [0, 1], not clamped."""
        config = self.vae.config
        z = latent / config.scaling_factor + (config.get('shift_factor') or 0.0)

        def one(window: Window) -> torch.Tensor:
            return self.decoded(window.cut(z), self.window(cond, window)).float() / 2 + 0.5

        return tiled(one, *z.shape[-2:], self.vae_tile, self.vae_tile_overlap, self.stride)

    def decoded(self, z: torch.Tensor, cond: Condition) -> torch.Tensor:
        """The VAE decoder's output, about [-1, 1], of an unscaled latent; cond is cut to the same part."""
        return self.vae.decode(z).sample

    def window(self, cond: Condition, window: Window) -> Condition:
        """A condition whose `spatial` tensors are cut to the window."""
        tensors = {
            name: window.cut(value, self.spatial[name]) if name in self.spatial else value
            for name, value in cond.tensors.items()
        }
        return Condition(cond.lq, cond.lq_up, cond.prompts, tensors)
