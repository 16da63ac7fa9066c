"""Weighted sums as the reward of a model: what calibration measures, keeps and restores, and what is refused before."""

import copy

import pytest
import torch

pytest.importorskip('basicsr')
from finpercep_plugin.config import ConfigError  # noqa: E402
from finpercep_plugin.dry_run import dry_run  # noqa: E402
from finpercep_plugin.train import train_pipeline  # noqa: E402

PARTS = {'sharp': {'type': 'Sharpness'}, 'near': {'type': 'PSNR'}}


def state(name: str, iteration: int) -> dict:
    return torch.load(f'experiments/{name}/training_states/{iteration}.state', weights_only=True)


@pytest.fixture
def weighted(options):
    def make(kind: str, normalise: str) -> dict:
        opt = options(kind)
        opt['reward'] = {'type': 'Weighted', 'rewards': copy.deepcopy(PARTS), 'normalise': normalise}
        opt['reward']['weights'] = {'sharp': 0.5, 'near': 2.0}
        opt['train'] |= {'ccl': {'calibration': 6}, 'monitor': {'every': 2, 'samples': 4}}
        opt['val'] = None
        return opt

    return make


def test_the_scales_of_the_parts_are_measured_once_and_resumed(weighted, tmp_path):
    opt = weighted('refl', 'statistics')
    train_pipeline(str(tmp_path), opt)
    whole = state('refl', 4)
    assert set(whole['reward']) == set(PARTS) and all(sd > 0 for _, sd in whole['reward'].values())
    assert 15 < whole['reward']['near'][0] < 40, 'a mean PSNR in dB'
    assert whole['ccl']['statistics']['mu'][0] == pytest.approx(0, abs=1e-5), 'the sum of what has mean 0'
    opt['path']['resume_state'] = 'experiments/refl/training_states/2.state'
    train_pipeline(str(tmp_path), opt)
    again = state('refl', 4)
    assert again['reward'] == whole['reward'] and again['ccl'] == whole['ccl'] and again['monitor'] == whole['monitor']
    assert all(torch.equal(value, again['trained'][name]) for name, value in whole['trained'].items())


@pytest.mark.parametrize('kind', ['refl', 'rfsr'])
def test_an_algorithm_without_groups_says_what_to_set(weighted, tmp_path, kind):
    with pytest.raises(ConfigError, match=r'\$\.reward\.normalise: .*set normalise: statistics'):
        train_pipeline(str(tmp_path), weighted(kind, 'group'))
    assert not (tmp_path / 'experiments').exists()


def test_a_held_out_sum_needs_the_scales_of_its_parts(weighted, tmp_path):
    opt = weighted('refl', 'statistics')
    held = {'type': 'Weighted', 'rewards': copy.deepcopy(PARTS), 'normalise': 'statistics'}
    opt['val'] = {'val_freq': 4, 'save_img': False, 'panel': 0, 'rewards': {'sum': held}}
    with pytest.raises(
        ConfigError, match=r'\$\.val\.rewards\.sum: .* give statistics of near, sharp, or set normalise: none'
    ):
        train_pipeline(str(tmp_path), opt)
    held['statistics'] = {'sharp': [0.05, 0.01], 'near': [25.0, 2.0]}
    model = train_pipeline(str(tmp_path), opt)
    assert set(model.metric_results) == {'sum'}


def test_a_dry_run_measures_nothing(weighted):
    assert 'peak in one step' in dry_run(weighted('grpo', 'group'))
