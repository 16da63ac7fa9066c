"""ImageReward's route against BLIP written out on the names of the released file, with random weights."""

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip('transformers')

from finpercep_plugin.rewards.image_reward_reward import (  # noqa: E402
    ImageRewardReward,
    build_image_reward,
    released_name,
)

PROMPTS = ['a photo of a cat', 'two dogs, at night', 'a red house']
WORDS = ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]', 'a', 'photo', 'of', 'cat', 'two', 'dog', '##s', ',', 'red']
WIDTH, DEPTH, TEXT, LAYERS, HEAD = 128, 2, 64, 2, 64


def tiny_state() -> dict[str, torch.Tensor]:
    """ImageReward.pt with two layers each: by its names, as BLIP (github.com/salesforce/BLIP) gives them."""
    image, bert, shapes = 'blip.visual_encoder.', 'blip.text_encoder.', {}

    def linear(name: str, outside: int, inside: int) -> None:
        shapes.update({f'{name}.weight': (outside, inside), f'{name}.bias': (outside,)})

    def norm(name: str, width: int) -> None:
        shapes.update({f'{name}.weight': (width,), f'{name}.bias': (width,)})

    shapes.update({f'{image}cls_token': (1, 1, WIDTH), f'{image}pos_embed': (1, 17, WIDTH)})
    shapes.update({f'{image}patch_embed.proj.weight': (WIDTH, 3, 8, 8), f'{image}patch_embed.proj.bias': (WIDTH,)})
    for block in (f'{image}blocks.{i}.' for i in range(DEPTH)):
        norm(f'{block}norm1', WIDTH), linear(f'{block}attn.qkv', 3 * WIDTH, WIDTH)
        linear(f'{block}attn.proj', WIDTH, WIDTH), norm(f'{block}norm2', WIDTH)
        linear(f'{block}mlp.fc1', 96, WIDTH), linear(f'{block}mlp.fc2', WIDTH, 96)
    norm(f'{image}norm', WIDTH)
    shapes[f'{bert}embeddings.word_embeddings.weight'] = (len(WORDS) + 2, TEXT)
    shapes[f'{bert}embeddings.position_embeddings.weight'] = (40, TEXT)
    norm(f'{bert}embeddings.LayerNorm', TEXT)
    for layer in (f'{bert}encoder.layer.{i}.' for i in range(LAYERS)):
        for kind, seen in (('attention', TEXT), ('crossattention', WIDTH)):
            linear(f'{layer}{kind}.self.query', TEXT, TEXT), linear(f'{layer}{kind}.self.key', TEXT, seen)
            linear(f'{layer}{kind}.self.value', TEXT, seen), linear(f'{layer}{kind}.output.dense', TEXT, TEXT)
            norm(f'{layer}{kind}.output.LayerNorm', TEXT)
        linear(f'{layer}intermediate.dense', 80, TEXT), linear(f'{layer}output.dense', TEXT, 80)
        norm(f'{layer}output.LayerNorm', TEXT)
    for number, (inside, outside) in {0: (TEXT, 1024), 2: (1024, 128), 4: (128, 64), 6: (64, 16), 7: (16, 1)}.items():
        linear(f'mlp.layers.{number}', outside, inside)
    shapes.update({'blip.vision_proj.weight': (8, WIDTH), 'blip.text_proj.bias': (8,)})
    generator = torch.Generator().manual_seed(0)
    state = {}
    for name, shape in shapes.items():
        noise = torch.randn(shape, generator=generator) * (0.15 if len(shape) < 2 else shape[-1] ** -0.5)
        state[name] = noise + 1 if 'norm' in name.lower() and name.endswith('weight') else noise
    state[f'{bert}embeddings.position_ids'] = torch.arange(40)[None]
    return state


