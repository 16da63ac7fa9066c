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
    for kind in ('frozen', 'adapters', 'ladder', 'full'):
        rm = FinPercepRM(stage=1, backbone=clip_name, decoder_width=16, encoder=kind)
        torch.nn.init.normal_(rm.head[-1].weight)
        torch.nn.init.normal_(rm.decoder.out.weight)
        image = torch.rand(1, 3, 45, 30)
        s1, m1 = rm(image)
        rm.grow()
        s2, m2 = rm(image)
        torch.testing.assert_close(s2, s1, atol=1e-6, rtol=0)
        torch.testing.assert_close(m2, m1, atol=1e-6, rtol=0)


def _weigh(kept):
    return lambda tensor: kept.append(tensor.numel()) or tensor


def test_a_ladder_changes_features_and_not_what_the_blocks_see(clip_name, monkeypatch):
    """The recurrence by hand: h += A_i(x_i + h) beside blocks whose outputs x_i are those without; S_0 comes from the same pass."""
    torch.manual_seed(5)
    rm = FinPercepRM(stage=2, backbone=clip_name, decoder_width=16, encoder='ladder', adapter_width=8).eval()
    for adapter in rm.encoder.adapters:
        torch.nn.init.normal_(adapter.up.weight)
    image = torch.rand(2, 3, 40, 32)
    passes = []
    blocks = rm.encoder.visual.transformer.resblocks
    blocks[0].register_forward_hook(lambda *_: passes.append(1))
    score, _, base = rm.predict(image)
    assert len(passes) == 1
    torch.testing.assert_close(base, rm.score_base(image))
    tokens, _ = rm.encoder._embed((image - rm.encoder.mean) / rm.encoder.std)
    ladder = torch.zeros_like(tokens)
    for block, adapter in zip(blocks, rm.encoder.adapters):
        tokens = block(tokens)
        ladder = ladder + adapter.up(torch.nn.functional.gelu(adapter.down(adapter.norm(tokens + ladder))))
    features, _ = rm.encoder(image)
    torch.testing.assert_close(features[-1].flatten(2).transpose(1, 2), (tokens + ladder)[:, 1:])
    assert (features[-1] - rm.encoder(image, adapters=False)[0][-1]).abs().max() > 0.1


def test_training_a_ladder_keeps_nothing_of_the_blocks(clip_name):
    """Its parameters get their gradient without a backward pass through the frozen blocks."""
    saved = {}
    for kind in ('adapters', 'ladder'):
        torch.manual_seed(6)
        rm = FinPercepRM(stage=2, backbone=clip_name, decoder_width=16, encoder=kind, adapter_width=8)
        torch.nn.init.normal_(rm.head[-1].weight)
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(_weigh(kept), lambda x: x):
            score, degradation = rm(torch.rand(1, 3, 32, 32))
        (score.sum() + degradation.sum()).backward()
        assert all(adapter.up.weight.grad.any() for adapter in rm.encoder.adapters)
        saved[kind] = sum(kept)
    assert saved['ladder'] < 0.7 * saved['adapters']


def test_recomputed_blocks_give_the_same_gradient_and_keep_less(clip_name):
    torch.manual_seed(7)
    rm = FinPercepRM(stage=2, backbone=clip_name, decoder_width=16).requires_grad_(False).eval()
    grads, sizes = [], []
    for again in (False, True):
        rm.encoder.checkpointing = again
        image, kept = torch.linspace(0, 1, 3 * 32 * 32).view(1, 3, 32, 32).requires_grad_(), []
        with torch.autograd.graph.saved_tensors_hooks(_weigh(kept), lambda x: x):
            score, degradation = rm(image)
        (score.sum() + degradation.mean()).backward()
        grads.append(image.grad)
        sizes.append(sum(kept))
    torch.testing.assert_close(grads[1], grads[0], rtol=1e-6, atol=1e-9)
    assert grads[0].any() and sizes[1] < 0.5 * sizes[0]


def test_positions_keep_the_class_token_and_the_native_grid():
    table = torch.arange(10.0)[:, None].repeat(1, 2)
    assert resize_positions(table, (3, 3)) is table
    wide = resize_positions(table, (3, 6))
    assert wide.shape == (19, 2) and torch.equal(wide[0], table[0])
    assert wide[1:].mean() == pytest.approx(table[1:].mean().item(), abs=1e-5)


def test_padding_repeats_the_border():
    padded = pad_to_multiple(torch.tensor([[1.0, 2.0], [3.0, 4.0]])[None, None], 3)
    assert padded[0, 0].tolist() == [[1, 2, 2], [3, 4, 4], [3, 4, 4]]
