"""Every algorithm's gradient with respect to one parameter of the network, against finite differences, in float64."""

import pytest
import torch

pytest.importorskip('diffusers')
pytest.importorskip('peft')
from finpercep_plugin.registry import ALGORITHMS  # noqa: E402

# Each so that nothing that is kept from an earlier moment (samples, a rollout without gradient) moves with the
# parameter: the step with gradient is the sampler's first; pairs are of the starting policy; the policy's update is the
# second, after its rollout.
CASES = {
    'reward': ('ReFL', {'k_start': 0, 'k_end': 0, 'weight': 1.0, 'pretrain_weight': 0.0}, 0),
    'reward and pre-training': ('ReFL', {'k_start': 0, 'k_end': 0, 'weight': 1.0, 'micro_batch': 1}, 0),
    'preferences': ('DPO', {'policy': 'start', 'members': 4, 'best': 2, 'beta': 50.0, 'micro_batch': 3}, 0),
    'policy and KL': ('FlowGRPO', {'group': 3, 'clip': 10.0, 'kl_weight': 0.5, 'epochs': 2}, 1),
    'low frequencies': ('RFSR', {'early': (0, 0), 'early_probability': 1.0, 'll_weight': 1.0, 'wavelet': 'haar'}, 0),
    'dual tree': ('RFSR', {'early': (0, 0), 'early_probability': 1.0, 'll_weight': 1.0, 'wavelet': 'dtcwt'}, 0),
    'reward and Gram': (
        'RFSR',
        {'late': (0, 0), 'early_probability': 0.0, 'reward_weight': 1.0, 'gram_weight': 1.0},
        0,
    ),
}


def test_every_algorithm_is_here():
    assert {name for name, _, _ in CASES.values()} == set(ALGORITHMS.names())


@pytest.mark.parametrize('kind', ['eps', 'flow'])
@pytest.mark.parametrize('case', CASES)
def test_finite_differences(tiny, vgg_file, in_float64, case, kind):
    name, options, which = CASES[case]
    generator, rng = tiny.make(kind, residual_sd=0.05), torch.Generator().manual_seed(2)
    lq, gt = (0.3 + 0.4 * torch.rand(1, 3, size, size, generator=rng) for size in (8, 16))
    weights = generator.trainable('all')['unet.conv_in.weight']
    value = weights.data.view(-1)[:1]
    start = value.clone()
    if name == 'RFSR':
        options = {**options, 'vgg': vgg_file}

    def loss(shift):
        """Of the update, for a policy this far from where it started and sampled."""
        value.copy_(start)
        algorithm = ALGORITHMS.get(name)(**options)
        updates = algorithm.updates(generator, lq, gt, tiny.brightness, 3, 1, [5], tiny.alone)
        for _ in range(which):
            next(updates)
        update = next(updates)
        value.copy_(start + shift)
        return sum(part for part, _ in update)

    generator.zero_grad()
    loss(0.02).backward()
    ours = weights.grad.view(-1)[0].item()
    h = 1e-4
    with torch.no_grad():
        theirs = (loss(0.02 + h) - loss(0.02 - h)).item() / (2 * h)
    print(f'{name}, {case}, {kind}: {ours:.8g}, by differences {theirs:.8g}')
    assert ours == pytest.approx(theirs, rel=1e-4) and abs(ours) > 1e-7
