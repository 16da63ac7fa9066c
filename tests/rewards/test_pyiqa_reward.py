"""pyiqa's metrics as rewards; those with weights need a network, and say so where there is none."""

import random
import sys
import urllib.error

import numpy as np
import pytest
import torch
from torch import nn

pyiqa = pytest.importorskip('pyiqa')

from finpercep_plugin.rewards.pyiqa_reward import REFUSED, PyIQAReward, describe_download  # noqa: E402


def test_a_full_reference_metric():
    reward = PyIQAReward('psnr', {'test_y_channel': False})
    assert reward.needs == {'gt'} and reward.differentiable and reward.higher_is_better
    sr, gt = torch.full((2, 3, 8, 8), 0.6, requires_grad=True), torch.full((2, 3, 8, 8), 0.5)
    score = reward(sr, gt=gt).score
    assert score.shape == (2,) and score.tolist() == pytest.approx([20.0, 20.0], abs=1e-2)
    score.sum().backward()
    assert sr.grad.abs().sum() > 0 and not any(p.requires_grad for p in reward.parameters())
    with pytest.raises(ValueError, match='psnr compares with gt, and there is none'):
        reward(sr)
    with pytest.raises(ValueError, match=r'sr of shape \(2, 3, 8, 8\), gt of \(2, 3, 8, 9\)'):
        reward(sr, gt=torch.rand(2, 3, 8, 9))


class Crops(nn.Module):
    """A metric as pyiqa builds one: random crops, a network in a list, features kept with their graph."""

    metric_mode, lower_better = 'NR', False

    def __init__(self):
        super().__init__()
        self.clip = [nn.Linear(3, 1)]
        self.features = self.clip[0].weight * 2

    def forward(self, image):
        if image.shape[-1] < 6:
            raise AssertionError('Short side is less than 6')
        rows = []
        for one in image:  # a place a sample: what a batch sees depends on its order
            top, left = np.random.randint(0, 4), int(torch.randint(0, 4, (1,)))
            crop = one[:, top : top + 4, left : left + 4].mean(dim=(1, 2)) + 0.01 * random.random()
            rows.append(self.clip[0](crop) + (self.features[0] * crop).sum())
        return torch.stack(rows)


@pytest.fixture
def crops(monkeypatch) -> PyIQAReward:
    monkeypatch.setattr(pyiqa, 'create_metric', lambda name, **options: Crops())
    return PyIQAReward('psnr')


def test_random_crops_are_the_same_for_every_call_batch_and_order(crops):
    images = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    score = crops(images).score
    random.random(), np.random.rand(), torch.rand(1)
    assert torch.equal(crops(images).score, score)
    assert torch.equal(crops(images.flip(0)).score.flip(0), score)
    assert torch.equal(torch.cat([crops(image[None]).score for image in images]), score)


def test_the_global_generators_are_left_alone(crops):
    def state():
        return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()

    before = state()
    crops(torch.rand(2, 3, 8, 8, generator=torch.Generator()))
    with pytest.raises(ValueError, match='reward pyiqa psnr: Short side is less than 6'):
        crops(torch.zeros(1, 3, 4, 4))
    assert state() == before


def test_a_hidden_network_is_frozen_and_no_graph_is_kept(crops):
    assert not any(p.requires_grad for p in crops.model.clip[0].parameters())
    image = torch.rand(2, 3, 8, 8, requires_grad=True)
    for _ in range(2):  # a kept graph can be gone through once
        crops(image).score.sum().backward()
    assert image.grad.abs().sum() > 0
    assert not crops(image.detach()).score.requires_grad
    with torch.no_grad():
        assert not crops(image).score.requires_grad


def test_one_score_a_sample(crops, monkeypatch):
    monkeypatch.setattr(Crops, 'forward', lambda self, image: image.mean())
    with pytest.raises(ValueError, match=r'reward pyiqa psnr: 2 images, scores \(\)'):
        crops(torch.rand(2, 3, 8, 8))


def tiny_openai_clip():
    from pyiqa.archs.clip_model import CLIP

    with torch.random.fork_rng():
        torch.manual_seed(0)
        return CLIP(32, 224, 1, 64, 32, 77, 49408, 64, 1, 1).eval()


