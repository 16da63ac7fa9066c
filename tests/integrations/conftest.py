"""A small BasicSR experiment."""

import copy

import cv2
import numpy as np
import pytest
import yaml


def _dataset(name: str, **more) -> dict:
    paired = {'type': 'PairedImageDataset', 'dataroot_gt': 'gt', 'dataroot_lq': 'lq', 'io_backend': {'type': 'disk'}}
    return {'name': name, **paired, **more}


EDSR = {
    'name': 'edsr',
    'model_type': 'SRModel',
    'scale': 2,
    'num_gpu': 'auto',
    'manual_seed': 3,
    'datasets': {
        'train': _dataset(
            'tiny',
            gt_size=32,
            use_hflip=True,
            use_rot=True,
            num_worker_per_gpu=0,
            batch_size_per_gpu=4,
            use_shuffle=True,
        ),
        'val': _dataset('tinyval'),
    },
    'network_g': {'type': 'EDSR', 'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 4, 'num_block': 1, 'upscale': 2},
    'path': {'pretrain_network_g': None, 'resume_state': None},
    'train': {
        'ema_decay': 0.9,
        'optim_g': {'type': 'Adam', 'lr': '1e-3'},
        'scheduler': {'type': 'MultiStepLR', 'milestones': [3, 5], 'gamma': 0.5},
        'total_iter': 6,
        'warmup_iter': -1,
        'pixel_opt': {'type': 'L1Loss', 'loss_weight': 1.0, 'reduction': 'mean'},
    },
    'val': {'val_freq': 3, 'save_img': False, 'metrics': {'psnr': {'type': 'calculate_psnr', 'crop_border': 2}}},
    'logger': {'print_freq': 1, 'save_checkpoint_freq': 3, 'use_tb_logger': False},
}


@pytest.fixture
def edsr(tmp_path, monkeypatch) -> dict:
    """Options of a tiny EDSR on 8 random images; the current folder is a new one that holds them and `edsr.yml`."""
    rng = np.random.default_rng(0)
    for folder, size in (('gt', 48), ('lq', 24)):
        (tmp_path / folder).mkdir()
        for i in range(8):
            cv2.imwrite(str(tmp_path / folder / f'{i}.png'), rng.integers(0, 255, (size, size, 3), dtype=np.uint8))
    (tmp_path / 'edsr.yml').write_text(yaml.safe_dump(EDSR, sort_keys=False))
    monkeypatch.chdir(tmp_path)
    return copy.deepcopy(EDSR)
