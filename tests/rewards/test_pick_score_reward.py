"""PickScore's route against the published arithmetic: logit_scale.exp() * cos, tokens of transformers' own tokenizer."""

import json

import open_clip
import pytest
import torch
import torch.nn.functional as F

transformers = pytest.importorskip('transformers')

from finpercep_plugin.rewards.pick_score_reward import PickScoreReward  # noqa: E402

PROMPTS = ['a photo of a cat', 'two dogs, at night', 'a red house']


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """A CLIPModel of a few thousand weights, but for its vocabulary, in transformers' layout."""
    sizes = {'hidden_size': 32, 'intermediate_size': 48, 'num_hidden_layers': 2, 'num_attention_heads': 2}
    config = transformers.CLIPConfig(
        text_config={**sizes, 'vocab_size': 49408, 'max_position_embeddings': 77, 'hidden_act': 'gelu'},
        vision_config={**sizes, 'image_size': 32, 'patch_size': 8, 'hidden_act': 'gelu'},
        projection_dim=16,
    )
    model, generator = transformers.CLIPModel(config), torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        noise = 0.2 * torch.randn(parameter.shape, generator=generator)
        parameter.data = parameter.data + noise if parameter.ndim < 2 and 'weight' in name else noise
    model.logit_scale.data.fill_(4.6)
    path = tmp_path_factory.mktemp('pickscore')
    model.save_pretrained(path)
    return path


@pytest.fixture
def reward(folder) -> PickScoreReward:
    return PickScoreReward(str(folder))


@pytest.fixture
def tokenizer(tmp_path):
    """transformers' CLIPTokenizer on the vocabulary that open_clip brings."""
    bundled = open_clip.SimpleTokenizer()
    words = list(bundled.encoder)
    words[-2:] = ['<|startoftext|>', '<|endoftext|>']
    (tmp_path / 'vocab.json').write_text(json.dumps({word: i for i, word in enumerate(words)}), encoding='utf-8')
    merges = '\n'.join(' '.join(pair) for pair in bundled.bpe_ranks)
    (tmp_path / 'merges.txt').write_text(f'#version: 0.2\n{merges}\n', encoding='utf-8')
    return transformers.CLIPTokenizer.from_pretrained(tmp_path)


def test_equals_the_published_arithmetic(reward, photos, tokenizer):
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(1, 3, 1, 1)
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(1, 3, 1, 1)
    square = F.interpolate(photos, (32, 41), mode='bicubic', antialias=True)[..., 4:36]
    texts = tokenizer(PROMPTS, padding=True, truncation=True, max_length=77, return_tensors='pt')
    with torch.no_grad():
        out = reward.model(pixel_values=(square - mean) / std, **texts)
    image, text = (x / x.norm(dim=-1, keepdim=True) for x in (out.image_embeds, out.text_embeds))
    expected = torch.tensor(4.6).exp() * (image * text).sum(-1)
    torch.testing.assert_close(reward(photos, prompt=PROMPTS).score, expected, rtol=1e-4, atol=1e-4)


def test_long_prompts_are_cut_as_the_published_tokenizer_cuts(reward, photos, tokenizer):
    long = ' '.join(['a very long prompt, of many words'] * 20)
    ids = tokenizer([long], truncation=True, max_length=77, return_tensors='pt').input_ids
    assert torch.equal(ids, open_clip.tokenize([long], context_length=77))
    assert torch.isfinite(reward(photos[:1], prompt=[long]).score).all()


def test_behaves_as_a_reward(reward, photos, check_reward):
    check_reward(reward, photos, tolerance=2.0)  # of about 100 times the cosine


def test_gradient_by_finite_differences(reward, photos, check_gradient):
    check_gradient(reward, photos)


def test_bad_folders(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match=f'PickScore: no folder {tmp_path}/none of model files'):
        PickScoreReward(str(tmp_path / 'none'))
    (tmp_path / 'config.json').write_text((folder / 'config.json').read_text())
    with pytest.raises(
        FileNotFoundError, match=r'PickScore: model files model.safetensors or .* not in .*; it holds config'
    ):
        PickScoreReward(str(tmp_path))
    from safetensors.torch import load_file, save_file

    state = load_file(folder / 'model.safetensors')
    del state['visual_projection.weight']
    save_file({**state, 'extra': torch.zeros(1)}, tmp_path / 'model.safetensors', {'format': 'pt'})
    with pytest.raises(ValueError, match='does not fit CLIPModel') as caught:
        PickScoreReward(str(tmp_path))
    assert 'missing: visual_projection.weight' in str(caught.value) and 'unexpected: extra' in str(caught.value)
