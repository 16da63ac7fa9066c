"""The `generator:` section that tools read: overrides, errors, and what of it has a meaning."""

import pytest

pytest.importorskip('basicsr')
pytest.importorskip('diffusers')
pytest.importorskip('peft')
from finpercep_plugin import generator_section  # noqa: E402
from finpercep_plugin.config import ConfigError  # noqa: E402


@pytest.fixture
def file(tmp_path):
    path = tmp_path / 'x.yml'
    path.write_text('generator: {type: TinyDiffusion, steps: 5, network: {layers: 1, channels: [8]}, weights: a.pth}\n')
    return str(path)


def test_overrides_go_over_the_file(file):
    section = generator_section.read_section(
        file, ['network.layers=2', 'steps=1e1', 'beta_end=1e-2'], ['b.pth', 'c.pth'], temperature=0.5, tile=None
    )
    assert section == {
        'type': 'TinyDiffusion',
        'steps': '1e1',
        'network': {'layers': 2, 'channels': [8]},
        'beta_end': '1e-2',
        'temperature': 0.5,
        'weights': ['b.pth', 'c.pth'],
    }
    assert generator_section.weight_files({'weights': 'a.pth'}) == ['a.pth']
    assert generator_section.weight_files({'weights': None}) == []


def test_meaning_is_the_same_however_it_is_written(file):
    plain = generator_section.meaning({'type': 'TinyDiffusion', 'beta_end': 5e-3, 'weights': 'a', 'train': 'lora'})
    written = {'type': 'TinyDiffusion', 'beta_end': '5e-3', 'scale': 4, 'lora_rank': 4}
    assert generator_section.meaning(written) == plain
    assert plain['steps'] == 8 and not {'weights', 'train', 'lora_rank'} & set(plain)
    assert generator_section.meaning({**written, 'scale': 2}) != plain
    base = {'type': 'SeeSR', **dict.fromkeys(('base', 'ram', 'dape', 'tags', 'thresholds'), 'x')}
    same = generator_section.meaning({**base, 'cache': 0, 'checkpointing': False})
    assert same == generator_section.meaning(base) != generator_section.meaning({**base, 'tile': 64})


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('- 1\n', 'has no section `generator:`'),
        ('network_g: {type: EDSR}\n', 'has no section `generator:`'),
        ('a: [\n', 'cannot be read as YAML'),
        ('generator: {steps: 5}\n', 'no generator: give -opt, or --set type=<one of'),
    ],
)
def test_files_that_name_no_generator(tmp_path, text, message):
    (tmp_path / 'x.yml').write_text(text)
    with pytest.raises(ConfigError, match=message):
        generator_section.read_section(str(tmp_path / 'x.yml'))


@pytest.mark.parametrize('override', ['steps', '=3', 'network..layers=2', 'steps=[1'])
def test_overrides_that_are_none(file, override):
    with pytest.raises(ConfigError, match='--set'):
        generator_section.read_section(file, [override])


def test_channels_last_lays_out_the_vae_and_changes_rounding_only(tmp_path):
    pytest.importorskip('diffusers')
    pytest.importorskip('timm')
    import torch

    from finpercep_plugin.cli.tiny.seesr import seesr
    from finpercep_plugin.generator_section import build_generator, check_generator

    section = {'type': 'SeeSR', 'steps': 1, **seesr(tmp_path)}
    plain, laid = build_generator(section), build_generator({**section, 'channels_last': True})
    kernel = laid.vae.decoder.conv_in.weight
    assert kernel.is_contiguous(memory_format=torch.channels_last) and not kernel.is_contiguous()
    cond = plain.condition(torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0)))
    latent = cond.tensors['latent']
    torch.testing.assert_close(laid.decode(latent, cond), plain.decode(latent, cond), rtol=0, atol=1e-5)
    assert check_generator({'type': 'TinyDiffusion', 'channels_last': True}, need_weights=False) == [
        '$.generator.channels_last: TinyDiffusion has no VAE to lay out; leave the key out'
    ]
