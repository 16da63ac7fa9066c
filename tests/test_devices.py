"""Choosing a device; the same losses on a GPU as on the CPU."""

import pytest
import torch

pytest.importorskip('diffusers')
pytest.importorskip('peft')
from finpercep_plugin.algorithms.refl import ReFL  # noqa: E402
from finpercep_plugin.archs.finpercep_rm_arch import FinPercepRM  # noqa: E402
from finpercep_plugin.devices import choose_device  # noqa: E402
from finpercep_plugin.generators.tiny_diffusion import TinyDiffusion  # noqa: E402
from finpercep_plugin.losses.map_loss import map_loss  # noqa: E402
from finpercep_plugin.rewards.finpercep_reward import FinPercepReward  # noqa: E402
from finpercep_plugin.rng import keyed_randn, keyed_torch  # noqa: E402

DEVICES = ['cpu', pytest.param('cuda', marks=pytest.mark.gpu)]


@pytest.fixture(params=DEVICES)
def device(request, monkeypatch):
    """Both devices; TF32, which rounds to 10 bits, is off."""
    if request.param == 'cuda':
        if not torch.cuda.is_available():
            pytest.skip('no CUDA device')
        monkeypatch.setattr(torch.backends.cuda.matmul, 'allow_tf32', False)
        monkeypatch.setattr(torch.backends.cudnn, 'allow_tf32', False)
    return request.param


def test_unknown_device():
    with pytest.raises(ValueError, match="unknown device 'gpu'"):
        choose_device('gpu')
    assert choose_device('cpu') == torch.device('cpu')


def images(*shape):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(2))


def generator_on(device):
    torch.manual_seed(0)
    generator = TinyDiffusion({'channels': [8, 8], 'norm_groups': 4}, scale=2, residual_sd=0.2, steps=4)
    torch.nn.init.normal_(generator.network.unet.conv_out.weight, std=0.05)
    return generator.to(device)


def pretrain_step(device):
    generator, gt = generator_on(device), images(2, 3, 32, 32).to(device)
    lq = gt[..., ::2, ::2]
    generator.fit_residual_sd(lq, gt)
    optimizer = torch.optim.AdamW(generator.trainable('all').values(), lr=1e-3)
    losses, noise = [], keyed_randn((3, 32, 32), [0, 1], 'noise', device=device)
    t = torch.stack([generator.draw_t(keyed_torch('t', i)) for i in range(2)])
    for steps in (t, t.to(device)):
        loss = generator.pretrain_loss(gt, generator.condition(lq), noise, steps).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def refl_steps(device, rms, choice):
    generator, gt = generator_on(device), images(2, 3, 32, 32).to(device)
    cond = generator.condition(gt[..., ::2, ::2])
    chosen = generator.trainable(choice, rank=2)
    with torch.no_grad():
        for value in chosen.values():
            value.add_(0.02)
    reward, refl = FinPercepReward(rm=rms[2]).to(device), ReFL(weight=1.0, eta=1.0)
    optimizer, losses = torch.optim.SGD(chosen.values(), lr=1e-3), []
    for iteration in (1, 2):
        loss, _ = refl.loss(generator, cond, gt, reward, 0, iteration, [0, 1])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    with generator.reference(), torch.no_grad():
        losses.append(refl.loss(generator, cond, gt, reward, 0, 3, [0, 1])[0].item())
    return losses


def reward_model_steps(device, rms):
    rm = FinPercepRM.from_file(rms[2]).to(device)
    sr, truth = images(2, 3, 32, 40).to(device).requires_grad_(), images(2, 1, 32, 40).to(device)
    score, degradation = rm(sr)
    loss = map_loss(degradation, truth, dice_weight=0.5, focal_weight=1.0) - score.mean()
    loss.backward()
    return [
        loss.item(),
        sr.grad.norm().item(),
        sum(float(p.grad.norm()) for p in rm.parameters() if p.grad is not None),
    ]


def check(device, measure, *arguments):
    expected = measure('cpu', *arguments)
    assert all(value == value and abs(value) < 1e3 for value in expected)
    assert measure(device, *arguments) == pytest.approx(expected, abs=1e-3, rel=1e-3)


def test_pretrain_step(device):
    check(device, pretrain_step)


@pytest.mark.parametrize('choice', ['all', 'lora', ['unet.conv_out.*']])
def test_refl_step(device, tiny_rms, choice):
    check(device, refl_steps, tiny_rms, choice)


def test_reward_model(device, tiny_rms):
    check(device, reward_model_steps, tiny_rms)


def test_new_adapters_leave_the_generator_of_the_device_alone(device):
    module = torch.cuda if device == 'cuda' else torch
    generator = generator_on(device)
    before = module.get_rng_state()
    chosen = generator.trainable('lora', rank=2)
    assert torch.equal(module.get_rng_state(), before) and {p.device.type for p in chosen.values()} == {device}


def test_reward_model_in_bf16(tiny_rms):
    """Scores and maps stay close to those in full precision, and every trained parameter gets a finite gradient."""
    rm, sr = FinPercepRM.from_file(tiny_rms[2]), images(2, 3, 32, 40)
    score, degradation = rm(sr)
    with torch.autocast('cpu', torch.bfloat16):
        low_score, low_map = rm(sr)
        loss = map_loss(low_map, images(2, 1, 32, 40), focal_weight=1.0) - low_score.float().mean()
    loss.backward()
    torch.testing.assert_close(low_score.float(), score, atol=0.05, rtol=0.05)
    torch.testing.assert_close(low_map.float(), degradation, atol=0.05, rtol=0.05)
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in rm.parameters() if p.requires_grad)
