"""RFSR: which step, what each term is, the frozen reference, independence of batches, that it raises a reward."""

import collections
import math
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip('diffusers')
pytest.importorskip('peft')
from finpercep_plugin.algorithms.gram import VGGFeatures, gram_loss  # noqa: E402
from finpercep_plugin.algorithms.lowpass import ll_loss  # noqa: E402
from finpercep_plugin.algorithms.rfsr import RFSR  # noqa: E402
from finpercep_plugin.config import ConfigError, build  # noqa: E402
from finpercep_plugin.registry import ALGORITHMS  # noqa: E402
from finpercep_plugin.rng import keyed_randn  # noqa: E402
from finpercep_plugin.rollout import rollout, step_x0  # noqa: E402


def nudge(generator, size=0.03):
    with torch.no_grad():
        for i, value in enumerate(p for p in generator.parameters() if p.requires_grad):
            value.add_(size * torch.randn(value.shape, generator=torch.Generator().manual_seed(i)))


def only(steps, **options):
    """RFSR whose every iteration is early (steps[1] True) or late at steps[0]."""
    k, early = steps
    place = {'early': (k, k), 'early_probability': 1.0} if early else {'late': (k, k), 'early_probability': 0.0}
    return RFSR(**place, **options)


def test_steps_of_the_paper():
    generator, algorithm = SimpleNamespace(steps=torch.arange(50, 0, -1)), RFSR()
    assert algorithm.ranges(generator) == ((0, 19), (40, 49))
    drawn = [algorithm.draw_step(generator, 0, iteration) for iteration in range(900)]
    assert {k for k, early in drawn if early} == set(range(20))
    assert {k for k, early in drawn if not early} == set(range(40, 50))
    share = collections.Counter(early for _, early in drawn)[True] / 900
    assert abs(share - 2 / 3) < 3 * math.sqrt(2 / 9 / 900)
    assert drawn == [algorithm.draw_step(generator, 0, iteration) for iteration in range(900)]


def test_short_samplers():
    for number, expected in ((1, (None, (0, 0))), (2, (None, (1, 1))), (4, ((0, 0), (3, 3))), (10, ((0, 3), (8, 9)))):
        generator = SimpleNamespace(steps=torch.arange(number, 0, -1))
        assert RFSR().ranges(generator) == expected
        assert all(RFSR().draw_step(generator, 0, i)[0] < number for i in range(9))
    one = SimpleNamespace(steps=torch.tensor([999]))
    assert {RFSR().draw_step(one, 0, i) for i in range(20)} == {(0, False)}


@pytest.mark.parametrize('kind', ['eps', 'flow'])
@pytest.mark.parametrize('k', [0, 2])
def test_loss_written_out(tiny, vgg_file, kind, k):
    generator, (lq, gt) = tiny.make(kind), tiny.data(2)
    generator.trainable('all')
    nudge(generator)
    cond = generator.condition(lq)
    noise = keyed_randn((3, 16, 16), [7, 8], 3, 1, 'rfsr start')
    x_t = rollout(generator, cond, noise, k).latents[-1]
    with torch.no_grad():
        sr = generator.decode(step_x0(generator, x_t, k, cond), cond)
        with generator.reference():
            reference = generator.decode(step_x0(generator, x_t, k, cond), cond)
    assert not torch.equal(sr, reference)
    early, late = (
        only((k, True), ll_weight=0.3, vgg=vgg_file),
        only((k, False), reward_weight=0.7, margin=1.5, gram_weight=2.0, vgg=vgg_file),
    )
    ((total, seen, grads),) = tiny.run(early, generator, lq, gt, samples=[7, 8])
    assert total == pytest.approx(0.3 * ll_loss(sr, gt, 'dtcwt').mean().item(), rel=1e-4)
    assert seen[0]['early'] == 1 and seen[0]['k'] == k and any(value.any() for value in grads.values())
    ((total, seen, grads),) = tiny.run(late, generator, lq, gt, samples=[7, 8])
    features = VGGFeatures.from_file(vgg_file)
    gram = gram_loss(features(sr), features(reference)).mean()
    reward = 0.7 * torch.relu(1.5 - tiny.brightness(sr).score).mean()
    assert gram > 0 and total == pytest.approx((reward + 2 * gram).item(), rel=1e-3)
    assert seen[0]['gram'].item() == pytest.approx(gram.item(), rel=1e-2)
    assert seen[0]['early'] == 0 and any(value.any() for value in grads.values())


def test_reference_is_the_start(tiny, vgg_file):
    generator, (lq, gt) = tiny.make(), tiny.data(2)
    generator.trainable('all')
    algorithm = only((3, False), gram_weight=1.0, vgg=vgg_file)
    assert tiny.run(algorithm, generator, lq, gt)[0][1][0]['gram'] == 0
    nudge(generator)
    assert tiny.run(algorithm, generator, lq, gt)[0][1][0]['gram'] > 1e-6


def test_gram_share(tiny, vgg_file):
    """The Gram term's gradient to the picture is a fifth of the reward's, for each sample."""
    generator, (lq, gt) = tiny.make(), tiny.data(2)
    generator.trainable('all')
    nudge(generator)
    kept, inner = [], generator.decode

    def decode(*a, **k):  # adds a zero that receives the picture's gradient
        image = inner(*a, **k)
        if not image.requires_grad:
            return image
        kept.append(torch.zeros_like(image, requires_grad=True))
        return image + kept[-1]

    generator.decode = decode
    options = {'reward_weight': 0.7, 'vgg': vgg_file}
    for share in (None, 0.2):
        tiny.run(only((3, False), gram_weight=0.0, gram_share=share, **options), generator, lq, gt)
    gram = (kept[1].grad - kept[0].grad).flatten(1).norm(dim=1)
    torch.testing.assert_close(gram, 0.2 * kept[0].grad.flatten(1).norm(dim=1), rtol=1e-3, atol=0)
    # where the reward no longer pulls, neither does the Gram term
    closed = only((3, False), gram_share=0.2, margin=-9.0, **options)
    assert tiny.run(closed, generator, lq, gt)[0][1][0]['gram_weight'] == 0
    assert closed.needs_reference and not only((3, False), gram_weight=0.0).needs_reference


