"""Flow-GRPO: ratio exactly 1 on-policy, groups over ranks, micro-batches, updates, that it raises a reward."""

import logging
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip('diffusers')
pytest.importorskip('peft')
from finpercep_plugin.algorithms.grpo import FlowGRPO  # noqa: E402
from finpercep_plugin.algorithms.noisy_steps import NoisySteps  # noqa: E402
from finpercep_plugin.config import ConfigError, build  # noqa: E402
from finpercep_plugin.diffusion.regions import region_mean  # noqa: E402
from finpercep_plugin.registry import ALGORITHMS  # noqa: E402
from finpercep_plugin.rewards.base import RewardOutput  # noqa: E402
from finpercep_plugin.rng import keyed_randn  # noqa: E402
from finpercep_plugin.rollout import super_resolve  # noqa: E402

KINDS = {
    'eps': NoisySteps(),
    'flow': NoisySteps(),
    'one_step': NoisySteps(std_floor=0.2),
    'cps': NoisySteps(sde='cps', std_free=True),
}


def make(tiny, kind, choice='all'):
    generator = tiny.make('flow' if kind == 'cps' else kind, steps=1 if kind == 'one_step' else 4)
    generator.trainable(choice, rank=2)
    return generator


def corner(sr, lq=None, gt=None, prompt=None):
    """What is bright in the upper left corner is an artifact, and the map shows it."""
    degradation = torch.zeros_like(sr[:, :1])
    degradation[..., :8, :8] = sr[..., :8, :8].mean(1, keepdim=True)
    return RewardOutput(1 - degradation.mean((1, 2, 3)), {}, {'map': degradation})


def descend(generator, size=1.0):
    with torch.no_grad():
        for value in generator.parameters():
            if value.grad is not None:
                value -= size * value.grad


@pytest.mark.parametrize('autocast', [False, True])
@pytest.mark.parametrize(('store', 'dense'), [('float32', 0.0), ('bfloat16', 0.0), ('bfloat16', 0.5)])
@pytest.mark.parametrize('kind', KINDS)
def test_ratio_is_exactly_one_on_policy(tiny, kind, store, autocast, dense):
    """Seven samples in batches of three, the last of which is smaller; full precision and bf16; regions that do not fit."""
    generator, (lq, gt) = make(tiny, kind, 'lora' if autocast else 'all'), tiny.data(1)
    algorithm = FlowGRPO(group=7, noise=KINDS[kind], micro_batch=3, store=store, dense=dense, region_size=6)
    algorithm.check(generator)
    with torch.autocast('cpu', torch.bfloat16, enabled=autocast):
        ((_, seen, grads),) = tiny.run(algorithm, generator, lq, gt, reward=corner)
    steps = {'eps': 2, 'flow': 3, 'one_step': 1, 'cps': 3}[kind]
    assert len(seen) == 3 * steps
    for diagnostics in seen:
        assert diagnostics['ratio'] == 1 and diagnostics['ratio_away'] == 0
        assert diagnostics['clipped'] == 0 and diagnostics['approx_kl'] == 0
        assert diagnostics['kl'].item() == pytest.approx(0, abs=1e-9)
    assert any(value.any() for value in grads.values())


