"""Released checkpoints: where they are looked for, what is read, that what was not changed is written as it was."""

import argparse
import collections
import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from finpercep_plugin.generators.released import (
    Released,
    find_file,
    find_folder,
    is_hub_id,
    read_file,
    read_folder,
    read_json,
    rewrite,
)


class Offline:
    """Stands in for huggingface_hub's functions: remembers what was asked for and gives a path, or fails."""

    def __init__(self, result=None):
        self.result, self.asked = result, []

    def __call__(self, name, **options):
        self.asked.append((name, options))
        if self.result is None:
            raise ConnectionError('no route\nto host')
        return str(self.result)


@pytest.fixture
def hub(monkeypatch):
    """hub(result) -> an `Offline` in place of both download functions."""
    import huggingface_hub

    def replace(result=None):
        stand_in = Offline(result)
        monkeypatch.setattr(huggingface_hub, 'snapshot_download', stand_in)
        monkeypatch.setattr(huggingface_hub, 'hf_hub_download', stand_in)
        return stand_in

    return replace


class TestNames:
    @pytest.mark.parametrize(
        'name', ['org/name', 'stabilityai/stable-diffusion-2-1-base', 'org/name/sub/v2-1.ckpt', 'a_b/c.d', 'Org.x/n_1']
    )
    def test_of_the_hub(self, tmp_path, monkeypatch, name):
        monkeypatch.chdir(tmp_path)
        assert is_hub_id(name)

    @pytest.mark.parametrize(
        'name',
        ['name', '/org/name', './org/name', '../org/name', 'org/../name', '~/org/name', 'org//name', 'org/name/']
        + ['org/my model', 'org\\name', '', 'weights/seesr.pth', 'x/DAPE.safetensors', 'local/name'],
    )
    def test_of_this_machine(self, tmp_path, monkeypatch, name):
        monkeypatch.chdir(tmp_path)
        (tmp_path / 'local').mkdir()
        assert not is_hub_id(name)


class TestFind:
    def test_folder(self, tmp_path, hub):
        asked = hub().asked
        (tmp_path / 'sd/vae').mkdir(parents=True)
        assert find_folder(str(tmp_path / 'sd'), 'SeeSR', ['vae']) == tmp_path / 'sd'
        with pytest.raises(FileNotFoundError, match=rf"SeeSR: {tmp_path}/sd lacks unet, text; it holds \['vae'\]"):
            find_folder(tmp_path / 'sd', 'SeeSR', ['vae', 'unet', 'text'])
        with pytest.raises(FileNotFoundError, match=f'SeeSR: no folder {tmp_path}/ds, and .* is no hub id either'):
            find_folder(tmp_path / 'ds', 'SeeSR', [])
        assert asked == []

    def test_folder_of_the_hub(self, tmp_path, monkeypatch, hub):
        monkeypatch.chdir(tmp_path)
        with pytest.raises(
            FileNotFoundError, match=r"(?s)SeeSR: 'org/name' is no local path, .*ConnectionError: no route\); give"
        ):
            hub()
            find_folder('org/name', 'SeeSR', ['vae'])
        (tmp_path / 'snapshot/vae').mkdir(parents=True)
        stand_in = hub(tmp_path / 'snapshot')
        assert find_folder('org/name', 'SeeSR', ['vae', '']) == tmp_path / 'snapshot'
        (name, options) = stand_in.asked[0]
        assert name == 'org/name' and options['allow_patterns'] == ['vae/*', '*']
        assert '*.fp16*' in options['ignore_patterns']
        (tmp_path / 'org/name').mkdir(parents=True)  # a local folder of that name comes first
        assert str(find_folder('org/name', 'SeeSR', [])) == 'org/name' and len(stand_in.asked) == 1

    def test_file(self, tmp_path, hub):
        asked = hub().asked
        file = tmp_path / 'stablesr_000117.ckpt'
        file.touch()
        assert find_file(str(file), 'StableSR') == file
        message = f"StableSR: no checkpoint {tmp_path}/stablesr_00117.ckpt; did you mean 'stablesr_000117.ckpt'"
        with pytest.raises(FileNotFoundError, match=message):
            find_file(tmp_path / 'stablesr_00117.ckpt', 'StableSR', 'checkpoint')
        with pytest.raises(FileNotFoundError, match=f'StableSR: no file {tmp_path}/nowhere/a.ckpt$'):
            find_file(tmp_path / 'nowhere/a.ckpt', 'StableSR')
        with pytest.raises(FileNotFoundError, match=f'StableSR: no file {tmp_path}'):  # a folder
            find_file(tmp_path, 'StableSR')
        assert asked == []

    def test_file_of_the_hub(self, tmp_path, monkeypatch, hub):
        monkeypatch.chdir(tmp_path)
        stand_in = hub(tmp_path / 'v2.pth')
        assert find_file('lxq007/DiffBIR/v2.pth', 'DiffBIR') == tmp_path / 'v2.pth'
        assert find_file('lxq007/DiffBIR/deep/v2.pth', 'DiffBIR') == tmp_path / 'v2.pth'
        assert stand_in.asked[0] == ('lxq007/DiffBIR', {'filename': 'v2.pth'})
        assert stand_in.asked[1] == ('lxq007/DiffBIR', {'filename': 'deep/v2.pth'})
        with pytest.raises(FileNotFoundError, match='DiffBIR: no file .*/lxq007/v2.pth'):
            find_file('lxq007/v2.pth', 'DiffBIR')
        assert len(stand_in.asked) == 2


