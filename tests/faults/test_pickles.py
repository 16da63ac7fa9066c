"""A pickle that would run code, in place of every file that is read: refused and named, and nothing has run."""

import json
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

pytest.importorskip('basicsr')
pytest.importorskip('diffusers')
from finpercep_plugin.cli import build_fgr, build_preferences, check_data, report, score, super_resolve
from finpercep_plugin.data.tar_store import TarReader
from finpercep_plugin.generators.released import find_file, read_file
from finpercep_plugin.train import main as train
from tests.bad_input.tools import plain, run
from tests.faults.told import Told

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


class Evil:
    """Makes a folder when it is unpickled."""

    def __init__(self, place: Path):
        self.place = place

    def __reduce__(self):
        return os.mkdir, (str(self.place),)


@pytest.fixture
def evil(tmp_path):
    """evil(name) -> a file of that name whose pickle makes the folder `made`, as torch.save writes it, or plain."""

    def make(name, bare=False):
        content = {'params': Evil(tmp_path / 'made'), 'arch': {'stage': 2}, 'iter': 2}
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(pickle.dumps(content)) if bare else torch.save(content, file)
        return file

    return make


@pytest.fixture
def refused(told: Told, tmp_path):
    """What a place says of a file: it has to name it, and must not have run it."""

    def check(place, said, name, *folders):
        assert not (tmp_path / 'made').exists(), f'{place} has run the pickle'
        assert name in said and 'Traceback' not in said, said[-2000:]
        assert 'weights_only=False' not in said, 'advice to read it without restrictions'
        lines = plain(said, tmp_path, *folders).splitlines()
        told.add('pickles', place, next(line for line in lines if name.rpartition('/')[2] in line).strip()[:400])

    return check


@pytest.mark.parametrize('bare', [False, True], ids=['torch', 'pickle'])
@pytest.mark.parametrize('where', ['path.resume_state', 'generator.weights', 'reward.rms', 'path.pretrain_network_g'])
def test_training(where, bare, options, evil, refused):
    opt = options('rm' if 'pretrain' in where else 'refl')
    file = evil('evil.state' if 'state' in where else 'evil.pth', bare)
    section, key = where.split('.')
    opt[section][key] = [*opt[section][key][:2], str(file)] if key == 'rms' else str(file)
    Path('opt.yml').write_text(yaml.safe_dump(opt, sort_keys=False))
    seen = run(train, '-opt', 'opt.yml')
    assert seen.code == 2
    refused(f'`{where}`' + (', a bare pickle' if bare else ''), seen.text[seen.text.index('error: ') :], file.name)


def test_auto_resume(options, evil, refused):
    Path('opt.yml').write_text(yaml.safe_dump(options('refl'), sort_keys=False))
    evil('experiments/refl/training_states/2.state')
    seen = run(train, '-opt', 'opt.yml', '--auto_resume')
    assert seen.code == 2
    refused('`--auto_resume`', seen.text[seen.text.index('error: ') :], '2.state')


TAGS = ('!!python/object/apply:os.mkdir ["made"]', '!!python/object/new:os.mkdir ["made"]', '!!python/name:os.mkdir')


@pytest.mark.parametrize('tag', TAGS)
def test_yaml(tag, photos, tiny_rms, refused, tmp_path, monkeypatch):
    """BasicSR's own loader would do what the tag says; in every tool that reads options."""
    monkeypatch.chdir(tmp_path)
    Path('evil.yml').write_text(f'name: x\nmodel_type: FinPercepRMModel\nevil: {tag}\n')
    lq = ('--photos', photos, '--out', 'set', '--opt', 'evil.yml')
    tools = {
        'finpercep-train': lambda: run(train, '-opt', 'evil.yml'),
        'finpercep-build-fgr': lambda: run(build_fgr.main, *lq),
        'finpercep-check-data': lambda: run(check_data.main, '-opt', 'evil.yml'),
        'finpercep-super-resolve': lambda: run(super_resolve.main, photos, '--out', 'sr', '-opt', 'evil.yml'),
        'finpercep-build-preferences': lambda: run(
            build_preferences.main, '--data', 'set', '--out', 'p', '-opt', 'evil.yml'
        ),
        'finpercep-score': lambda: run(
            score.main, photos, '--rm', tiny_rms[2], '--out', 's.csv', '--protocol', 'evil.yml', '--device', 'cpu'
        ),
    }
    for name, tool in tools.items():
        seen = tool()
        assert seen.code == 2, (name, seen)
        refused(f'`{name}`, options with {tag.split()[0].split(":os")[0]}', seen.text, 'evil.yml', photos)


def test_yaml_in_the_folder_of_a_run(refused, tmp_path):
    folder = tmp_path / 'experiments/x'
    (folder / 'training_states').mkdir(parents=True)
    torch.save({'monitor': Evil(tmp_path / 'made')}, folder / 'training_states/2.state')
    (folder / 'x.yml').write_text(f'evil: {TAGS[0].replace("made", str(tmp_path / "made"))}\n')
    seen = run(report.main, folder, '--out', tmp_path / 'page.html')
    assert not (tmp_path / 'made').exists() and 'Traceback' not in seen.text


