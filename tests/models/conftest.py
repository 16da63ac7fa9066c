"""A small FGR set, a tiny generator, and options of the three models on them."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

pytest.importorskip('basicsr')
pytest.importorskip('diffusers')
from finpercep_plugin.data.fgr_builder import build
from finpercep_plugin.data.fgr_options import BuildOptions

GENERATOR = {
    'type': 'TinyDiffusion',
    'scale': 4,
    'network': {'shuffle': 4, 'channels': [16], 'layers': 1, 'norm_groups': 4},
    'steps': 3,
}
NETWORK = {
    'type': 'FinPercepRM',
    'backbone': 'small',
    'vit': {'size': 32, 'patch': 8, 'width': 32, 'depth': 3, 'heads': 2, 'stem': 8},
    'decoder_width': 16,
    'adapter_width': 8,
}


ALGORITHMS = {
    'refl': ('FinPercepReFLModel', {'type': 'ReFL', 'weight': 0.1}),
    'dpo': ('FinPercepDPOModel', {'type': 'DPO', 'members': 4, 'best': 1}),
    'grpo': ('FinPercepGRPOModel', {'type': 'FlowGRPO', 'group': 4}),
    'rfsr': ('FinPercepRFSRModel', {'type': 'RFSR', 'gram_weight': 0.0, 'll_weight': 0.1, 'reward_weight': 0.1}),
}


@pytest.fixture(scope='session')
def fgr_set(tmp_path_factory) -> Path:
    """12 samples of 32 px from 4 photos of noise on gradients."""
    folder = tmp_path_factory.mktemp('model_data')
    rng, ramp = np.random.default_rng(0), np.linspace(0, 200, 64)
    for i in range(4):
        photo = ramp[:, None, None] * rng.uniform(0.2, 1, 3) + rng.normal(0, 20, (64, 64, 3))
        Image.fromarray(photo.clip(0, 255).astype(np.uint8)).save(folder / f'p{i}.png')
    build(BuildOptions(photos=[str(folder)], out=str(folder / 'fgr'), count=12, size=32, scale=4, seed=1))
    return folder / 'fgr'


@pytest.fixture(scope='session')
def generator_file(tmp_path_factory) -> str:
    """Weights of the tiny generator, its last layer not zero."""
    from finpercep_plugin.generators.tiny_diffusion import TinyDiffusion

    with torch.random.fork_rng():
        torch.manual_seed(0)
        generator = TinyDiffusion(**{k: v for k, v in GENERATOR.items() if k != 'type'})
        torch.nn.init.normal_(generator.network.unet.conv_out.weight, std=0.05)
    file = tmp_path_factory.mktemp('generator') / 'base.pth'
    generator.save(file)
    return str(file)


@pytest.fixture
def options(fgr_set, generator_file, tiny_rms, tmp_path, monkeypatch):
    """options(kind) -> options of 'rm', 'diffusion' or one of ALGORITHMS, 4 iterations; the current folder is a new one."""
    monkeypatch.chdir(tmp_path)
    data = {'type': 'FinPercepFGRDataset', 'dataroot': str(fgr_set)}
    common = {
        'scale': 4,
        'num_gpu': 0,
        'manual_seed': 5,
        'datasets': {
            'train': {
                **data,
                'name': 'train',
                'use_hflip': True,
                'use_rot': True,
                'batch_size_per_gpu': 4,
                'num_worker_per_gpu': 0,
            },
            'val': {**data, 'name': 'val', 'limit': 3},
        },
        'path': {'resume_state': None},
        'train': {'total_iter': 4, 'optim_g': {'type': 'AdamW', 'lr': '1e-3'}, 'ema_decay': 0.9},
        'val': {'val_freq': 4, 'save_img': True, 'panel': 2},
        'logger': {'print_freq': 1, 'save_checkpoint_freq': 2, 'use_tb_logger': False},
    }

    def make(kind: str) -> dict:
        opt = copy.deepcopy({**common, 'name': kind})
        if kind == 'rm':
            opt |= {'model_type': 'FinPercepRMModel', 'network_g': {**NETWORK, 'stage': 2}}
            opt['path']['pretrain_network_g'] = tiny_rms[1]
            opt['train'] |= {
                'map_opt': {
                    'type': 'FinPercepMapLoss',
                    'positive_weight': 4.0,
                    'dice_weight': 0.5,
                    'focal_weight': 1.0,
                },
                'rank_opt': {'type': 'FinPercepRankLoss', 'loss_weight': 0.8},
                'align_opt': {'type': 'FinPercepAlignLoss', 'loss_weight': 0.6},
            }
            return opt
        opt |= {'model_type': 'FinPercepDiffusionModel', 'generator': copy.deepcopy(GENERATOR)}
        opt['val']['metrics'] = {'psnr': {'type': 'calculate_psnr', 'crop_border': 2}}
        if kind in ALGORITHMS:
            opt['model_type'], algorithm = ALGORITHMS[kind]
            opt['generator'] |= {'weights': generator_file, 'train': 'all'}
            opt['reward'] = {'type': 'FinPercep', 'rms': [tiny_rms[k] for k in range(3)]}
            opt['train'] |= {
                'algorithm': dict(algorithm),
                'ccl': {'stages': [1, 1, 2], 'calibration': 6},
            }
            opt['val']['rewards'] = {
                'watched': {'type': 'FinPercep', 'rm': tiny_rms[2]},
                'sharpness': {'type': 'Sharpness'},
            }
        return opt

    return make


@pytest.fixture
def growing(options):
    """growing(kind) -> options in which RM_1 and RM_2 are trained in 3 steps each when their stages begin, at iterations
    2 and 3, by rm.yml of the current folder.
    """
    rm = options('rm')
    rm['train']['total_iter'], rm['path']['pretrain_network_g'], rm['val'] = 3, None, None
    rm['logger'] = {'print_freq': 1, 'save_checkpoint_freq': 1}
    rm['datasets']['train'] |= {'photos': 'train'}
    Path('rm.yml').write_text(yaml.safe_dump(rm))

    def make(kind: str) -> dict:
        opt = options(kind)
        opt['reward']['rms'][1:] = [None, None]
        growth = {'rm_1': {'opt': 'rm.yml', 'network_g': {'stage': 1}}, 'rm_2': 'rm.yml', 'fresh': 5, 'share': 0.4}
        opt['train']['ccl'] |= {'reward_update': 'at_switch', 'growth': growth}
        return opt

    return make
