"""DPO on stored pairs: what it computes, that it is the online update on the same pairs, that it learns."""

import math
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip('diffusers')
pytest.importorskip('peft')
from finpercep_plugin.algorithms import dpo as dpo_module  # noqa: E402
from finpercep_plugin.algorithms.dpo import DPO  # noqa: E402
from finpercep_plugin.algorithms.stored_pairs import StoredBatch, StoredPairs  # noqa: E402
from finpercep_plugin.rng import keyed_randn, keyed_torch  # noqa: E402
from finpercep_plugin.rollout import super_resolve  # noqa: E402

KINDS = ['eps', 'flow', 'one_step']
SAMPLES = [10, 11, 12, 13]


def make(tiny, kind, choice='all', **options):
    generator = tiny.make(kind, steps=1 if kind == 'one_step' else 3, **options)
    generator.trainable(choice, rank=2)
    return generator


def nudge(generator, size=0.02):
    with torch.no_grad():
        for i, value in enumerate(p for p in generator.parameters() if p.requires_grad):
            value.add_(size * torch.randn(value.shape, generator=torch.Generator().manual_seed(i)))


def batch_of(generator, lq, count=4):
    """Random winners and losers within reach of lq."""
    shape = generator.latent_shape(generator.condition(lq))
    winner, loser = torch.rand(2, count, *shape, generator=torch.Generator().manual_seed(9))
    return StoredBatch(
        winner, loser, torch.tensor([0.5, 1.0, 2.5, 1.0])[:count], [(0, 1), (3, 2), (1, 0), (5, 7)][:count]
    )


def stored(batch, **options):
    algorithm = StoredPairs(DPO(**options))
    algorithm.batch = batch
    return algorithm


@pytest.mark.parametrize('choice', ['all', 'lora'])
@pytest.mark.parametrize('kind', KINDS)
def test_starts_undecided(tiny, kind, choice):
    generator, (lq, gt) = make(tiny, kind, choice), tiny.data()
    ((total, seen, grads),) = tiny.run(stored(batch_of(generator, lq), micro_batch=3), generator, lq, gt, reward=None)
    assert len(seen) == 2 and all(s['implicit_accuracy'] == 0.5 and s['margin'] == 0 for s in seen)
    assert total == pytest.approx(math.log(2), rel=1e-5)
    assert any(value.any() for value in grads.values())


@pytest.mark.parametrize(('bits', 'tolerance'), [(None, 1e-4), (8, 0.02)])
@pytest.mark.parametrize('kind', KINDS)
def test_equals_the_online_update_on_the_same_pairs(tiny, kind, bits, tolerance):
    """Samples of the online update, stored as they are or in 8 bits, give its loss and gradient."""
    generator = make(tiny, kind, residual_sd=0.05)
    lq = 0.4 + 0.2 * tiny.data()[0]  # in the middle, so that no sample is clipped
    nudge(generator)
    made = []

    def reward(sr, **given):
        made.append(sr)
        return tiny.brightness(sr)

    online = DPO(members=4, best=1, beta=50.0, gap_power=1.0, sample_batch=16)
    ((total, seen, grads),) = tiny.run(online, generator, lq, None, samples=SAMPLES, reward=reward)
    sr = made[0] if bits is None else (made[0] * (2**bits - 1)).round() / (2**bits - 1)
    scores = tiny.brightness(made[0]).score.view(4, 4)
    best, worst, rows = scores.argmax(1), scores.argmin(1), torch.arange(4)
    images = sr.view(4, 4, *sr.shape[1:])
    batch = StoredBatch(
        images[rows, best],
        images[rows, worst],
        scores[rows, best] - scores[rows, worst],
        list(zip(best.tolist(), worst.tolist())),
    )
    offline = stored(batch, beta=50.0, gap_power=1.0)
    ((again, _, same),) = tiny.run(offline, generator, lq, None, samples=SAMPLES, reward=None)
    assert seen[0]['margin'] != 0 and again == pytest.approx(total, rel=tolerance)
    one, other = (torch.cat([value.flatten() for value in g.values()]) for g in (grads, same))
    apart = (one - other).norm() / one.norm()
    print(f'{kind}, {bits} bits: loss {total:.6f} and {again:.6f}, gradients {apart:.2e} apart')
    assert apart < 10 * tolerance


