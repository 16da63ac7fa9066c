"""SeeSR's UNet and ControlNet: stock diffusers models whose blocks also look at tokens of the image (Wu et al., CVPR
2024; parameter names as in https://github.com/cswry/SeeSR).
"""

from __future__ import annotations

from typing import Any, Dict, Mapping, Optional, Tuple, Union

import torch
from diffusers import ControlNetModel, Transformer2DModel, UNet2DConditionModel
from torch import nn

__all__ = ['SeeSRControlNet', 'SeeSRNetwork', 'SeeSRUNet']

_TOKENS = 'image_encoder_hidden_states'


class _TextThenImage(Transformer2DModel):
    """A stock transformer on text, and right after it one on image tokens, which the block owns under its own name.

    The tokens come in `cross_attention_kwargs`, through all stock code above, and are taken out before the stock code
    below: nothing is kept between calls, so that a recomputed (checkpointed) forward is the same.
    """

    _then: Tuple[Transformer2DModel] = ()  # in a tuple, so that it is not registered a second time here

    def forward(
        self,
        hidden_states: torch.Tensor,
        encoder_hidden_states: Optional[torch.Tensor] = None,
        *inputs: Any,
        cross_attention_kwargs: Optional[Dict[str, Any]] = None,
        return_dict: bool = True,
        **options: Any,
    ) -> Any:
        below = dict(cross_attention_kwargs or {})
        if _TOKENS not in below:
            raise ValueError(f'SeeSR needs tokens of the image: pass cross_attention_kwargs={{{_TOKENS!r}: ...}}')
        tokens = below.pop(_TOKENS)
        options.update(cross_attention_kwargs=below or None)
        hidden = super().forward(hidden_states, encoder_hidden_states, *inputs, return_dict=False, **options)[0]
        options.pop('encoder_attention_mask', None)  # of the text
        return self._then[0](hidden, tokens, return_dict=return_dict, **options)


def _options(config: Mapping[str, Any]) -> Dict[str, Any]:
    """A config without what diffusers notes about itself in it."""
    return {name: value for name, value in config.items() if not name.startswith('_')}


def _add_image_attentions(model: nn.Module, image_dim: int, wanted: bool) -> None:
    if not wanted:
        raise ValueError('without use_image_cross_attention this is not a network of SeeSR')
    blocks = [*model.down_blocks, model.mid_block, *getattr(model, 'up_blocks', ())]
    for block in blocks:
        if not getattr(block, 'has_cross_attention', False):
            continue
        configs = [_options(attention.config) for attention in block.attentions]
        block.attentions = nn.ModuleList(_TextThenImage(**config) for config in configs)
        block.image_attentions = nn.ModuleList(
            Transformer2DModel(**{**config, 'cross_attention_dim': image_dim}) for config in configs
        )
        for attention, image_attention in zip(block.attentions, block.image_attentions):
            attention._then = (image_attention,)


class SeeSRUNet(UNet2DConditionModel):
    """The UNet: stock, plus `image_attentions[i]` after `attentions[i]` in every block that has cross-attention.

    Called as the stock one, with `cross_attention_kwargs={'image_encoder_hidden_states': (B, N, image_dim)}`.

    Args:
        use_image_cross_attention: as in the released config.json; must be True.
        image_dim: width of the image tokens.
        **config: of the stock UNet2DConditionModel, or a whole released config.json.

    Raises:
        TypeError: an option that UNet2DConditionModel does not have.
        ValueError: use_image_cross_attention is False.
    """

    def __init__(self, use_image_cross_attention: bool = True, image_dim: int = 512, **config: Any):
        super().__init__(**_options(config))
        _add_image_attentions(self, image_dim, use_image_cross_attention)


class SeeSRControlNet(ControlNetModel):
    """The ControlNet: stock, plus `image_attentions[i]` after `attentions[i]`, as in `SeeSRUNet`.

    Args:
        use_image_cross_attention: as in the released config.json; must be True.
        image_dim: width of the image tokens.
        **config: of the stock ControlNetModel, or a whole released config.json.

    Raises:
        TypeError: an option that ControlNetModel does not have.
        ValueError: use_image_cross_attention is False.
    """

    def __init__(self, use_image_cross_attention: bool = True, image_dim: int = 512, **config: Any):
        super().__init__(**_options(config))
        _add_image_attentions(self, image_dim, use_image_cross_attention)


class SeeSRNetwork(nn.Module):
    """What runs at every step of SeeSR: the ControlNet on the low-quality image, then the UNet with its residuals.

    Args:
        unet: predicts the noise.
        controlnet: sees the low-quality image.
    """

    def __init__(self, unet: SeeSRUNet, controlnet: SeeSRControlNet):
        super().__init__()
        self.unet, self.controlnet = unet, controlnet

    def enable_gradient_checkpointing(self) -> None:
        """Recompute the blocks of both networks in the backward pass instead of keeping their activations."""
        self.unet.enable_gradient_checkpointing()
        self.controlnet.enable_gradient_checkpointing()

    def disable_gradient_checkpointing(self) -> None:
        self.unet.disable_gradient_checkpointing()
        self.controlnet.disable_gradient_checkpointing()

    def forward(
        self,
        x_t: torch.Tensor,
        t: Union[int, torch.Tensor],
        text: torch.Tensor,
        image_tokens: torch.Tensor,
        lq_image: torch.Tensor,
        conditioning_scale: float = 1.0,
    ) -> torch.Tensor:
        """eps, (B, 4, h, w).

        Args:
            x_t: (B, 4, h, w), noisy latent.
            t: timestep index, a number or (B,).
            text: (B, 77, D), last hidden states of the text encoder.
            image_tokens: (B, N, image_dim), embeddings by the tagger.
            lq_image: (B, 3, 8 h, 8 w), RGB, [0, 1], the input at the output size.
            conditioning_scale: factor of what the ControlNet adds.
        """
        tokens = {_TOKENS: image_tokens}
        down, mid = self.controlnet(
            x_t, t, text, lq_image, conditioning_scale, cross_attention_kwargs=tokens, return_dict=False
        )
        return self.unet(
            x_t, t, text, cross_attention_kwargs=tokens, down_block_additional_residuals=down,
            mid_block_additional_residual=mid, return_dict=False,
        )[0]  # fmt: skip
