"""BasicSR's metrics, to compare with; checkpoints of a few thousand weights in the layouts that rewards are released in."""

import json
from pathlib import Path
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


def randomise(module: torch.nn.Module, seed: int = 0, scale: float = 0.2) -> None:
    """Weights that give every layer a say; those of norms around 1."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        noise = scale * torch.randn(parameter.shape, generator=generator)
        parameter.data = parameter.data + noise if parameter.ndim < 2 and 'weight' in name else noise


@pytest.fixture(scope='session')
def tiny_clip(tmp_path_factory) -> dict[str, Path]:
    """An open_clip model: its configuration as a .json, its weights as a plain state dict, and as HPSv2 releases them."""
    import open_clip

    config = {
        'embed_dim': 16,
        'vision_cfg': {'image_size': 32, 'layers': 2, 'width': 32, 'head_width': 16, 'patch_size': 8},
        'text_cfg': {'context_length': 77, 'vocab_size': 49408, 'width': 24, 'heads': 2, 'layers': 2},
    }
    folder = tmp_path_factory.mktemp('clip')
    (folder / 'config.json').write_text(json.dumps({'model_cfg': config}))
    network = open_clip.CLIP(**config)
    randomise(network)
    network.logit_scale.data.fill_(4.0)
    torch.save(network.state_dict(), folder / 'weights.pt')
    hps = {'epoch': 1, 'state_dict': {k: v.half() for k, v in network.state_dict().items()}}
    torch.save(hps, folder / 'hps.pt')
    return {'model': folder / 'config.json', 'weights': folder / 'weights.pt', 'hps': folder / 'hps.pt'}


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
