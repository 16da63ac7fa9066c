"""The square that CLIP-like networks read, by hand and against PIL's resampling."""

import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from finpercep_plugin.rewards.clip_input import cosine, normalised, prompts, to_square


def published(image: torch.Tensor, size: int, resize: str) -> torch.Tensor:
    """The pipelines of the public scorers, on 8-bit PIL images: torchvision's Resize + CenterCrop, HPSv2's ResizeMaxSize."""
    from torchvision.transforms import CenterCrop, InterpolationMode, Resize, ToTensor
    from torchvision.transforms.functional import pad

    picture = Image.fromarray((image * 255).round().byte().permute(1, 2, 0).numpy())
    if resize == 'crop':
        return ToTensor()(CenterCrop(size)(Resize(size, interpolation=InterpolationMode.BICUBIC)(picture)))
    scale = size / max(picture.size)
    picture = picture.resize(tuple(round(side * scale) for side in picture.size), Image.BICUBIC)
    left, top = ((size - side) // 2 for side in picture.size)
    right, bottom = size - picture.width - left, size - picture.height - top
    return ToTensor()(pad(picture, [left, top, right, bottom]))


@pytest.mark.parametrize('resize', ['crop', 'pad'])
@pytest.mark.parametrize('sides', [(64, 64), (47, 90), (91, 46), (20, 13), (65, 64)])
def test_equals_the_published_pipelines(resize, sides):
    pytest.importorskip('torchvision')
    coarse = torch.rand(1, 3, 7, 7, generator=torch.Generator().manual_seed(0))
    image = F.interpolate(coarse, sides, mode='bilinear')[0].mul(255).round() / 255
    ours = to_square(image[None], 32, resize)[0]
    assert (ours - published(image, 32, resize)).abs().max() < 1.6 / 255  # both passes of PIL round to 8 bits


def test_crop_takes_the_centre_and_pad_fills_with_black():
    image = torch.arange(6.0).view(1, 1, 1, 6).expand(1, 3, 2, 6) / 10
    assert to_square(image, 2, 'crop')[0, 0, 0].tolist() == pytest.approx([0.2, 0.3])
    padded = to_square(image, 6, 'pad')[0, 0]
    assert padded[:2].abs().sum() == padded[4:].abs().sum() == 0
    torch.testing.assert_close(padded[2:4], image[0, 0])
    assert to_square(image, 4, 'squash').shape == (1, 3, 4, 4)
    with pytest.raises(ValueError, match="resize: expected 'crop', 'pad' or 'squash', got 'fit'"):
        to_square(image, 4, 'fit')


def test_antialias_matters_for_reductions_only():
    lines = torch.tensor([0.0, 0, 0, 0, 1, 0, 0, 0]).repeat(8).expand(1, 3, 64, 64)  # one of 8 columns is white
    assert (to_square(lines, 8) - 1 / 8).abs().max() < 0.02
    assert (to_square(lines, 8, antialias=False) - 19 / 32).abs().max() < 1e-5  # half a pixel off it, a = -0.75
    same = torch.rand(1, 3, 8, 8)
    assert torch.equal(to_square(same, 8), same) and torch.equal(to_square(same, 8, antialias=False), same)


def test_overshoot_is_clamped_and_still_has_a_gradient():
    edge = (torch.arange(16) > 7).float().expand(1, 3, 16, 16).clone().requires_grad_()
    square = to_square(edge, 32)
    assert square.min() == 0 and square.max() == 1
    square.sum().backward()
    assert (edge.grad > 0).all() and edge.grad.sum().item() == pytest.approx(3 * 32 * 32, rel=1e-5)


def test_scale_by_hand_stays_in_float32_under_autocast():
    image = torch.full((1, 3, 2, 2), 0.5)
    with torch.autocast('cpu', torch.bfloat16):
        out = normalised(to_square(image, 4), (0.1, 0.2, 0.5), (0.4, 0.1, 2.0))
    assert out.dtype == torch.float32 and out[0, :, 0, 0].tolist() == pytest.approx([1.0, 3.0, 0.0], abs=1e-5)


def test_cosine_by_hand():
    a, b = torch.tensor([[1.0, 2.0, 2.0], [0.0, 0.0, 0.0]]), torch.tensor([[2.0, 0.0, 0.0], [1.0, 1.0, 1.0]])
    torch.testing.assert_close(cosine(a, b), torch.tensor([1 / 3, 0.0]))


def test_prompts_are_one_a_sample():
    assert prompts(('a', ''), 2, 'X') == ['a', '']
    with pytest.raises(ValueError, match='reward X compares with a prompt, and there is none'):
        prompts(None, 2, 'X')
    with pytest.raises(ValueError, match='reward X: expected 2 prompts, one a sample, got a single text'):
        prompts('ab', 2, 'X')
