"""pyiqa's metrics as rewards; those with weights need a network, and say so where there is none."""

import urllib.error

import pytest
import torch

pyiqa = pytest.importorskip('pyiqa')

from finpercep_plugin.rewards.pyiqa_reward import PyIQAReward, describe_download  # noqa: E402


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


def test_unknown_metric():
    with pytest.raises(ValueError, match="pyiqa has no metric 'clipiqua'; did you mean 'clipiqa'"):
        PyIQAReward('clipiqua')
