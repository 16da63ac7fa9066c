"""FinPercep-RM as a reward: stages, normalisation, gradients, bad files."""

import pytest
import torch

from finpercep_plugin.archs.finpercep_rm_arch import FinPercepRM
from finpercep_plugin.config import ConfigError, build
from finpercep_plugin.curriculum.statistics import ScoreStatistics
from finpercep_plugin.registry import REWARDS
from finpercep_plugin.rewards.finpercep_reward import FinPercepReward, by_stage, check_files


@pytest.fixture
def images():
    return torch.rand(6, 3, 32, 40, generator=torch.Generator().manual_seed(1))


def test_raw_of_each_stage_is_the_formula(tiny_rms, images):
    reward = FinPercepReward(tiny_rms, l1=2.0, l2=0.5, top=0.05)
    for stage in range(3):
        with torch.no_grad():
            score, degradation = FinPercepRM.from_file(tiny_rms[stage])(images)
            out = reward.raw(images, stage)
        top = degradation.flatten(1).sort(dim=1, descending=True).values[:, : 32 * 40 // 20].mean(1)
        expected = score if stage == 0 else 2 * score + 0.5 * (1 - top)
        torch.testing.assert_close(out.score, expected)
        torch.testing.assert_close(out.terms['score'], score)
        if stage:
            torch.testing.assert_close(out.terms['map_max'], top)
            torch.testing.assert_close(out.terms['map_mean'], degradation.mean(dim=(1, 2, 3)))
            torch.testing.assert_close(out.maps['map'], degradation)
        else:
            assert not out.maps and set(out.terms) == {'score', 'raw'}


def test_scores_are_on_the_scale_of_the_statistics(tiny_rms, images):
    statistics = ScoreStatistics()
    reward = FinPercepReward(tiny_rms, statistics=statistics)
    for reward.stage in (1, 2):
        raw = reward.raw(images, reward.stage).score
        statistics.set(reward.stage, mu=0.25 * reward.stage, sd=0.5)
        torch.testing.assert_close(reward(images).score, (raw - 0.25 * reward.stage) / 0.5)
    reward.stage = 0
    with pytest.raises(RuntimeError, match='stage 0 are not measured yet'):
        reward(images)


def test_a_stage_may_get_its_model_later(tiny_rms, images):
    reward, whole = FinPercepReward([tiny_rms[0], None, None]), FinPercepReward(tiny_rms)
    reward.load([0], 'cpu')
    with pytest.raises(ValueError, match='stage 1 has no reward model'):
        reward.raw(images, 1)
    for stage in (2, 1):
        reward.add(stage, tiny_rms[stage])
    for stage in range(3):
        assert torch.equal(reward.raw(images, stage).score, whole.raw(images, stage).score)
    assert len(reward.models) == 3 and reward.stage == 0


def test_gradient_reaches_the_image_and_nothing_else(tiny_rms, images):
    reward = FinPercepReward(tiny_rms)
    for reward.stage in range(3):
        x = images.clone().requires_grad_()
        reward(x).score.sum().backward()
        assert (x.grad.flatten(1).norm(dim=1) > 0).all()
    assert not any(p.requires_grad or p.grad is not None for p in reward.parameters())


def test_checkpointing_reaches_the_encoder_and_changes_no_gradient(tiny_rms, images):
    gradients = []
    for checkpointing in (False, True):
        reward, sr = FinPercepReward(tiny_rms, checkpointing=checkpointing), images.clone().requires_grad_()
        reward.stage = 2
        reward(sr).score.sum().backward()
        assert [encoder.checkpointing for encoder in reward.encoders] == [checkpointing]
        gradients.append(sr.grad)
    torch.testing.assert_close(gradients[1], gradients[0])


def test_stays_in_eval_mode(tiny_rms, images):
    reward = FinPercepReward(tiny_rms)
    reward.load([2], 'cpu')
    assert not any(m.training for m in reward.train().modules())


def test_a_score_does_not_depend_on_the_batch(tiny_rms, images):
    reward = FinPercepReward(tiny_rms)
    for stage in range(3):
        whole = reward.raw(images, stage).score
        alone = torch.cat([reward.raw(image[None], stage).score for image in images.flip(0)]).flip(0)
        torch.testing.assert_close(whole, alone, rtol=1e-5, atol=1e-6)


def test_one_file_keeps_its_stage_and_is_not_normalised(tiny_rms, images):
    reward = build(REWARDS, {'type': 'FinPercep', 'rm': tiny_rms[1]}, '$.val.rewards.rm')
    out = reward(images)
    assert reward.stage == 1
    torch.testing.assert_close(out.score, out.terms['raw'])


def test_a_later_file_gives_stage_0_from_the_copy_it_holds(tiny_rms, images):
    reward = FinPercepReward({0: tiny_rms[2], 2: tiny_rms[2]})
    with torch.no_grad():
        expected = FinPercepRM.from_file(tiny_rms[2]).score_base(images)
        torch.testing.assert_close(reward.raw(images, 0).score, expected)
        reward.raw(images, 2)
    assert len(reward.models) == 1, 'one copy of a file'


def test_bad_files_and_options(tiny_rms, tmp_path, images):
    with pytest.raises(ValueError, match='either rms .* or rm'):
        FinPercepReward()
    with pytest.raises(FileNotFoundError, match=f'rms, stage 1: FinPercep-RM weights not found at {tmp_path}/none.pth'):
        FinPercepReward([tiny_rms[0], str(tmp_path / 'none.pth')])
    with pytest.raises(ConfigError, match=r'\$\.reward: rm: FinPercep-RM weights not found'):
        build(REWARDS, {'type': 'FinPercep', 'rm': str(tmp_path / 'none.pth')}, '$.reward')
    with pytest.raises(ConfigError, match=r"\$\.reward\.rmss: unknown key; did you mean 'rms'"):
        build(REWARDS, {'type': 'FinPercep', 'rmss': []}, '$.reward')
    with pytest.raises(ValueError, match='holds an RM_1; expected an RM_2'):
        FinPercepReward([None, None, tiny_rms[1]]).raw(images, 2)
    with pytest.raises(ValueError, match='stage 1 has no reward model; there are files for stage 0, 2'):
        FinPercepReward([tiny_rms[0], None, tiny_rms[2]]).raw(images, 1)


def test_files_are_checked_by_their_headers(tiny_rms, tmp_path):
    files = list(tiny_rms.values())
    assert check_files(files, [0, 1, 2], '$.r.rms') == []
    assert check_files({'0': files[2], '2': files[2]}, [0, 2], '$.r.rms') == []
    assert check_files(files[1], [], '$.r.rm') == check_files(files[1], [0, 1], '$.r.rm') == []
    assert check_files(files[1], [1, 2], '$.r.rm') == [
        f'$.r.rm: {files[1]} holds an RM_1; expected a file for each of the stages used: 1, 2'
    ]
    assert check_files([files[0], None, files[1]], [1, 2], '$.r.rms') == [
        '$.r.rms: no file for stage 1, which has iterations',
        f'$.r.rms[2]: {files[1]} holds an RM_1; expected an RM_2',
    ]
    half = tmp_path / 'half.pth'
    half.write_bytes((tmp_path / files[1]).read_bytes()[:1000])
    torch.save({'params': {}}, tmp_path / 'plain.pth')
    found = check_files({0: str(tmp_path / 'no.pth'), 1: str(half), 2: str(tmp_path / 'plain.pth')}, [1], '$.r.rms')
    assert found[0].startswith('$.r.rms.0: FinPercep-RM weights not found at')
    assert found[1].startswith(f'$.r.rms.1: {half} is not a FinPercep-RM file')
    assert found[2].endswith("plain.pth is not a FinPercep-RM file: 'arch'")
    assert check_files([], [0], '$.r.rms')[0].startswith('$.r.rms: expected a value for one or more of the stages')


def test_stages_by_list_or_keys():
    assert by_stage({0: 'a', '2': 'b', 1: None}, 'rms') == {0: 'a', 2: 'b'}
    for wrong in ([], [None], {3: 'a'}, {'rm_0': 'a'}, ['a', 'b', 'c', 'd']):
        with pytest.raises(ValueError, match='one or more of the stages 0, 1 and 2'):
            by_stage(wrong, 'rms')
