"""PickScore: human preference by a fine-tuned CLIP ViT-H/14 (Kirstain et al. 2023, arXiv 2305.01569)."""

from __future__ import annotations

import open_clip
import torch
from torch import Tensor, nn
from transformers import CLIPModel

from finpercep_plugin.archs.clip_encoder import CLIP_MEAN, CLIP_STD
from finpercep_plugin.generators.pretrained import load_part
from finpercep_plugin.registry import REWARDS
from finpercep_plugin.rewards.base import RewardOutput
from finpercep_plugin.rewards.clip_input import Resize, cosine, normalised, prompts, to_square
from finpercep_plugin.rewards.frozen import freeze
from finpercep_plugin.rewards.weights import find_reward_folder

__all__ = ['PickScoreReward']

FILES = (
    'config.json',
    (
        'model.safetensors',
        'model.safetensors.index.json',
        'pytorch_model.bin',
        'pytorch_model.bin.index.json',
    ),
)


@REWARDS.register('PickScore')
class PickScoreReward(nn.Module):
    """`exp(logit_scale) * cos(image, prompt)` (section 4 of the paper): about 15 to 26.

    Texts are cut into tokens by open_clip's vocabulary, which is CLIP's; the text tower is causal and read at the end
    token, so what pads a text does not matter.

    Args:
        weights: folder in transformers' layout, or a hub id.
        resize: see `to_square`: 'crop' is the published way, and sees the central square only.
        antialias: see `to_square`.

    Raises:
        FileNotFoundError: the folder or a file of it is not there and cannot be fetched.
        ValueError: every missing, unexpected and misshapen key, in one error.
    """

    differentiable = True
    needs = frozenset({'prompt'})
    higher_is_better = True
    loads_weights = True

    def __init__(self, weights: str = 'yuvalkirstain/PickScore_v1', resize: Resize = 'crop', antialias: bool = True):
        super().__init__()
        folder = find_reward_folder(weights, 'PickScore', FILES, 'model files')
        self.model = freeze(load_part(CLIPModel, folder, '', 'PickScore'))
        self.size = int(self.model.config.vision_config.image_size)
        self.length = int(self.model.config.text_config.max_position_embeddings)
        self.resize, self.antialias = resize, antialias

    def train(self, mode: bool = True) -> PickScoreReward:
        """Stays in eval mode."""
        return super().train(False)

    @property
    def encoders(self) -> list[nn.Module]:
        """What bfloat16 does not hurt."""
        return [self.model]

    def forward(
        self, sr: Tensor, lq: Tensor | None = None, gt: Tensor | None = None, prompt: list[str] | None = None
    ) -> RewardOutput:
        """
        Args:
            sr: (B, 3, H, W), RGB, [0, 1]; gradients flow back to it.
            prompt: B texts.

        Raises:
            ValueError: no prompts, or another number of them.
        """
        text = self._text(prompts(prompt, len(sr), 'PickScore'), sr.device)
        pixels = normalised(to_square(sr, self.size, self.resize, self.antialias), CLIP_MEAN, CLIP_STD)
        image = self.model.visual_projection(self.model.vision_model(pixel_values=pixels).pooler_output)
        return RewardOutput(self.model.logit_scale.float().exp() * cosine(image, text))

    @torch.no_grad()
    def _text(self, texts: list[str], device: torch.device) -> Tensor:
        unique = list(dict.fromkeys(texts))
        ids = open_clip.tokenize(unique, context_length=self.length).to(device)
        embedding = self.model.text_projection(self.model.text_model(input_ids=ids).pooler_output)
        return embedding[[unique.index(text) for text in texts]]
