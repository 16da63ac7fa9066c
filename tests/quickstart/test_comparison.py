import numpy as np
import pytest
import torch

pytest.importorskip('diffusers')
from finpercep_plugin.quickstart.comparison import COLUMNS, Comparison
from finpercep_plugin.registry import GENERATORS

SECTION = {
    'type': 'TinyDiffusion',
    'scale': 4,
    'network': {'shuffle': 4, 'channels': [16], 'layers': 1, 'norm_groups': 4},
    'steps': 2,
}


def test_the_same_weights_give_the_same_pictures_and_others_do_not(tmp_path, tiny_rms):
    kind = {k: v for k, v in SECTION.items() if k != 'type'}
    files = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        generator = GENERATORS.get('TinyDiffusion')(**kind)
        torch.nn.init.normal_(generator.network.unet.conv_out.weight, std=0.05)
        files.append(tmp_path / f'{seed}.pth')
        generator.save(files[-1])
    gt = np.random.default_rng(0).integers(0, 256, (32, 48, 3), dtype=np.uint8)
    same = Comparison(SECTION, {'before': files[0], 'after': files[0], 'rm': tiny_rms[2]}, 5)(gt, 3)
    other = Comparison(SECTION, {'before': files[0], 'after': files[1], 'rm': tiny_rms[2]}, 5)(gt, 3)
    assert len(same.images) == len(COLUMNS) == len(same.captions)
    assert all(image.shape == (32, 48, 3) and image.dtype == np.uint8 for image in same.images)
    lq, before, after, truth, *maps = same.images
    assert (before == after).all() and (maps[0] == maps[1]).all() and same.scores[0] == pytest.approx(same.scores[1])
    assert (truth == gt).all() and (lq[:4, :4] == lq[0, 0]).all()
    assert (other.images[1] == before).all() and (other.images[2] != before).any()
