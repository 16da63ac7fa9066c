"""The reward as a loss: formula, hinge, calibration, nested loss, options."""

import subprocess
import sys

import pytest
import torch
from torch import nn

from finpercep_plugin.archs.finpercep_rm_arch import FinPercepRM
from finpercep_plugin.config import ConfigError, arguments, build
from finpercep_plugin.losses.reward_loss import FinPercepRewardLoss, NonFiniteReward, hinge
from finpercep_plugin.registry import LOSSES
from finpercep_plugin.rewards.base import RewardOutput


def batch(seed, count=4):
    return torch.rand(count, 3, 24, 32, generator=torch.Generator().manual_seed(seed))


class Brightness(nn.Module):
    """A reward known in closed form: stage k gives (k + 1) times the mean of the image."""

    def raw(self, sr, stage):
        score = (stage + 1) * sr.mean(dim=(1, 2, 3))
        return RewardOutput(score, {'score': score, 'raw': score})


def with_brightness(tiny_rms, **options):
    loss = FinPercepRewardLoss(list(tiny_rms.values()), **options)
    loss.reward = Brightness()
    return loss


def test_hinge_by_hand():
    torch.testing.assert_close(hinge(torch.tensor([-1.0, 1.5, 2.0, 9.0]), 2.0), torch.tensor([3.0, 0.5, 0.0, 0.0]))


def test_value_by_hand(tiny_rms):
    # raw_1 = 2 * brightness = 0.4, 1.0; R = (raw - 0.5) / 0.25 = -0.4, 2.0; relu(1 - R) = 1.4, 0; mean 0.7
    loss = with_brightness(tiny_rms, loss_weight=0.1, stage=1, mu=[None, 0.5], sd=[None, 0.25], margin=1.0)
    output = torch.stack([torch.full((3, 4, 4), 0.2), torch.full((3, 4, 4), 0.5)])
    value, style = loss(output, None)
    assert value.item() == pytest.approx(0.07) and style is None
    assert loss.log['r_reward'].item() == pytest.approx(0.8) and loss.log['r_raw'].item() == pytest.approx(0.7)
    assert loss.log['r_reward_std'].item() == pytest.approx(1.2)


@pytest.mark.parametrize('stage', [0, 1, 2])
def test_is_the_reward_of_the_stage(tiny_rms, stage):
    output = batch(0)
    with torch.no_grad():
        score, degradation = FinPercepRM.from_file(tiny_rms[stage])(output)
    raw = score if stage == 0 else score + 1 - degradation.flatten(1).topk(8, dim=1).values.mean(1)  # 1 % of 768
    loss = FinPercepRewardLoss(tiny_rms[stage], stage=stage, mu={stage: 0.1}, sd={stage: 0.2}, reduction='none')
    torch.testing.assert_close(loss(output)[0], torch.relu(2 - (raw - 0.1) / 0.2))


def test_gradient_reaches_the_output_and_a_closed_hinge_gives_none(tiny_rms):
    for mu, expected in ((0.0, True), (-1e6, False)):
        output = (batch(0) * 3 - 1).requires_grad_()
        loss = FinPercepRewardLoss(tiny_rms[2], stage=2, mu=[None, None, mu], sd=[None, None, 1.0], margin=1e3)
        value, _ = loss(output)
        value.backward()
        assert bool((output.grad.flatten(1).norm(dim=1) > 0).all()) is expected
        assert (value.item() > 0) is expected


def test_calibration_on_the_first_outputs_then_frozen(tiny_rms):
    loss = with_brightness(tiny_rms, calibration=10, stages=(5, 5, 5))
    seen = []
    for step in range(1, 4):
        loss.begin(step)
        seen.append(batch(step).mean(dim=(1, 2, 3)))
        value, _ = loss(batch(step))
        raw = torch.cat(seen)
        if step == 1:
            assert value.item() == 0, 'the spread of 4 images is not divided by'
        else:
            expected = torch.relu(2 - (seen[-1] - raw.mean()) / raw.std(correction=0).clamp_min(1e-3)).mean()
            torch.testing.assert_close(value, expected, rtol=1e-4, atol=0)
        assert loss.schedule.statistics.ready([0, 1, 2]) is (step == 3), '12 images are the first whole batches with 10'
    for stage in range(3):
        mu, sd = loss.schedule.statistics.moments(stage)
        assert mu == pytest.approx((stage + 1) * raw.mean().item(), rel=1e-5)
        assert sd == pytest.approx(max((stage + 1) * raw.std(correction=0).item(), 1e-3), rel=1e-4)
    before = loss.schedule.statistics.state_dict()
    loss.begin(4)
    loss(batch(9) * 0.1)
    assert loss.schedule.statistics.state_dict() == before


