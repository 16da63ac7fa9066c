"""Released checkpoints: where they are looked for, what is read."""

import argparse

import pytest
import torch
from safetensors.torch import save_file

from finpercep_plugin.generators.released import find_file, find_folder, is_hub_id, read_file, read_json


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
        file, tensors = tmp_path / name, {'a': torch.zeros(1500), 'b': torch.ones(3, 3)}
        if name == 'a.safetensors':
            save_file(tensors, file)
        else:
            torch.save(tensors, file, _use_new_zipfile_serialization=name == 'a.ckpt')
        data = file.read_bytes()
        for size in (0, 5, 30, 100, len(data) // 2, len(data) - 500, len(data) - 1):
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
