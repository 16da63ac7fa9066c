"""The workshop: which options a training gets, where its weights are, what is not made again."""

import pytest

from finpercep_plugin.quickstart.workshop import Workshop


@pytest.fixture
def trained(monkeypatch, tmp_path):
    """A workshop, and the options of the trainings that it starts."""
    pytest.importorskip('basicsr')
    import finpercep_plugin.train as train

    seen = []
    monkeypatch.setattr(train, 'train_pipeline', lambda root, options, on_step, console: seen.append(options))
    return Workshop(tmp_path, seed=5, size=64, announce=lambda line: None, bars=False), seen


def touch(file):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.touch()


def test_a_training_gets_the_yaml_with_sizes_and_changes_laid_over_it(trained, tmp_path):
    shop, seen = trained
    touch(tmp_path / 'experiments/rm_0/models/net_g_latest.pth')
    shop.train('rm_1', 'rm_1_small', 'triplets', 40, start='rm_0', changes={'train': {'map_opt': None}})
    (options,) = seen
    assert options['path']['pretrain_network_g'] == str(tmp_path / 'experiments/rm_0/models/net_g_latest.pth')
    assert options['datasets']['train']['dataroot'] == str(tmp_path / 'datasets/triplets')
    assert options['train']['map_opt'] is None and options['train']['rank_opt']['m1'] == 0.5
    assert (options['train']['total_iter'], options['manual_seed'], options['network_g']['vit']['size']) == (40, 5, 64)


def test_a_section_of_another_type_starts_empty(trained):
    shop, seen = trained
    for changes in ({'reward': {'type': 'SSIM'}}, {'reward': {'l2': 0.0}}):
        shop.train('x', 'ccl_refl_small', 'pairs', 3, seed=7, changes=changes, replace=('reward',))
    assert seen[0]['reward'] == {'type': 'SSIM'} and seen[0]['manual_seed'] == 7
    assert seen[1]['reward']['type'] == 'FinPercep' and seen[1]['reward']['l2'] == 0.0


def test_an_interrupted_training_goes_on_and_a_finished_one_is_left_alone(trained, tmp_path):
    shop, seen = trained
    for step in (9, 10):
        touch(tmp_path / f'experiments/x/training_states/{step}.state')
    touch(tmp_path / 'experiments/x/models/net_g_latest.pth')
    shop.train('x', 'ccl_refl_small', 'pairs', 20)  # the whole generator, written last, is not there
    assert seen[0]['path']['resume_state'].endswith('/10.state')
    touch(tmp_path / 'experiments/x/models/generator_latest.pth')
    shop.train('x', 'ccl_refl_small', 'pairs', 20)
    assert len(seen) == 1
    assert shop.weights('x').name == 'generator_latest.pth'
    assert list(shop.seconds) == ['x']