def test_scoring_and_producers(photos, evil, refused, tmp_path):
    file = evil('evil.pth')
    seen = run(score.main, photos, '--rm', file, '--out', tmp_path / 's.csv', '--device', 'cpu', '--quiet')
    refused('`finpercep-score --rm`', seen.text, 'evil.pth', photos)
    sections = {
        'spandrel': {'type': 'spandrel', 'weights': str(file)},
        'basicsr': {
            'type': 'basicsr',
            'weights': str(file),
            'network': {'type': 'EDSR', 'num_in_ch': 3, 'num_out_ch': 3},
        },
        'generator': {'type': 'generator', 'generator': {'type': 'TinyDiffusion'}, 'weights': str(file)},
    }
    for name, section in sections.items():
        (tmp_path / 'b.yml').write_text(yaml.safe_dump({'producers': [section]}))
        given = ('--photos', photos, '--out', tmp_path / 'set', '--size', 32, '--count', 1, '--opt', tmp_path / 'b.yml')
        seen = run(build_fgr.main, *given)
        assert seen.code == 2
        refused(f'`finpercep-build-fgr`, producer {name}', seen.text, 'evil.pth', photos)
    (tmp_path / 'b.yml').write_text(
        yaml.safe_dump({'feature': {'type': 'timm', 'model': 'resnet18', 'weights': str(file)}})
    )
    seen = run(build_fgr.main, *given)
    assert seen.code == 2
    refused('`finpercep-build-fgr`, feature timm', seen.text, 'evil.pth', photos)


def components(file, folder, clip):
    """{place: what reads `file`, or the folder that it lies in}."""
    from diffusers import AutoencoderKL
    from transformers import CLIPTextModel

    from finpercep_plugin.algorithms.gram import VGGFeatures
    from finpercep_plugin.archs.finpercep_rm_arch import FinPercepRM
    from finpercep_plugin.generators.pretrained import load_part
    from finpercep_plugin.generators.tiny_diffusion import TinyDiffusion
    from finpercep_plugin.integrations.checkpoints import _restore_rng
    from finpercep_plugin.models.sharded_state import check_shards
    from finpercep_plugin.rewards.clip_score_reward import CLIPScoreReward
    from finpercep_plugin.rewards.hpsv2_reward import HPSv2Reward
    from finpercep_plugin.rewards.image_reward_reward import ImageRewardReward
    from finpercep_plugin.rewards.pyiqa_reward import PyIQAReward

    return {
        'FinPercepRM.from_file': lambda: FinPercepRM.from_file(file),
        'TinyDiffusion.load': lambda: TinyDiffusion().load(file),
        'released weights': lambda: read_file(find_file(file, 'weights'), 'weights'),
        'VGG19 of Gram matrices': lambda: VGGFeatures.from_file(file),
        'CLIPScore': lambda: CLIPScoreReward(model=str(clip['model']), weights=str(file)),
        'HPSv2': lambda: HPSv2Reward(model=str(clip['model']), weights=str(file)),
        'ImageReward': lambda: ImageRewardReward(weights=str(file), tokenizer=str(folder)),
        'PyIQA, a file of its options': lambda: PyIQAReward('musiq', {'pretrained_model_path': str(file)}),
        'a folder of transformers': lambda: load_part(CLIPTextModel, folder, 'text', 'text encoder'),
        'a folder of diffusers': lambda: load_part(AutoencoderKL, folder, 'vae', 'VAE'),
        'random number generators of a BasicSR model': lambda: _restore_rng({'path': {'resume_state': str(folder / 'x')}}, 7),
        'index of a sharded state': lambda: check_shards(folder / 'shards'),
    }  # fmt: skip


@pytest.mark.parametrize('number', range(12))
def test_components(number, evil, refused, tiny_clip, tmp_path):
    from diffusers import AutoencoderKL
    from transformers import CLIPTextConfig

    file = evil('evil.pth')
    (tmp_path / 'vocab.txt').write_text('[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n')
    CLIPTextConfig(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2).save_pretrained(
        tmp_path / 'text'
    )
    AutoencoderKL(block_out_channels=(32,)).save_config(tmp_path / 'vae')
    for name in ('text/pytorch_model.bin', 'vae/diffusion_pytorch_model.bin', '7.rng'):
        evil(name)
    evil('shards/.metadata', bare=True)
    place, read = list(components(file, tmp_path, tiny_clip).items())[number]
    with pytest.raises(Exception) as caught:
        read()
    wanted = {'a folder of transformers': 'text', 'a folder of diffusers': 'vae', 'index of a sharded state': 'shards'}
    wanted['random number generators of a BasicSR model'] = '7.rng'
    refused(place, f'{type(caught.value).__name__}: {caught.value}', wanted.get(place, 'evil.pth'))


def test_index_of_tars(fgr_set, evil, refused, tmp_path):
    """The index beside a tar is made anew."""
    from finpercep_plugin.cli import export_fgr

    assert run(export_fgr.main, '--data', fgr_set, '--out', tmp_path / 'tars').code == 0
    keys = list(TarReader(tmp_path / 'tars').keys())
    for index in [f for f in (tmp_path / 'tars').iterdir() if f.suffix not in ('.tar', '.json', '.md')]:
        index.write_bytes(pickle.dumps(Evil(tmp_path / 'made')))
        np.savez(tmp_path / 'x.npz', size=np.array([Evil(tmp_path / 'made')], dtype=object))
        shutil.copy(tmp_path / 'x.npz', index)
    assert list(TarReader(tmp_path / 'tars').keys()) == keys and not (tmp_path / 'made').exists()
    assert json.loads((tmp_path / 'tars/meta.json').read_text())
