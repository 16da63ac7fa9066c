"""The tiny OSEDiff is in the released layout, of its base's sizes, and a function of its seed."""

import filecmp

import pytest
import torch

pytest.importorskip('diffusers')
pytest.importorskip('peft')
pytest.importorskip('timm')
from diffusers import AutoencoderKL, UNet2DConditionModel  # noqa: E402

from finpercep_plugin.archs.osediff_arch import module_lists  # noqa: E402
from finpercep_plugin.cli.tiny.osediff import osediff  # noqa: E402


def test_entries_are_those_of_the_release(tmp_path):
    paths = osediff(tmp_path)
    data = torch.load(paths['weights'], weights_only=True)
    unet = UNet2DConditionModel.from_pretrained(paths['base'], subfolder='unet')
    vae = AutoencoderKL.from_pretrained(paths['base'], subfolder='vae')
    lists = module_lists(unet, vae)
    assert set(data) == {*lists, 'rank_unet', 'rank_vae', 'state_dict_unet', 'state_dict_vae'}
    assert {name: data[name] for name in lists} == lists
    adapted = {name for key, names in lists.items() if key.startswith('unet') for name in names}
    assert len(data['state_dict_unet']) == 2 * len(adapted) + 2  # and conv_in
    assert len(data['state_dict_vae']) == 2 * len(set(lists['vae_lora_encoder_modules']))
    assert torch.equal(data['state_dict_unet']['conv_in.base_layer.weight'], unet.conv_in.weight)
    lora = [v for part in ('unet', 'vae') for n, v in data[f'state_dict_{part}'].items() if '.lora_' in n]
    assert all(value.dtype == torch.float32 and value.all() for value in lora)


def test_the_seed_decides(tmp_path):
    state = torch.get_rng_state()
    first, same, other = (osediff(tmp_path / name, seed)['weights'] for name, seed in (('a', 3), ('b', 3), ('c', 4)))
    assert torch.equal(torch.get_rng_state(), state)
    assert filecmp.cmp(first, same, shallow=False) and not filecmp.cmp(first, other, shallow=False)
