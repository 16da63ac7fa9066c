"""CLIPScore: how well an image matches a text, by CLIP (Hessel et al. 2021, arXiv 2104.08718)."""

from __future__ import annotations

from torch import Tensor, nn

from finpercep_plugin.generators.pixels import straight_through_clamp
from finpercep_plugin.registry import REWARDS
from finpercep_plugin.rewards.base import RewardOutput
from finpercep_plugin.rewards.clip_input import Resize, prompts
from finpercep_plugin.rewards.open_clip_model import load_open_clip

__all__ = ['CLIPScoreReward', 'clip_score']


def clip_score(cosine: Tensor, scale: float = 2.5) -> Tensor:
    """`w * max(cos, 0)`, w = 2.5 (section 3 of the paper).

    So the range is 0 to 2.5 by definition. In use it is about 0 to 1: the paper never saw a cosine below 0, saw few
    above 0.4, and chose w to stretch that to 1. The gradient is w everywhere, also below 0, where that of the maximum
    would be lost.

    Args:
        cosine: (B,), [-1, 1].
        scale: w.

    Returns:
        (B,), [0, w].

    >>> from torch import tensor
    >>> clip_score(tensor([0.4, -0.1]))
    tensor([1., 0.])
    """
    return scale * straight_through_clamp(cosine)


@REWARDS.register('CLIPScore')
class CLIPScoreReward(nn.Module):
    """CLIPScore of an image and its prompt.

    The paper takes ViT-B/32; rankings of text-to-image models mostly ViT-L/14, the default.

    Args:
        model: open_clip's name of the network, or a .json in the layout of its `open_clip_config.json`. Weights of
            OpenAI need a name that ends in '-quickgelu'; in a local file that cannot be seen.
        weights: a file, local or 'org/name/file' on the hub, or a tag of open_clip's list.
        prefix: put before every prompt; the paper's. '' compares with the prompt alone.
        scale: w.
        resize: see `to_square`: 'crop' is the published way, and sees the central square only.
        antialias: see `to_square`.

    Raises:
        ValueError, FileNotFoundError: see `load_open_clip`.
    """

    differentiable = True
    needs = frozenset({'prompt'})
    higher_is_better = True
    loads_weights = True

    def __init__(
        self,
        model: str = 'ViT-L-14-quickgelu',
        weights: str = 'openai',
        prefix: str = 'A photo depicts ',
        scale: float = 2.5,
        resize: Resize = 'crop',
        antialias: bool = True,
    ):
        super().__init__()
        self.clip = load_open_clip(model, weights, 'CLIPScore')
        self.prefix, self.scale, self.resize, self.antialias = prefix, scale, resize, antialias

    def train(self, mode: bool = True) -> CLIPScoreReward:
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
        texts = [self.prefix + text for text in prompts(prompt, len(sr), 'CLIPScore')]
        cosine = self.clip(sr, texts, self.resize, self.antialias)
        return RewardOutput(clip_score(cosine, self.scale))
