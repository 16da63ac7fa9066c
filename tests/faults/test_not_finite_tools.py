"""NaN and infinity in what builds, scores, super-resolves and validates: named, and nothing made of it is kept."""

import csv
import json
import math
from pathlib import Path

import pytest
import torch
import yaml

pytest.importorskip('basicsr')
pytest.importorskip('diffusers')
from finpercep_plugin.cli import build_fgr, build_preferences, score, super_resolve
from finpercep_plugin.data.features.gabor import GaborFeatures
from finpercep_plugin.data.lmdb_io import Reader, exists
from finpercep_plugin.generators.tiny_diffusion import TinyDiffusion
from finpercep_plugin.models.generator_model import GeneratorModel
from finpercep_plugin.rewards.sharpness_reward import SharpnessReward
from finpercep_plugin.train import main
from tests.bad_input.tools import plain, run
from tests.models.conftest import GENERATOR

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.parametrize('value', [math.nan, math.inf], ids=str),
]


@pytest.fixture
def tell(told, tmp_path, photos):
    """A row of the page."""

    def add(what, value, seen, said):
        assert 'Traceback' not in seen.text
        line = next(line for line in plain(said, tmp_path, photos).splitlines() if 'nan' in line or 'finite' in line)
        told.add('not_finite', what.replace('(', f'is {value} (', 1), seen.code, line.strip())

    return add


def spoil(monkeypatch, owner, name, value):
    """One number of what this method gives is none."""
    whole = getattr(owner, name)

    def spoilt(*arguments, **more):
        given = whole(*arguments, **more)
        (given if torch.is_tensor(given) else torch.from_numpy(given)).view(-1)[-1] = value
        return given

    monkeypatch.setattr(owner, name, spoilt)


def build(photos, tmp_path, section):
    """A build of 4 samples that must not finish."""
    (tmp_path / 'b.yml').write_text(yaml.safe_dump(section))
    given = ('--photos', photos, '--out', tmp_path / 'set', '--size', 32, '--count', 4, '--opt', tmp_path / 'b.yml')
    return run(build_fgr.main, *given, '--quiet')


def test_a_producer(value, photos, generator_file, monkeypatch, tell, tmp_path):
    spoil(monkeypatch, TinyDiffusion, 'decode', value)
    seen = build(
        photos, tmp_path, {'producers': [{'type': 'generator', 'generator': GENERATOR, 'weights': generator_file}]}
    )
    assert seen.code == 2 and 'producer generator failed at samples 0, 1, 2, 3, 4, 5, 6, 7: ' in seen.text, seen
    assert not exists(tmp_path / 'set') or not list(Reader(tmp_path / 'set').keys())
    tell('picture of a producer (finpercep-build-fgr)', value, seen, seen.text)


def test_features(value, photos, monkeypatch, tell, tmp_path):
    spoil(monkeypatch, GaborFeatures, '__call__', value)
    seen = build(photos, tmp_path, {})
    assert seen.code == 2 and 'the features have values that are not finite' in seen.text, seen
    assert not exists(tmp_path / 'set') or not list(Reader(tmp_path / 'set').keys())
    tell('feature (finpercep-build-fgr)', value, seen, seen.text)


@pytest.mark.parametrize('what', ['picture of the generator', 'reward'])
def test_preferences(value, what, options, monkeypatch, tell, tmp_path):
    if what == 'reward':
        reward = SharpnessReward.__call__

        def spoilt(self, *arguments, **more):
            out = reward(self, *arguments, **more)
            out.score = out.score.index_fill(0, torch.tensor([0]), value)
            return out

        monkeypatch.setattr(SharpnessReward, '__call__', spoilt)
    else:
        spoil(monkeypatch, TinyDiffusion, 'decode', value)
    opt = {**options('dpo'), 'reward': {'type': 'Sharpness'}}
    Path('opt.yml').write_text(yaml.safe_dump(opt, sort_keys=False))
    seen = run(build_preferences.main, '-opt', 'opt.yml', '--out', 'set', '--count', 2, '--device', 'cpu', '--quiet')
    skipped = json.loads(Path('set/meta.json').read_text())['skipped']
    assert seen.code == 1 and len(skipped) == 2 and all('not finite' in reason for _, reason in skipped), seen
    tell(f'{what} (finpercep-build-preferences)', value, seen, skipped[0][1].split(': [')[0])


def test_scores(value, photos, tiny_rms, tell, tmp_path, monkeypatch):
    (tmp_path / 'spoilt_metric.py').write_text(f'def metric(sr):\n    return sr.mean((1, 2, 3)) * float("{value}")\n')
    monkeypatch.syspath_prepend(str(tmp_path))
    given = ('--metrics', 'piqe', 'spoilt=Function:function=spoilt_metric:metric', '--device', 'cpu', '--quiet')
    seen = run(score.main, photos, '--rm', tiny_rms[2], '--out', tmp_path / 's.csv', *given)
    with open(tmp_path / 's.csv', newline='') as file:
        rows = list(csv.DictReader(file))
    assert seen.code == 1 and rows
    for row in rows:
        assert 'spoilt' in row['error'] and 'finite' in row['error'] and row['spoilt'] == '', row
        assert math.isfinite(float(row['score'])) and math.isfinite(float(row['piqe']))  # the others are there
    tell('metric of a user (finpercep-score)', value, seen, rows[0]['error'].split(': [')[0])


def test_super_resolving(value, photos, generator_file, monkeypatch, tell, tmp_path):
    spoil(monkeypatch, TinyDiffusion, 'decode', value)
    sets = [word for key, given in GENERATOR.items() for word in ('--set', f'{key}={json.dumps(given)}')]
    out = ('--out', tmp_path / 'sr', '--weights', generator_file, '--device', 'cpu', '--quiet', '--batch', 1)
    seen = run(super_resolve.main, photos, *out, *sets)
    failures = json.loads((tmp_path / 'sr/failures.json').read_text())
    assert seen.code == 1 and len(failures) and all('not finite' in row['error'] for row in failures)
    assert not list((tmp_path / 'sr').glob('*.png'))
    tell('picture of the generator (finpercep-super-resolve)', value, seen, failures[0]['error'])


def test_validation(value, options, monkeypatch, tell):
    """What is no number is not measured as the black picture that it would be written as, and the next one is better."""
    opt = options('refl')
    opt['train'] |= {'monitor': {'every': 0}}
    opt['val']['val_freq'] = 2
    sample, calls = GeneratorModel.super_resolve, []

    def spoilt(self, *arguments, **more):
        sr, prompt = sample(self, *arguments, **more)
        calls.extend([1] if arguments[-1].startswith('validation') else [])
        if len(calls) == 1:
            sr[0, 0, 0, 0] = value
        return sr, prompt

    monkeypatch.setattr(GeneratorModel, 'super_resolve', spoilt)
    Path('opt.yml').write_text(yaml.safe_dump(opt, sort_keys=False))
    seen = run(main, '-opt', 'opt.yml')
    said = [line.strip() for line in seen.text.splitlines() if '# psnr: ' in line]
    assert seen.code == 0 and len(said) > 1 and said[0].startswith('# psnr: nan'), seen.text[-3000:]
    assert all('nan' not in line for line in said[1:])  # nor is its best
    tell('picture of the generator (validation)', value, seen, '# psnr: nan')