@pytest.mark.parametrize('decode_size', [None, 16])
@pytest.mark.parametrize('early', [True, False])
def test_does_not_depend_on_micro_batches_or_ranks(tiny, vgg_file, early, decode_size):
    options = {'vgg': vgg_file, 'gram_share': 0.5, 'll_weight': 1.0, 'reward_weight': 1.0, 'eta': 1.0}
    generator, rng = tiny.make(), torch.Generator().manual_seed(1)
    lq, gt = torch.rand(4, 3, 12, 12, generator=rng), torch.rand(4, 3, 24, 24, generator=rng)
    generator.trainable('all')
    nudge(generator)

    def case(rows, micro_batch=None):
        algorithm = only((2, early), **options, micro_batch=micro_batch, decode_size=decode_size)
        return tiny.run(algorithm, generator, lq[rows], gt[rows], samples=[10 + i for i in rows])[0]

    total, _, whole = case([0, 1, 2, 3])
    small, parts = case([0, 1, 2, 3], 3), [case(rows) for rows in ([0, 1], [2, 3])]
    assert small[0] == pytest.approx(total, rel=1e-4)
    assert (parts[0][0] + parts[1][0]) / 2 == pytest.approx(total, rel=1e-4)
    for name, value in whole.items():
        torch.testing.assert_close(small[2][name], value, atol=1e-5, rtol=1e-3)
        torch.testing.assert_close((parts[0][2][name] + parts[1][2][name]) / 2, value, atol=1e-5, rtol=1e-3)


def test_start_of_step_0_has_its_gradient(tiny):
    """A start that depends on a trained parameter, as a one-step generator's does."""
    generator, (lq, gt) = tiny.make(steps=1), tiny.data(2)
    generator.extra = torch.nn.Parameter(torch.tensor(0.5))
    generator.start = lambda cond, noise: generator.extra * noise
    ((_, seen, grads),) = tiny.run(RFSR(gram_weight=0.0, reward_weight=1.0), generator, lq, gt)
    assert grads['extra'] != 0 and seen[0]['k'] == 0


def test_errors(tiny, vgg_file, tmp_path):
    generator, (lq, _) = tiny.make(steps=10), tiny.data(2)
    with pytest.raises(ValueError, match='early_probability must be in 0..1, got 1.2'):
        RFSR(early_probability=1.2)
    with pytest.raises(ValueError, match='weights must not be negative, got ll_weight = -1'):
        RFSR(ll_weight=-1)
    with pytest.raises(ValueError, match=r'RFSR: late = \[40, 49\] must be first and last of the step indices 0..9'):
        RFSR(late=(40, 49)).check(generator)
    with pytest.raises(ValueError, match='RFSR: VGG19 weights not found at .*; gram_weight: 0 does without'):
        RFSR(vgg=str(tmp_path / 'no.pth')).check(generator)
    with pytest.raises(ValueError, match='decode_size must be a multiple of 2 for this generator, got 7'):
        RFSR(vgg=vgg_file, decode_size=7).check(generator)
    with pytest.raises(ValueError, match='a flow generator needs eta = 0'):
        RFSR(eta=1.0).check(tiny.make('flow'))
    RFSR(vgg=vgg_file).check(generator)
    RFSR(gram_weight=0.0, decode_size=8).check(generator)
    with pytest.raises(ValueError, match='there is none; set early_probability: 0'):
        tiny.run(only((0, True)), generator, lq, None)
    built = build(ALGORITHMS, {'type': 'RFSR', 'early': [0, 3], 'll_weight': '5e-4'}, '$')
    assert built.early == (0, 3) and built.ll_weight == 5e-4
    with pytest.raises(ConfigError, match=r'\$.a.early: expected 2 values, got 1'):
        build(ALGORITHMS, {'type': 'RFSR', 'early': [3]}, '$.a')


@pytest.mark.parametrize(('kind', 'target'), [('eps', 0.8), ('eps', 0.2), ('flow', 0.8), ('one_step', 0.8)])
def test_raises_an_easy_reward(tiny, kind, target):
    algorithm = RFSR(reward_weight=1.0, ll_weight=0.01, gram_weight=0.0)
    generator = tiny.make(kind, steps=1 if kind == 'one_step' else 5)
    mean, error = tiny.gain(algorithm, generator, 30, 1e-3, target)
    mean = mean if target > 0.5 else -mean
    print(f'RFSR {kind} towards {target}: {mean:.4f} +- {error:.4f}')
    assert mean > 3 * error and mean > 0.02


def test_early_steps_approach_the_ground_truth(tiny):
    generator, (lq, gt) = tiny.make(steps=5), tiny.data()
    optimizer = torch.optim.AdamW(generator.trainable('all').values(), lr=3e-3)
    algorithm, losses = only((1, True), ll_weight=1.0), []
    for iteration in range(1, 41):
        for update in algorithm.updates(generator, lq, gt, tiny.brightness, 0, iteration, range(4)):
            optimizer.zero_grad()
            for loss, _ in update:
                loss.backward()
                losses.append(loss.item())
            optimizer.step()
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])
