"""HPS v2 and v2.1: human preference by a fine-tuned CLIP ViT-H/14 (Wu et al. 2023, arXiv 2306.09341)."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from finpercep_plugin.registry import REWARDS
from finpercep_plugin.rewards.base import RewardOutput
from finpercep_plugin.rewards.clip_input import Resize, prompts
from finpercep_plugin.rewards.open_clip_model import load_open_clip

__all__ = ['RELEASED', 'HPSv2Reward']

RELEASED = {'2.0': 'xswu/HPSv2/HPS_v2_compressed.pt', '2.1': 'xswu/HPSv2/HPS_v2.1_compressed.pt'}


@REWARDS.register('HPSv2')
class HPSv2Reward(nn.Module):
    """Cosine of image and prompt in the fine-tuned network, without a factor: about 0.2 to 0.35 (tables multiply it by 100).

    Only images of the same prompt are comparable. The two versions differ in their weights alone.

    Args:
        version: which of the released files is fetched.
        weights: that file where it lies: a path, or 'org/name/file' on the hub; `version` is then not used.
        model: open_clip's name of the network, or a .json in the layout of its `open_clip_config.json`.
        resize: see `to_square`: 'pad' is the published way.
        antialias: see `to_square`.

    Raises:
        ValueError, FileNotFoundError: see `load_open_clip`; the file has no 'state_dict'.
    """

    differentiable = True
    needs = frozenset({'prompt'})
    higher_is_better = True
    loads_weights = True

    def __init__(
        self,
        version: Literal['2.0', '2.1'] = '2.1',
        weights: str | None = None,
        model: str = 'ViT-H-14',
        resize: Resize = 'pad',
        antialias: bool = True,
    ):
        super().__init__()
        if version not in RELEASED:
            raise ValueError(f'version: expected one of {", ".join(map(repr, RELEASED))}, got {version!r}')
        self.clip = load_open_clip(model, weights or RELEASED[version], f'HPSv2 {version}', key='state_dict')
        self.resize, self.antialias = resize, antialias

    def train(self, mode: bool = True) -> HPSv2Reward:
        """Stays in eval mode."""
        return super().train(False)

    @property
    def encoders(self) -> list[nn.Module]:
        """What bfloat16 does not hurt."""
        return [self.clip.network]

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
        return RewardOutput(self.clip(sr, prompts(prompt, len(sr), 'HPSv2'), self.resize, self.antialias))