@pytest.mark.parametrize('dense', [0.0, 0.5])
def test_on_policy_gradient_is_the_policy_gradient(tiny, dense):
    """At ratio 1, -A grad log p: its mean over samples, steps and dimensions, with the advantages of the rewards.

    Regions of 6 x 6 on latents of 16 x 16: the last row and column have 4.
    """
    generator, (lq, gt) = make(tiny, 'eps'), tiny.data(2)
    algorithm = FlowGRPO(group=3, kl_weight=0.0, micro_batch=6, dense=dense, region_size=6)
    kept, inner = {}, algorithm._with_advantages
    algorithm._with_advantages = lambda *a: kept.setdefault('out', inner(*a))
    ((_, seen, grads),) = tiny.run(algorithm, generator, lq, gt, reward=corner)
    batch = kept['out'][0][0]
    generator.zero_grad(set_to_none=True)
    cond = generator.condition(lq).repeat(3)
    total = 0.0
    for index in (0, 1):
        t, after = generator.steps[index].item(), generator.steps[index + 1].item()
        x = batch.rollout.before[index]
        a, b = (generator.schedule.level(s, x) for s in (t, after))
        out = generator.predict(x, t, cond)
        std = ((1 - b) / (1 - a) * (1 - a / b)).sqrt()
        mean = b.sqrt() * (x - (1 - a).sqrt() * out) / a.sqrt() + (1 - b - std**2).sqrt() * out
        log_prob = torch.distributions.Normal(mean, std.expand_as(mean)).log_prob(batch.rollout.after[index])
        if dense:  # every dimension has the advantage of its region
            advantage = batch.advantage.repeat_interleave(6, 1).repeat_interleave(6, 2)[:, None, :16, :16]
        else:
            advantage = batch.advantage.view(-1, 1, 1, 1)
        total = total - (advantage * log_prob).flatten(1).mean(1).sum() / 12
    total.backward()
    for name, parameter in generator.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(parameter.grad, grads[name], atol=1e-6, rtol=1e-3)
    scores = batch.reward.score
    expected = torch.cat([(g - g.mean()) / (g.std(unbiased=False) + 1e-4) for g in scores.split(3)])
    if dense:
        rewards = region_mean(1 - batch.reward.maps['map'], 6)
        regions = [(g - g.mean(0)) / (g.var(0, unbiased=False).mean().sqrt() + 1e-4) for g in rewards.split(3)]
        expected = 0.5 * expected.view(-1, 1, 1) + 0.5 * torch.cat(regions)
    torch.testing.assert_close(batch.advantage, expected, atol=1e-4, rtol=1e-4)
    assert seen[0]['advantage_abs'].item() == pytest.approx(expected.abs().mean().item(), rel=1e-3)


@pytest.mark.parametrize(('kind', 'dense'), [('eps', 0.0), ('flow', 0.0), ('eps', 0.5)])
def test_does_not_depend_on_micro_batches_or_ranks(tiny, kind, dense):
    """Off-policy, with KL: after a step away from the policy that sampled, the second epoch's losses and gradients."""

    def second(rows, exchange=tiny.alone, first=0, group=4, micro_batch=8):
        generator, (lq, gt) = make(tiny, kind), tiny.data(2)
        algorithm = FlowGRPO(
            group=group, kl_weight=0.5, micro_batch=micro_batch, epochs=2, clip=10.0, dense=dense, region_size=4
        )
        algorithm.first_member = first
        nudged = torch.Generator().manual_seed(7)

        def away(generator):  # the same step in every case
            with torch.no_grad():
                for value in generator.parameters():
                    value += 0.002 * torch.randn(value.shape, generator=nudged)

        samples = [10 + i for i in rows]
        results = tiny.run(algorithm, generator, lq[rows], gt[rows], 1, samples, corner, exchange, away)
        return results[1]

    whole = second([0, 1])
    assert abs(whole[1][0]['ratio_away'].item()) > 0 and whole[1][0]['kl'] > 0
    small = second([0, 1], micro_batch=3)

    def ranks(first, second_):
        """Each once to know its rewards, and once with those of both."""
        results = tiny.ranks(
            [lambda exchange, o=options: second(**o, exchange=exchange) for options in (first, second_)]
        )
        return (results[0][0] + results[1][0]) / 2, {
            name: (results[0][2][name] + results[1][2][name]) / 2 for name in results[0][2]
        }

    cases = {
        'micro-batches': (small[0], small[2]),
        'an image a rank': ranks({'rows': [0]}, {'rows': [1]}),
        'both images on both': ranks({'rows': [0, 1], 'group': 2}, {'rows': [0, 1], 'group': 2, 'first': 2}),
    }
    for name, (total, grads) in cases.items():
        assert total == pytest.approx(whole[0], rel=1e-3, abs=1e-6), name
        for key, value in whole[2].items():
            torch.testing.assert_close(grads[key], value, atol=1e-5, rtol=5e-3, msg=lambda m, name=name: f'{name}: {m}')


