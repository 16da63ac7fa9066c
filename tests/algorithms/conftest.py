"""Very small generators, an easy reward, and a training loop as a model class runs it."""

from types import SimpleNamespace

import pytest
import torch

from finpercep_plugin.diffusion.schedule import FlowSchedule
from finpercep_plugin.rewards.base import RewardOutput
from finpercep_plugin.rng import keyed_randn
from finpercep_plugin.rollout import super_resolve


def brightness(sr, lq=None, gt=None, prompt=None, target=0.8):
    """1 - the distance of the mean brightness to `target`, a reward per sample."""
    score = 1 - (sr.flatten(1).mean(1) - target).abs()
    return RewardOutput(score, {'brightness': score})


def alone(values, ids):
    return values, ids


def data(batch=4):
    rng = torch.Generator().manual_seed(2)
    return torch.rand(batch, 3, 8, 8, generator=rng), torch.rand(batch, 3, 16, 16, generator=rng)


def make(kind='eps', **options):
    """A TinyDiffusion with random weights; 'flow': one that diffuses along straight lines; 'one_step': of one step."""
    pytest.importorskip('diffusers')
    pytest.importorskip('peft')
    from finpercep_plugin.generators.tiny_diffusion import TinyDiffusion

    class TinyFlow(TinyDiffusion):
        prediction = 'flow'

        def timesteps(self, steps):
            return torch.linspace(1000, 0, steps + 1)[:-1]

        def predict(self, x_t, t, cond, guidance=1.0):
            return self.part(x_t, torch.as_tensor(t), cond.lq_up)

        def draw_t(self, rng):
            return 1000 * torch.rand((), generator=rng)

    torch.manual_seed(0)
    sizes = {'network': {'channels': [8, 8], 'norm_groups': 4}, 'scale': 2, 'residual_sd': 0.2, 'temperature': 1.0}
    generator = (TinyFlow if kind == 'flow' else TinyDiffusion)(**{**sizes, 'steps': 4, **options})
    if kind == 'flow':
        generator.schedule = FlowSchedule()
    torch.nn.init.normal_(generator.network.unet.conv_out.weight, std=0.05)
    return generator


def run(algorithm, generator, lq, gt, iteration=1, samples=None, reward=brightness, exchange=alone, after=None):
    """One iteration without optimiser: (summed losses, diagnostics of each micro-batch, gradients) of each update."""
    results = []
    samples = range(len(lq)) if samples is None else samples
    for update in algorithm.updates(generator, lq, gt, reward, 3, iteration, samples, exchange):
        generator.zero_grad(set_to_none=True)
        total, diagnostics = 0.0, []
        for loss, seen in update:
            loss.backward()
            total += loss.item()
            diagnostics.append(seen)
        grads = {n: p.grad.clone() for n, p in generator.named_parameters() if p.grad is not None}
        results.append((total, diagnostics, grads))
        if after is not None:
            after(generator)
    return results


def train(algorithm, generator, lq, gt, reward, iterations, lr, choice='all', rank=4):
    """Iterations with an optimiser, as a model class runs them."""
    optimizer = torch.optim.AdamW(generator.trainable(choice, rank=rank).values(), lr=lr)
    for iteration in range(1, iterations + 1):
        for update in algorithm.updates(generator, lq, gt, reward, 0, iteration, range(len(lq)), alone):
            optimizer.zero_grad()
            for loss, _ in update:
                loss.backward()
            optimizer.step()


def gain(algorithm, generator, iterations, lr, target=0.8, choice='all', rank=4):
    """Train, and measure on held-out noise: (mean gain of brightness over 8 samples, its standard error)."""
    lq, gt = data()
    many, noise = lq.repeat(2, 1, 1, 1), keyed_randn((3, 16, 16), range(8), 'held out')
    before = super_resolve(generator, many, noise, eta=0.0).flatten(1).mean(1)

    def reward(sr, lq=None, gt=None, prompt=None):
        return brightness(sr, target=target)

    train(algorithm, generator, lq, gt, reward, iterations, lr, choice, rank)
    change = super_resolve(generator, many, noise, eta=0.0).flatten(1).mean(1) - before
    return change.mean().item(), change.std().item() / len(change) ** 0.5


def ranks(processes):
    """Results of several processes(exchange) that exchange with each other: all are run again until what they give each
    other is what they were given."""
    answers = None
    while True:
        results, calls = [], []
        for process in processes:
            own = []

            def exchange(values, ids, own=own, answers=answers):
                own.append((values, ids))
                return own[-1] if answers is None else answers[len(own) - 1]

            results.append(process(exchange))
            calls.append(own)
        assert len({len(own) for own in calls}) == 1  # or real processes would wait for each other
        before, answers = answers, [tuple(map(torch.cat, zip(*call))) for call in zip(*calls)]
        if before and all(torch.equal(a, b) for old, new in zip(before, answers) for a, b in zip(old, new)):
            return results


@pytest.fixture
def tiny():
    """make(kind, **options), data(batch), run(...), train(...), gain(...), brightness; the exchange of one process, and
    ranks(processes) for that of several."""
    return SimpleNamespace(
        make=make, data=data, run=run, train=train, gain=gain, brightness=brightness, alone=alone, ranks=ranks
    )


@pytest.fixture(scope='session')
def vgg_file(tmp_path_factory):
    """Random weights of VGG19's convolutions, under torchvision's names."""
    torchvision = pytest.importorskip('torchvision')
    with torch.device('meta'):
        shapes = {
            name: value.shape for name, value in torchvision.models.vgg19(weights=None).features.state_dict().items()
        }
    rng, path = torch.Generator().manual_seed(0), tmp_path_factory.mktemp('vgg') / 'vgg19.pth'
    state = {}
    for name, shape in shapes.items():
        size = (2 / shape[1:].numel()) ** 0.5 if len(shape) > 1 else 0.01
        state[f'features.{name}'] = size * torch.randn(shape, generator=rng)
    torch.save(state, path)
    return path
