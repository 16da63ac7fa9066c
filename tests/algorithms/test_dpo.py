"""Online DPO: what it learns from, independence of batches and ranks, pairs from outside, that it raises a reward."""

import math
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip('diffusers')
pytest.importorskip('peft')
from finpercep_plugin.algorithms.denoising import denoising_error, one_step_error  # noqa: E402
from finpercep_plugin.algorithms.dpo import DPO  # noqa: E402
from finpercep_plugin.algorithms.preferences import PreferenceBatch  # noqa: E402
from finpercep_plugin.config import ConfigError, build  # noqa: E402
from finpercep_plugin.registry import ALGORITHMS  # noqa: E402
from finpercep_plugin.rng import keyed_randn, keyed_torch  # noqa: E402

KINDS = ['eps', 'flow', 'one_step']


def make(tiny, kind, choice='all', **options):
    generator = tiny.make(kind, steps=1 if kind == 'one_step' else 4, **options)
    generator.trainable(choice, rank=2)
    return generator


def nudge(generator, size=0.02):
    with torch.no_grad():
        for i, value in enumerate(p for p in generator.parameters() if p.requires_grad):
            value.add_(size * torch.randn(value.shape, generator=torch.Generator().manual_seed(i)))


def pairs_of(tiny, count=3, shape=(3, 16, 16)):
    rng = torch.Generator().manual_seed(9)
    winner, loser = torch.rand(2, count, *shape, generator=rng)
    gap = torch.tensor([0.5, 1.0, 2.5])[:count]
    return PreferenceBatch([0, 1, 1][:count], [(10, 0, 1), (11, 0, 1), (11, 2, 1)][:count], winner, loser, gap)


@pytest.mark.parametrize('choice', ['all', 'lora'])
@pytest.mark.parametrize('kind', KINDS)
def test_starts_undecided(tiny, kind, choice):
    generator, (lq, gt) = make(tiny, kind, choice), tiny.data()
    ((total, seen, grads),) = tiny.run(DPO(members=4, best=2, micro_batch=5), generator, lq, gt)
    assert len(seen) == 4  # 4 lq x 2 x 2 pairs, 5 at a time
    assert all(s['implicit_accuracy'] == 0.5 and s['margin'] == 0 and s['pairs'] == 16 for s in seen)
    assert total == pytest.approx(math.log(2), rel=1e-5)
    assert any(value.any() for value in grads.values())
    names = {name for name, p in generator.named_parameters() if p.requires_grad}
    assert set(grads) == names


@pytest.mark.parametrize('kind', KINDS)
def test_errors_written_out(tiny, kind):
    """One pair: its loss from four errors computed here, at the noise and timestep that are keyed on it."""
    generator, (lq, _), algorithm = make(tiny, kind), tiny.data(2), DPO(beta=7.0)
    nudge(generator)
    pairs = pairs_of(tiny)
    (update,) = algorithm.pair_updates(generator, lq, pairs, 3, 5, [10, 11], tiny.alone)
    loss, seen = next(update)
    expected = []
    for winner, loser, row, key in zip(pairs.winner, pairs.loser, pairs.rows, pairs.keys):
        noise = keyed_randn((3, 16, 16), [0], 3, 5, 0, 'dpo noise', *key)
        t = generator.draw_t(keyed_torch(3, 5, 0, 'dpo t', *key))[None]

        def error(x0, row=row, noise=noise, t=t):
            cond = generator.condition(lq[[row]])
            if kind == 'one_step':
                return one_step_error(generator, x0[None], noise, cond)
            return denoising_error(generator, x0[None], noise, t, cond)

        with torch.no_grad():
            policy = error(winner) - error(loser)
            with generator.reference():
                reference = error(winner) - error(loser)
        expected.append(torch.nn.functional.softplus(3.5 * (policy - reference)))
    assert loss.item() == pytest.approx(torch.stack(expected).mean().item(), rel=1e-4)
    assert seen['gap'].item() == pytest.approx(4 / 3)


