"""Real loading code on small networks of the families that timm has."""

import re

import numpy as np
import pytest
import torch

from finpercep_plugin.config import ConfigError, build
from finpercep_plugin.data.labels import feature_term
from finpercep_plugin.registry import FEATURES

timm = pytest.importorskip('timm')

VIT = {'embed_dim': 32, 'depth': 2, 'num_heads': 2}
CONVNEXT = {'depths': (1, 1, 1, 1), 'dims': (4, 8, 12, 16)}
FAMILIES = {  # arguments, step of the last grid, channels
    'vit_small_patch16_dinov3': (VIT, 16, 32),
    'vit_small_patch14_dinov2': (VIT, 14, 32),
    'vit_small_patch14_reg4_dinov2': (VIT, 14, 32),
    'convnext_tiny.dinov3_lvd1689m': (CONVNEXT, 32, 16),
    'convnext_tiny.fb_in1k': (CONVNEXT, 32, 16),
    'resnet18': ({'channels': (4, 8, 12, 16)}, 32, 16),
}
PICTURES = np.random.default_rng(0).random((3, 96, 70, 3), dtype=np.float32)


def network(model: str) -> torch.nn.Module:
    """Random, and far from how it starts, when blocks are about the identity."""
    torch.manual_seed(0)
    made = timm.create_model(model, **FAMILIES[model][0]).eval()
    for parameter in made.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape)
    return made


@pytest.fixture(scope='session')
def files(tmp_path_factory) -> dict:
    from safetensors.torch import save_file

    folder, found = tmp_path_factory.mktemp('timm'), {}
    for number, model in enumerate(FAMILIES):
        found[model] = folder / f'{model}.{"safetensors" if number % 2 else "pth"}'
        (save_file if number % 2 else torch.save)(network(model).state_dict(), found[model])
    return found


def extractor(files: dict, model: str, **options):
    section = {'type': 'timm', 'model': model, 'weights': str(files[model]), 'model_args': FAMILIES[model][0]}
    return build(FEATURES, {**section, **options}, '$.feature')


