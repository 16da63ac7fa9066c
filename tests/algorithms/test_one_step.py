"""The sample at a step: which noise makes it and where its gradient goes; the part that is decoded; what is refused."""

from types import SimpleNamespace

import pytest
import torch

pytest.importorskip('diffusers')
pytest.importorskip('peft')
from finpercep_plugin.algorithms.one_step import (  # noqa: E402
    check_decode_size,
    check_eta,
    check_micro_batch,
    decode_region,
    sample_at,
)
from finpercep_plugin.rng import keyed_numpy, keyed_randn  # noqa: E402
from finpercep_plugin.rollout import rollout, step_levels  # noqa: E402


@pytest.mark.parametrize('k', [1, 3])
def test_late_sample_is_the_rollouts(tiny, k):
    generator, (lq, _) = tiny.make(), tiny.data(2)
    cond = generator.condition(lq)
    x_t = sample_at(generator, cond, k, [7, 9], 3, 5, 'refl', eta=1.0)
    noise = keyed_randn((3, 16, 16), [7, 9], 3, 5, 'refl start')
    draws = [keyed_randn((3, 16, 16), [7, 9], 3, 5, 'refl step', index) for index in range(4)]
    expected = rollout(generator, cond, noise, k, eta=1.0, draw=lambda index: draws[index]).latents[k]
    assert torch.equal(x_t, expected) and not x_t.requires_grad
    assert not torch.equal(sample_at(generator, cond, k, [7, 9], 3, 5, 'rfsr', eta=1.0), x_t)
    assert not torch.equal(sample_at(generator, cond, k, [7, 9], 3, 5, 'refl', eta=0.0), x_t)
    if k > 1:  # of four steps, not of six
        assert not torch.equal(sample_at(generator, cond, k, [7, 9], 3, 5, 'refl', 6, eta=1.0), x_t)


def test_first_sample_has_the_starts_gradient(tiny):
    generator, (lq, _) = tiny.make(), tiny.data(2)
    gain = torch.tensor(0.5, requires_grad=True)
    generator.start = lambda cond, noise: gain * noise
    x_t = sample_at(generator, generator.condition(lq), 0, [7, 9], 3, 5, 'rfsr')
    noise = keyed_randn((3, 16, 16), [7, 9], 3, 5, 'rfsr start')
    assert torch.equal(x_t, gain * noise)
    x_t.sum().backward()
    assert gain.grad.item() == pytest.approx(noise.sum().item(), rel=1e-4)


def test_place_is_of_its_key():
    generator = SimpleNamespace(stride=8, scale=4)
    for iteration in range(9):
        rng = keyed_numpy(0, iteration, 'refl region')
        expected = (8 * int(rng.integers(9)), 8 * int(rng.integers(7)), 16, 16)
        assert decode_region(generator, 16, (80, 64), 0, iteration, purpose='refl') == expected
    places = {decode_region(generator, 16, (80, 64), 0, 1, purpose=purpose) for purpose in ('refl', 'rfsr', 'else')}
    assert len(places) > 1


def test_levels_of_each_step(tiny):
    for kind, clean in (('eps', 1.0), ('flow', 0.0)):
        generator, x = tiny.make(kind), torch.zeros(2, 3, 16, 16)
        for index, t in enumerate(generator.steps.tolist()):
            now, level, after = step_levels(generator, x, index, generator.steps)
            following = generator.steps.tolist()[index + 1] if index < 3 else None
            assert now == t and torch.equal(level, generator.schedule.level(t, x))
            assert torch.equal(
                after, torch.full_like(level, clean) if following is None else generator.schedule.level(following, x)
            )


def test_what_is_refused():
    flow, eps = (SimpleNamespace(prediction=kind, stride=4, scale=3) for kind in ('flow', 'eps'))
    with pytest.raises(ValueError, match='X: eta is defined for eps and v models; a flow .* eta = 0, got 0.5'):
        check_eta(flow, 0.5, 'X')
    for size in (0, 8, 30):
        with pytest.raises(ValueError, match=f'X: decode_size must be a multiple of 12 for this .*, got {size}'):
            check_decode_size(eps, size, 'X')
    with pytest.raises(ValueError, match='X: micro_batch must be 1 or more, got 0'):
        check_micro_batch(0, 'X')
    for eta in (None, 0.0):
        check_eta(flow, eta, 'X')
    check_eta(eps, 1.0, 'X')
    for size in (None, 12, 24):
        check_decode_size(eps, size, 'X')
    for size in (None, 1):
        check_micro_batch(size, 'X')
