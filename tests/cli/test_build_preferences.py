"""finpercep-build-preferences: from a training YAML, resumed, refused, and a set that DPO trains on."""

import copy

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

pytest.importorskip('diffusers')
pytest.importorskip('peft')
from finpercep_plugin.cli.build_preferences import main  # noqa: E402
from finpercep_plugin.data.fgr_builder import build  # noqa: E402
from finpercep_plugin.data.fgr_options import BuildOptions  # noqa: E402
from finpercep_plugin.data.lmdb_io import Reader, Writer  # noqa: E402
from finpercep_plugin.data.preference_dataset import FinPercepPreferenceDataset  # noqa: E402
from finpercep_plugin.data.preference_format import read_meta, read_record  # noqa: E402
from finpercep_plugin.generators.tiny_diffusion import TinyDiffusion  # noqa: E402

NETWORK = {'shuffle': 4, 'channels': [16], 'layers': 1, 'norm_groups': 4}


@pytest.fixture(scope='module')
def sources(tmp_path_factory):
    """An FGR set of 4 and a generator's weights."""
    folder = tmp_path_factory.mktemp('sources')
    for seed in range(2):
        noise = np.random.default_rng(seed).integers(0, 255, (40, 48, 3)).astype(np.uint8)
        Image.fromarray(noise).save(folder / f'{seed}.png')
    build(BuildOptions(photos=[str(folder)], out=str(folder / 'fgr'), count=4, size=32, scale=4))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        generator = TinyDiffusion(network=NETWORK, steps=2)
        torch.nn.init.normal_(generator.network.unet.conv_out.weight, std=0.05)
    generator.save(folder / 'base.pth')
    return folder


@pytest.fixture
def options(sources):
    return {
        'datasets': {'train': {'type': 'FinPercepFGRDataset', 'dataroot': str(sources / 'fgr'), 'use_hflip': True}},
        'generator': {
            'type': 'TinyDiffusion', 'network': NETWORK, 'steps': 2, 'temperature': 1.0,
            'weights': str(sources / 'base.pth'),
        },
        'reward': {'type': 'Sharpness'},
        'train': {'algorithm': {'type': 'DPO', 'members': 4, 'best': 1, 'beta': 100}},
    }  # fmt: skip


@pytest.fixture
def run(options, tmp_path):
    """run('--batch', 2, reward={...}) -> exit code, with sections of the YAML replaced."""

    def call(*arguments, out='set', **sections):
        (tmp_path / 'dpo.yml').write_text(yaml.safe_dump({**copy.deepcopy(options), **sections}))
        given = ['-opt', tmp_path / 'dpo.yml', '--out', tmp_path / out, '--device', 'cpu', '--quiet', *arguments]
        return main([str(a) for a in given])

    return call


def records(path):
    return [read_record(Reader(path).get, i) for i in range(read_meta(path)['count'])]


def test_a_training_file_says_everything(run, tmp_path, capsys):
    assert run('--verify') == 0
    meta = read_meta(tmp_path / 'set')
    assert (meta['count'], meta['pairs_of'], meta['gt'], meta['scale']) == (4, [1, 1, 1, 1], True, 4)
    assert (meta['options']['members'], meta['options']['best'], meta['options']['reward']) == (
        4,
        1,
        {'type': 'Sharpness'},
    )
    data = FinPercepPreferenceDataset({'dataroot': str(tmp_path / 'set')})
    assert len(data) == 4 and data[0]['winner'].shape == (3, 32, 32) and 'gt' in data[0]
    assert all(len(record['scores']) == 4 for record in records(tmp_path / 'set'))
    assert capsys.readouterr().err == ''


def test_the_command_line_comes_before_the_file(run, sources, tmp_path):
    words = '--members 6 --best 2 --count 2 --seed 3 --no-gt --steps 1 --data'
    arguments = [*words.split(), sources / 'fgr']
    assert run(*arguments, '--reward', '{type: PSNR}', '--set', 'temperature=0.5', '--batch', 4) == 0
    meta = read_meta(tmp_path / 'set')
    told = meta['options']
    assert (told['members'], told['best'], told['seed'], told['steps'], told['reward']) == (
        6,
        2,
        3,
        1,
        {'type': 'PSNR'},
    )
    assert told['generator']['temperature'] == 0.5 and told['data'] == {
        'type': 'FinPercepFGRDataset', 'dataroot': str(sources / 'fgr'),
    }  # fmt: skip
    assert meta['count'] == 2 and not meta['gt'] and meta['pairs_of'] == [4, 4]
    (tmp_path / 'reward.yml').write_text('reward: {type: PSNR}')
    assert run(*arguments, '--reward', tmp_path / 'reward.yml', '--set', 'temperature=0.5') == 0


