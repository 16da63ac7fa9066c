"""StableSR's own files: layouts, errors, a checkpoint that has moved. The rest: `test_released_generators.py`."""

import shutil

import pytest
import torch

pytest.importorskip('diffusers')
from finpercep_plugin.generators.stablesr import StableSR  # noqa: E402

NAME = 'StableSR'


def _read(file):
    return torch.load(file, weights_only=True)


def _same(one, other):
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def test_loads_a_flat_state_dict(made, tmp_path):
    torch.save(_read(made.files['weights'])['state_dict'], tmp_path / 'flat.ckpt')
    generator = made.make(tmp_path / 'flat.ckpt')
    assert _same(generator.network.state_dict(), made.tensors(made.files['weights']))
    generator.save(tmp_path / 'out.ckpt', 'original')
    assert _same(_read(tmp_path / 'out.ckpt'), _read(made.files['weights'])['state_dict'])


def test_own_file_whose_checkpoint_has_moved(made, tmp_path):
    shutil.copy(made.files['weights'], tmp_path / 'first.ckpt')
    made.make(tmp_path / 'first.ckpt').save(tmp_path / 'own.pth')
    (tmp_path / 'first.ckpt').unlink()
    with pytest.raises(FileNotFoundError, match='first stage and text: no checkpoint .*first.ckpt'):
        StableSR.from_file(tmp_path / 'own.pth')
    generator = StableSR(base=made.files['weights'])
    generator.load(tmp_path / 'own.pth')
    assert _same(generator.vae.state_dict(), made.make().vae.state_dict())


def test_every_wrong_key_in_one_error(made, tmp_path):
    data, state = _read(made.files['weights']), _read(made.files['weights'])['state_dict']
    lines = []
    for prefix, gone in [
        ('model.diffusion_model.', 'out.0.bias'), ('model.diffusion_model.', 'input_blocks.1.0.spade.mlp_beta.bias'),
        ('structcond_stage_model.', 'middle_block.1.norm.bias'), ('first_stage_model.', 'decoder.norm_out.bias'),
        ('cond_stage_model.model.', 'ln_final.bias'),
    ]:  # fmt: skip
        state[f'{prefix}{gone}_'] = state.pop(prefix + gone)
        lines += [f'missing: {prefix}{gone}\n', f'unexpected: {prefix}{gone}_\n']
    state['structcond_stage_model.time_embed.2.bias'] = torch.zeros(3)
    lines.append('structcond_stage_model.time_embed.2.bias is (3,) in the file, (128,) in the model')
    torch.save({**data, 'state_dict': state}, tmp_path / 'bad.ckpt')
    with pytest.raises(ValueError) as error:
        made.make(tmp_path / 'bad.ckpt')
    assert not [line for line in lines if line not in f'{error.value}\n']


def test_wrong_keys_of_cfw(made, tmp_path):
    state = _read(made.files['cfw'])['state_dict']
    state['extra'] = state.pop('decoder.fusion_layer_2.encode_enc_3.norm1.bias')
    state['loss.discriminator.main.0.weight'] = torch.zeros(1)
    torch.save(state, tmp_path / 'bad.ckpt')
    with pytest.raises(ValueError, match='fusion_layer_2.encode_enc_3.norm1.bias\n  unexpected: extra$'):
        made.make(cfw=str(tmp_path / 'bad.ckpt'))


def test_what_is_not_there_or_is_something_else(made, tmp_path):
    with pytest.raises(
        ValueError, match=r'vqgan_cfw\.ckpt: no structure encoder of StableSR|vqgan_cfw\.ckpt: no tensor'
    ):
        made.make(made.files['cfw'])
    with pytest.raises(ValueError, match="parameterization must be 'eps' or 'v', got 'x0'"):
        StableSR(parameterization='x0')
    for steps in (1, 1001):
        with pytest.raises(ValueError, match=f'2..1000, got {steps}'):
            StableSR(steps=steps)