def test_denoising_error_by_hand(tiny):
    """The network's answer is replaced by 0.3: eps error (0.3 - noise)^2, velocity error (0.3 - noise + x0)^2."""
    x0, noise = torch.full((1, 3, 16, 16), 0.5), torch.full((1, 3, 16, 16), 0.1)
    for kind, expected in (('eps', 0.2**2), ('flow', 0.7**2)):
        generator = tiny.make(kind)
        generator.predict = lambda x_t, t, cond, guidance=1.0: torch.full_like(x_t, 0.3)
        error = denoising_error(generator, x0, noise, torch.tensor([300]), None)
        assert error.tolist() == pytest.approx([expected], rel=1e-5)
    generator = tiny.make('eps', steps=1, temperature=2.0)
    generator.predict = lambda x_t, t, cond, guidance=1.0: torch.full_like(x_t, 0.3)
    level = generator.schedule.level(generator.steps[0].item(), x0).item()
    answer = (0.2 - math.sqrt(1 - level) * 0.3) / math.sqrt(level)  # its start is 2 x 0.1
    assert one_step_error(generator, x0, noise, None).tolist() == pytest.approx([(answer - 0.5) ** 2], rel=1e-4)


@pytest.mark.parametrize('kind', KINDS)
def test_does_not_depend_on_micro_batches_or_ranks(tiny, kind):
    generator, (lq, gt) = make(tiny, kind), tiny.data()
    nudge(generator)
    options = {'members': 4, 'best': 1, 'gap_power': 1.0, 'beta': 50.0}
    ((total, _, whole),) = tiny.run(DPO(**options, micro_batch=4, sample_batch=16), generator, lq, gt, samples=range(4))
    ((again, _, small),) = tiny.run(DPO(**options, micro_batch=1, sample_batch=3), generator, lq, gt, samples=range(4))
    assert again == pytest.approx(total, rel=1e-5)
    shares, parts = [], []

    def record(values, ids):
        shares.append(values)
        return values, ids

    for rows in ([0, 1], [2, 3]):
        tiny.run(DPO(**options), generator, lq[rows], gt[rows], samples=rows, exchange=record)
    everywhere = torch.cat(shares), torch.arange(4)
    for rows in ([0, 1], [2, 3]):
        parts += tiny.run(
            DPO(**options), generator, lq[rows], gt[rows], samples=rows, exchange=lambda values, ids: everywhere
        )
    assert (parts[0][0] + parts[1][0]) / 2 == pytest.approx(total, rel=1e-5)
    for name, value in whole.items():
        torch.testing.assert_close(value, small[name], atol=1e-5, rtol=1e-3)
        torch.testing.assert_close(value, (parts[0][2][name] + parts[1][2][name]) / 2, atol=1e-5, rtol=1e-3)


def test_weights_grow_with_the_gap(tiny):
    generator, (lq, _) = make(tiny, 'eps'), tiny.data(2)
    for power, expected in (
        (0.0, [1 / 3, 1 / 3, 1 / 3]),
        (1.0, [0.125, 0.25, 0.625]),
        (2.0, [1 / 30, 4 / 30, 25 / 30]),
    ):
        (update,) = DPO(gap_power=power, micro_batch=1).pair_updates(
            generator, lq, pairs_of(tiny), 3, 5, [10, 11], tiny.alone
        )
        assert [loss.item() / math.log(2) for loss, _ in update] == pytest.approx(expected, rel=1e-4)


def test_pairs_of_images_are_encoded(tiny):
    generator, (lq, _), pairs = make(tiny, 'eps'), tiny.data(2), pairs_of(tiny)
    nudge(generator)
    cond = generator.condition(lq[pairs.rows])
    latents = PreferenceBatch(
        pairs.rows, pairs.keys, generator.encode(pairs.winner, cond), generator.encode(pairs.loser, cond), pairs.gap
    )
    losses = []
    for batch, images in ((pairs, True), (latents, False), (pairs, False)):
        (update,) = DPO().pair_updates(generator, lq, batch, 3, 5, [10, 11], tiny.alone, images=images)
        losses.append(next(update)[0].item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-5) and losses[0] != pytest.approx(losses[2], rel=1e-3)


def test_no_pair_is_no_update(tiny):
    generator, (lq, gt) = make(tiny, 'eps'), tiny.data(2)
    assert tiny.run(DPO(members=4, best=1, min_gap=9.0), generator, lq, gt) == []

    def others(values, ids):  # another rank has two pairs
        return torch.cat([values, torch.ones(2)]), torch.cat([ids, ids + 2])

    ((total, seen, grads),) = tiny.run(DPO(members=4, best=1, min_gap=9.0), generator, lq, gt, exchange=others)
    assert total == 0 and seen[0]['pairs'] == 0 and seen[0]['implicit_accuracy'] == 0.5
    assert not any(value.any() for value in grads.values())
    ((_, usual, _),) = tiny.run(DPO(members=4, best=1), generator, lq, gt)
    assert set(seen[0]) == set(usual[0])  # all ranks log the same names