def test_epochs_and_updates(tiny):
    generator, (lq, gt) = make(tiny, 'eps'), tiny.data(2)
    algorithm = FlowGRPO(group=4, micro_batch=2, epochs=2, updates_per_epoch=2, kl_weight=0.0)
    results = tiny.run(algorithm, generator, lq, gt, after=lambda g: descend(g, 0.05))
    assert [len(seen) for _, seen, _ in results] == [4, 4, 4, 4]  # 4 micro-batches in two halves, two steps each
    away = [max(s['ratio_away'].item() for s in seen) for _, seen, _ in results]
    assert away[0] == 0 and min(away[1:]) > 0
    assert all(s['approx_kl'] > 0 for s in results[-1][1]) and results[-1][1][0]['clipped'] >= 0
    whole = FlowGRPO(group=4, micro_batch=2, updates_per_epoch=9, kl_weight=0.0)
    assert len(tiny.run(whole, generator, lq, gt)) == 4


def test_trained_steps_and_window(tiny):
    generator, (lq, gt) = make(tiny, 'flow'), tiny.data(1)
    calls, inner = [], generator.predict

    def predict(x_t, t, cond, guidance=1.0):
        calls.append((float(t), torch.is_grad_enabled()))
        return inner(x_t, t, cond, guidance)

    generator.predict = predict
    noise = NoisySteps(window=2, window_start=1)
    tiny.run(FlowGRPO(group=2, noise=noise, kl_weight=0.0), generator, lq, gt)
    assert calls == [(1000, False), (750, False), (500, False), (250, False), (750, True), (500, True)]
    trained = set()
    for iteration in range(12):
        calls.clear()
        tiny.run(FlowGRPO(group=2, noise=noise, trained_steps=1, kl_weight=0.0), generator, lq, gt, iteration)
        trained |= {t for t, grad in calls if grad}
        assert sum(grad for _, grad in calls) == 1
    assert trained == {750, 500}
    with pytest.raises(ValueError, match='trained_steps = 3, but only 2 steps draw'):
        FlowGRPO(noise=noise, trained_steps=3).check(generator)


def test_members_differ_and_are_keyed(tiny):
    generator, (lq, gt), seen = make(tiny, 'eps'), tiny.data(2), []

    def reward(sr, lq=None, gt=None, prompt=None):
        assert not torch.is_grad_enabled()
        seen.append(sr)
        return tiny.brightness(sr)

    for rows, samples, micro_batch in (([0, 1], [4, 5], 8), ([1], [5], 4), ([1], [6], 4)):
        tiny.run(FlowGRPO(group=4, micro_batch=micro_batch), generator, lq[rows], gt[rows], 1, samples, reward)
    first, second, third = seen
    torch.testing.assert_close(first[4:], second, atol=1e-5, rtol=1e-4)
    assert (first[4:] - third).abs().max() > 0.01
    assert min((first[i] - first[j]).abs().max() for i in range(4) for j in range(i)) > 0.01


def test_groups_that_teach_nothing_are_named(tiny, caplog):
    generator, (lq, gt) = make(tiny, 'eps'), tiny.data(2)

    def constant(sr, lq=None, gt=None, prompt=None):
        return SimpleNamespace(score=torch.full((len(sr),), 0.1), terms={})

    algorithm = FlowGRPO(group=3, kl_weight=0.0)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            ((total, seen, grads),) = tiny.run(algorithm, generator, lq, gt, reward=constant)
    assert total == 0 and seen[0]['zero_std_groups'] == 1 and not any(value.any() for value in grads.values())
    assert [record.message for record in caplog.records] == [
        'FlowGRPO: some groups teach nothing: 100 % have rewards that are all equal, and the smallest has 3 sample(s); '
        'this is said once, watch zero_std_groups'
    ]