class _Dangerous:
    def __reduce__(self):
        return (print, ('executed',))


class TestRead:
    @pytest.mark.parametrize('zipped', [True, False])
    def test_pickles(self, tmp_path, zipped):
        data = {'state_dict': {'a': torch.arange(3.0).half()}, 'steps': [1, 2]}
        torch.save(data, tmp_path / 'a.ckpt', _use_new_zipfile_serialization=zipped)
        found = read_file(tmp_path / 'a.ckpt', 'X')
        assert torch.equal(found['state_dict']['a'], data['state_dict']['a']) and found['steps'] == [1, 2]

    @pytest.mark.parametrize('foreign', [argparse.Namespace(lr=1.0), _Dangerous()])
    def test_other_objects_are_refused_and_not_run(self, tmp_path, capsys, foreign):
        torch.save({'state_dict': {'a': torch.zeros(2)}, 'hyper': foreign}, tmp_path / 'a.ckpt')
        with pytest.raises(ValueError) as error:
            read_file(tmp_path / 'a.ckpt', 'StableSR')
        text = str(error.value)
        name = 'argparse.Namespace' if isinstance(foreign, argparse.Namespace) else 'print'
        assert f'StableSR: {tmp_path}/a.ckpt cannot be read' in text and name in text
        assert 'save its state dict by itself' in text
        assert 'weights_only' not in text, 'no advice to read it without restrictions'
        assert 'executed' not in capsys.readouterr().out

    @pytest.mark.parametrize('name', ['a.ckpt', 'old.ckpt', 'a.safetensors'])
    def test_damaged_files(self, tmp_path, name):
        file, tensors = tmp_path / name, {'a': torch.zeros(100), 'b': torch.ones(3, 3)}
        if name == 'a.safetensors':
            save_file(tensors, file)
        else:
            torch.save(tensors, file, _use_new_zipfile_serialization=name == 'a.ckpt')
        data = file.read_bytes()
        for size in (0, 5, 30, 100, len(data) // 2, len(data) - 1):
            file.write_bytes(data[:size])
            with pytest.raises(ValueError, match=f'X: {file} cannot be read'):
                read_file(file, 'X')
        file.write_bytes(b'<html>404</html>')
        with pytest.raises(ValueError, match=f'X: {file} cannot be read'):
            read_file(file, 'X')

    def test_no_dict(self, tmp_path):
        torch.save([torch.zeros(1)], tmp_path / 'a.pth')
        with pytest.raises(ValueError, match='a.pth holds list, expected a dict'):
            read_file(tmp_path / 'a.pth', 'X')

    def test_json(self, tmp_path):
        file = tmp_path / 'config.json'
        with pytest.raises(FileNotFoundError, match=f'X: no file {file}'):
            read_json(file, 'X')
        file.write_text('{"a": ')
        with pytest.raises(ValueError, match=f'X: {file} is not JSON'):
            read_json(file, 'X')
        file.write_text('[1]')
        with pytest.raises(ValueError, match='holds no object, but list'):
            read_json(file, 'X')
        file.write_text('{"a": 1}')
        assert read_json(file, 'X') == {'a': 1}


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
