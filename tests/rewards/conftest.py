"""BasicSR's metrics, to compare with; what every reward has to keep."""

from types import ModuleType

import pytest
import torch

PROMPTS = ['a photo of a cat', 'two dogs, at night', 'a red house']


@pytest.fixture(scope='session')
def basicsr_metrics() -> ModuleType:
    """basicsr.metrics; the test is skipped without BasicSR."""
    from finpercep_plugin.integrations.basicsr import require

    try:
        require()
    except ImportError as error:
        pytest.skip(str(error))
    import basicsr.metrics

    return basicsr.metrics


@pytest.fixture
def photos() -> torch.Tensor:
    """(3, 3, 40, 52): smooth enough that no interpolation leaves [0, 1]."""
    noise = torch.rand(3, 3, 10, 13, generator=torch.Generator().manual_seed(1))
    return 0.25 + 0.5 * torch.nn.functional.interpolate(noise, scale_factor=4, mode='bilinear')


@pytest.fixture(scope='session')
def check_reward():
    """What every reward of image and prompt has to keep; see the asserts."""

    def check(reward, photos: torch.Tensor, tolerance: float = 0.05) -> None:
        assert reward.differentiable and reward.higher_is_better and reward.needs == {'prompt'}
        score = reward(photos, prompt=PROMPTS).score
        assert score.shape == (3,) and score.dtype == torch.float32 and not score.requires_grad
        assert score.std() > 0, 'images or prompts make no difference'

        image = photos.clone().requires_grad_()
        reward(image, prompt=PROMPTS).score.sum().backward()
        assert (image.grad.flatten(1).norm(dim=1) > 0).all()
        assert not any(p.requires_grad for p in reward.parameters())
        assert not any(m.training for m in reward.train().modules())

        order = [2, 0, 1]
        shuffled = reward(photos[order], prompt=[PROMPTS[i] for i in order]).score
        alone = torch.cat([reward(photos[i : i + 1], prompt=[PROMPTS[i]]).score for i in range(3)])
        torch.testing.assert_close(shuffled, score[order], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(alone, score, rtol=1e-4, atol=1e-5)
        repeated = [PROMPTS[1], PROMPTS[0], PROMPTS[1]]  # encoded once
        alone = torch.cat([reward(photos[i : i + 1], prompt=[repeated[i]]).score for i in range(3)])
        torch.testing.assert_close(reward(photos, prompt=repeated).score, alone, rtol=1e-4, atol=1e-5)

        with pytest.raises(ValueError, match='compares with a prompt, and there is none'):
            reward(photos)
        with pytest.raises(ValueError, match='expected 3 prompts, one a sample, got 2'):
            reward(photos, prompt=PROMPTS[:2])

        from finpercep_plugin.models.precision import cast_frozen

        for cast in (False, True):
            assert not cast or all(cast_frozen(encoder) for encoder in reward.encoders)
            image.grad = None
            with torch.autocast('cpu', torch.bfloat16):
                coarse = reward(image, prompt=PROMPTS).score
            assert coarse.dtype == torch.float32
            torch.testing.assert_close(coarse, score, rtol=tolerance, atol=tolerance)
            coarse.sum().backward()
            assert torch.isfinite(image.grad).all() and (image.grad != 0).any()

    return check


@pytest.fixture(scope='session')
def check_gradient():
    """The gradient to the image against central differences in float64, along a random direction a sample."""

    def check(reward, photos: torch.Tensor, step: float = 1e-5) -> None:
        reward = reward.double()
        monkey = pytest.MonkeyPatch()
        monkey.setattr(torch.Tensor, 'float', torch.Tensor.double)  # the preprocessing is in float32 otherwise
        try:
            image = photos.double().requires_grad_()
            reward(image, prompt=PROMPTS).score.sum().backward()
            generator = torch.Generator().manual_seed(3)
            direction = torch.randn(photos.shape, generator=generator, dtype=torch.float64)
            with torch.no_grad():
                up, down = (reward(image + s * step * direction, prompt=PROMPTS).score for s in (1, -1))
            slope = (image.grad * direction).sum(dim=(1, 2, 3))
            torch.testing.assert_close(slope, (up - down) / (2 * step), rtol=1e-4, atol=1e-7)
        finally:
            monkey.undo()
            reward.float()

    return check
