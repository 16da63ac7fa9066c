"""ReFL: the objective by hand, what gets gradient, independence of the batch split, that it raises a reward."""

import copy
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip('diffusers')
pytest.importorskip('peft')
from finpercep_plugin.algorithms.refl import ReFL, refl_objective  # noqa: E402
from finpercep_plugin.config import ConfigError, build  # noqa: E402
from finpercep_plugin.generators.tiny_diffusion import TinyDiffusion  # noqa: E402
from finpercep_plugin.registry import ALGORITHMS  # noqa: E402
from finpercep_plugin.rewards.base import RewardOutput  # noqa: E402
from finpercep_plugin.rng import keyed_randn  # noqa: E402
from finpercep_plugin.rollout import step_x0, super_resolve  # noqa: E402


def brightness(sr, lq=None, gt=None, prompt=None):
    """1 - the distance of the mean brightness to 0.8, a reward per sample."""
    score = 1 - (sr.flatten(1).mean(1) - 0.8).abs()
    return RewardOutput(score, {'brightness': score})


def make(**options):
    torch.manual_seed(0)
    generator = TinyDiffusion(
        **{'network': {'channels': [8, 8], 'norm_groups': 4}, 'scale': 2, 'residual_sd': 0.2, 'steps': 4, **options}
    )
    torch.nn.init.normal_(generator.network.unet.conv_out.weight, std=0.05)
    return generator


def data(batch=4):
    rng = torch.Generator().manual_seed(2)
    return torch.rand(batch, 3, 8, 8, generator=rng), torch.rand(batch, 3, 16, 16, generator=rng)


def gradient(generator, refl, rows, samples, iteration=5):
    lq, gt = data()
    for parameter in generator.parameters():
        parameter.grad = None
    loss, diagnostics = refl.loss(generator, generator.condition(lq[rows]), gt[rows], brightness, 3, iteration, samples)
    loss.backward()
    grads = {n: p.grad.clone() for n, p in generator.named_parameters() if p.grad is not None}
    return loss.detach(), diagnostics, grads


def test_objective_by_hand():
    # relu(2 - R): 0, 1.5, 3 -> mean 1.5; times 0.1; MSE mean 0.3, times 0.5
    reward = torch.tensor([2.5, 0.5, -1.0], requires_grad=True)
    mse = torch.tensor([0.2, 0.3, 0.4], requires_grad=True)
    loss, seen = refl_objective(reward, mse, weight=0.1, margin=2.0, pretrain_weight=0.5)
    assert loss.item() == pytest.approx(0.1 * 1.5 + 0.5 * 0.3)
    assert {name: round(value.item(), 4) for name, value in seen.items()} == {
        'l_reward': 0.15,
        'l_pretrain': 0.15,
        'reward': 0.6667,
        'reward_std': 1.4337,
        'below_margin': 0.6667,
    }
    loss.backward()
    assert reward.grad.tolist() == pytest.approx([0.0, -0.1 / 3, -0.1 / 3])
    assert mse.grad.tolist() == pytest.approx([0.5 / 3] * 3)