def test_an_unfinished_calibration_is_saved(tiny_rms):
    def make():
        return with_brightness(tiny_rms, calibration=12, stages=(5, 5, 5))

    whole, first, second = make(), make(), make()
    for step in (1, 2, 3, 4):
        whole.begin(step)
        expected, _ = whole(batch(step))
        if step == 3:
            second.load_curriculum_state(first.curriculum_state())
        part = first if step < 3 else second
        part.begin(step)
        value, _ = part(batch(step))
        assert torch.equal(value, expected)
    assert second.curriculum_state()['schedule'] == whole.curriculum_state()['schedule']


def test_halves_of_a_batch_average_to_the_whole(tiny_rms):
    loss = FinPercepRewardLoss(tiny_rms[2], stage=2, mu=[None, None, 0.3], sd=[None, None, 0.1], margin=5.0)
    output = batch(3)
    halves = (loss(output[:2])[0] + loss(output[2:])[0]) / 2
    torch.testing.assert_close(loss(output)[0], halves)


def test_a_reward_that_is_not_finite_is_refused_before_it_is_counted(tiny_rms):
    loss = with_brightness(tiny_rms, stage=0)
    output = batch(0)
    output[1, 0, 0, 0] = float('nan')
    with pytest.raises(NonFiniteReward, match='the reward of 1 outputs is not finite'):
        loss(output)
    assert loss.seen.shape[1] == 0


def test_equal_rewards_of_all_images_are_refused(tiny_rms):
    loss = with_brightness(tiny_rms, stage=0, calibration=4)
    with pytest.raises(ValueError, match='stage 0: all 4 calibration rewards are 0.5'):
        loss(torch.full((4, 3, 8, 8), 0.5))


def test_nested_loss_of_basicsr(tiny_rms):
    pytest.importorskip('basicsr')
    options = {'rm': tiny_rms[0], 'stage': 0, 'mu': [0.0], 'sd': [1.0], 'with': {'type': 'L1Loss', 'loss_weight': 0.5}}
    loss, output, gt = FinPercepRewardLoss(**options), batch(0), batch(1)
    alone = FinPercepRewardLoss(**{k: v for k, v in options.items() if k != 'with'})(output)[0]
    torch.testing.assert_close(loss(output, gt)[0], alone + 0.5 * (output - gt).abs().mean())

    class PercepAndStyle(nn.Module):
        def forward(self, output, gt):
            return None, (output - gt).square().mean()

    loss.nested = PercepAndStyle()
    percep, style = loss(output, gt)
    torch.testing.assert_close(percep, alone)
    torch.testing.assert_close(style, (output - gt).square().mean())
    with pytest.raises(ValueError, match="with.type: BasicSR has no loss 'L1los'; did you mean 'L1Loss'"):
        FinPercepRewardLoss(**{**options, 'with': {'type': 'L1los'}})


