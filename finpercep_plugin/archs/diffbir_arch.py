"""DiffBIR's networks: stock diffusers models (Lin et al., ECCV 2024, §3.3; https://github.com/XPixelGroup/DiffBIR)."""

from __future__ import annotations

from typing import Any, List, Tuple

import torch
from diffusers import ControlNetModel, UNet2DConditionModel
from torch import nn

__all__ = ['DiffBIRNetwork', 'IRControlNet']


class _NoEmbedding(nn.Module):
    """Adds nothing: the condition is on the input already."""

    def forward(self, condition: torch.Tensor) -> torch.Tensor:
        return condition.new_zeros(())


class IRControlNet(ControlNetModel):
    """A stock ControlNet on the noisy latent and, stacked on it, the condition's, without an embedding of its own.

    Its parameters are those of a released file, see `ldm_keys.controlnet_keys`.

    Args:
        config: of ControlNetModel; `in_channels` counts both latents (Stable Diffusion: 8).
    """

    def __init__(self, **config: Any):
        super().__init__(**config)
        self.controlnet_cond_embedding = _NoEmbedding()

    def control(
        self, x: torch.Tensor, t: torch.Tensor, latent: torch.Tensor, text: torch.Tensor, strength: float = 1.0
    ) -> Tuple[List[torch.Tensor], torch.Tensor]:
        """What is added to the UNet's skips, first to last, and to its middle.

        Args:
            x: (B, C, h, w), noisy latent.
            t: (B,), timesteps.
            latent: (B, C, h, w), of the condition.
            text: (B, T, D), embedding.
            strength: factor of the result.
        """
        stacked = torch.cat([x, latent], dim=1)
        return self(stacked, t, text, controlnet_cond=stacked, conditioning_scale=strength, return_dict=False)


class DiffBIRNetwork(nn.Module):
    """The UNet of Stable Diffusion under an IRControlNet.

    Args:
        unet: stock.
        controlnet: of the same widths.
    """

    def __init__(self, unet: UNet2DConditionModel, controlnet: IRControlNet):
        super().__init__()
        self.unet, self.controlnet = unet, controlnet

    def forward(
        self, x: torch.Tensor, t: torch.Tensor, latent: torch.Tensor, text: torch.Tensor, strength: float = 1.0
    ) -> torch.Tensor:
        """eps or v, (B, C, h, w); arguments as for `IRControlNet.control`."""
        skips, middle = self.controlnet.control(x, t, latent, text, strength)
        out = self.unet(
            x,
            t,
            text,
            down_block_additional_residuals=skips,
            mid_block_additional_residual=middle,
            return_dict=False,
        )
        return out[0]