def test_objective_gradient_by_finite_differences():
    rng = torch.Generator().manual_seed(0)
    inputs = [torch.randn(5, generator=rng, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    step = 1e-2  # the objective works in float32 and is piecewise linear, so a large step is exact
    loss, _ = refl_objective(*inputs, weight=0.3, margin=0.5)
    loss.backward()
    for tensor in inputs:
        for i in range(5):
            ends = []
            for sign in (1, -1):
                moved = tensor.detach().clone()
                moved[i] += sign * step
                ends.append(refl_objective(*[moved if x is tensor else x for x in inputs], weight=0.3, margin=0.5)[0])
            assert tensor.grad[i].item() == pytest.approx((ends[0] - ends[1]).item() / (2 * step), abs=1e-4)


@pytest.mark.parametrize('eta', [0.0, 1.0])
def test_batch_of_four_equals_two_batches_of_two(eta):
    generator, refl = make(), ReFL(weight=1.0, eta=eta)
    loss, _, whole = gradient(generator, refl, [0, 1, 2, 3], [10, 11, 12, 13])
    parts = [gradient(generator, refl, rows, [10 + i for i in rows]) for rows in ([0, 1], [2, 3])]
    assert loss.item() == pytest.approx((parts[0][0] + parts[1][0]).item() / 2, abs=1e-6)
    assert parts[0][1]['k'] == parts[1][1]['k']
    for name, value in whole.items():
        torch.testing.assert_close(value, (parts[0][2][name] + parts[1][2][name]) / 2, atol=1e-6, rtol=1e-5)


def test_draws_are_keyed():
    generator, refl = make(), ReFL(k_start=0, weight=1.0)
    torch.manual_seed(1)
    first = gradient(generator, refl, [0, 1], [4, 5])[0]
    torch.manual_seed(2)
    assert torch.equal(gradient(generator, refl, [0, 1], [4, 5])[0], first)
    assert not torch.equal(gradient(generator, refl, [0, 1], [4, 6])[0], first)
    ks = {gradient(generator, refl, [0], [0], iteration)[1]['k'].item() for iteration in range(30)}
    assert ks == {0.0, 1.0, 2.0, 3.0}


@pytest.mark.parametrize('choice', ['all', 'lora', ['unet.conv_out.*']])
def test_reward_gradient_reaches_trained_parameters_only(choice):
    generator = make()
    chosen = generator.trainable(choice, rank=2)
    with torch.no_grad():
        for value in chosen.values():
            value.add_(0.05)
    grads = gradient(generator, ReFL(weight=1.0, pretrain_weight=0.0), [0, 1], [0, 1])[2]
    assert {name for name, value in grads.items() if value.any()} == {f'network.{name}' for name in chosen}


def test_loss_is_reward_of_step_k_by_hand():
    """Four steps written out: k = 3 is the last; x0 there is what the whole sampler returns."""
    generator, (lq, gt) = make(), data(2)
    loss, seen = ReFL(k_start=3, weight=1.0, margin=2.0, pretrain_weight=0.0).loss(
        generator, generator.condition(lq), gt, brightness, seed=3, iteration=8, samples=[0, 1]
    )
    sr = super_resolve(generator, lq, keyed_randn((3, 16, 16), [0, 1], 3, 8, 'refl start'))
    expected = brightness(sr).score
    assert loss.item() == pytest.approx((2 - expected).mean().item(), abs=1e-6)
    assert seen['reward_brightness'].item() == pytest.approx(expected.mean().item(), abs=1e-6)
    assert seen['l_pretrain'] == 0 and seen['k'] == 3


def test_reward_gets_what_it_needs():
    seen = {}

    def reward(sr, lq=None, gt=None, prompt=None):
        seen.update(lq=lq, gt=gt, prompt=prompt)
        return brightness(sr)

    generator, (lq, gt) = make(), data(2)
    ReFL().loss(generator, generator.condition(lq, ['a', 'b']), gt, reward, 0, 1, [0, 1])
    assert torch.equal(seen['lq'], lq) and torch.equal(seen['gt'], gt) and seen['prompt'] == ('a', 'b')


def test_window():
    assert ReFL().window(make(steps=40)) == (30, 39)
    assert ReFL(k_start=1, k_end=2).window(make()) == (1, 2)
    assert ReFL(steps=10).window(make()) == (7, 9)
    assert ReFL().window(make(steps=1)) == (0, 0)
    with pytest.raises(ValueError, match=r'k_end = 39, but the sampler has 4 steps, indices 0..3'):
        ReFL(k_start=30, k_end=39).window(make())
    with pytest.raises(ValueError, match='got k_start = 3, k_end = 2'):
        ReFL(k_start=3, k_end=2).window(make())
    with pytest.raises(ValueError, match='has 1 step, '):
        ReFL(k_end=1).window(make(steps=1))
    flow = SimpleNamespace(prediction='flow', steps=torch.tensor([1000.0, 500.0]))
    with pytest.raises(ValueError, match='a flow generator needs eta = 0'):
        ReFL(eta=1.0).window(flow)


class ScaledStart(TinyDiffusion):
    """Its start depends on a trained parameter, as OSEDiff's does."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.gain = torch.nn.Parameter(torch.tensor(0.5))

    def start(self, cond, noise):
        return self.gain * noise


def scaled_start(steps):
    torch.manual_seed(0)
    generator = ScaledStart(network={'channels': [8, 8], 'norm_groups': 4}, scale=2, residual_sd=0.2, steps=steps)
    torch.nn.init.normal_(generator.network.unet.conv_out.weight, std=0.05)
    return generator


@pytest.mark.parametrize('steps', [1, 3])
def test_gradient_reaches_the_start_at_its_step_alone(steps):
    generator = scaled_start(steps)
    for k in range(steps):
        refl = ReFL(k_start=k, k_end=k, weight=1.0, pretrain_weight=0.0)
        grads = gradient(generator, refl, [0, 1], [0, 1])[2]
        assert ('gain' in grads) == (k == 0) and 'network.unet.conv_out.weight' in grads
        if k == 0:
            cond, noise = generator.condition(data()[0][:2]), keyed_randn((3, 16, 16), [0, 1], 3, 5, 'refl start')
            x_t = (generator.gain.detach() * noise).requires_grad_()
            sr = generator.decode(step_x0(generator, x_t, 0, cond), cond)
            (2 - brightness(sr).score).mean().backward()
            assert grads['gain'].item() == pytest.approx((x_t.grad * noise).sum().item(), rel=1e-4) != 0


def test_the_first_step_is_the_samplers():
    """k = 0 leaves the rollout out; what is decoded is the same: the only step's x0."""
    generator, (lq, gt) = scaled_start(1), data(2)
    refl = ReFL(weight=1.0, pretrain_weight=0.0)
    loss = refl.loss(generator, generator.condition(lq), gt, brightness, seed=3, iteration=8, samples=[0, 1])[0]
    sr = super_resolve(generator, lq, keyed_randn((3, 16, 16), [0, 1], 3, 8, 'refl start'))
    assert loss.item() == pytest.approx((2 - brightness(sr).score).mean().item(), abs=1e-6)


class TestDecodeSize:
    """TinyDiffusion decodes each pixel by itself, so a part of sr is the same as that part of the whole."""

    @staticmethod
    def seen(decode_size, iteration, samples=(0, 1, 2, 3)):
        """What the reward gets, (sr, lq, gt), and whether a gradient reaches the generator."""
        given = []

        def reward(sr, lq=None, gt=None, prompt=None):
            given.extend((sr, lq, gt))
            return brightness(sr)

        generator, (lq, gt) = make(), data(len(samples))
        refl = ReFL(k_start=2, k_end=2, weight=1.0, pretrain_weight=0.0, decode_size=decode_size)
        refl.loss(generator, generator.condition(lq), gt, reward, 3, iteration, samples)[0].backward()
        assert any(value.grad is not None and value.grad.any() for value in generator.parameters())
        return given, refl.region(generator, (16, 16), 3, iteration)

    def test_reward_sees_the_same_part_of_all_three(self):
        for iteration in range(3):
            (sr, lq, gt), region = self.seen(6, iteration)
            (whole, lq_whole, gt_whole), none = self.seen(None, iteration)
            top, left, height, width = region
            assert none is None and (height, width) == (6, 6)
            torch.testing.assert_close(sr, whole[..., top : top + 6, left : left + 6])
            assert torch.equal(gt, gt_whole[..., top : top + 6, left : left + 6])
            assert torch.equal(lq, lq_whole[..., top // 2 : top // 2 + 3, left // 2 : left // 2 + 3])

    def test_the_place_is_shared_by_all_samples(self):
        assert self.seen(6, 1, [0, 1])[1] == self.seen(6, 1, [8, 9])[1]

    def test_places_by_hand(self):
        generator, refl = SimpleNamespace(stride=8, scale=4), ReFL(decode_size=16)
        regions = {refl.region(generator, (32, 24), 0, i) for i in range(100)}
        assert regions == {(top, left, 16, 16) for top in (0, 8, 16) for left in (0, 8)}
        # A side that is shorter is seen whole; places are multiples of 8 and end inside 20 and 28.
        regions = {ReFL(decode_size=16).region(generator, (12, 28), 0, i) for i in range(100)}
        assert regions == {(0, left, 12, 16) for left in (0, 8)}
        assert refl.region(generator, (16, 12), 0, 1) is None and ReFL().region(generator, (64, 64), 0, 1) is None

    def test_gradient_stays_inside(self):
        generator, refl = make(), ReFL(k_start=0, k_end=0, weight=1.0, decode_size=4)
        cond = generator.condition(data(2)[0])
        latent = torch.zeros(2, 3, 16, 16, requires_grad=True)
        top, left, *_ = region = refl.region(generator, (16, 16), 0, 7)
        brightness(generator.decode(latent, cond, region)).score.sum().backward()
        inside = torch.zeros(16, 16, dtype=torch.bool)
        inside[top : top + 4, left : left + 4] = True
        assert torch.equal(latent.grad.ne(0).any(1), inside.expand(2, 16, 16))

    def test_off_the_grid(self):
        for size in (0, 7, 12):
            with pytest.raises(ValueError, match=f'decode_size must be a multiple of 8 for this generator, got {size}'):
                ReFL(decode_size=size).window(
                    SimpleNamespace(prediction='eps', steps=torch.arange(4), stride=8, scale=4)
                )
        with pytest.raises(ValueError, match='multiple of 12'):
            ReFL(decode_size=8).window(SimpleNamespace(prediction='v', steps=torch.arange(4), stride=4, scale=3))


def test_eta_is_the_generators_own_unless_given():
    losses = {}
    for own, given in ((0.0, None), (1.0, None), (0.0, 1.0), (1.0, 0.0)):
        generator = make()
        generator.eta = own
        losses[own, given] = gradient(generator, ReFL(k_start=3, weight=1.0, eta=given), [0, 1], [0, 1])[0].item()
    assert losses[1.0, None] == losses[0.0, 1.0] != losses[0.0, None] == losses[1.0, 0.0]


def test_built_from_yaml():
    assert build(ALGORITHMS, {'type': 'ReFL', 'weight': '1e-3', 'k_start': 2}, '$.train.algorithm').weight == 1e-3
    with pytest.raises(ConfigError, match='algorithm.lamda: unknown key'):
        build(ALGORITHMS, {'type': 'ReFL', 'lamda': 1.0}, '$.train.algorithm')


def test_lora_resumes_exactly(tmp_path):
    """Base and fine-tuned tensors, from their files, and the optimiser's state: the next steps are the same."""
    refl, (lq, gt) = ReFL(weight=1.0), data()
    make().save(tmp_path / 'base.pth')

    def start():
        torch.manual_seed(7)
        generator = TinyDiffusion({'channels': [8, 8], 'norm_groups': 4}, scale=2, steps=4)
        generator.load(tmp_path / 'base.pth')
        chosen = generator.trainable('lora', rank=2)
        return generator, chosen, torch.optim.AdamW(chosen.values(), lr=1e-2)

    def train(generator, optimizer, iterations):
        for iteration in iterations:
            optimizer.zero_grad()
            refl.loss(generator, generator.condition(lq), gt, brightness, 0, iteration, range(4))[0].backward()
            optimizer.step()

    generator, chosen, optimizer = start()
    train(generator, optimizer, [1, 2, 3])
    generator.save(tmp_path / 'net_g_3.pth', 'trained')
    again, resumed, other = start()
    again.load(tmp_path / 'net_g_3.pth')
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    noise = keyed_randn((3, 16, 16), range(4), 'outputs')
    assert torch.equal(super_resolve(again, lq, noise), super_resolve(generator, lq, noise))
    start_sr = super_resolve(start()[0], lq, noise)
    assert not torch.equal(super_resolve(generator, lq, noise), start_sr)
    train(generator, optimizer, [4, 5])
    train(again, other, [4, 5])
    assert all(torch.equal(chosen[name], resumed[name]) for name in chosen)
    with again.reference():
        torch.testing.assert_close(super_resolve(again, lq, noise), start_sr, atol=1e-6, rtol=0)


@pytest.mark.parametrize('choice', ['all', 'lora'])
def test_step_in_bf16(choice):
    generator, refl, (lq, gt) = make(), ReFL(weight=1.0), data()
    chosen = generator.trainable(choice, rank=2)
    with torch.no_grad():
        for value in chosen.values():
            value.add_(0.02)
    arguments = (generator, generator.condition(lq), gt, brightness, 3, 5, range(4))
    exact, _ = refl.loss(*arguments)
    with torch.autocast('cpu', torch.bfloat16):
        loss, seen = refl.loss(*arguments)
    loss.backward()
    assert loss.dtype == torch.float32 and loss.item() == pytest.approx(exact.item(), rel=0.05)
    assert all(torch.isfinite(value) for value in seen.values())
    assert all(value.grad is not None and torch.isfinite(value.grad).all() for value in chosen.values())
    assert sum(bool(value.grad.any()) for value in chosen.values()) > len(chosen) // 2


def test_raises_an_easy_reward():
    generator, (lq, gt) = make(steps=3), data(4)
    chosen, refl = generator.trainable('lora', rank=4), ReFL(weight=1.0, pretrain_weight=0.1)
    optimizer = torch.optim.AdamW(chosen.values(), lr=5e-3)
    noise = keyed_randn((3, 16, 16), range(4), 'held out')
    before = brightness(super_resolve(generator, lq, noise)).score
    for iteration in range(1, 41):
        loss, _ = refl.loss(generator, generator.condition(lq), gt, brightness, 0, iteration, range(4))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    gain = brightness(super_resolve(generator, lq, noise)).score - before
    assert gain.mean() > 3 * gain.std() / 2 and gain.mean() > 0.05


def test_a_dense_reward_pulls_where_the_map_is():
    """The reward is the mean of sr, so its gradient is even; the map is 1 in the left half and 0 in the right one."""
    generator, seen = make(), {}
    lq, gt = torch.rand(2, 3, 8, 8), torch.rand(2, 3, 16, 16)

    def reward(sr, lq=None, gt=None, prompt=None):
        degradation = torch.zeros(len(sr), 1, 16, 16)
        degradation[..., :8] = 1.0
        sr.register_hook(lambda gradient: seen.update(gradient=gradient))
        seen['sr'] = sr
        return RewardOutput(sr.mean(dim=(1, 2, 3)), maps={'map': degradation})

    for dense, left, right in ((0.0, 1.0, 1.0), (0.5, 1.5, 0.5), (1.0, 2.0, 0.0)):
        refl = ReFL(dense=dense, weight=1.0, margin=10.0, pretrain_weight=0.0)
        loss, _ = refl.loss(generator, generator.condition(lq), gt, reward, 0, 1, [0, 1])
        seen['sr'].register_hook(lambda gradient: seen.update(weighted=gradient))
        loss.backward()
        even = -1 / (2 * 3 * 16 * 16)
        torch.testing.assert_close(seen['gradient'], torch.full((2, 3, 16, 16), even))
        torch.testing.assert_close(seen['weighted'][..., :8], torch.full((2, 3, 16, 8), left * even))
        torch.testing.assert_close(seen['weighted'][..., 8:], torch.full((2, 3, 16, 8), right * even))
    with pytest.raises(ValueError, match=r'dense must be in 0..1, got 2'):
        ReFL(dense=2)