def test_winner_and_loser_share_noise_and_timestep(tiny, monkeypatch):
    generator, (lq, gt), calls = make(tiny, 'eps'), tiny.data(), []
    original = dpo_module.denoising_error

    def record(generator, x0, noise, t, cond):
        calls.append((x0, noise, t))
        return original(generator, x0, noise, t, cond)

    monkeypatch.setattr(dpo_module, 'denoising_error', record)
    batch = batch_of(generator, lq)
    tiny.run(stored(batch), generator, lq, gt, samples=SAMPLES, iteration=7, reward=None)
    assert len(calls) == 2  # policy and reference
    cond = generator.condition(lq)
    for x0, noise, t in calls:
        assert torch.equal(noise[:4], noise[4:]) and torch.equal(t[:4], t[4:])
        assert torch.equal(x0, torch.cat([generator.encode(x, cond) for x in (batch.winner, batch.loser)]))
        for row, (sample, pair) in enumerate(zip(SAMPLES, batch.numbers)):
            key = (3, 7, 0, 'dpo noise', sample, *pair)
            assert torch.equal(noise[row], keyed_randn((3, 16, 16), [0], *key)[0])
            assert t[row] == generator.draw_t(keyed_torch(3, 7, 0, 'dpo t', sample, *pair))


def test_does_not_depend_on_micro_batches_or_ranks(tiny):
    generator, (lq, gt) = make(tiny, 'eps'), tiny.data()
    nudge(generator)
    batch, options = batch_of(generator, lq), {'beta': 50.0, 'gap_power': 1.0}
    ((total, _, grads),) = tiny.run(stored(batch, **options), generator, lq, gt, samples=SAMPLES)
    ((again, _, small),) = tiny.run(stored(batch, **options, micro_batch=1), generator, lq, gt, samples=SAMPLES)
    assert again == pytest.approx(total, rel=1e-5)
    parts = []
    for rows in ([0, 1], [2, 3]):
        mine = StoredBatch(*(value[rows] for value in batch[:3]), [batch.numbers[i] for i in rows])
        samples = [SAMPLES[i] for i in rows]
        everywhere = batch.gap, torch.tensor(SAMPLES)
        parts += tiny.run(
            stored(mine, **options),
            generator,
            lq[rows],
            gt[rows],
            samples=samples,
            exchange=lambda v, i, e=everywhere: e,
        )
    assert (parts[0][0] + parts[1][0]) / 2 == pytest.approx(total, rel=1e-5)
    for name, value in grads.items():
        torch.testing.assert_close(value, small[name], atol=1e-5, rtol=1e-3)
        torch.testing.assert_close(value, (parts[0][2][name] + parts[1][2][name]) / 2, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize('bright', [True, False])
def test_moves_towards_the_winners(tiny, bright):
    """A sample made brighter against the same made darker: held-out samples follow."""
    generator, (lq, _) = make(tiny, 'eps'), tiny.data()
    sr = super_resolve(generator, lq, keyed_randn((3, 16, 16), range(4), 'stored'))
    shift = 0.1 if bright else -0.1
    batch = StoredBatch(sr + shift, sr - shift, torch.ones(4), [(0, 1)] * 4)
    mean, error = tiny.gain(stored(batch, micro_batch=4), generator, 25, 1e-3)
    print(f'stored pairs, brighter wins: {bright}: {mean:.4f} +- {error:.4f}')
    assert (mean if bright else -mean) > 3 * error


def test_any_generator_that_takes_the_sampler_will_do(tiny):
    one_step = SimpleNamespace(prediction='eps', steps=torch.tensor([999]), noise_t=None)
    with pytest.raises(ValueError, match='hardly differ'):
        DPO().check(one_step)
    StoredPairs(DPO()).check(one_step)
    with pytest.raises(ValueError, match='DPO: eta'):
        StoredPairs(DPO(eta=1.0)).check(tiny.make('flow'))


def test_a_batch_of_the_data_set():
    data = {
        'winner': torch.rand(2, 3, 4, 4), 'loser': torch.rand(2, 3, 4, 4), 'gap': torch.tensor([1.0, 2.0]),
        'winner_number': torch.tensor([4, 5]), 'loser_number': torch.tensor([0, 1]), 'prompt': ['', ''],
    }  # fmt: skip
    batch = StoredBatch.of(data)
    assert batch.numbers == [(4, 0), (5, 1)] and batch.winner is data['winner'] and batch.gap is data['gap']