def normalised(pictures: np.ndarray) -> torch.Tensor:
    """By ImageNet's mean and standard deviation, which all of these were trained with."""
    images = (pictures - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    return torch.from_numpy(images).permute(0, 3, 1, 2).float()


@pytest.mark.parametrize('model', FAMILIES)
def test_every_family_gives_a_grid_that_follows_the_picture(files, model):
    _, step, channels = FAMILIES[model]
    features = extractor(files, model)
    grid = features(PICTURES)
    assert grid.dtype == np.float32 and grid.shape == (3, round(96 / step), round(70 / step), channels)
    np.testing.assert_array_equal(features(PICTURES), grid)
    np.testing.assert_allclose(features(PICTURES[1:2])[0], grid[1], atol=1e-5)
    assert np.abs(grid[0] - grid[1]).max() > 1e-2
    assert not any(p.requires_grad for p in features.network.parameters()) and not features.network.training


@pytest.mark.parametrize('model', [m for m in FAMILIES if m.startswith('vit')])
def test_a_transformer_gives_its_patch_tokens_row_by_row(files, model):
    step = FAMILIES[model][1]
    pictures = PICTURES[:, : 5 * step, : 3 * step]  # multiples of the patch: nothing is resized
    own = timm.create_model(model, dynamic_img_size=True, **FAMILIES[model][0]).eval()
    own.load_state_dict(network(model).state_dict())
    with torch.no_grad():
        tokens = own.forward_features(normalised(pictures))
    assert own.num_prefix_tokens in (1, 5) and tokens.shape[1] == own.num_prefix_tokens + 15
    expected = tokens[:, own.num_prefix_tokens :].reshape(3, 5, 3, -1).numpy()
    np.testing.assert_allclose(extractor(files, model)(pictures), expected, atol=1e-5)


@pytest.mark.parametrize('model', [m for m in FAMILIES if not m.startswith('vit')])
@pytest.mark.parametrize('layer', [-1, 2])
def test_a_convolutional_network_gives_a_stage(files, model, layer):
    own = timm.create_model(model, features_only=True, out_indices=(layer,), **FAMILIES[model][0]).eval()
    state = {re.sub(r'^(stem|stages)\.', r'\1_', name): value for name, value in network(model).state_dict().items()}
    assert not own.load_state_dict(state, strict=False).missing_keys
    pictures = PICTURES[:, :, :64]
    with torch.no_grad():
        (expected,) = own(normalised(pictures))
    features = extractor(files, model, layer=layer)(pictures)
    np.testing.assert_allclose(features, expected.permute(0, 2, 3, 1).numpy(), rtol=1e-4, atol=1e-5)


def test_an_earlier_block_is_another_and_upsampling_makes_the_grid_finer(files):
    model = 'vit_small_patch16_dinov3'
    last, first = extractor(files, model)(PICTURES), extractor(files, model, layer=0)(PICTURES)
    assert first.shape == last.shape and np.abs(first - last).max() > 1e-2
    assert extractor(files, model, upsample=2)(PICTURES).shape == (3, 12, 9, 32)
    assert extractor(files, model, upsample=0.01)(PICTURES).shape == (3, 1, 1, 32)


def test_a_change_shows_where_it_is(files):
    gt = np.zeros((1, 128, 128, 3), np.float32)
    gt[:] = np.random.default_rng(1).random((8, 8, 3)).repeat(16, 0).repeat(16, 1)
    syn = gt.copy()
    syn[0, :32, 96:] = 1 - syn[0, :32, 96:]
    features = extractor(files, 'convnext_tiny.fb_in1k', layer=0)
    term = feature_term(features(syn)[0], features(gt)[0], (128, 128), features.eps)
    assert term.shape == (128, 128) and term[:28, 100:].mean() > 20 * term[70:, :50].mean()


def test_eps_does_not_bend_the_distance(files):
    a, b = extractor(files, 'vit_small_patch16_dinov3')(PICTURES[:2]).astype(np.float64)
    exact = 1 - (a * b).sum(-1) / np.sqrt((a * a).sum(-1) * (b * b).sum(-1))
    term = feature_term(a, b, exact.shape, extractor(files, 'vit_small_patch16_dinov3').eps)
    np.testing.assert_allclose(term, exact, rtol=1e-5)


@pytest.mark.parametrize(
    ('section', 'message'),
    [
        ({'model': 'vit_smal_patch16_dinov3'}, r"model: timm .* has none named .*; did you mean 'vit_small_patch16"),
        ({'weights': '/nowhere/x.pth'}, 'timm features: no weights /nowhere/x.pth'),
        (
            {'model': 'resnet18', 'model_args': {}},
            r'weights: .* cannot be loaded into resnet18 \(RuntimeError: .*conv1.weight',
        ),
        ({'model_args': {'embed': 3}}, "model_args: .* does not take them .*'embed'"),
        ({'model_args': {'num_classes': 0}}, 'num_classes: the number is that of the weights'),
        ({'layer': 2}, 'layer: .* has 2 of them, -2 to 1; got 2'),
        ({'upsample': 0}, 'upsample: expected more than 0, got 0'),
        ({'weight': 'x'}, "unknown key; did you mean 'weights'"),
    ],
)
def test_what_does_not_fit_is_one_sentence(files, section, message):
    model = 'vit_small_patch16_dinov3'
    valid = {'type': 'timm', 'model': model, 'weights': str(files[model]), 'model_args': VIT}
    with pytest.raises(ConfigError, match=message):
        build(FEATURES, {**valid, **section}, '$.feature')


def test_a_damaged_file_and_one_with_code_are_refused(tmp_path):
    (tmp_path / 'x.safetensors').write_bytes(b'nothing')
    with pytest.raises(ConfigError, match=r'weights: .*x.safetensors cannot be loaded into resnet18'):
        build(FEATURES, {'type': 'timm', 'model': 'resnet18', 'weights': str(tmp_path / 'x.safetensors')}, '$.feature')
    torch.save({'state_dict': network}, tmp_path / 'x.pth')
    with pytest.raises(ConfigError, match=r'x.pth cannot be loaded into resnet18 \(.*it holds more than tensors'):
        build(FEATURES, {'type': 'timm', 'model': 'resnet18', 'weights': str(tmp_path / 'x.pth')}, '$.feature')


def test_weights_of_the_hub_that_are_not_to_be_had(monkeypatch):
    def download(*_, **__):
        raise OSError('no network here')

    monkeypatch.setattr('timm.models._hub.hf_hub_download', download)
    message = (
        r'weights of vit_small_patch16_dinov3 are neither in .* nor to be had from https://huggingface.co/timm/'
        r'vit_small_patch16_dinov3.lvd1689m \(OSError: no network here\); give the path of a file'
    )
    with pytest.raises(ConfigError, match=message):
        build(FEATURES, {'type': 'timm', 'model_args': VIT}, '$.feature')
    with pytest.raises(ConfigError, match='nor to be had anywhere: timm names no source'):
        build(FEATURES, {'type': 'timm', 'model': 'vit_base_patch32_plus_256', 'model_args': VIT}, '$.feature')
