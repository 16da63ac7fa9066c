"""The tiny StableSR files: names of the released ones, and the same tensors for the same seed."""

from pathlib import Path

import pytest
import torch

pytest.importorskip('diffusers')
from finpercep_plugin.cli.tiny.stablesr import stablesr  # noqa: E402
from finpercep_plugin.generators.ldm_files import read_state  # noqa: E402
from finpercep_plugin.generators.stablesr_files import check_checkpoint, load_cfw  # noqa: E402


def test_layout_and_names(tmp_path):
    paths = stablesr(tmp_path, seed=1)
    assert sorted(paths) == ['cfw', 'weights']
    assert sum(Path(path).stat().st_size for path in paths.values()) < 25e6
    file = read_state(paths['weights'], 'StableSR')
    check_checkpoint(file)
    assert set(file.keys.values()) == {('state_dict', name) for name in file.tensors}
    inert = {name for name in file.tensors if '.' not in name}
    assert len(inert) == 12 and all(file.tensors[name].shape == (1000,) for name in inert)
    prefixes = {'model.diffusion_model', 'structcond_stage_model', 'first_stage_model', 'cond_stage_model.model'}
    assert all(name in inert or any(name.startswith(f'{prefix}.') for prefix in prefixes) for name in file.tensors)
    assert file.tensors['first_stage_model.decoder.mid.attn_1.q.weight'].ndim == 4
    assert all(value.any() for name, value in file.tensors.items() if name not in inert)
    cfw = read_state(paths['cfw'], 'CFW').tensors
    assert 'loss.logvar' in cfw and load_cfw(paths['cfw']).decoder.fusion_layer_1 is not None


def test_same_seed_same_tensors(tmp_path):
    before = torch.random.get_rng_state()
    one, two = (stablesr(tmp_path / name, seed=2) for name in 'ab')
    assert torch.equal(torch.random.get_rng_state(), before)
    for part in one:
        tensors, others = (read_state(paths[part], part).tensors for paths in (one, two))
        assert tensors.keys() == others.keys()
        assert all(torch.equal(value, others[name]) for name, value in tensors.items())
