import sys

import pytest
import torch

from finpercep_plugin.config import ConfigError
from finpercep_plugin.integrations import basicsr, fitting


@pytest.fixture
def seeds(monkeypatch):
    """settle_seed on rank 1; returns the option, and what BasicSR's generators were seeded with."""
    try:
        basicsr.require()
    except ImportError:
        pytest.skip('BasicSR is not installed')

    def run(parsed, raw, *arguments):
        monkeypatch.setattr(sys, 'argv', ['train.py', '-opt', 'x.yml', *arguments])
        given = []
        monkeypatch.setattr('basicsr.utils.set_random_seed', given.append)
        opt = {'manual_seed': parsed, 'rank': 1}
        fitting.settle_seed(opt, raw)
        return opt['manual_seed'], given

    return run


def test_a_seed_in_the_yaml_stands(seeds):
    assert seeds(5, {'manual_seed': 5}) == (5, [])


@pytest.mark.parametrize('raw', [{}, {'manual_seed': None}])
def test_no_seed_is_0_on_every_rank(seeds, raw):
    assert seeds(4711, raw) == (0, [1])


@pytest.mark.parametrize('raw', [{}, {'manual_seed': 5}])
def test_a_forced_seed_is_used(seeds, raw):
    assert seeds(7, raw, '--force_yml', 'name=x', 'manual_seed=7', '--auto_resume') == (7, [8])


@pytest.mark.parametrize(
    ('name', 'dist', 'expected'),
    [('FinPercepRMModel', False, 1), ('FinPercepRMModel', True, 4), ('SRModel', False, 4)],
)
def test_our_models_take_one_gpu_a_process(monkeypatch, name, dist, expected):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    opt = {'model_type': name, 'num_gpu': 4, 'dist': dist, 'is_train': True}
    fitting.fit(opt)
    assert opt['num_gpu'] == expected


def test_validation_keys_that_basicsr_takes_for_granted():
    opt = {'model_type': 'FinPercepRMModel', 'is_train': True, 'val': {'save_img': True}}
    fitting.fit(opt)
    assert opt['val'] == {'save_img': True, 'val_freq': 1000}
    test = {'model_type': 'FinPercepRMModel', 'is_train': False, 'val': None}
    fitting.fit(test)
    assert test['val'] == {'save_img': False}
    none = {'model_type': 'FinPercepRMModel', 'is_train': True, 'val': None}
    fitting.fit(none)
    assert none['val'] is None
    foreign = {'model_type': 'SRModel', 'is_train': True, 'val': {}}
    fitting.fit(foreign)
    assert foreign['val'] == {}


@pytest.mark.parametrize(
    ('entry', 'said'),
    [
        ('dist_params:timeout=3', '--force_yml dist_params:timeout=3: the YAML file has no section dist_params'),
        ('train:optim:lr=1', 'no section train:optim; write it there'),
        ('name:x=1', 'no section name'),
        ('name', "expected section:key=value, with one =, got 'name'"),
        ('name=a=b', "with one =, got 'name=a=b'"),
    ],
)
def test_forced_entries_that_basicsr_trips_over(entry, said, monkeypatch):
    monkeypatch.setattr(sys, 'argv', ['train.py', '-opt', 'x.yml', '--force_yml', 'name=y', 'train:lr=1', entry])
    with pytest.raises(ConfigError) as caught:
        fitting.check_forced({'name': 'x', 'train': {'optim_g': {}}})
    assert len(caught.value.problems) == 1 and said in caught.value.problems[0]
