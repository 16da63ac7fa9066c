import pytest
import torch

pytest.importorskip('diffusers')
from finpercep_plugin.cli.tiny.ldm import ldm_state  # noqa: E402
from finpercep_plugin.generators.ldm_files import TEXT, VAE, check_base, load_text, load_vae, read_state  # noqa: E402


@pytest.fixture(scope='module')
def state():
    return ldm_state(seed=1)


def test_flat_nested_and_wrapped_files_give_the_same_tensors(tmp_path):
    tensors = {'a.weight': torch.ones(2), 'b.bias': torch.zeros(1)}
    layouts = {
        'flat.pth': (tensors, ('a.weight',)),
        'nested.ckpt': ({'state_dict': tensors, 'epoch': 3}, ('state_dict', 'a.weight')),
        'wrapped.pt': ({f'module.{name}': value for name, value in tensors.items()}, ('module.a.weight',)),
    }
    for name, (data, keys) in layouts.items():
        torch.save(data, tmp_path / name)
        found = read_state(tmp_path / name, 'it')
        assert found.path == tmp_path / name and found.keys['a.weight'] == keys
        assert {k: v.tolist() for k, v in found.tensors.items()} == {k: v.tolist() for k, v in tensors.items()}


def test_a_file_that_is_not_there_or_holds_code(tmp_path):
    with pytest.raises(FileNotFoundError, match='its base: no checkpoint .*gone.ckpt'):
        read_state(tmp_path / 'gone.ckpt', 'its base')
    torch.save({'state_dict': {'a': torch.nn.Linear(1, 1)}}, tmp_path / 'module.ckpt')
    with pytest.raises(ValueError, match='its base: .* cannot be read as tensors and plain values'):
        read_state(tmp_path / 'module.ckpt', 'its base')


def test_a_whole_checkpoint_passes_with_tensors_of_training(state, tmp_path):
    extra = {
        f'{VAE}loss.logvar': torch.zeros(()),
        f'{TEXT}attn_mask': torch.zeros(77, 77),
        'model_ema.num_updates': torch.tensor(7),
        'scale_factor': torch.tensor(0.18215),
    }
    torch.save({'state_dict': {**state, **extra}}, tmp_path / 'sd.ckpt')
    check_base(read_state(tmp_path / 'sd.ckpt', 'it'))


def test_every_wrong_tensor_is_named(state, tmp_path):
    bad = {**state, 'model.diffusion_model.label_emb.weight': torch.zeros(1), 'lpips.weight': torch.zeros(1)}
    bad[f'{TEXT}positional_embedding'] = bad[f'{TEXT}positional_embedding'][:, :3]
    bad[f'{VAE}encoder.mid.attn_1.q.weight'] = torch.zeros(32, 32, 3, 3)
    del bad[f'{TEXT}ln_final.bias'], bad[f'{VAE}decoder.conv_in.bias']
    torch.save(bad, tmp_path / 'sd.ckpt')
    with pytest.raises(ValueError) as error:
        check_base(read_state(tmp_path / 'sd.ckpt', 'it'))
    assert sorted(str(error.value).splitlines()[1:]) == [
        f'  missing: {TEXT}ln_final.bias',
        f'  missing: {VAE}decoder.conv_in.bias',
        f'  shape: {TEXT}positional_embedding is (77, 3) in the file, (77, 16) in the model',
        f'  shape: {VAE}encoder.mid.attn_1.q.weight is (32, 32, 3, 3) in the file, (32, 32) in the model',
        '  unexpected: lpips.weight',
        '  unexpected: model.diffusion_model.label_emb.weight',
    ]


def test_another_kind_of_checkpoint_is_named(tmp_path):
    torch.save({'conv.weight': torch.zeros(1)}, tmp_path / 'sr.pth')
    with pytest.raises(ValueError, match=r'sr\.pth: no tensor .* in the checkpoint'):
        check_base(read_state(tmp_path / 'sr.pth', 'it'))


def test_vae_and_text_encoder_are_frozen_float32(state, tmp_path):
    torch.save(
        {name: value.half() if value.is_floating_point() else value for name, value in state.items()},
        tmp_path / 'h.pth',
    )
    base = read_state(tmp_path / 'h.pth', 'it')
    vae, text = load_vae(base), load_text(base)
    for module in (vae, text.model):
        assert all(value.dtype == torch.float32 and not value.requires_grad for value in module.parameters())
        assert not module.training
    half = state[f'{VAE}decoder.up.3.block.1.conv1.weight'].half().float()
    assert torch.equal(vae.decoder.up_blocks[0].resnets[1].conv1.weight, half)
    assert vae.config.scaling_factor == 0.18215
    fused = state[f'{TEXT}transformer.resblocks.1.attn.in_proj_weight'].half().float()
    assert torch.equal(text.model.encoder.layers[1].self_attn.k_proj.weight, fused[16:32])


def test_the_tokenizer_is_open_clips(state, tmp_path):
    torch.save(state, tmp_path / 'sd.pth')
    text = load_text(read_state(tmp_path / 'sd.pth', 'it'))
    ids = text.tokenize(['a cat, sitting', ''])
    assert ids.shape == (2, 77) and ids[0, :7].tolist() == [49406, 320, 2368, 267, 4919, 49407, 0]
    assert ids[1, :3].tolist() == [49406, 49407, 0]
    assert text(['a cat, sitting', '']).shape == (2, 77, 16)