def reference(state, pixels: torch.Tensor, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """A ViT with pre-norm; a BERT with post-norm that sees itself, then the image; five linear layers."""

    def linear(x, name):
        return F.linear(x, state[f'{name}.weight'], state[f'{name}.bias'])

    def norm(x, name, eps):
        return F.layer_norm(x, x.shape[-1:], state[f'{name}.weight'], state[f'{name}.bias'], eps)

    def attend(q, k, v, bias=0.0):
        q, k, v = (x.unflatten(-1, (-1, HEAD)).transpose(1, 2) for x in (q, k, v))
        return ((q @ k.transpose(-1, -2) / HEAD**0.5 + bias).softmax(-1) @ v).transpose(1, 2).flatten(2)

    image, bert = 'blip.visual_encoder.', 'blip.text_encoder.'
    x = F.conv2d(pixels, state[f'{image}patch_embed.proj.weight'], state[f'{image}patch_embed.proj.bias'], stride=8)
    x = torch.cat([state[f'{image}cls_token'].expand(len(x), -1, -1), x.flatten(2).transpose(1, 2)], 1)
    x = x + state[f'{image}pos_embed']
    for block in (f'{image}blocks.{i}.' for i in range(DEPTH)):
        q, k, v = linear(norm(x, f'{block}norm1', 1e-6), f'{block}attn.qkv').chunk(3, -1)
        x = x + linear(attend(q, k, v), f'{block}attn.proj')
        x = x + linear(F.gelu(linear(norm(x, f'{block}norm2', 1e-6), f'{block}mlp.fc1')), f'{block}mlp.fc2')
    x = norm(x, f'{image}norm', 1e-6)
    words, places = (state[f'{bert}embeddings.{kind}_embeddings.weight'] for kind in ('word', 'position'))
    y = words[ids] + places[: ids.shape[1]]
    y = norm(y, f'{bert}embeddings.LayerNorm', 1e-12)
    bias = (1 - mask[:, None, None].float()) * -1e9
    for layer in (f'{bert}encoder.layer.{i}.' for i in range(LAYERS)):
        for kind, seen, add in (('attention', None, bias), ('crossattention', x, 0.0)):
            own = f'{layer}{kind}.self.'
            source = y if seen is None else seen
            got = attend(linear(y, f'{own}query'), linear(source, f'{own}key'), linear(source, f'{own}value'), add)
            y = norm(y + linear(got, f'{layer}{kind}.output.dense'), f'{layer}{kind}.output.LayerNorm', 1e-12)
        wide = F.gelu(linear(y, f'{layer}intermediate.dense'))
        y = norm(y + linear(wide, f'{layer}output.dense'), f'{layer}output.LayerNorm', 1e-12)
    score = y[:, 0]
    for number in (0, 2, 4, 6, 7):
        score = linear(score, f'mlp.layers.{number}')
    return (score[:, 0] - 0.16717) / 1.03334


@pytest.fixture(scope='module')
def files(tmp_path_factory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp('imagereward')
    torch.save(tiny_state(), folder / 'ImageReward.pt')
    (folder / 'vocab.txt').write_text('\n'.join(WORDS) + '\n')
    return {'weights': str(folder / 'ImageReward.pt'), 'tokenizer': str(folder)}


@pytest.fixture
def reward(files) -> ImageRewardReward:
    return ImageRewardReward(**files)


def test_equals_the_published_arithmetic(reward, photos):
    """'[CLS] two dog ##s , [UNK] [UNK] [SEP]', padded to 35 tokens; the image cut to its centre."""
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(1, 3, 1, 1)
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(1, 3, 1, 1)
    square = F.interpolate(photos, (32, 41), mode='bicubic', antialias=True)[..., 4:36]
    texts = [[2, 5, 6, 7, 5, 8, 3], [2, 9, 10, 11, 12, 1, 1, 3], [2, 5, 13, 1, 3]]
    ids, mask = torch.zeros(3, 35, dtype=torch.long), torch.zeros(3, 35)
    for row, text in enumerate(texts):
        ids[row, : len(text)], mask[row, : len(text)] = torch.tensor(text), 1
    expected = reference(tiny_state(), (square - mean) / std, ids, mask)
    score = reward(photos, prompt=PROMPTS).score
    torch.testing.assert_close(score, expected, rtol=1e-4, atol=2e-5)
    assert expected.std() > 0.01


def test_long_prompts_end_after_35_tokens(reward, photos):
    texts = [' '.join(['a'] * count) for count in (50, 33, 32)]  # [CLS] and [SEP] count
    score = reward(photos[:1].expand(3, -1, -1, -1), prompt=texts).score
    torch.testing.assert_close(score[0], score[1])
    assert (score[1] - score[2]).abs() > 1e-4


def test_behaves_as_a_reward(reward, photos, check_reward):
    check_reward(reward, photos)


def test_gradient_by_finite_differences(reward, photos, check_gradient):
    check_gradient(reward, photos)


def test_all_wrong_keys_in_one_error():
    state = tiny_state()
    del state['blip.visual_encoder.blocks.1.attn.proj.bias'], state['mlp.layers.7.weight']
    state['blip.text_encoder.encoder.layer.0.crossattention.self.key.weight'] = torch.zeros(2, 2)
    state['blip.surprise.weight'] = torch.zeros(1)
    with pytest.raises(ValueError, match='x.pt does not fit the model') as caught:
        build_image_reward(state, 'x.pt')
    lines = [line.strip() for line in str(caught.value).splitlines()[1:]]
    assert lines == [
        'missing: blip.visual_encoder.blocks.1.attn.proj.bias',
        'missing: mlp.layers.7.weight',
        'unexpected: blip.surprise.weight',
        'shape: blip.text_encoder.encoder.layer.0.crossattention.self.key.weight is (2, 2) in the file, '
        '(64, 128) in the model',
    ]


def test_names_are_those_of_the_file():
    unused = {'blip.vision_proj.weight', 'blip.text_proj.bias', 'blip.text_encoder.embeddings.position_ids'}
    network = build_image_reward(tiny_state(), 'x.pt')
    assert {released_name(name) for name in network.state_dict()} == set(tiny_state()) - unused
    assert network['vision'].config.num_attention_heads == 2 and network['text'].config.num_attention_heads == 1
    assert network['vision'].config.layer_norm_eps == 1e-6


def test_missing_files_and_a_vocabulary_that_is_too_large(files, tmp_path):
    with pytest.raises(FileNotFoundError, match='ImageReward: no weights .*/none.pt'):
        ImageRewardReward(str(tmp_path / 'none.pt'), files['tokenizer'])
    with pytest.raises(FileNotFoundError, match=f'tokenizer files vocab.txt not in {tmp_path}; it holds nothing'):
        ImageRewardReward(files['weights'], str(tmp_path))
    (tmp_path / 'vocab.txt').write_text('\n'.join([*WORDS, 'x', 'y', 'z']) + '\n')
    with pytest.raises(ValueError, match='has 17 words, the network of .* only 16'):
        ImageRewardReward(files['weights'], str(tmp_path))
