"""Producers with networks, from real checkpoint files."""

import numpy as np
import pytest
import torch

from finpercep_plugin.config import ConfigError
from finpercep_plugin.data.fgr_options import BuildOptions, build_producers, identity

from .conftest import close, one, wanted

NETWORK = {'type': 'EDSR', 'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 8, 'num_block': 1, 'upscale': 4}
TINY = {'base_channels': 8}


@pytest.fixture
def edsr(tmp_path):
    pytest.importorskip('basicsr')
    from finpercep_plugin.integrations.basicsr import require

    require()
    from basicsr.archs import build_network

    torch.manual_seed(0)
    network = build_network(dict(NETWORK)).eval()
    path = tmp_path / 'edsr.pth'
    torch.save({'params_ema': network.state_dict()}, path)
    return network, path


def test_basicsr_network_gives_what_the_network_gives(edsr, lqs):
    network, path = edsr
    producer = one({'type': 'basicsr', 'network': NETWORK, 'weights': str(path)})
    calls = []
    producer.network.register_forward_pre_hook(lambda module, args: calls.append(len(args[0])))
    together = producer([wanted(lq) for lq in lqs], 4)
    assert calls == [3]
    for lq, made in zip(lqs, together):
        with torch.no_grad():
            expected = network(torch.from_numpy(lq).permute(2, 0, 1)[None].float() / 255)
        expected = expected[0].clamp(0, 1).mul(255).round().permute(1, 2, 0).numpy()
        assert made.sr.shape == (32, 48, 3) and made.sr.dtype == np.uint8 and close(made.sr, expected)
        assert made.record == {'network': 'EDSR', 'weights': 'edsr.pth'} and made.lq is None


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'weights': '/nope.pth'}, r'\$\.producers\[0\]\.weights: no such file'),
        ({'param_key': 'params'}, r"no entry 'params'; it has params_ema"),
        ({'network': {**NETWORK, 'num_feat': 16}}, 'does not fit EDSR'),
        ({'network': {**NETWORK, 'num_feats': 16}}, 'BasicSR cannot build'),
        ({'wieghts': 'x'}, r"producers\[0\]\.wieghts: unknown key; did you mean 'weights'"),
    ],
)
def test_basicsr_producer_refuses_what_does_not_fit(edsr, change, message):
    with pytest.raises(ConfigError, match=message):
        one({'type': 'basicsr', 'network': NETWORK, 'weights': str(edsr[1]), **change})


def test_a_truncated_weight_file_is_named(edsr, tmp_path):
    half = tmp_path / 'half.pth'
    half.write_bytes(edsr[1].read_bytes()[:-500])
    with pytest.raises(ConfigError, match=r'weights: .*half\.pth cannot be read as tensors'):
        one({'type': 'basicsr', 'network': NETWORK, 'weights': str(half)})


def test_identity_follows_the_content_of_the_weights(edsr, tmp_path):
    section = {'type': 'basicsr', 'network': NETWORK, 'weights': str(edsr[1])}
    before = identity(BuildOptions(producers=[section]))
    moved = tmp_path / 'elsewhere' / 'edsr.pth'
    moved.parent.mkdir()
    moved.write_bytes(edsr[1].read_bytes())
    assert identity(BuildOptions(producers=[{**section, 'weights': str(moved)}])) == before
    torch.save({'params_ema': {k: v + 1 for k, v in edsr[0].state_dict().items()}}, moved)
    assert identity(BuildOptions(producers=[{**section, 'weights': str(moved)}])) != before


@pytest.fixture
def generator_file(tmp_path):
    pytest.importorskip('diffusers')
    from finpercep_plugin.generators.tiny_diffusion import TinyDiffusion

    torch.manual_seed(0)
    generator = TinyDiffusion(steps=2)
    generator.save(tmp_path / 'tiny.pth')
    return generator, tmp_path / 'tiny.pth'


def test_generator_gives_what_its_sampler_gives(generator_file, lq):
    from finpercep_plugin.rng import keyed_randn
    from finpercep_plugin.rollout import super_resolve

    generator, path = generator_file
    producer = one({'type': 'generator', 'generator': {'type': 'TinyDiffusion'}, 'weights': str(path)})
    (made,) = producer([wanted(lq)], 4)
    noise = keyed_randn((3, 32, 48), [made.record['noise_key']], 0, 'producer')
    expected = super_resolve(generator.eval(), torch.from_numpy(lq).permute(2, 0, 1)[None].float() / 255, noise)
    assert close(made.sr, expected[0].mul(255).round().permute(1, 2, 0).numpy())


def test_the_noise_of_a_generator_is_that_of_the_request(generator_file, lq, lqs):
    producer = one({'type': 'generator', 'generator': {'type': 'TinyDiffusion'}, 'weights': str(generator_file[1])})
    together = producer([wanted(lq, 5), wanted(lqs[1], 6), wanted(lqs[2], 7)], 4)
    (alone,) = producer([wanted(lq, 5)], 4)
    (other,) = producer([wanted(lq, 6)], 4)
    assert together[0].record == alone.record and close(together[0].sr, alone.sr)
    assert other.record['noise_key'] == together[1].record['noise_key'] != alone.record['noise_key']
    assert not close(other.sr, alone.sr)


def test_generator_options_in_the_section_count_over_those_in_the_file(generator_file):
    section = {
        'type': 'generator',
        'generator': {'type': 'TinyDiffusion', 'steps': 3},
        'weights': str(generator_file[1]),
    }
    assert len(one(section).generator.steps) == 3


@pytest.mark.parametrize(
    ('generator', 'message'),
    [
        ({'type': 'TinyDifusion'}, r"\$\.producers\[0\]\.generator\.type: .*did you mean 'TinyDiffusion'"),
        ({'type': 'TinyDiffusion', 'step': 3}, r'\$\.producers\[0\]\.generator\.step: unknown key'),
    ],
)
def test_generator_section_is_checked(generator_file, generator, message):
    with pytest.raises(ConfigError, match=message):
        one({'type': 'generator', 'generator': generator, 'weights': str(generator_file[1])})


def test_all_problems_of_all_producers_come_at_once():
    sections = [{'type': 'classic'}, {'type': 'classical', 'weight': -1}, {'weight': 1}]
    with pytest.raises(ConfigError) as info:
        build_producers(BuildOptions(producers=sections))
    assert [p.split(':')[0] for p in info.value.problems] == [
        '$.producers[0].type',
        '$.producers[1].weight',
        '$.producers[2]',
    ]
