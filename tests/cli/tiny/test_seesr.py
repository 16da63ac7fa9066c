"""The tiny SeeSR folder: names of the released networks, and the same files for the same seed."""

import json
from pathlib import Path

import pytest
import torch

pytest.importorskip('diffusers')
from safetensors.torch import load_file  # noqa: E402

from finpercep_plugin.archs.seesr_arch import SeeSRControlNet, SeeSRUNet  # noqa: E402
from finpercep_plugin.cli.tiny.seesr import seesr  # noqa: E402


def test_layout_and_names(tmp_path):
    paths = seesr(tmp_path, seed=1)
    assert sorted(paths) == ['base', 'dape', 'ram', 'tags', 'thresholds', 'weights']
    assert all(Path(path).exists() for path in paths.values())
    assert sum(file.stat().st_size for file in tmp_path.rglob('*.*') if file.is_file()) < 8e6
    for part, kind in (('unet', SeeSRUNet), ('controlnet', SeeSRControlNet)):
        folder = Path(paths['weights']) / part
        config = json.loads((folder / 'config.json').read_text())
        assert config['use_image_cross_attention'] is True and 'image_dim' not in config  # as released
        state = load_file(folder / 'diffusion_pytorch_model.safetensors')
        kind(**config).load_state_dict(state, strict=True)
        assert all(value.any() for value in state.values())


def test_same_seed_same_files(tmp_path):
    before = torch.random.get_rng_state()
    one, two = (seesr(tmp_path / name, seed=2) for name in 'ab')
    assert torch.equal(torch.random.get_rng_state(), before)
    for file in Path(one['weights']).rglob('*.*'):
        other = Path(two['weights']) / file.relative_to(one['weights'])
        assert file.read_bytes() == other.read_bytes(), file.name