def test_policy_that_samples(tiny):
    generator, (lq, gt), seen = make(tiny, 'eps'), tiny.data(2), []

    def reward(sr, lq=None, gt=None, prompt=None):
        assert not torch.is_grad_enabled() and not sr.requires_grad
        seen.append(sr)
        return tiny.brightness(sr)

    for size in (0.0, 0.05):
        nudge(generator, size)
        for policy in ('start', 'current'):
            tiny.run(DPO(members=2, best=1, policy=policy), generator, lq, gt, reward=reward)
    assert torch.equal(seen[0], seen[1]) and torch.equal(seen[0], seen[2]) and not torch.equal(seen[2], seen[3])


def test_epochs_draw_anew(tiny):
    generator, (lq, gt) = make(tiny, 'eps'), tiny.data(2)
    nudge(generator)
    updates = tiny.run(DPO(members=2, best=1, epochs=3), generator, lq, gt)
    assert len(updates) == 3 and len({total for total, _, _ in updates}) == 3
    assert [u[0] for u in tiny.run(DPO(members=2, best=1, epochs=3), generator, lq, gt)] == [u[0] for u in updates]


def test_errors(tiny):
    with pytest.raises(ValueError, match='1 <= best <= members / 2, got best = 3, members = 4'):
        DPO(best=3, members=4)
    with pytest.raises(ValueError, match='beta > 0'):
        DPO(beta=0.0)
    with pytest.raises(ValueError, match='a flow generator needs eta = 0, got 1.0'):
        DPO(eta=1.0).check(tiny.make('flow'))
    one_step = SimpleNamespace(prediction='eps', steps=torch.tensor([999]), noise_t=None)
    with pytest.raises(ValueError, match='samples of one image hardly differ; set noise_t of the generator'):
        DPO().check(one_step)
    DPO().check(SimpleNamespace(prediction='eps', steps=torch.tensor([100]), noise_t=250))
    DPO(eta=1.0).check(tiny.make('eps'))
    assert build(ALGORITHMS, {'type': 'DPO', 'beta': '5e3', 'members': 32, 'best': 8}, '$').beta == 5000
    with pytest.raises(ConfigError, match='algorithm: DPO: needs 1 <= best'):
        build(ALGORITHMS, {'type': 'DPO', 'best': 9}, '$.train.algorithm')


@pytest.mark.parametrize(('kind', 'target'), [('eps', 0.8), ('eps', 0.2), ('flow', 0.8), ('one_step', 0.8)])
def test_raises_an_easy_reward(tiny, kind, target):
    """Towards bright and towards dark, so that it is the preference that moves it."""
    options = {'eta': 1.0} if kind == 'eps' else {}
    algorithm = DPO(beta=200.0 if kind == 'flow' else 2000.0, sample_batch=32, micro_batch=16, **options)
    generator = tiny.make(kind, steps=1 if kind == 'one_step' else 3)
    mean, error = tiny.gain(algorithm, generator, 40, 1e-3, target)
    mean = mean if target > 0.5 else -mean
    print(f'DPO {kind} towards {target}: {mean:.4f} +- {error:.4f}')
    assert mean > 3 * error and mean > 0.008


def test_even_ranks_make_passes_without_weight(tiny):
    """Where another rank has more micro-batches, as many are made here, and the update stays what it was."""
    results = []
    for passes in (None, 4):
        generator, (lq, _), algorithm = make(tiny, 'eps'), tiny.data(2), DPO(beta=7.0, micro_batch=2)
        algorithm.even = passes is not None

        def exchange(values, ids, passes=passes):
            return (values, ids) if values.ndim and len(values) == 2 else (torch.tensor([int(values), passes]), ids)

        (update,) = algorithm.pair_updates(generator, lq, pairs_of(tiny), 3, 5, [10, 11], exchange)
        micro = list(update)
        sum(loss for loss, _ in micro).backward()
        results.append((micro, {n: p.grad for n, p in generator.named_parameters()}))
    (alone, grads), (even, others) = results
    assert len(alone) == 2 and len(even) == 4 and all(loss.requires_grad for loss, _ in even)
    assert [seen for _, seen in even[2:]] == [{}, {}]
    assert all(torch.equal(grads[name], others[name]) for name in grads)
