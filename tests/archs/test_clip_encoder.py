"""The encoder on an open_clip model of the released layout at a tiny random size."""

import json

import pytest
import torch

from finpercep_plugin.archs.clip_encoder import load_clip, pad_to_multiple, resize_positions
from finpercep_plugin.archs.finpercep_rm_arch import FinPercepRM

open_clip = pytest.importorskip('open_clip')
NAME = 'ViT-FinPercepTest-8-quickgelu'


@pytest.fixture(scope='module')
def clip_name(tmp_path_factory):
    config = {
        'embed_dim': 24,
        'quick_gelu': True,
        'vision_cfg': {'image_size': 32, 'layers': 4, 'width': 32, 'head_width': 16, 'patch_size': 8},
        'text_cfg': {'context_length': 77, 'vocab_size': 49408, 'width': 16, 'heads': 2, 'layers': 2},
    }
    folder = tmp_path_factory.mktemp('clip')
    (folder / f'{NAME}.json').write_text(json.dumps(config))
    open_clip.add_model_config(folder)
    return NAME


def test_features_are_those_of_forward_intermediates(clip_name):
    encoder, _ = load_clip(clip_name, None, (1, 2, 4))
    if not hasattr(encoder.visual, 'forward_intermediates'):
        pytest.skip('this open_clip has no forward_intermediates to compare with')
    image = torch.rand(2, 3, 32, 32)
    features, embedding = encoder(image)
    normalised = (image - encoder.mean) / encoder.std
    expected = encoder.visual.forward_intermediates(normalised, indices=[0, 1, 3])
    for mine, theirs in zip(features, expected['image_intermediates']):
        torch.testing.assert_close(mine, theirs)
    torch.testing.assert_close(embedding, encoder.visual(normalised))


def test_openai_models_compute_quick_gelu(clip_name):
    """A plain name would silently compute GELU: quick GELU is x * sigmoid(1.702 x)."""
    encoder, _ = load_clip(clip_name, None, (4,))
    x = torch.linspace(-3, 3, 7)
    for block in encoder.visual.transformer.resblocks:
        torch.testing.assert_close(block.mlp.gelu(x), x * torch.sigmoid(1.702 * x))
    assert open_clip.get_model_config('ViT-L-14-quickgelu')['quick_gelu'] is True
    with pytest.raises(ValueError, match='ViT-L-14-quickgelu'):
        load_clip('ViT-L-14', 'openai', (6,))


def test_base_score_is_clip_iqa(clip_name):
    """S_0 = softmax(100 cos(image, 'Good photo.' / 'Bad photo.'))[0], against open_clip used directly."""
    torch.manual_seed(3)
    rm = FinPercepRM(stage=1, backbone=clip_name, decoder_width=16)
    image = torch.rand(2, 3, 32, 32)
    embedding = rm.encoder.visual((image - rm.encoder.mean) / rm.encoder.std)
    cosine = torch.nn.functional.cosine_similarity(embedding[:, None], rm.text[None], dim=-1)
    good, bad = (100 * cosine).exp().T
    torch.testing.assert_close(rm.score_base(image), good / (good + bad))
    torch.testing.assert_close(rm(image)[0], good / (good + bad), atol=1e-6, rtol=0)


def test_local_weight_file_is_loaded_and_a_missing_one_named(clip_name, tmp_path):
    torch.manual_seed(4)
    model = open_clip.create_model(clip_name)
    torch.save(model.state_dict(), tmp_path / 'clip.pt')
    encoder, text = load_clip(clip_name, str(tmp_path / 'clip.pt'), (2, 4))
    assert torch.equal(encoder.visual.conv1.weight, model.visual.conv1.weight)
    expected = model.encode_text(open_clip.get_tokenizer(clip_name)(['Good photo.', 'Bad photo.']))
    torch.testing.assert_close(text, torch.nn.functional.normalize(expected, dim=-1))
    with pytest.raises(FileNotFoundError, match='missing.pt'):
        load_clip(clip_name, str(tmp_path / 'missing.pt'), (2,))
    with pytest.raises(ValueError, match='no model'):
        load_clip('ViT-nope', None, (2,))


def test_full_and_adapted_stages_on_clip(clip_name):
    for kind in ('frozen', 'adapters', 'full'):
        rm = FinPercepRM(stage=1, backbone=clip_name, decoder_width=16, encoder=kind)
        torch.nn.init.normal_(rm.head[-1].weight)
        torch.nn.init.normal_(rm.decoder.out.weight)
        image = torch.rand(1, 3, 45, 30)
        s1, m1 = rm(image)
        rm.grow()
        s2, m2 = rm(image)
        torch.testing.assert_close(s2, s1, atol=1e-6, rtol=0)
        torch.testing.assert_close(m2, m1, atol=1e-6, rtol=0)


def test_positions_keep_the_class_token_and_the_native_grid():
    table = torch.arange(10.0)[:, None].repeat(1, 2)
    assert resize_positions(table, (3, 3)) is table
    wide = resize_positions(table, (3, 6))
    assert wide.shape == (19, 2) and torch.equal(wide[0], table[0])
    assert wide[1:].mean() == pytest.approx(table[1:].mean().item(), abs=1e-5)


def test_padding_repeats_the_border():
    padded = pad_to_multiple(torch.tensor([[1.0, 2.0], [3.0, 4.0]])[None, None], 3)
    assert padded[0, 0].tolist() == [[1, 2, 2], [3, 4, 4], [3, 4, 4]]
