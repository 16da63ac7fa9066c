"""CLIPScore by hand, and its route against open_clip's own calls."""

import open_clip
import pytest
import torch
import torch.nn.functional as F

from finpercep_plugin.config import build
from finpercep_plugin.registry import REWARDS
from finpercep_plugin.rewards.clip_score_reward import CLIPScoreReward, clip_score

PROMPTS = ['a photo of a cat', 'two dogs, at night', 'a red house']


@pytest.fixture
def reward(tiny_clip) -> CLIPScoreReward:
    return CLIPScoreReward(str(tiny_clip['model']), str(tiny_clip['weights']))


def test_by_hand():
    cosine = torch.tensor([0.3, -0.2, 1.0], requires_grad=True)
    score = clip_score(cosine)
    torch.testing.assert_close(score, torch.tensor([0.75, 0.0, 2.5]))
    score.sum().backward()
    assert cosine.grad.tolist() == [2.5, 2.5, 2.5]


def test_equals_the_definition(reward, photos):
    """2.5 * max(cos, 0) of the text 'A photo depicts ...', images cut to the centre and scaled as CLIP's."""
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(1, 3, 1, 1)
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(1, 3, 1, 1)
    with torch.no_grad():
        square = F.interpolate(photos, (32, 41), mode='bicubic', antialias=True)[..., 4:36]  # (41 - 32) / 2 -> 4
        network = reward.clip.network
        image = network.encode_image((square - mean) / std, normalize=True)
        text = network.encode_text(open_clip.tokenize([f'A photo depicts {p}' for p in PROMPTS]), normalize=True)
    expected = 2.5 * (image * text).sum(-1).clamp_min(0)
    torch.testing.assert_close(reward(photos, prompt=PROMPTS).score, expected, rtol=1e-4, atol=1e-5)


def test_behaves_as_a_reward(reward, photos, check_reward):
    check_reward(reward, photos)


def test_gradient_by_finite_differences(tiny_clip, photos, check_gradient):
    reward = CLIPScoreReward(str(tiny_clip['model']), str(tiny_clip['weights']), resize='squash')
    assert (reward.clip(photos, [f'A photo depicts {p}' for p in PROMPTS], 'squash') > 0).all(), (
        'max(cos, 0) has no kink here'
    )
    check_gradient(reward, photos)


def test_options(tiny_clip, photos):
    options = {'model': str(tiny_clip['model']), 'weights': str(tiny_clip['weights'])}
    reward = build(REWARDS, {'type': 'CLIPScore', **options}, '$.reward')
    bare = build(REWARDS, {'type': 'CLIPScore', **options, 'prefix': '', 'scale': 1.0}, '$.reward')
    said = [f'A photo depicts {p}' for p in PROMPTS]
    torch.testing.assert_close(reward(photos, prompt=PROMPTS).score, 2.5 * bare(photos, prompt=said).score)
    for other in ({'resize': 'pad'}, {'antialias': False}):
        assert not torch.allclose(
            CLIPScoreReward(**options, **other)(photos, prompt=PROMPTS).score, reward(photos, prompt=PROMPTS).score
        )
