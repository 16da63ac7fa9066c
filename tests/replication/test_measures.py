"""What is measured on held-out crops, by hand."""

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip('basicsr')
from finpercep_plugin.archs.finpercep_rm_arch import FinPercepRM
from finpercep_plugin.generators.checkpoint import write_weights
from finpercep_plugin.replication.measures import Crops, Judges, feature_distance
from finpercep_plugin.replication.niqe import niqe
from finpercep_plugin.rewards.base import raw_reward, robust_max


class Planes(nn.Module):
    """The picture itself as one layer of features, and its double as another."""

    patch = 2

    def forward(self, image):
        return [image, 2 * image], None


def test_feature_distance_by_hand():
    red, green = torch.zeros(1, 3, 4, 4), torch.zeros(1, 3, 4, 4)
    red[:, 0], green[:, 1] = 0.3, 0.9
    half = red.clone()
    half[..., 2:] = green[..., 2:]
    # Unit vectors at right angles are at a squared distance of 2, in both layers; their lengths do not count.
    assert feature_distance(Planes(), red, green).item() == pytest.approx(2.0)
    assert feature_distance(Planes(), half, green).item() == pytest.approx(1.0)
    assert feature_distance(Planes(), red, 0.5 * red).item() == pytest.approx(0.0)


@pytest.fixture(scope='module')
def judges(tmp_path_factory):
    folder, files = tmp_path_factory.mktemp('rm'), []
    for seed in (0, 1):
        torch.manual_seed(seed)
        vit = {'size': 32, 'patch': 8, 'width': 16, 'depth': 1, 'heads': 2, 'stem': 8}
        rm = FinPercepRM(stage=2, backbone='small', vit=vit, encoder='full')
        with torch.no_grad():
            for p in rm.parameters():
                p.add_(0.1 * torch.randn_like(p))
        files.append(folder / f'{seed}.pth')
        write_weights(rm.file(), files[-1])
    return Judges(*files)


@pytest.fixture
def crops():
    torch.manual_seed(3)
    gt = torch.rand(20, 3, 32, 32)
    return Crops(nn.functional.avg_pool2d(gt, 4), gt, ['a'] * 10 + ['b'] * 10)


def test_rewards_are_of_rm_2_with_both_terms_in_balance(judges, crops):
    judges.l2 = judges.balance(crops.gt[:1])
    image = crops.gt[:1].clone().requires_grad_()
    score, maps = judges.common(image)
    alone, both = (
        torch.autograd.grad(term, image, retain_graph=True)[0] for term in (score, judges.l2 * robust_max(maps))
    )
    assert both.norm().item() == pytest.approx(alone.norm().item(), rel=1e-4)
    with torch.no_grad():
        score, maps = judges.common(crops.gt)
    torch.testing.assert_close(judges.rewards(crops.gt)['reward'], raw_reward(score, maps, 2, l2=judges.l2))
    assert judges.rewards(crops.gt)['held_out'].tolist() != judges.rewards(crops.gt)['reward'].tolist()


def test_every_measure_of_every_crop_and_gt_is_perfect(judges, crops):
    judges.threshold = float(judges.maps(crops.gt).flatten().quantile(0.9))
    values = judges.measure(crops.gt, crops)
    assert {len(v) for v in values.values()} == {20}
    assert np.mean(values['psnr']) == 100 and np.allclose(values['distance'], 0) and np.allclose(values['ssim'], 1)
    assert np.allclose(values['lq_psnr'], 100) and np.mean(values['artifacts']) == pytest.approx(0.1, abs=0.01)
    worse = judges.measure(crops.bicubic(), crops)
    assert np.mean(worse['psnr']) < 40 and np.mean(worse['distance']) > 0.001


def test_a_curve_has_the_means_of_what_is_measured(judges, crops):
    sr = crops.bicubic()
    few, point = crops.first(5), judges.curve(sr[:5], crops.first(5))
    assert len(few.photos) == 5
    assert point['psnr'] == pytest.approx(np.mean(judges.measure(sr, crops)['psnr'][:5]))
    assert point['reward'] == pytest.approx(np.mean(judges.measure(sr, crops)['reward'][:5]), rel=1e-5)


def test_niqe_is_basicsrs_and_of_each_picture_alone():
    from basicsr.metrics.niqe import calculate_niqe

    torch.manual_seed(0)
    smooth = nn.functional.interpolate(torch.rand(2, 3, 48, 48), size=(192, 192), mode='bicubic').clamp(0, 1)
    bgr = (smooth[0].permute(1, 2, 0).numpy()[..., ::-1] * 255).astype(np.float32)
    assert niqe(smooth, block=96)[0].item() == pytest.approx(float(calculate_niqe(bgr, 0)), rel=0.02)
    assert niqe(smooth, block=32)[1].item() == pytest.approx(niqe(smooth[1:], block=32)[0].item())
