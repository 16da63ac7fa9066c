"""Every algorithm raises a reward: an easy one, and that of a reward model which was trained for a moment."""

import time

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip('diffusers')
pytest.importorskip('peft')
from finpercep_plugin.archs.finpercep_rm_arch import FinPercepRM  # noqa: E402
from finpercep_plugin.config import build  # noqa: E402
from finpercep_plugin.curriculum.statistics import ScoreStatistics  # noqa: E402
from finpercep_plugin.data.fgr_builder import build as build_set  # noqa: E402
from finpercep_plugin.data.fgr_dataset import FinPercepFGRDataset  # noqa: E402
from finpercep_plugin.data.fgr_options import BuildOptions  # noqa: E402
from finpercep_plugin.losses.align_loss import align_loss  # noqa: E402
from finpercep_plugin.losses.map_loss import map_loss  # noqa: E402
from finpercep_plugin.losses.rank_loss import rank_loss  # noqa: E402
from finpercep_plugin.registry import ALGORITHMS  # noqa: E402
from finpercep_plugin.rewards.finpercep_reward import FinPercepReward  # noqa: E402
from finpercep_plugin.rollout import sample_images  # noqa: E402

OPTIONS = {
    'ReFL': {'weight': 1.0, 'pretrain_weight': 0.1},
    'DPO': {'beta': 2000.0, 'eta': 1.0, 'sample_batch': 64, 'micro_batch': 16},
    'FlowGRPO': {'group': 8, 'kl_weight': 0.01, 'micro_batch': 32},
    'RFSR': {'reward_weight': 1.0, 'll_weight': 0.01, 'gram_weight': 0.0},
}


def raise_reward(tiny, name, generator, lq, gt, reward, iterations):
    """Trains; the reward of 16 samples, each of the same noise before and after, must gain over 3 standard errors."""
    algorithm = build(ALGORITHMS, {'type': name, **OPTIONS[name]}, '$')
    algorithm.check(generator)

    def rewards():
        with torch.no_grad():
            sr = sample_images(generator, lq.repeat(16 // len(lq), 1, 1, 1), range(16), 0, 'measured')
            return reward(sr).score

    before, start = rewards(), time.perf_counter()
    tiny.train(algorithm, generator, lq, gt, reward, iterations, lr=1e-3)
    seconds, after = time.perf_counter() - start, rewards()
    change = after - before
    error = change.std().item() / len(change) ** 0.5
    print(
        f'{name}: reward {before.mean():.4f} -> {after.mean():.4f}, +{change.mean():.4f} +- {error:.4f} '
        f'({change.mean() / error:.1f} standard errors), {iterations} iterations, {seconds:.1f} s'
    )
    assert change.mean() > 3 * error and seconds < 180


@pytest.mark.parametrize('name', ALGORITHMS.names())
def test_brightness(tiny, name):
    lq, gt = tiny.data()
    raise_reward(tiny, name, tiny.make(steps=3), lq, gt, tiny.brightness, 20)


@pytest.fixture(scope='session')
def triplets(tmp_path_factory):
    """64 FGR samples of 32 px, scale 2, from 8 pictures of edges and texture: a batch, as a dataset gives it."""
    folder, rng = tmp_path_factory.mktemp('fgr'), np.random.default_rng(0)
    y, x = np.mgrid[:96, :96]
    for i in range(8):
        angle, width = rng.uniform(0, np.pi), rng.uniform(4, 16)
        stripes = np.sin((x * np.cos(angle) + y * np.sin(angle)) * 2 * np.pi / width) > rng.uniform(-0.5, 0.5)
        photo = 60 + 110 * stripes[..., None] * rng.uniform(0.3, 1, 3) + rng.normal(0, 12, (96, 96, 3))
        Image.fromarray(photo.clip(0, 255).astype(np.uint8)).save(folder / f'{i}.png')
    build_set(BuildOptions(photos=[str(folder)], out=str(folder / 'set'), count=64, size=32, scale=2, seed=1))
    dataset = FinPercepFGRDataset({'dataroot': str(folder / 'set'), 'name': 'train', 'type': 'FinPercepFGRDataset'})
    return torch.utils.data.default_collate([dataset[i] for i in range(64)])


@pytest.fixture(scope='session')
def rm_file(triplets, tmp_path_factory):
    """A small RM_2, trained for half a minute through its three stages on 48 triplets; it ranks the other 16."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vit = {'size': 32, 'patch': 8, 'width': 48, 'depth': 3, 'heads': 4, 'stem': 16}
        rm = FinPercepRM(stage=0, backbone='small', vit=vit, decoder_width=24, encoder='full')
        for stage, steps in enumerate((150, 50, 100)):
            if stage:
                rm.grow()
            fit(rm, {name: value[:48] for name, value in triplets.items() if torch.is_tensor(value)}, steps)
    with torch.no_grad():
        scores = [rm(triplets[name][48:])[0] for name in ('sr', 'syn', 'gt')]
    order = [(low < high).float().mean().item() for low, high in zip(scores, scores[1:])]
    print(f'RM_2: held-out order sr < syn {order[0]:.2f}, syn < gt {order[1]:.2f}')
    assert min(order) > 0.7
    file = tmp_path_factory.mktemp('rm') / 'rm_2.pth'
    torch.save(rm.file(), file)
    return file


def fit(rm, data, steps, batch=16):
    optimizer = torch.optim.AdamW([p for p in rm.parameters() if p.requires_grad], lr=2e-3)
    for step in range(steps):
        rows = torch.randperm(48, generator=torch.Generator().manual_seed(step))[:batch]
        images = torch.cat([data[name][rows] for name in ('sr', 'syn', 'gt')])
        score, degradation, base = (values.chunk(3) for values in rm.predict(images))
        loss = 0.8 * rank_loss(*score, 0.5, 0.5)
        if rm.stage:
            loss = loss + map_loss(degradation[1], data['map'][rows], positive_weight=4.0, dice_weight=0.5)
            loss = loss + map_loss(degradation[2], torch.zeros_like(degradation[2]))
            loss = loss + 0.6 * align_loss(score[2], base[2].detach())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@pytest.mark.slow
@pytest.mark.parametrize('name', ALGORITHMS.names())
def test_reward_model(tiny, rm_file, triplets, name):
    generator, statistics = tiny.make(steps=3), ScoreStatistics()
    reward = FinPercepReward(rm=str(rm_file), statistics=statistics)
    outputs = sample_images(generator, triplets['lq'][48:], range(16), 0, 'calibration')
    statistics.measure(2, reward.raw(outputs, 2).score)
    raise_reward(tiny, name, generator, triplets['lq'][:8], triplets['gt'][:8], reward, 60)
