import pytest
import torch

pyiqa = pytest.importorskip('pyiqa')
from finpercep_plugin.scoring.fast_ssim import FastSSIM, speed_up  # noqa: E402


@pytest.mark.parametrize(
    'options',
    [{}, {'test_y_channel': False}, {'test_y_channel': True, 'color_space': 'ycbcr'}, {'crop_border': 3}],
    ids=str,
)
def test_it_is_pyiqas_ssim(options):
    metric = pyiqa.create_metric('ssim', device='cpu', **options)
    generator = torch.Generator().manual_seed(0)
    gt = torch.rand(3, 3, 37, 52, generator=generator)
    gt[1] = 0.9  # flat: the constants decide, and rounding shows
    sr = (gt + 0.1 * torch.randn(gt.shape, generator=generator)).clamp(0, 1)
    expected = metric(sr, gt)
    assert (FastSSIM(metric.net)(sr, gt) - expected).abs().max() < 1e-9
    assert (speed_up(metric)(sr, gt) - expected).abs().max() < 1e-9
    assert isinstance(metric.net, FastSSIM)


def test_what_it_is_not_is_left_alone():
    metric = pyiqa.create_metric('ssim', device='cpu', downsample=True)
    before = metric.net
    assert speed_up(metric).net is before
    psnr = pyiqa.create_metric('psnr', device='cpu')
    assert speed_up(psnr).net.__class__.__name__ == 'PSNR'


def test_small_pictures_are_refused():
    ssim = FastSSIM(pyiqa.create_metric('ssim', device='cpu').net)
    with pytest.raises(AssertionError, match='sides of 11 pixels or more'):
        ssim(torch.rand(1, 3, 10, 20), torch.rand(1, 3, 10, 20))
