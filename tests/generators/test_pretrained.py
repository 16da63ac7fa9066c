"""Stock parts from folders in the layout of Stable Diffusion: strict loading, texts remembered."""

import shutil
from types import SimpleNamespace

import pytest
import torch
from torch import nn

pytest.importorskip('diffusers')
pytest.importorskip('transformers')
from diffusers import AutoencoderKL, UNet2DConditionModel  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402
from transformers import CLIPTextModel  # noqa: E402

from finpercep_plugin.cli.tiny.sd2 import sd2_base  # noqa: E402
from finpercep_plugin.generators.pretrained import TextEncoder, load_part, load_sd_text  # noqa: E402

VAE, TEXT = 'vae/diffusion_pytorch_model.safetensors', 'text_encoder/model.safetensors'


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    return sd2_base(tmp_path_factory.mktemp('sd2'), parts=('vae', 'text_encoder', 'tokenizer'))


@pytest.fixture
def folder(made, tmp_path):
    """A copy that can be spoilt."""
    return shutil.copytree(made, tmp_path / 'sd2')


def change(file, function):
    state = load_file(file)
    function(state)
    save_file(state, file, {'format': 'pt'})


def test_a_part_is_frozen_float32_and_has_the_values_of_its_file(folder):
    change(folder / VAE, lambda state: state.update({name: value.half() for name, value in state.items()}))
    vae = load_part(AutoencoderKL, folder, 'vae', 'X')
    state = load_file(folder / VAE)
    assert not vae.training and not any(value.requires_grad for value in vae.parameters())
    assert all(value.dtype == torch.float32 for value in vae.parameters())
    assert set(vae.state_dict()) == set(state)
    assert all(torch.equal(value, state[name].float()) for name, value in vae.state_dict().items())


def test_bin_files(folder):
    state = load_file(folder / VAE)
    torch.save(state, folder / 'vae/diffusion_pytorch_model.bin')
    (folder / VAE).unlink()
    vae = load_part(AutoencoderKL, folder, 'vae', 'X')
    assert all(torch.equal(value, state[name]) for name, value in vae.state_dict().items())


@pytest.mark.parametrize('kind, file, part', [(AutoencoderKL, VAE, 'vae'), (CLIPTextModel, TEXT, 'text_encoder')])
@pytest.mark.parametrize('misshapen', [True, False])
def test_every_wrong_key_in_one_error(folder, kind, file, part, misshapen):
    names = [name for name in load_file(folder / file) if 'norm' in name][:3]
    own = [name.removeprefix('text_model.') for name in names]

    def spoil(state):
        del state[names[0]], state[names[1]]
        state['some.other'] = state['yet.another'] = torch.zeros(1)
        state['yet.another'] = torch.zeros(2)
        if misshapen:
            state[names[2]] = torch.zeros(3, 5)

    change(folder / file, spoil)
    with pytest.raises(ValueError) as error:
        load_part(kind, folder, part, 'SeeSR')
    text = str(error.value)
    assert text.startswith(f'SeeSR: {folder / part} does not fit {kind.__name__}:\n')
    lines = {line.strip() for line in text.splitlines()[1:]}
    expected = {f'missing: {name}' for name in own[:2]} | {f'unexpected: {n}' for n in ('some.other', 'yet.another')}
    shapes = {line for line in lines if line.startswith('shape: ')}
    assert lines - shapes == expected
    assert len(shapes) == misshapen
    if misshapen:
        assert shapes.pop().startswith(f'shape: {own[2]} is (3, 5) in the file, (')


def test_what_is_missing_or_damaged(folder):
    with pytest.raises(FileNotFoundError, match=r"X: .*sd2 lacks unet; it holds \['text_encoder', 'tokenizer', 'vae'"):
        load_part(UNet2DConditionModel, folder, 'unet', 'X')
    (folder / VAE).write_bytes(b'123456789')
    with pytest.raises(ValueError, match=f'X: the weights in {folder}/vae cannot be read'):
        load_part(AutoencoderKL, folder, 'vae', 'X')
    (folder / VAE).unlink()
    with pytest.raises(FileNotFoundError, match=rf"X: no weights in {folder}/vae, .*found \['config.json'\]"):
        load_part(AutoencoderKL, folder, 'vae', 'X')
    (folder / 'vae/config.json').unlink()
    with pytest.raises(FileNotFoundError, match=f'X: no file {folder}/vae/config.json'):
        load_part(AutoencoderKL, folder, 'vae', 'X')
    with pytest.raises(FileNotFoundError, match=f'X: no folder {folder}/none'):
        load_part(AutoencoderKL, folder / 'none', 'vae', 'X')


def test_text_of_a_folder(folder):
    text = load_sd_text(folder, 'X')
    found = text(['a cat', '', 'a cat'])
    assert found.shape == (3, 77, 16) and found.dtype == torch.float32 and not found.requires_grad
    assert torch.equal(found[0], found[2]) and not torch.equal(found[0], found[1])
    ids = text.tokenize(['a cat'])
    torch.testing.assert_close(text.model(ids).last_hidden_state[0], found[0])
    assert text.tokenize(['word ' * 200]).shape == (1, 77), 'long texts are cut'


def test_a_tokenizer_that_names_no_length(folder):
    expected = load_sd_text(folder, 'X')(['a cat'])
    (folder / 'tokenizer/tokenizer_config.json').unlink()
    assert load_sd_text(folder, 'X')(['a cat']).shape == expected.shape


@pytest.mark.parametrize('gone', [['merges.txt'], ['vocab.json'], ['vocab.json', 'merges.txt'], ['*']])
def test_no_tokenizer(folder, gone):
    """Without vocabulary and merges, transformers 5 makes a tokenizer that knows no words, and says nothing."""
    for file in [file for name in gone for file in (folder / 'tokenizer').glob(name)]:
        file.unlink()
    why = ': ' if gone == ['merges.txt'] else r', found \['
    with pytest.raises(FileNotFoundError, match=f'X: no tokenizer in {folder}/tokenizer{why}'):
        load_sd_text(folder, 'X')
    shutil.rmtree(folder / 'tokenizer')
    with pytest.raises(FileNotFoundError, match='X: .* lacks tokenizer'):
        load_sd_text(folder, 'X')


class Words(nn.Module):
    """An embedding of one token a text; counts its calls."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(10, 4)
        self.seen = []

    def forward(self, ids):
        self.seen.append(ids.tolist())
        return SimpleNamespace(last_hidden_state=self.table(ids).bfloat16())


def test_each_text_is_encoded_once_and_by_itself():
    model = Words()
    text = TextEncoder(model, lambda texts: torch.tensor([[len(t)] for t in texts]), cache=2)
    out = text(['a', 'bb', 'a'])
    assert model.seen == [[[1]], [[2]]] and out.dtype == torch.float32 and out.shape == (3, 1, 4)
    torch.testing.assert_close(out[1, 0], model.table.weight[2].bfloat16().float())
    assert torch.equal(text(['bb', 'a']), out[:2].flip(0)) and len(model.seen) == 2
    # Three texts where two are remembered: the result is whole all the same.
    many = text(['a', 'ccc', 'bb', 'dddd', 'a'])
    assert torch.equal(many[0], out[0]) and torch.equal(many[2], out[1]) and torch.equal(many[4], out[0])
    assert model.seen[2:] == [[[3]], [[4]]]
    text(['ccc'])
    assert len(model.seen) == 4 and text.memory.size == 2
    text(['bb'])
    assert len(model.seen) == 5, 'forgotten meanwhile'
