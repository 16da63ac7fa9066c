"""The peers compute what the package computes: a benchmark against something else would say nothing."""

import copy

import pytest
import torch

pytest.importorskip('diffusers')
pytest.importorskip('peft')
from benchmarks import generators, grpo, refl_step  # noqa: E402
from benchmarks.common import Setup  # noqa: E402
from finpercep_plugin.algorithms.grpo import FlowGRPO  # noqa: E402
from finpercep_plugin.algorithms.members import alone  # noqa: E402
from finpercep_plugin.algorithms.refl import ReFL  # noqa: E402

SETUP = Setup(quick=True)


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    return generators.write(tmp_path_factory.mktemp('seesr'), SETUP)


def gradients(generator):
    return torch.cat([p.grad.flatten() for p in generator.parameters() if p.grad is not None])


def test_plain_refl(files):
    generator = generators.load_seesr(files, SETUP, checkpointing=False)
    reward, (lq, gt) = generators.load_reward(files, SETUP), generators.pictures(SETUP, 1, 64)
    loss = refl_step.plain_loss(generator, reward, lq, gt, 3, 0)
    loss.backward()
    expected = gradients(generator)
    generator.zero_grad()
    (update,) = ReFL(2, 2, steps=3).updates(generator, lq, gt, reward, 0, 1, [0], None)
    own, _ = next(update)
    own.backward()
    torch.testing.assert_close(own, loss, rtol=1e-5, atol=0)
    torch.testing.assert_close(gradients(generator), expected, rtol=1e-4, atol=1e-6)


def test_textbook_grpo(files):
    plain, generator = (generators.load_seesr(files, SETUP, checkpointing=False, reference=r) for r in (False, True))
    reward, (lq, _) = generators.load_reward(files, SETUP), generators.pictures(SETUP, 1, 64)
    reference = copy.deepcopy(plain.network).requires_grad_(False)
    loss = grpo.textbook(plain, reference, reward, lq, 4, 2, 0)
    algorithm = FlowGRPO(2, clip=grpo.CLIP, kl_weight=grpo.KL, micro_batch=grpo.BATCH, guidance=1.0, steps=4)
    own = 0.0
    (update,) = algorithm.updates(generator, lq, None, reward, 0, 1, [0], alone)
    for part, _ in update:
        part.backward()
        own += part.item()
    assert own == pytest.approx(loss, abs=1e-6)
    assert gradients(plain).norm() > 0
    torch.testing.assert_close(gradients(generator), gradients(plain), rtol=1e-3, atol=1e-5)