def test_kl_pulls_back_to_the_start(tiny):
    """Equal rewards leave the KL alone, and its gradient reduces it."""
    generator, (lq, gt) = make(tiny, 'eps'), tiny.data(1)
    with torch.no_grad():
        for value in generator.parameters():
            value += 0.01 * torch.randn(value.shape, generator=torch.Generator().manual_seed(5))

    def constant(sr, lq=None, gt=None, prompt=None):
        return SimpleNamespace(score=torch.ones(len(sr)), terms={})

    algorithm = FlowGRPO(group=2, kl_weight=1.0)
    before, _, _ = tiny.run(algorithm, generator, lq, gt, reward=constant)[0]
    descend(generator, 0.01 / max(p.grad.norm().item() for p in generator.parameters()))
    after, _, _ = tiny.run(algorithm, generator, lq, gt, reward=constant)[0]
    assert 0 < after < before


def test_errors(tiny):
    for options, message in (
        ({'group': 0}, 'group must be 1 or more, got 0'),
        ({'trained_steps': 0}, 'trained_steps must be 1 or more'),
        ({'clip': 0.0}, 'clip and advantage_clip must be above 0, got 0.04, 0.0 and 5.0'),
        ({'dense': 1.5}, 'dense must be in 0..1 and region_size 1 or more, got 1.5 and 32'),
    ):
        with pytest.raises(ValueError, match=message):
            FlowGRPO(**options)
    released = SimpleNamespace(prediction='eps', steps=torch.tensor([999]), noise_t=None)
    with pytest.raises(ValueError, match='FlowGRPO: SimpleNamespace takes one step, .* set noise_t of the generator'):
        FlowGRPO(noise=NoisySteps(std_floor=0.1)).check(released)
    released.noise_t = 250
    with pytest.raises(ValueError, match='FlowGRPO: the last step .* set std_floor'):
        FlowGRPO().check(released)
    FlowGRPO(noise=NoisySteps(std_floor=0.1)).check(released)
    with pytest.raises(ValueError, match='FlowGRPO: eta is for eps and v models'):
        FlowGRPO(noise=NoisySteps(eta=1.0)).check(tiny.make('flow'))
    latent = SimpleNamespace(prediction='flow', steps=torch.arange(4, 0, -1), stride=8)
    with pytest.raises(ValueError, match='FlowGRPO: region_size must be a multiple of 8'):
        FlowGRPO(dense=0.5, region_size=12).check(latent)
    FlowGRPO(region_size=12).check(latent)
    built = build(ALGORITHMS, {'type': 'FlowGRPO', 'noise': {'window': 2, 'sde': 'cps'}, 'clip': '1e-3'}, '$')
    assert built.noise == NoisySteps(window=2, sde='cps') and built.clip == 1e-3 and built.needs_reference
    assert not FlowGRPO(kl_weight=0.0).needs_reference
    with pytest.raises(ConfigError, match=r'\$.a.noise.sde: expected .sde. \| .cps., got .ode.'):
        build(ALGORITHMS, {'type': 'FlowGRPO', 'noise': {'sde': 'ode'}}, '$.a')


@pytest.mark.parametrize(
    ('kind', 'target'), [('eps', 0.8), ('eps', 0.2), ('flow', 0.8), ('cps', 0.8), ('one_step', 0.8)]
)
def test_raises_an_easy_reward(tiny, kind, target):
    algorithm = FlowGRPO(group=8, noise=KINDS[kind], kl_weight=0.0, micro_batch=32)
    generator = make(tiny, kind)
    mean, error = tiny.gain(algorithm, generator, 20, 1e-3, target)
    mean = mean if target > 0.5 else -mean
    print(f'FlowGRPO {kind} towards {target}: {mean:.4f} +- {error:.4f}')
    assert mean > 3 * error and mean > 0.008


