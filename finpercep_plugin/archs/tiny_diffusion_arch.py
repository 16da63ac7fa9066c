"""A diffusion network that a laptop CPU trains in minutes: a stock conditional UNet on space-to-depth blocks."""

from __future__ import annotations

from typing import Tuple, Union

import torch
import torch.nn.functional as F
from diffusers import UNet2DModel
from torch import nn

from finpercep_plugin.registry import ARCHS

__all__ = ['FinPercepTinyDiffusion']


@ARCHS.register('FinPercepTinyDiffusion')
class FinPercepTinyDiffusion(nn.Module):
    """Conditional UNet for diffusing the residual of super-resolution, in pixel space at any size.

    The noisy residual and the upscaled low-quality image are cut into `shuffle` x `shuffle` blocks (pixel_unshuffle)
    and stacked, so that the UNet works on a grid `shuffle` times coarser; pixel_shuffle takes its output back. Sizes
    that the grid does not divide are padded by replication and cropped back. The last convolution starts at zero.

    Args:
        in_channels: of the image and of its residual.
        shuffle: block edge in pixels, 2 or 4 for natural use.
        channels: width of each UNet level; each further level halves the grid.
        layers: residual blocks a level on the way down (one more on the way up).
        norm_groups: groups of each group normalisation; must divide every width.
        attention: self-attention in the middle block.

    Raises:
        ValueError: no level, or a width that norm_groups does not divide.

    >>> net = FinPercepTinyDiffusion(channels=(8, 8), norm_groups=4)
    >>> net(torch.zeros(1, 3, 30, 50), torch.tensor([7]), torch.zeros(1, 3, 30, 50)).shape
    torch.Size([1, 3, 30, 50])
    """

    def __init__(
        self,
        in_channels: int = 3,
        shuffle: int = 4,
        channels: Tuple[int, ...] = (64, 64),
        layers: int = 2,
        norm_groups: int = 8,
        attention: bool = False,
    ):
        super().__init__()
        channels = list(channels)
        if not channels or any(width % norm_groups for width in channels):
            raise ValueError(
                f'channels must name at least one width, each divisible by norm_groups ({norm_groups}), got {channels}'
            )
        self.shuffle = shuffle
        self.multiple = shuffle * 2 ** (len(channels) - 1)
        packed = in_channels * shuffle**2
        self.unet = UNet2DModel(
            in_channels=2 * packed,
            out_channels=packed,
            layers_per_block=layers,
            block_out_channels=channels,
            down_block_types=['DownBlock2D'] * len(channels),
            up_block_types=['UpBlock2D'] * len(channels),
            norm_num_groups=norm_groups,
            attention_head_dim=channels[-1],
            add_attention=attention,
        )
        nn.init.zeros_(self.unet.conv_out.weight)
        nn.init.zeros_(self.unet.conv_out.bias)

    def forward(self, x_t: torch.Tensor, t: Union[int, torch.Tensor], lq_up: torch.Tensor) -> torch.Tensor:
        """The network's output, what the generator's `network_output` calls it.

        Args:
            x_t: (B, C, H, W) noisy residual, about unit variance.
            t: timestep index, a number or (B,).
            lq_up: (B, C, H, W) low-quality image at the output size, [0, 1].

        Returns:
            (B, C, H, W).
        """
        height, width = x_t.shape[-2:]
        x = torch.cat([self._pack(x_t), self._pack(2 * lq_up - 1)], dim=1)
        out = F.pixel_shuffle(self.unet(x, t).sample, self.shuffle)
        return out[..., :height, :width]

    def _pack(self, image: torch.Tensor) -> torch.Tensor:
        bottom, right = (-size % self.multiple for size in image.shape[-2:])
        return F.pixel_unshuffle(F.pad(image, (0, right, 0, bottom), mode='replicate'), self.shuffle)
