"""Where the files of rewards are looked for, without a network."""

import pytest

from finpercep_plugin.rewards.weights import find_reward_file, find_reward_folder

hub = pytest.importorskip('huggingface_hub')


class LocalEntryNotFoundError(FileNotFoundError):
    pass


class RemoteEntryNotFoundError(Exception):
    pass


@pytest.fixture
def offline(monkeypatch):
    def download(repository, filename):
        raise LocalEntryNotFoundError('cannot reach the hub\nand a long explanation')

    monkeypatch.setattr(hub, 'hf_hub_download', download)


def test_local_paths_come_first(tmp_path):
    file = tmp_path / 'x.pt'
    file.write_bytes(b'')
    assert find_reward_file(file, 'X') == find_reward_file(str(file), 'X') == file
    assert find_reward_folder(tmp_path, 'X', ['x.pt', ('a', 'x.pt')], 'weights') == tmp_path
    with pytest.raises(FileNotFoundError, match=r"X: no weights .*/y.pt; did you mean 'x.pt'"):
        find_reward_file(tmp_path / 'y.pt', 'X')
    with pytest.raises(FileNotFoundError, match=f'X: no folder {tmp_path}/none of weights, and .* is no hub id'):
        find_reward_folder(tmp_path / 'none', 'X', [], 'weights')
    with pytest.raises(FileNotFoundError, match=f'X: tokenizer files a or b not in {tmp_path}; it holds x.pt'):
        find_reward_folder(tmp_path, 'X', ['x.pt', ('a', 'b')], 'tokenizer files')


def test_without_a_network_one_sentence_names_file_source_and_folder(offline):
    for find in (
        lambda: find_reward_file('org/name/sub/x.pt', 'X'),
        lambda: find_reward_folder('org/name', 'X', [('sub/x.pt', 'y.bin')], 'weights'),
    ):
        with pytest.raises(FileNotFoundError) as caught:
            find()
        assert str(caught.value) == (
            f'X: weights sub/x.pt of org/name are not in {hub.constants.HF_HUB_CACHE}, and could not be fetched from '
            'https://huggingface.co/org/name (LocalEntryNotFoundError: cannot reach the hub); give a local path'
        )


def test_a_file_that_the_repository_lacks_is_looked_for_under_its_other_name(monkeypatch, tmp_path):
    asked = []

    def download(repository, filename):
        asked.append(filename)
        if filename == 'model.safetensors':
            raise RemoteEntryNotFoundError('404')
        return str(tmp_path / filename)

    monkeypatch.setattr(hub, 'hf_hub_download', download)
    files = ['config.json', ('model.safetensors', 'pytorch_model.bin')]
    assert find_reward_folder('org/name', 'X', files, 'weights') == tmp_path
    assert asked == ['config.json', 'model.safetensors', 'pytorch_model.bin']
