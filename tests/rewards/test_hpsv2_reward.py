"""HPSv2's route against the published arithmetic: the cosine of open_clip's own embeddings, image padded to a square."""

import open_clip
import pytest
import torch
import torch.nn.functional as F

from finpercep_plugin.config import ConfigError, build
from finpercep_plugin.registry import REWARDS
from finpercep_plugin.rewards import open_clip_model
from finpercep_plugin.rewards.hpsv2_reward import HPSv2Reward

PROMPTS = ['a photo of a cat', 'two dogs, at night', 'a red house']


@pytest.fixture
def reward(tiny_clip) -> HPSv2Reward:
    return HPSv2Reward(weights=str(tiny_clip['hps']), model=str(tiny_clip['model']))


def test_equals_the_published_arithmetic(reward, photos):
    """40 x 52 becomes 25 x 32 (40 * 32 / 52 = 24.6) with 3 rows of black above and 4 below, then mean and std."""
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(1, 3, 1, 1)
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(1, 3, 1, 1)
    small = F.interpolate(photos, (25, 32), mode='bicubic', antialias=True)
    with torch.no_grad():
        square = (F.pad(small, (0, 0, 3, 4)) - mean) / std
        network = reward.clip.network
        image, text, _ = network(square, open_clip.tokenize(PROMPTS))
        expected = torch.diagonal(image @ text.T)
    torch.testing.assert_close(reward(photos, prompt=PROMPTS).score, expected, rtol=1e-4, atol=1e-6)


def test_behaves_as_a_reward(reward, photos, check_reward):
    check_reward(reward, photos)


def test_gradient_by_finite_differences(reward, photos, check_gradient):
    check_gradient(reward, photos)


def test_versions_name_the_released_files(monkeypatch):
    asked = []

    def find(name, what):
        asked.append((name, what))
        raise FileNotFoundError(f'{what}: nothing here')

    monkeypatch.setattr(open_clip_model, 'find_reward_file', find)
    for version in ('2.0', '2.1'):
        with pytest.raises(ConfigError, match=rf'\$\.reward: HPSv2 {version}: nothing here'):
            build(REWARDS, {'type': 'HPSv2', 'version': version}, '$.reward')
    assert asked == [
        ('xswu/HPSv2/HPS_v2_compressed.pt', 'HPSv2 2.0'),
        ('xswu/HPSv2/HPS_v2.1_compressed.pt', 'HPSv2 2.1'),
    ]
    with pytest.raises(ValueError, match="version: expected one of '2.0', '2.1', got '3'"):
        HPSv2Reward(version='3')


def test_a_plain_state_dict_is_refused(tiny_clip):
    with pytest.raises(ValueError, match=r"weights\.pt has no state dict under 'state_dict'; it holds"):
        HPSv2Reward(weights=str(tiny_clip['weights']), model=str(tiny_clip['model']))
