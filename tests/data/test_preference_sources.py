import pytest
import torch
from PIL import Image

pytest.importorskip('diffusers')
from finpercep_plugin.config import ConfigError  # noqa: E402
from finpercep_plugin.data.preference_sources import build_data, build_reward, identity  # noqa: E402


def test_the_plugins_data_sets_and_basicsrs(fgr, preferences, tmp_path):
    assert len(build_data({'type': 'FinPercepFGRDataset', 'dataroot': str(fgr), 'limit': 3})) == 3
    with pytest.raises(ConfigError, match=r'\$.datasets.train.type: FinPercepPreferenceDataset holds preferences'):
        build_data({'type': 'FinPercepPreferenceDataset', 'dataroot': str(preferences)})
    pytest.importorskip('basicsr')
    for name, side in (('lq', 4), ('gt', 8)):
        (tmp_path / name).mkdir()
        Image.effect_noise((side, side), 50).convert('RGB').save(tmp_path / name / 'a.png')
    folders = {'dataroot_lq': str(tmp_path / 'lq'), 'dataroot_gt': str(tmp_path / 'gt')}
    more = {'name': 'x', 'scale': 2, 'gt_size': 8, 'use_hflip': False, 'use_rot': False, 'io_backend': {'type': 'disk'}}
    item = build_data({'type': 'PairedImageDataset', **folders, **more})[0]
    assert item['lq'].shape == (3, 4, 4) and item['gt'].shape == (3, 8, 8)


def test_a_reward_at_its_last_stage_or_the_one_asked_for(tiny_rms):
    section = {'type': 'FinPercep', 'rms': [tiny_rms[k] for k in range(3)]}
    sr = torch.rand(2, 3, 32, 32)
    scores = {}
    for asked, stage in ((None, 2), (0, 0), (1, 1)):
        reward, found = build_reward(section, asked, 'cpu')
        assert found == stage == reward.stage
        scores[stage] = reward(sr).score
        assert torch.equal(scores[stage], reward.raw(sr, stage).score)  # not normalised: nothing is measured
    assert not torch.equal(scores[0], scores[2])
    assert build_reward({'type': 'FinPercep', 'rm': tiny_rms[2]}, None, 'cpu')[1] is None
    with pytest.raises(ConfigError, match='--stage: there are reward models for stage 0, 1'):
        build_reward({**section, 'rms': section['rms'][:2]}, 2, 'cpu')
    with pytest.raises(ConfigError, match='--stage: Sharpness has no stages'):
        build_reward({'type': 'Sharpness'}, 1, 'cpu')
    with pytest.raises(ConfigError, match=r"\$.reward.type: no reward named 'Sharpnes'; did you mean 'Sharpness'"):
        build_reward({'type': 'Sharpnes'}, None, 'cpu')


def test_a_sum_that_is_not_measured_is_refused_and_one_within_groups_is_not():
    rewards = {'sharp': {'type': 'Sharpness'}, 'like': {'type': 'PSNR'}}
    with pytest.raises(ConfigError, match=r'\$.reward.statistics: mean and sd of sharp, like are missing'):
        build_reward({'type': 'Weighted', 'rewards': rewards, 'normalise': 'statistics'}, None, 'cpu')
    for more in (
        {'normalise': 'range'},
        {'normalise': 'none'},
        {'normalise': 'statistics', 'statistics': {k: [0, 1] for k in rewards}},
    ):
        build_reward({'type': 'Weighted', 'rewards': rewards, **more}, None, 'cpu')


def test_what_decides_the_records_is_told_by_content(tmp_path):
    for name, data in (('a.pth', b'1'), ('copy.pth', b'1'), ('b.pth', b'2')):
        (tmp_path / name).write_bytes(data)
    generator = {'type': 'TinyDiffusion', 'scale': 2, 'weights': str(tmp_path / 'a.pth'), 'train': 'lora'}
    data = {'type': 'FinPercepFGRDataset', 'dataroot': 'x', 'use_hflip': True, 'name': 'n', 'num_worker_per_gpu': 3}
    reward = {'type': 'FinPercep', 'rms': {'2': str(tmp_path / 'b.pth')}}
    one = identity(generator, reward, 2, data, 'fp32')
    assert one['data'] == {'type': 'FinPercepFGRDataset', 'dataroot': 'x', 'use_hflip': True}
    assert one == identity(
        {**generator, 'train': 'all', 'steps': 8}, reward, 2, {**data, 'batch_size_per_gpu': 2}, 'fp32'
    )
    (tmp_path / 'a.pth').write_bytes(b'2')
    assert {k for k, v in identity(generator, reward, 2, data, 'fp32').items() if v != one[k]} == {'weights'}
    (tmp_path / 'b.pth').write_bytes(b'3')
    assert {k for k, v in identity(generator, reward, 1, data, 'bf16').items() if v != one[k]} == {
        'weights', 'reward', 'reward_stage', 'precision',
    }  # fmt: skip
