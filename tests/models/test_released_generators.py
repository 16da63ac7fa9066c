"""The YAML files of the released generators, on tiny random checkpoints in their released layouts."""

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

basicsr = pytest.importorskip('basicsr')
pytest.importorskip('diffusers')
from finpercep_plugin.cli.tiny_checkpoints import GENERATORS, overrides, write  # noqa: E402
from finpercep_plugin.data.fgr_builder import build  # noqa: E402
from finpercep_plugin.data.fgr_options import BuildOptions  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
OPTIONS = ROOT / 'finpercep_plugin/options'
SHORT = ['num_gpu=0', 'train:total_iter=3', 'train:ccl:stages=[1,1,1]', 'train:ccl:calibration=2', 'val:val_freq=3']
SHORT += ['datasets:val:limit=1', 'val:steps=2', 'logger:save_checkpoint_freq=1', 'logger:print_freq=1']
SHORT += ['datasets:train:num_worker_per_gpu=0', 'logger:use_tb_logger=False']


@pytest.fixture(scope='module')
def photos(tmp_path_factory) -> Path:
    folder, rng = tmp_path_factory.mktemp('photos'), np.random.default_rng(0)
    ramp = np.linspace(0, 200, 80)
    for i in range(4):
        photo = ramp[:, None, None] * rng.uniform(0.2, 1, 3) + rng.normal(0, 20, (80, 80, 3))
        Image.fromarray(photo.clip(0, 255).astype(np.uint8)).save(folder / f'p{i}.png')
    build(BuildOptions(photos=[str(folder)], out=str(folder / 'fgr'), count=8, size=64, scale=4, seed=1))
    return folder


@pytest.fixture(scope='module')
def made(tmp_path_factory) -> dict:
    return write(tmp_path_factory.mktemp('tiny'), [*GENERATORS, 'rm'])


def words(name: str, made: dict, photos: Path) -> list[str]:
    data = [f'datasets:{phase}:dataroot={photos / "fgr"}' for phase in ('train', 'val')]
    steps = 1 if name == 'osediff' else 4
    window = [
        'train:algorithm:k_start=0' if steps == 1 else 'train:algorithm:k_start=2',
        f'train:algorithm:k_end={steps - 1}',
    ]
    sampler = ['val:steps=1'] if steps == 1 else ['train:algorithm:steps=4']
    return [*overrides(made, name), *data, *SHORT, *window, *sampler]


@pytest.mark.slow
@pytest.mark.parametrize('name', GENERATORS)
def test_all_stages_run_and_resume_to_the_same_weights(name, made, photos, tmp_path, monkeypatch, python):
    monkeypatch.chdir(tmp_path)
    command = [Path(basicsr.__file__).parent / 'train.py', '-opt', OPTIONS / f'ccl_refl_{name}.yml']
    force = ['--force_yml', *words(name, made, photos)]
    log = python(*command, *force, timeout=600).stderr
    assert [f'CCL stage {stage}' in log for stage in (1, 2)] == [True, True]
    folder = tmp_path / f'experiments/ccl_refl_{name}'
    state = folder / 'training_states/3.state'
    whole = torch.load(state, weights_only=True)
    assert whole['trained'] and whole['bad_steps'] == 0 and whole['ccl']['stage'] == 2
    before = torch.load(folder / 'training_states/1.state', weights_only=True)['trained']
    assert any(not torch.equal(value, before[key]) for key, value in whole['trained'].items())
    state.unlink()
    python(*command, '--auto_resume', *force, timeout=600)
    resumed = torch.load(state, weights_only=True)
    assert all(torch.equal(value, resumed['trained'][key]) for key, value in whole['trained'].items())
    assert [*(folder / 'models').glob('original_latest*')], 'in the original layout too'


@pytest.mark.slow
@pytest.mark.parametrize('name', ['realsr', 'drealsr', 'reallr200', 'reallq250'])
def test_evaluation_files_measure(name, made, photos, tmp_path, monkeypatch, python):
    monkeypatch.chdir(tmp_path)
    opt = yaml.safe_load((OPTIONS / f'eval_{name}.yml').read_text())
    for kind, side in (('gt', 64), ('lq', 16)):
        (tmp_path / kind).mkdir()
        Image.open(photos / 'p0.png').resize((side, side)).save(tmp_path / kind / '1.png')
    for key in [key for key in opt['datasets']['test'] if key.startswith('dataroot')]:
        opt['datasets']['test'][key] = str(tmp_path / key.partition('_')[2])
    opt['generator'].update(made['seesr'])
    opt['num_gpu'], opt['val']['steps'] = 0, 2
    opt['val']['rewards'] = {'sharpness': {'type': 'Sharpness'}}  # those of the file download their weights
    (tmp_path / 'eval.yml').write_text(yaml.safe_dump(opt))
    log = python('-m', 'finpercep_plugin.test', '-opt', 'eval.yml', timeout=300).stderr
    assert '# sharpness:' in log and ('# psnr:' in log) == ('dataroot_gt' in opt['datasets']['test'])
    assert [*tmp_path.glob('results/**/*.png')]
