"""Released checkpoints: diffusers folders in all layouts; what was not changed is written as it was."""

import collections
import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from finpercep_plugin.generators.released import Released, read_file, read_folder, rewrite

TENSORS = {
    'a.weight': torch.arange(6.0).reshape(2, 3).half(),
    'a.bias': torch.tensor([0.1, -2.0]),
    'n': torch.tensor(3),
}
METADATA = {'format': 'pt', 'note': 'theirs'}


def write_network(folder, layout, stem='diffusion_pytorch_model'):
    """TENSORS as a part of a diffusers folder."""
    folder.mkdir(parents=True)
    (folder / 'config.json').write_text('{"width": 2}')
    first, second = {'a.weight': TENSORS['a.weight']}, {'a.bias': TENSORS['a.bias'], 'n': TENSORS['n']}
    if layout == 'safetensors':
        save_file(TENSORS, folder / f'{stem}.safetensors', METADATA)
    elif layout == 'bin':
        torch.save(TENSORS, folder / f'{stem}.bin')
    else:
        suffix = layout.partition(' ')[2]
        files = {f'{stem}-0000{i}-of-00002.{suffix}': part for i, part in ((1, first), (2, second))}
        for file, part in files.items():
            save_file(part, folder / file, METADATA) if suffix == 'safetensors' else torch.save(part, folder / file)
        index = {'metadata': {}, 'weight_map': {key: file for file, part in files.items() for key in part}}
        (folder / f'{stem}.{suffix}.index.json').write_text(json.dumps(index))
    return folder


LAYOUTS = ['safetensors', 'bin', 'shards safetensors', 'shards bin']


class TestFolders:
    @pytest.mark.parametrize('stem', ['diffusion_pytorch_model', 'model', 'pytorch_model'])
    @pytest.mark.parametrize('layout', LAYOUTS)
    @pytest.mark.parametrize('part', ['unet', ''])
    def test_layouts(self, tmp_path, layout, stem, part):
        write_network(tmp_path / 'x' / part, layout, stem)
        config, state, source = read_folder(tmp_path / 'x', part, 'X')
        assert config == {'width': 2} and set(state) == set(TENSORS) == set(source)
        for key, value in TENSORS.items():
            assert torch.equal(state[key], value) and state[key].dtype == value.dtype
            file, keys = source[key]
            assert torch.equal(read_file(tmp_path / 'x' / file, 'X')[keys[0]], value) and len(keys) == 1

    def test_safetensors_come_before_bin(self, tmp_path):
        folder = write_network(tmp_path / 'unet', 'safetensors')
        torch.save({'other': torch.zeros(1)}, folder / 'diffusion_pytorch_model.bin')
        assert set(read_folder(tmp_path, 'unet', 'X')[1]) == set(TENSORS)

    def test_what_is_missing(self, tmp_path):
        folder = write_network(tmp_path / 'unet', 'shards safetensors')
        (folder / 'diffusion_pytorch_model-00002-of-00002.safetensors').unlink()
        with pytest.raises(FileNotFoundError, match='X: no file .*-00002-of-00002.safetensors'):
            read_folder(tmp_path, 'unet', 'X')
        (folder / 'diffusion_pytorch_model.safetensors.index.json').write_text('{}')
        with pytest.raises(ValueError, match="index.json has no 'weight_map'"):
            read_folder(tmp_path, 'unet', 'X')
        (folder / 'diffusion_pytorch_model.safetensors.index.json').unlink()
        with pytest.raises(FileNotFoundError, match=r'X: no weights in .*unet, such as .*; found \[.config.json'):
            read_folder(tmp_path, 'unet', 'X')
        (folder / 'config.json').unlink()
        with pytest.raises(FileNotFoundError, match='X: no file .*unet/config.json'):
            read_folder(tmp_path, 'unet', 'X')


def equal_bytes(a, b):
    """Same dtype, shape and bits."""
    return a.dtype == b.dtype and a.shape == b.shape and a.numpy().tobytes() == b.numpy().tobytes()