def test_laion_aesthetic_and_liqe_as_pyiqa_builds_them(monkeypatch, tmp_path):
    """The two that keep CLIP out of sight; with weights of a tiny one."""
    pytest.importorskip('clip')
    import pyiqa.archs.laion_aes_arch as laion
    import pyiqa.archs.liqe_arch as liqe

    def load(name, *args):
        model = tiny_openai_clip()
        encode = model.encode_image
        model.encode_image = lambda image, pos_embedding=True: encode(image, pos_embedding)
        return model

    monkeypatch.setattr(laion.clip, 'load', lambda name: (load(name), None))
    monkeypatch.setattr(laion, 'load_pretrained_network', lambda *args, **options: None)
    monkeypatch.setattr(liqe, 'load', load)
    monkeypatch.setattr(liqe, 'load_pretrained_network', lambda *args, **options: None)
    monkeypatch.setattr(liqe, 'DEFAULT_CACHE_DIR', str(tmp_path))
    image = torch.rand(2, 3, 224, 240, generator=torch.Generator().manual_seed(0)).requires_grad_()
    for metric in ('laion_aes', 'liqe'):
        reward, image.grad = PyIQAReward(metric), None
        clip = reward.model.net.clip_model
        clip = clip[0] if isinstance(clip, list) else clip
        assert not any(p.requires_grad for p in clip.parameters())
        for _ in range(2):
            reward(image).score.sum().backward()
        assert (image.grad.flatten(1).norm(dim=1) > 0).all()
        with torch.no_grad():
            assert not reward(image).score.requires_grad
        with torch.autocast('cpu', torch.bfloat16):
            assert torch.equal(reward(image).score, reward(image).score.float())


def test_autocast_does_not_reach_a_metric():
    reward, generator = PyIQAReward('vif'), torch.Generator().manual_seed(0)
    sr, gt = torch.rand(2, 1, 3, 48, 48, generator=generator)
    score = reward(sr, gt=gt).score
    with torch.autocast('cpu', torch.bfloat16):
        assert torch.equal(reward(sr, gt=gt).score, score)  # NaN in bfloat16
    assert score.dtype == torch.float32 and torch.isfinite(score).all()


def test_a_metric_imports_its_own_network_only():
    """Importing all of them would replace parts of transformers' Llama."""
    before = set(sys.modules)
    PyIQAReward('ms_ssim')  # MS_SSIM is in ssim_arch
    added = {name for name in set(sys.modules) - before if name.startswith('pyiqa.archs.') and name.endswith('_arch')}
    assert added <= {'pyiqa.archs.ssim_arch'} and 'pyiqa.archs.ssim_arch' in sys.modules


@pytest.mark.parametrize('metric', sorted(REFUSED))
def test_metrics_that_are_no_rewards(metric):
    with pytest.raises(ValueError, match=f'pyiqa {metric} cannot be a reward: it '):
        PyIQAReward(metric)


def test_missing_weights_say_file_source_and_folder(monkeypatch, tmp_path):
    def offline(url, dst, *args, **kwargs):
        raise urllib.error.URLError('no network')

    monkeypatch.setattr('pyiqa.utils.download_util.download_url_to_file', offline)
    monkeypatch.setattr('pyiqa.utils.download_util.DEFAULT_CACHE_DIR', str(tmp_path))
    with pytest.raises(FileNotFoundError) as caught:
        PyIQAReward('niqe')
    message = str(caught.value)
    assert message.startswith(
        f'pyiqa niqe: weights niqe_modelparameters.mat are not in {tmp_path}, and could not be fetched'
    )
    assert 'https://huggingface.co/chaofengc/IQA-PyTorch-Weights' in message and '\n' not in message


def test_an_error_of_the_hub_is_described_from_its_frames():
    def hf_hub_download(repo_id, filename, cache_dir):
        raise OSError('LocalEntryNotFoundError\nlong text')

    try:
        hf_hub_download('timm/resnet50', 'model.safetensors', '/cache/hub')
    except OSError as error:
        text = describe_download(error)
    assert text == (
        'weights model.safetensors are not in /cache/hub, and could not be fetched from timm/resnet50 (LocalEntryNotFoundError)'
    )
    assert describe_download(OSError('no config\nlong text')) == 'its weights cannot be read (OSError: no config)'


def test_unknown_metric():
    with pytest.raises(ValueError, match="pyiqa has no metric 'clipiqua'; did you mean 'clipiqa'"):
        PyIQAReward('clipiqua')
