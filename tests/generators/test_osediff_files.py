"""OSEDiff's own file: what is in it and in no other, what each choice trains; options. The rest: `test_released_generators.py`."""

import pytest
import torch

pytest.importorskip('diffusers')
pytest.importorskip('peft')
pytest.importorskip('transformers')
pytest.importorskip('timm')
from finpercep_plugin.config import ConfigError, build  # noqa: E402
from finpercep_plugin.generators.osediff import OSEDiff  # noqa: E402
from finpercep_plugin.registry import GENERATORS  # noqa: E402

NAME = 'OSEDiff'


def read(file):
    return torch.load(file, weights_only=True)


def test_a_module_that_is_listed_again_stays_so(made, tmp_path):
    made.make().save(tmp_path / 'again.pkl', 'original')
    assert read(tmp_path / 'again.pkl')['vae_lora_encoder_modules'].count('quant_conv') == 10


def test_what_the_choices_train(made):
    generator = made.make()
    released, lora = generator.trainable('released'), generator.trainable('lora', rank=99, alpha=1.0)
    assert set(released) == set(made.tensors(made.files['weights']))
    assert set(released) - set(lora) == {'unet.conv_in.base_layer.weight', 'unet.conv_in.base_layer.bias'}
    assert {name.split('.')[0] for name in lora} == {'unet', 'vae'}
    assert [value for value in generator.parameters() if value.requires_grad] == list(lora.values())


def test_trained_tensors_of_base_have_no_place_in_the_original_layout(made, tmp_path):
    generator = made.make()
    generator.trainable(['unet.time_embedding.*', '*lora*'])
    with pytest.raises(ValueError, match=r'4 other tensors were trained, such as unet.time_embedding.linear_1.weight'):
        generator.save(tmp_path / 'g.pkl', 'original')
    generator.save(tmp_path / 'g.pth', 'own')


def test_every_wrong_key_in_one_error(made, tmp_path):
    data = read(made.files['weights'])
    data['state_dict_unet'].pop('conv_in.base_layer.weight')  # must not be taken from base
    data['state_dict_vae'].pop('quant_conv.lora_A.default_encoder.weight')
    data['state_dict_unet']['conv_out.lora_B.default_decoder.weight'] = torch.zeros(4, 3, 1, 1)
    data['state_dict_unet']['conv_out.lora_C.default_decoder.weight'] = torch.zeros(1)
    data['state_dict_vae']['decoder.conv_in.lora_A.default_encoder.weight'] = torch.zeros(1)
    data['unet_lora_others_modules'] = [*data['unet_lora_others_modules'], 'mid_block.resnets.7.conv1']
    data['state_dict_unet']['mid_block.resnets.7.conv1.lora_A.default_others.weight'] = torch.zeros(1)
    torch.save(data, tmp_path / 'bad.pkl')
    with pytest.raises(ValueError) as error:
        made.make(weights=tmp_path / 'bad.pkl')
    for line in (
        'bad.pkl does not fit the model',
        'missing: unet.conv_in.base_layer.weight',
        'missing: vae.quant_conv.lora_A.default_encoder.weight',
        'unexpected: unet.conv_out.lora_C.default_decoder.weight',
        'unexpected: vae.decoder.conv_in.lora_A.default_encoder.weight',
        'unexpected: unet.mid_block.resnets.7.conv1.lora_A.default_others.weight',
        'shape: unet.conv_out.lora_B.default_decoder.weight is (4, 3, 1, 1) in the file, (4, 4, 1, 1) in the model',
    ):
        assert line in str(error.value)
    assert len(str(error.value).splitlines()) == 7


def test_files_that_are_not_osediff(made, tmp_path):
    data = read(made.files['weights'])
    del data['rank_vae'], data['state_dict_vae']
    torch.save({**data, 'rank_unet': 'four'}, tmp_path / 'bad.pkl')
    with pytest.raises(ValueError, match='(?s)no osediff.pkl.*rank_unet: str, expected int.*rank_vae: missing.*_vae'):
        made.make(weights=tmp_path / 'bad.pkl')
    with pytest.raises(FileNotFoundError, match='OSEDiff: base: no folder .*sd3'):
        OSEDiff(str(tmp_path / 'sd3')).load(made.files['weights'])


def test_a_rank_other_than_four(made, tmp_path):
    data = read(made.files['weights'])
    for part in ('unet', 'vae'):
        state = data[f'state_dict_{part}']
        state.update({n: v[:2] if '.lora_A.' in n else v[:, :2] for n, v in state.items() if '.lora_' in n})
    torch.save({**data, 'rank_unet': 2, 'rank_vae': 2}, tmp_path / 'two.pkl')
    network = made.make(weights=tmp_path / 'two.pkl').network
    assert network.unet.conv_out.scaling == {'default_decoder': 4.0}  # 8 / 2


# ---------------------------------------------------------------- options


def test_wrong_options_are_listed(made):
    options = {'eta': 0.5, 'guidance': 5.5, 'noise_t': 1000, 'ram': 'ram.pth', 'lpips_weight': -1.0}
    with pytest.raises(
        ValueError, match='(?s)guidance must be 1.*eta must be 0.*noise_t.*lpips_weight.*ram needs tags'
    ):
        OSEDiff(made.files['base'], **options)
    with pytest.raises(ValueError, match='dape, tags without ram'):
        OSEDiff(made.files['base'], dape='d', tags='t')
    with pytest.raises(ValueError, match='one step, got steps = 4'):
        OSEDiff(made.files['base'], steps=4)
    with pytest.raises(ConfigError, match="noise: unknown key; did you mean 'noise_t'"):
        build(GENERATORS, {'type': 'OSEDiff', 'base': made.files['base'], 'noise': 1}, '$.generator')