class TestRewrite:
    @pytest.mark.parametrize('layout', LAYOUTS)
    def test_folder(self, tmp_path, layout):
        write_network(tmp_path / 'in/unet', layout)
        config, state, source = read_folder(tmp_path / 'in', 'unet', 'X')
        released = Released(tmp_path / 'in', config, state, source)
        changed = TENSORS['a.weight'].float() + 1e-4  # not a number of float16
        rewrite(released, {'a.weight': changed.requires_grad_(), 'a.bias': TENSORS['a.bias'].clone()}, tmp_path / 'out')
        again, found, _ = read_folder(tmp_path / 'out', 'unet', 'X')
        assert again == config and list(found) == list(state)
        assert equal_bytes(found['a.weight'], changed.detach())
        assert equal_bytes(found['a.bias'], TENSORS['a.bias']) and equal_bytes(found['n'], TENSORS['n'])
        names = [sorted(p.name for p in (tmp_path / end / 'unet').iterdir()) for end in ('in', 'out')]
        assert names[0] == names[1]
        for file in (tmp_path / 'out/unet').glob('*.safetensors'):
            with safe_open(file, 'pt') as opened:
                assert opened.metadata() == METADATA

    def test_dtype_is_kept_where_it_loses_nothing(self, tmp_path):
        special = torch.tensor([1.0, float('inf'), -0.0, 6e-8]).half()
        precise = torch.tensor([1 / 3], dtype=torch.float64)
        save_file({'a': special, 'b': special.clone(), 'c': special.clone(), 'd': precise}, tmp_path / 'in.safetensors')
        state = load_file(tmp_path / 'in.safetensors')
        released = Released(tmp_path / 'in.safetensors', {}, state, {name: ('', (name,)) for name in state})
        half = special.float() * torch.tensor([0.5, 1.0, 1.0, 1.0])  # still numbers of float16
        values = {'a': special.float(), 'b': half, 'c': special.float() + 1e-9, 'd': precise.float()}
        rewrite(released, values, tmp_path / 'out.safetensors')
        found = load_file(tmp_path / 'out.safetensors')
        assert equal_bytes(found['a'], special) and equal_bytes(found['b'], half.half())
        assert equal_bytes(found['c'], values['c']) and found['c'].dtype == torch.float32
        assert equal_bytes(found['d'], precise), 'a float64 that was held as float32 is not rounded'

    def test_nested_pickle_with_another_shape(self, tmp_path):
        inner = collections.OrderedDict(conv=torch.arange(6.0).reshape(2, 3, 1, 1).half(), other=torch.tensor([0.1]))
        data = {'epoch': 7, 'state_dict': inner, 'names': ['x', 'y']}
        torch.save(data, tmp_path / 'in.ckpt')
        ours = {'linear.weight': inner['conv'].reshape(2, 3)}
        released = Released(tmp_path / 'in.ckpt', {}, ours, {'linear.weight': ('', ('state_dict', 'conv'))})
        before = (tmp_path / 'in.ckpt').read_bytes()
        rewrite(released, {'linear.weight': torch.full((2, 3), 0.3)}, tmp_path / 'deep/out.ckpt')
        found = torch.load(tmp_path / 'deep/out.ckpt', weights_only=True)
        assert list(found) == list(data) and found['epoch'] == 7 and found['names'] == ['x', 'y']
        assert list(found['state_dict']) == list(inner)
        assert equal_bytes(found['state_dict']['conv'], torch.full((2, 3, 1, 1), 0.3))
        assert equal_bytes(found['state_dict']['other'], inner['other'])
        assert (tmp_path / 'in.ckpt').read_bytes() == before
        rewrite(released, {}, tmp_path / 'same.ckpt')
        same = torch.load(tmp_path / 'same.ckpt', weights_only=True)['state_dict']
        assert all(equal_bytes(same[key], value) for key, value in inner.items())

    def test_a_failed_write_leaves_nothing(self, tmp_path, monkeypatch):
        import safetensors.torch

        write_network(tmp_path / 'in/unet', 'safetensors')
        config, state, source = read_folder(tmp_path / 'in', 'unet', 'X')

        def fail(tensors, file, metadata):
            file.write_bytes(b'half')
            raise OSError('disk full')

        monkeypatch.setattr(safetensors.torch, 'save_file', fail)
        with pytest.raises(OSError, match='disk full'):
            rewrite(Released(tmp_path / 'in', config, state, source), {}, tmp_path / 'out')
        assert list((tmp_path / 'out/unet').iterdir()) == []
