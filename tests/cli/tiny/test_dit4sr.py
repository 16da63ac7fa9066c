"""The tiny DiT4SR folder and Stable Diffusion 3.5: names of the released files, the same files for the same seed."""

import gzip
import json
import os
import re
from pathlib import Path

import pytest
import torch

pytest.importorskip('diffusers')
from diffusers import SD3Transformer2DModel  # noqa: E402
from safetensors.torch import load_file  # noqa: E402

from finpercep_plugin.archs.dit4sr_arch import DiT4SRTransformer, is_inert  # noqa: E402
from finpercep_plugin.cli.tiny.dit4sr import dit4sr  # noqa: E402


def test_layout_and_names(tmp_path):
    torch.manual_seed(7)
    paths, drawn = dit4sr(tmp_path, seed=1), torch.rand(1)
    torch.manual_seed(7)
    assert torch.equal(drawn, torch.rand(1))  # the global random state was left alone
    assert paths == {'weights': str(tmp_path / 'dit4sr'), 'base': str(tmp_path / 'sd3'), 'variant': 'v1'}
    ends = ('', '_2', '_3')
    parts = {f'{part}{end}' for part in ('text_encoder', 'tokenizer') for end in ends} | {'vae', 'scheduler'}
    assert {folder.name for folder in Path(paths['base']).iterdir()} == parts
    folder = Path(paths['weights']) / 'transformer'
    config = json.loads((folder / 'config.json').read_text())
    assert config.pop('_class_name') == 'SD3Transformer2DModel' and config.pop('_diffusers_version')
    state = load_file(folder / 'diffusion_pytorch_model.safetensors')
    assert all(value.any() for value in state.values())
    DiT4SRTransformer('r1', **config).load_state_dict({k: v for k, v in state.items() if not is_inert(k)})
    stock = SD3Transformer2DModel(**config).state_dict()
    assert all('control' in name or is_inert(name) for name in state.keys() - stock.keys())


@pytest.mark.parity
def test_names_are_those_of_the_full_size_file(tmp_path, full_names):
    state = load_file(Path(dit4sr(tmp_path)['weights']) / 'transformer/diffusion_pytorch_model.safetensors')
    # kinds of name: the last block apart, which has no text afterwards
    assert {_kind(name, 2) for name in state} == {_kind(name, 23) for name in full_names}


@pytest.fixture
def full_names():
    folder = Path(os.environ.get('FINPERCEP_PARITY', Path(__file__).resolve().parents[4] / 'shared/parity'))
    file = folder / 'full_keys/dit4sr_transformer.json.gz'
    if not file.is_file():
        pytest.skip(f'no {file}')
    return list(json.loads(gzip.decompress(file.read_bytes())))


def _kind(name, last):
    return re.sub(r'blocks\.(\d+)\.', lambda found: 'last.' if int(found[1]) == last else 'block.', name)


def test_without_t5_and_with_the_other_variant(tmp_path):
    paths = dit4sr(tmp_path, variant='r1', t5=False)
    assert paths['variant'] == 'r1' and not list(Path(paths['base']).glob('*_3'))


def test_same_seed_same_files(tmp_path):
    one, two = (dit4sr(tmp_path / name, seed=2) for name in 'ab')
    files = sorted(file.relative_to(tmp_path / 'a') for file in (tmp_path / 'a').rglob('*.*') if file.is_file())
    assert len(files) > 15
    for file in files:
        assert (tmp_path / 'a' / file).read_bytes() == (tmp_path / 'b' / file).read_bytes(), file