def test_clip_of_a_region_is_wider(tiny):
    """Latents of 3 x 16 x 16, regions of 3 x 4 x 4: a sixteenth of the dimensions, four times the range."""
    generator, (lq, gt) = make(tiny, 'eps'), tiny.data(1)
    clips = {}
    for dense in (0.0, 1.0):
        ranges = clips[dense] = []
        for step in (0.002, 0.004, 0.008, 0.016):
            algorithm = FlowGRPO(group=4, clip=step, kl_weight=0.0, epochs=2, dense=dense, region_size=4, micro_batch=8)
            inner = algorithm.noise.policy(generator)
            shifted = SimpleNamespace(
                gaussian=inner.gaussian, log_prob=lambda *a, i=inner: i.log_prob(*a) + 0.01 * grad()
            )
            algorithm.noise = SimpleNamespace(indices=NoisySteps().indices, policy=lambda g, s=shifted: s)
            (_, seen, _) = tiny.run(algorithm, generator, lq, gt, reward=corner)[0]
            ranges.append(seen[0]['clipped'].item())
    assert clips == {0.0: [1, 1, 1, 0], 1.0: [1, 0, 0, 0]}


def grad():
    """1 where a gradient is taken: the policy that is trained, and not the one that sampled."""
    return float(torch.is_grad_enabled())


def test_a_stage_without_a_map_is_trained_by_the_score(tiny):
    """On-policy, the gradient is that without regions."""
    generator, (lq, gt) = make(tiny, 'eps'), tiny.data(2)
    results = [
        tiny.run(FlowGRPO(group=3, micro_batch=6, dense=dense, region_size=6), generator, lq, gt)[0]
        for dense in (0.0, 1.0)
    ]
    assert results[0][0] == pytest.approx(results[1][0], abs=1e-6)
    for name, value in results[0][2].items():
        torch.testing.assert_close(results[1][2][name], value, atol=1e-6, rtol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize('kind', ['eps', 'flow'])
def test_regions_learn_of_an_artifact_in_one_place_faster(tiny, kind):
    """The same 20 iterations, and the gradients of 16 of them at the start: signal |mean|^2 to noise, the variance."""
    gain, ratio = {}, {}
    for dense in (0.0, 0.5, 1.0):
        algorithm = FlowGRPO(group=8, kl_weight=0.0, micro_batch=32, dense=dense, region_size=4)
        generator, (lq, gt) = make(tiny, kind), tiny.data()
        estimates = []
        for iteration in range(1, 17):
            ((_, _, grads),) = tiny.run(algorithm, generator, lq, gt, iteration, reward=corner)
            estimates.append(torch.cat([grads[name].flatten() for name in sorted(grads)]))
        estimates = torch.stack(estimates)
        variance = estimates.var(0).sum()
        ratio[dense] = ((estimates.mean(0).square().sum() - variance / len(estimates)) / variance).item()
        many, noise = lq.repeat(2, 1, 1, 1), keyed_randn((3, 16, 16), range(8), 'held out')
        before = corner(super_resolve(generator, many, noise)).score
        tiny.train(algorithm, generator, lq, gt, corner, 20, 1e-3)
        change = corner(super_resolve(generator, many, noise)).score - before
        gain[dense] = change.mean().item()
        error = change.std().item() / 8**0.5
        print(f'{kind}, dense {dense}: reward +{gain[dense]:.4f} +- {error:.4f}, signal to noise {ratio[dense]:.4f}')
        assert gain[dense] > 3 * error
    assert gain[0.5] > 2 * gain[0.0] and gain[1.0] > 2.5 * gain[0.0]
    assert ratio[0.0] < 0.01 and ratio[0.5] > 0.015 and ratio[1.0] > 0.03
