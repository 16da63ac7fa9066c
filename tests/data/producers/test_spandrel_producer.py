"""Random models of several architectures, in the files that their projects release, through the producer."""

import sys

import numpy as np
import pytest
import torch

pytest.importorskip('spandrel')
from spandrel.architectures.Compact import Compact  # noqa: E402
from spandrel.architectures.DAT import DAT  # noqa: E402
from spandrel.architectures.ESRGAN import ESRGAN  # noqa: E402
from spandrel.architectures.HAT import HAT  # noqa: E402
from spandrel.architectures.LaMa import LaMa  # noqa: E402
from spandrel.architectures.PLKSR import RealPLKSR  # noqa: E402
from spandrel.architectures.RealCUGAN import UpCunet4x  # noqa: E402
from spandrel.architectures.SCUNet import SCUNet  # noqa: E402
from spandrel.architectures.SPAN import SPAN  # noqa: E402
from spandrel.architectures.SwinIR import SwinIR  # noqa: E402

from finpercep_plugin.config import ConfigError  # noqa: E402
from finpercep_plugin.data.fgr_options import BuildOptions, identity  # noqa: E402
from finpercep_plugin.data.producers.spandrel_producer import SpandrelProducer  # noqa: E402

from ..conftest import make_photo  # noqa: E402
from .conftest import close, one, wanted  # noqa: E402

MODELS = {
    'ESRGAN': lambda: ESRGAN(num_filters=8, num_blocks=1, scale=4, plus=False),
    'SwinIR': lambda: SwinIR(
        img_size=16, embed_dim=12, depths=[2], num_heads=[2], window_size=8, mlp_ratio=2.0, upscale=4,
        upsampler='nearest+conv', resi_connection='1conv',
    ),
    'HAT': lambda: HAT(
        img_size=16, embed_dim=12, depths=[2], num_heads=[2], window_size=8, mlp_ratio=2.0, upscale=4,
        squeeze_factor=6, num_feat=16,
    ),
    'DAT': lambda: DAT(img_size=16, embed_dim=32, split_size=[2, 4], depth=[2], num_heads=[2], upscale=4),
    'SPAN': lambda: SPAN(num_in_ch=3, num_out_ch=3, feature_channels=8, upscale=4),
    'PLKSR': lambda: RealPLKSR(dim=16, n_blocks=2, upscaling_factor=4),
    'RealCUGAN': UpCunet4x,
    'RealESRGAN Compact': lambda: Compact(num_feat=8, num_conv=2, upscale=4),
}  # fmt: skip
"""By the name that spandrel gives the architecture."""


@pytest.fixture(autouse=True)
def seeded():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def saved(path, network, key='params_ema'):
    torch.save({key: network.state_dict()} if key else network.state_dict(), path)
    return {'type': 'spandrel', 'weights': str(path)}


def scaled(image: torch.Tensor) -> np.ndarray:
    """(1, 3, H, W) -> (H, W, 3), in grey levels."""
    return image[0].clamp(0, 1).mul(255).round().permute(1, 2, 0).numpy()