def test_options_are_checked_as_the_yaml_says_them(tiny_rms):
    files = list(tiny_rms.values())
    for options, message in (
        ({'rm': files, 'wiht': {}}, r"\$\.p\.wiht: unknown key; did you mean 'with'"),
        ({'rm': files, 'with': 3}, r'\$\.p\.with: expected'),
        ({'rm': files, 'stage': 'cll'}, r"\$\.p\.stage: expected .*'ccl'"),
        ({'rm': files[0]}, r'\$\.p: rm: `stage: ccl` goes through several reward models'),
        ({'rm': files[:2]}, r'\$\.p: rm: no file for stage 2, which has iterations'),
        ({'rm': files, 'mu': [0, 0, 0]}, r'\$\.p: mu and sd: expected both or neither'),
        ({'rm': files, 'mu': [0], 'sd': [1]}, r'\$\.p: mu and sd: no values for stage 1'),
        ({'rm': files, 'stages': [0, 0, 0]}, r'\$\.p: CCL stages: expected'),
        ({'rm': files, 'calibration': 1}, r'\$\.p: calibration: expected 2 images or more, got 1'),
        ({'rm': ['none.pth', *files[1:]]}, r'\$\.p: rms, stage 0: FinPercep-RM weights not found at .*none.pth'),
    ):
        with pytest.raises(ConfigError, match=message):
            build(LOSSES, {'type': 'FinPercepRewardLoss', **options}, '$.p')
    assert arguments(FinPercepRewardLoss, {'rm': files, 'loss_weight': '1e-3'}, '$')['loss_weight'] == 1e-3
    with pytest.raises(TypeError, match="unknown key 'wiht'"):
        FinPercepRewardLoss(files, wiht={})


def test_a_section_is_checked_without_building_anything(tiny_rms, monkeypatch):
    monkeypatch.setattr(FinPercepRM, '__init__', None)
    files = list(tiny_rms.values())
    FinPercepRewardLoss.check({'rm': files}, '$.p')
    FinPercepRewardLoss.check({'rm': files[2], 'stage': 0}, '$.p')
    for options, lines in (
        ({'rm': files[2]}, [f'$.p.rm: {files[2]} holds an RM_2; expected a file for each of the stages used: 0, 1, 2']),
        ({'rm': files, 'mu': [0, 0, 0]}, ['$.p: mu and sd: expected both or neither']),
        (
            {'rm': [files[0], files[2], files[1]]},
            [
                f'$.p.rm[1]: {files[2]} holds an RM_2; expected an RM_1',
                f'$.p.rm[2]: {files[1]} holds an RM_1; expected an RM_2',
            ],
        ),
    ):
        with pytest.raises(ConfigError) as caught:
            FinPercepRewardLoss.check(options, '$.p')
        assert caught.value.problems == lines


def test_files_of_stages_without_iterations_are_not_needed(tiny_rms):
    loss = FinPercepRewardLoss([None, None, tiny_rms[2]], stages=(0, 0, 1))
    assert loss.begin(1) == 2


def test_ccl_without_an_iteration_says_what_is_missing(tiny_rms):
    with pytest.raises(RuntimeError, match='needs the iteration'):
        FinPercepRewardLoss(list(tiny_rms.values()))(batch(0))


RANK = """
import sys
import torch, torch.distributed as dist
from finpercep_plugin.losses.reward_loss import FinPercepRewardLoss, NonFiniteReward
rank, store, files = int(sys.argv[1]), sys.argv[2], sys.argv[3:]
dist.init_process_group('gloo', init_method=f'file://{store}', rank=rank, world_size=2)
loss = FinPercepRewardLoss(files, stages=(1, 1, 1), calibration=16)
for step in range(1, 5):
    loss.begin(step)
    half = torch.rand(8, 3, 24, 32, generator=torch.Generator().manual_seed(step))[4 * rank :][:4]
    print(repr(loss(half)[0].item()))
half[rank - 1] = float('nan') if rank else 0.5
try:
    loss(half)
except NonFiniteReward:
    print('skipped')
dist.barrier()
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_two_ranks_are_one_with_twice_the_batch(tiny_rms, tmp_path):
    files = list(tiny_rms.values())
    command = [sys.executable, '-c', RANK]
    ranks = [
        subprocess.Popen([*command, str(r), str(tmp_path / 'store'), *files], stdout=subprocess.PIPE, text=True)
        for r in (0, 1)
    ]
    lines = [rank.communicate(timeout=120)[0].split() for rank in ranks]
    assert [line[4] for line in lines] == ['skipped', 'skipped'], 'a bad reward on one rank skips the step on both'
    loss = FinPercepRewardLoss(files, stages=(1, 1, 1), calibration=16)
    for step in range(1, 5):
        loss.begin(step)
        value = loss(batch(step, 8))[0].item()
        assert value == pytest.approx((float(lines[0][step - 1]) + float(lines[1][step - 1])) / 2, abs=1e-5)
        assert value > 0
