"""open_clip networks by name, by configuration file and by tag: strict, frozen, and clear about what is missing."""

import json

import open_clip
import pytest
import torch

from finpercep_plugin.rewards.open_clip_model import load_open_clip, model_config


@pytest.fixture
def args(tiny_clip) -> list[str]:
    return [str(tiny_clip['model']), str(tiny_clip['weights']), 'X']


def test_weights_and_scale_are_the_files(args, tiny_clip, tmp_path):
    data = json.loads(tiny_clip['model'].read_text())
    data['preprocess_cfg'] = {'mean': [0.5, 0.5, 0.5], 'std': [0.25, 0.25, 0.25]}
    (tmp_path / 'other.json').write_text(json.dumps(data))
    loaded = load_open_clip(str(tmp_path / 'other.json'), *args[1:])
    assert loaded.mean.tolist() == [0.5, 0.5, 0.5] and loaded.std.tolist() == [0.25, 0.25, 0.25] and loaded.size == 32
    assert load_open_clip(*args).mean.tolist() == pytest.approx([0.48145466, 0.4578275, 0.40821073])
    for name, value in torch.load(tiny_clip['weights'], weights_only=True).items():
        assert torch.equal(loaded.network.state_dict()[name], value)
    assert not any(p.requires_grad for p in loaded.parameters()) and not loaded.train().network.training


def test_a_text_is_encoded_once_and_put_where_it_belongs(args):
    loaded, seen = load_open_clip(*args), []
    tokenize = loaded.tokenize
    loaded.tokenize = lambda texts: seen.append(texts) or tokenize(texts)
    both = loaded.text(['a cat', 'a dog', 'a cat'])
    assert seen == [['a cat', 'a dog']] and torch.equal(both[0], both[2]) and not torch.equal(both[0], both[1])


def test_prefix_of_parallel_training_and_a_scale_of_one_dimension(args, tiny_clip, tmp_path):
    state = torch.load(tiny_clip['weights'], weights_only=True)
    state['logit_scale'] = state['logit_scale'][None]
    torch.save({'state_dict': {f'module.{k}': v for k, v in state.items()}}, tmp_path / 'parallel.pt')
    loaded = load_open_clip(args[0], str(tmp_path / 'parallel.pt'), 'X')
    assert loaded.network.logit_scale.item() == 4.0


def test_all_wrong_keys_in_one_error(args, tiny_clip, tmp_path):
    state = torch.load(tiny_clip['weights'], weights_only=True)
    del state['visual.proj'], state['ln_final.bias']
    state.update({'extra': torch.zeros(1), 'text_projection': torch.zeros(2, 2)})
    torch.save(state, tmp_path / 'broken.pt')
    with pytest.raises(ValueError, match='X: .*config.json and its weights do not agree') as caught:
        load_open_clip(args[0], str(tmp_path / 'broken.pt'), 'X')
    for line in ('missing: visual.proj', 'missing: ln_final.bias', 'unexpected: extra', 'shape: text_projection is'):
        assert line in str(caught.value)


def test_files_that_hold_code_are_refused(args, tmp_path):
    torch.save({'state_dict': torch.nn.Linear(1, 1)}, tmp_path / 'code.pt')
    with pytest.raises(ValueError, match='code.pt cannot be read as tensors and plain values alone'):
        load_open_clip(args[0], str(tmp_path / 'code.pt'), 'X')
    with pytest.raises(FileNotFoundError, match='X: no weights .*/none.pt'):
        load_open_clip(args[0], str(tmp_path / 'none.pt'), 'X')


def test_names_of_models(tmp_path):
    assert model_config('ViT-L-14-quickgelu', 'X')['model_cfg']['quick_gelu'] is True
    with pytest.raises(ValueError, match=r"X: open_clip has no model 'ViT-H14'; did you mean 'ViT-H-14"):
        model_config('ViT-H14', 'X')
    with pytest.raises(FileNotFoundError, match='X: no open_clip configuration .*/none.json'):
        model_config(str(tmp_path / 'none.json'), 'X')
    (tmp_path / 'x.json').write_text('{"vision_cfg": {}}')
    with pytest.raises(ValueError, match='x.json is no open_clip configuration; it needs embed_dim'):
        model_config(str(tmp_path / 'x.json'), 'X')
    (tmp_path / 'coca.json').write_text('{"embed_dim": 8, "vision_cfg": {}, "text_cfg": {}, "multimodal_cfg": {}}')
    torch.save({}, tmp_path / 'w.pt')
    with pytest.raises(ValueError, match='coca.json is a captioner'):
        load_open_clip(str(tmp_path / 'coca.json'), str(tmp_path / 'w.pt'), 'X')


def test_tags(monkeypatch):
    with pytest.raises(ValueError, match="X: weights 'openia' are no file, and no tag of ViT-B-32 .*'openai'"):
        load_open_clip('ViT-B-32', 'openia', 'X')
    with pytest.raises(ValueError, match='openai weights were trained with another .*; use ViT-B-32-quickgelu'):
        load_open_clip('ViT-B-32', 'openai', 'X')

    def offline(entry):
        raise FileNotFoundError('Failed to download file (a.bin)\nlong')

    monkeypatch.setattr(open_clip, 'download_pretrained', offline)
    with pytest.raises(FileNotFoundError) as caught:
        load_open_clip('ViT-B-32-quickgelu', 'openai', 'X')
    message = str(caught.value)
    assert message.startswith('X: weights openai of ViT-B-32-quickgelu are neither in the cache of the hub (')
    assert ' nor to be had from https://' in message and message.endswith('give the path of a downloaded file')
    assert '\n' not in message