def batch(lq: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(lq).permute(2, 0, 1)[None].float() / 255


@pytest.mark.parametrize('name', MODELS)
def test_a_released_file_alone_gives_what_its_network_gives(name, tmp_path):
    network = MODELS[name]().eval()
    producer = one(saved(tmp_path / 'model.pth', network))
    pictures = [make_photo(seed, 32, 40) for seed in range(2)]
    made = producer([wanted(lq) for lq in pictures], 4)
    with torch.no_grad():
        expected = [scaled(network(batch(lq))) for lq in pictures]
    for result, sr in zip(made, expected):
        assert result.sr.shape == (128, 160, 3) and result.sr.dtype == np.uint8 and close(result.sr, sr)
        assert result.record == {'network': name, 'weights': 'model.pth'} and result.lq is None
    assert not close(made[0].sr, made[1].sr) and made[0].sr.std() > 0


def test_a_batch_is_one_call(tmp_path, lqs):
    producer = one(saved(tmp_path / 'model.pth', MODELS['ESRGAN']()))
    sizes = []
    producer.network.model.register_forward_pre_hook(lambda module, args: sizes.append(tuple(args[0].shape)))
    together = producer([wanted(lq) for lq in lqs], 4)
    assert sizes == [(3, 3, 8, 12)]
    assert all(close(made.sr, producer([wanted(lq)], 4)[0].sr) for lq, made in zip(lqs, together))


def test_sizes_that_the_network_does_not_take_are_padded(tmp_path):
    network = SCUNet(config=[1] * 7, dim=64, drop_path_rate=0.0).eval()
    saved(tmp_path / 'scunet.pth', network, key=None)
    producer = SpandrelProducer(tmp_path / 'scunet.pth')
    picture = make_photo(0, 40, 72)
    (made,) = producer([wanted(picture)], 1)
    padded = np.pad(picture, ((0, 24), (0, 56), (0, 0)), 'reflect')
    with torch.no_grad():
        expected = scaled(network(batch(padded)))[:40, :72]
    assert made.sr.shape == (40, 72, 3) and close(made.sr, expected)


def test_a_file_of_basicsr_gives_the_same_through_both_producers(tmp_path, lq):
    pytest.importorskip('basicsr')
    from finpercep_plugin.integrations.basicsr import require

    require()
    from basicsr.archs import build_network

    options = {'type': 'RRDBNet', 'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 8, 'num_block': 1}
    section = saved(tmp_path / 'rrdb.pth', build_network(dict(options)))
    (told,) = one({**section, 'type': 'basicsr', 'network': options})([wanted(lq)], 4)
    (found,) = one(section)([wanted(lq)], 4)
    assert close(told.sr, found.sr) and found.record['network'] == 'ESRGAN'


def test_safetensors(tmp_path, lq):
    from safetensors.torch import save_file

    network = MODELS['RealESRGAN Compact']()
    save_file({name: value.contiguous() for name, value in network.state_dict().items()}, tmp_path / 'm.safetensors')
    (made,) = one({'type': 'spandrel', 'weights': str(tmp_path / 'm.safetensors')})([wanted(lq)], 4)
    assert np.array_equal(made.sr, one(saved(tmp_path / 'm.pth', network))([wanted(lq)], 4)[0].sr)


def test_files_that_it_cannot_use_are_one_clear_problem(tmp_path):
    whole = tmp_path / 'whole.pth'
    saved(whole, MODELS['ESRGAN']())
    (tmp_path / 'half.pth').write_bytes(whole.read_bytes()[:-900])
    (tmp_path / 'text.pth').write_text('no weights')
    torch.save({'a.weight': torch.zeros(2)}, tmp_path / 'other.pth')
    torch.save({'params': torch.nn.Linear(1, 1)}, tmp_path / 'code.pth')
    torch.save({'conv_first.weight': 3, 'body.0.rdb1.conv1.weight': 'x'}, tmp_path / 'odd.pth')
    saved(tmp_path / 'grey.pth', ESRGAN(in_nc=1, out_nc=1, num_filters=8, num_blocks=1, scale=4))
    saved(tmp_path / 'lama.pth', LaMa(), key=None)
    for name, message in (
        ('gone', r'no such file: .*gone\.pth'),
        ('half', r'half\.pth cannot be read as tensors and plain values alone'),
        ('text', r'text\.pth cannot be read as tensors and plain values alone'),
        ('code', r'code\.pth cannot be read .*it holds torch\.nn\.modules\.linear\.Linear'),
        ('other', r'other\.pth is no network that spandrel opens'),
        ('odd', r'odd\.pth is no network that spandrel opens'),
        ('grey', r'grey\.pth must map RGB to RGB, this one maps 1 to 1'),
        ('lama', r'lama\.pth must map RGB to RGB'),
    ):
        with pytest.raises(ConfigError, match=r'^\$\.producers\[0\]\.weights: .*' + message) as info:
            one({'type': 'spandrel', 'weights': str(tmp_path / f'{name}.pth')})
        assert len(info.value.problems) == 1 and '\n' not in str(info.value)


@pytest.mark.parametrize(
    ('purpose', 'name', 'message'),
    [('FaceSR', 'GFPGAN', 'restores faces'), ('SR', 'AuraSR', 'draws noise that cannot be keyed')],
)
def test_models_that_do_not_fit_a_build_are_refused(tmp_path, monkeypatch, purpose, name, message):
    """Both come in files of gigabytes; only what spandrel says of them is put in."""
    import types

    from finpercep_plugin.data.producers import spandrel_producer

    described = types.SimpleNamespace(purpose=purpose, architecture=types.SimpleNamespace(name=name))
    monkeypatch.setattr(spandrel_producer, 'load_described', lambda *args: described)
    (tmp_path / 'model.pth').write_bytes(b'')
    with pytest.raises(ConfigError, match=message):
        one({'type': 'spandrel', 'weights': str(tmp_path / 'model.pth')})


def test_another_scale_is_refused(tmp_path, lq):
    section = saved(tmp_path / 'x2.pth', Compact(num_feat=8, num_conv=2, upscale=2))
    producer = SpandrelProducer(tmp_path / 'x2.pth')
    assert producer([wanted(lq)], 2)[0].sr.shape == (16, 24, 3)
    for ask in (lambda: one(section), lambda: producer([wanted(lq)], 4)):
        with pytest.raises(ValueError, match='weights: a model for scale 2, but the build has scale 4'):
            ask()


def test_identity_follows_the_content_of_the_weights(tmp_path):
    network = MODELS['SPAN']()
    before, same = (identity(BuildOptions(producers=[saved(tmp_path / 'm.pth', network)])) for _ in range(2))
    assert before == same and 'sha256' in before['producers'][0]['weights']
    with torch.no_grad():
        next(network.parameters()).add_(1)
    assert identity(BuildOptions(producers=[saved(tmp_path / 'm.pth', network)])) != before


EXTRA = """
from spandrel import ArchRegistry, ArchSupport, Architecture, ImageModelDescriptor
from torch import nn

class Shuffle(Architecture):
    def __init__(self):
        super().__init__(id='Shuffle', detect=lambda state: 'shuffle.weight' in state)

    def load(self, state):
        model = nn.Sequential()
        model.add_module('shuffle', nn.Conv2d(3, 48, 1))
        model.load_state_dict(state)
        model.add_module('up', nn.PixelShuffle(4))
        return ImageModelDescriptor(
            model, state, self, 'SR', [], supports_half=True, supports_bfloat16=True, scale=4, input_channels=3,
            output_channels=3,
        )

EXTRA_REGISTRY = ArchRegistry()
EXTRA_REGISTRY.add(ArchSupport.from_architecture(Shuffle()))
"""


def test_architectures_of_spandrel_extra_arches_are_known_where_it_is_installed(tmp_path, monkeypatch, lq):
    """A package of that name and interface stands in for it."""
    state = torch.nn.Conv2d(3, 48, 1).state_dict()
    torch.save({f'shuffle.{name}': value for name, value in state.items()}, tmp_path / 'm.pth')
    section = {'type': 'spandrel', 'weights': str(tmp_path / 'm.pth')}
    (tmp_path / 'spandrel_extra_arches.py').write_text(EXTRA)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, 'spandrel_extra_arches', raising=False)
    (made,) = one(section)([wanted(lq)], 4)
    assert made.sr.shape == (32, 48, 3) and made.record['network'] == 'Shuffle'
    del sys.modules['spandrel_extra_arches']