def test_continues_grows_and_refuses_other_options(run, tmp_path, capsys):
    assert run('--count', 2) == 0
    before = records(tmp_path / 'set')
    assert run('--count', 5) == 0
    assert records(tmp_path / 'set')[:2] == before and read_meta(tmp_path / 'set')['count'] == 5
    assert run('--count', 5, '--min-gap', 0.01) == 2
    assert '$.min_gap: built with 0.0, asked for 0.01' in capsys.readouterr().err
    assert run('--count', 5, reward={'type': 'PSNR'}) == 2
    assert '$.reward.type: built with Sharpness, asked for PSNR' in capsys.readouterr().err


def test_a_min_gap_that_none_reaches_leaves_records_without_pairs(run, tmp_path):
    assert run('--min-gap', 100) == 0
    assert read_meta(tmp_path / 'set')['pairs_of'] == [0] * 4


def test_a_bad_source_is_skipped_named_and_changes_the_exit_code(run, options, sources, tmp_path, capsys):
    import shutil

    shutil.copytree(sources / 'fgr', tmp_path / 'fgr')
    with Writer(tmp_path / 'fgr') as writer:
        writer.put({'00000002/lq': b'no picture'})
    assert run('--data', tmp_path / 'fgr', '--verify') == 1
    assert 'skipped 00000002: its data cannot be read: FGRError' in capsys.readouterr().err
    assert read_meta(tmp_path / 'set')['pairs_of'] == [1, 1, 0, 1]


def test_problems_change_the_exit_code(run, tmp_path, capsys):
    run()
    with Writer(tmp_path / 'set') as writer:
        writer.put({'00000001/lq': b'no picture'})
    assert run('--verify') == 1
    assert 'record 00000001: lq: not the bytes that its record tells of' in capsys.readouterr().err


def test_staged_rewards_and_sums_over_the_group(run, tiny_rms, tmp_path):
    assert run(reward={'type': 'FinPercep', 'rms': [tiny_rms[k] for k in range(3)]}) == 0
    assert read_meta(tmp_path / 'set')['options']['reward_stage'] == 2
    assert set(records(tmp_path / 'set')[0]['terms']) >= {'score', 'raw', 'map_max'}
    rewards = {'sharp': {'type': 'Sharpness'}, 'like': {'type': 'PSNR'}}
    assert run(out='sum', reward={'type': 'Weighted', 'rewards': rewards, 'normalise': 'range'}) == 0
    assert max(max(record['scores']) for record in records(tmp_path / 'sum')) <= 2


@pytest.mark.parametrize(
    ('arguments', 'sections', 'message'),
    [
        ([], {'datasets': {}}, 'no data: give --data, or -opt with datasets.train'),
        ([], {'reward': None}, 'no reward: give --reward'),
        ([], {'reward': {'type': 'Sharpnes'}}, "did you mean 'Sharpness'"),
        (['--best', 3], {}, '1 <= best <= members / 2 and min_gap >= 0, got best 3, members 4'),
        (['--steps', 2000], {}, 'steps'),
        (['--stage', 1], {}, '--stage: Sharpness has no stages'),
        (['--weights', 'nowhere.pth'], {}, '$.generator.weights: generator weights not found at'),
        (['--reward', 'nowhere.yml'], {}, 'nowhere.yml: the YAML file not found'),
        (['--data', 'nowhere'], {}, 'not an FGR set'),
        (['--set', 'temperatur=1'], {}, "did you mean 'temperature'"),
    ],
)
def test_wrong_usage(run, tmp_path, capsys, arguments, sections, message):
    assert run(*arguments, **sections) == 2
    assert message in capsys.readouterr().err
