"""RAM + DAPE: tokens, logits, tags and gradient of the public code; its full-size key lists."""

import pytest
import torch

pytest.importorskip('timm')
pytest.importorskip('transformers')
from finpercep_plugin.generators.ram import Tagger, build_ram  # noqa: E402

pytestmark = pytest.mark.parity


def _split(weights):
    """(of RAM's file, of DAPE's file)."""
    dape = {name: value for name, value in weights.items() if '.lora_' in name}
    return {name: value for name, value in weights.items() if name not in dape}, dape


@pytest.fixture
def fixture(parity):
    return parity('ram_dape')


@pytest.fixture
def network(fixture):
    config = fixture.config
    heads, size = config['bert']['num_attention_heads'], config['swin']['img_size']
    ram, dape = _split(fixture.weights())
    assert all(name.endswith('B') or config['lora_r'] in (len(dape[name]), len(dape[name]) // 2) for name in dape)
    return build_ram(ram, dape, head_heads=heads, image_size=size, alpha=config['lora_alpha'])


def test_outputs_and_gradient(fixture, network, close):
    image = fixture.inputs['image'].requires_grad_()
    embeds, logits = network(image)
    loss = (embeds * fixture.inputs['w']).mean()
    loss.backward()
    close(embeds, fixture.outputs['image_embeds'], 'image_embeds')
    close(logits, fixture.outputs['logits'], 'logits')
    close(loss.reshape(1), fixture.outputs['loss'].reshape(1), 'loss')
    close(image.grad, fixture.outputs['grad_image'], 'grad_image')


def test_merged_weights(fixture, network, close):
    attention = network.visual_encoder.layers[0].blocks[0].attn
    close(attention.qkv.weight, fixture.outputs['qkv_merged_weight'], 'qkv_merged_weight')
    query = network.tagging_head['encoder']['layer'][0].crossattention['self'].query
    close(query.weight, fixture.outputs['query_merged_weight'], 'query_merged_weight')


def test_tags(fixture, network):
    words = [f'tag{index}' for index in range(fixture.config['num_class'])]
    tagger = Tagger(network, words, threshold=fixture.config['class_threshold'])
    with torch.no_grad():
        logits = network(fixture.inputs['image'])[1]
    assert tagger.texts(logits) == fixture.meta['tags']
    chosen = (logits.sigmoid() > tagger.thresholds).float()
    assert torch.equal(chosen, fixture.outputs['targets'])


def test_sizes_are_those_of_the_configuration(fixture, network):
    swin, bert = fixture.config['swin'], fixture.config['bert']
    encoder = network.visual_encoder
    assert [len(stage.blocks) for stage in encoder.layers] == swin['depths']
    assert [stage.blocks[0].attn.num_heads for stage in encoder.layers] == swin['num_heads']
    assert encoder.layers[0].blocks[0].window_size == (swin['window_size'],) * 2
    assert len(network.tagging_head['encoder']['layer']) == bert['num_hidden_layers']
    if any(name.endswith('0.blocks.1.attn_mask') for name in fixture.weights()):
        ram, dape = _split(fixture.weights())
        assert build_ram(ram, dape).image_size == swin['img_size']


def test_full_size_keys_are_consumed_strictly(full_keys):
    whole = full_keys('ram_lora_full')
    types = {'float32': torch.float32, 'int64': torch.int64}
    weights = {name: torch.empty(shape, dtype=types[dtype], device='meta') for name, (shape, dtype) in whole.items()}
    ram, dape = _split(weights)
    assert {name: tuple(value.shape) for name, value in dape.items()} == {
        name: shape for name, (shape, _) in full_keys('dape_lora_only').items()
    }
    with torch.device('meta'):
        network = build_ram(ram, dape)
    assert network.image_size == 384
    read = {name for name in whole if not name.startswith(('tag_encoder.', 'text_decoder.'))}
    read = {name for name in read if '.lora_' not in name and not name.endswith(('position_index', 'attn_mask'))}
    assert len(network.state_dict()) == len(read)
    with pytest.raises(ValueError) as error, torch.device('meta'):
        build_ram({**ram, 'fc.extra': weights['fc.bias']}, {k: v for k, v in dape.items() if 'blocks.1.' not in k})
    assert 'unexpected: fc.extra' in str(error.value) and 'missing: visual_encoder.layers.2.blocks.1' in str(
        error.value
    )
