"""RAM: its tokens, its tagging head by the formula, gradient, no randomness, bad heads."""

import pytest
import torch

pytest.importorskip('timm')
pytest.importorskip('transformers')
from finpercep_plugin.archs.ram_arch import RAM  # noqa: E402


def _network(**options):
    torch.manual_seed(0)
    sizes = dict(
        image_size=32, embed_dim=8, depths=(2, 1), num_heads=(2, 2), window_size=4, width=6, hidden_size=8,
        head_layers=1, head_heads=2, intermediate_size=12, classes=3,
    )  # fmt: skip
    network = RAM(**{**sizes, **options})
    torch.nn.init.normal_(network.label_embed)
    return network


def test_first_token_is_the_mean_of_the_others():
    embeds = _network().embed(torch.randn(2, 3, 32, 32))
    assert embeds.shape == (2, 1 + 16, 6)
    torch.testing.assert_close(embeds[:, 0], embeds[:, 1:].mean(dim=1))


def _layer_norm(x):
    return (x - x.mean()) / (x.var(unbiased=False) + 1e-12).sqrt()


def test_logits_by_the_formula():
    network, embeds = _network(), torch.randn(1, 5, 6)
    layer = network.tagging_head['encoder']['layer'][0]
    attention, head = layer.crossattention['self'], 4
    for index in range(3):
        label = network.wordvec_proj(network.label_embed[index]).relu()
        query, key, value = attention.query(label), attention.key(embeds[0]), attention.value(embeds[0])
        parts = []
        for part in (slice(0, head), slice(head, 2 * head)):
            weights = torch.softmax(key[:, part] @ query[part] / head**0.5, dim=0)
            parts.append(weights @ value[:, part])
        label = _layer_norm(layer.crossattention['output'].dense(torch.cat(parts)) + label)
        inner = layer.intermediate.dense(label)
        inner = 0.5 * inner * (1 + torch.erf(inner / 2**0.5))
        label = _layer_norm(layer.output.dense(inner) + label)
        torch.testing.assert_close(network.tag(embeds)[0, index], network.fc(label)[0], rtol=1e-4, atol=1e-5)


def test_tags_do_not_see_each_other():
    network, embeds = _network(), torch.randn(2, 5, 6)
    before = network.tag(embeds)
    with torch.no_grad():
        network.label_embed[1] = 7
    after = network.tag(embeds)
    torch.testing.assert_close(after[:, [0, 2]], before[:, [0, 2]])
    assert not torch.allclose(after[:, 1], before[:, 1])


def test_gradient_reaches_the_image_and_every_parameter():
    network, image = _network(), torch.randn(1, 3, 32, 32, requires_grad=True)
    embeds, logits = network(image)
    (embeds.square().sum() + logits.square().sum()).backward()
    assert image.grad.any()
    missing = [name for name, value in network.named_parameters() if value.grad is None or not value.grad.any()]
    assert missing == []


def test_nothing_random_even_in_training_mode_and_no_batch_effect():
    network, image = _network().train(), torch.randn(3, 3, 32, 32)
    whole = network(image)
    assert all(torch.equal(a, b) for a, b in zip(whole, network(image)))
    parts = [network(image[i : i + 1]) for i in range(3)]
    for index in range(2):
        torch.testing.assert_close(whole[index], torch.cat([part[index] for part in parts]))


def test_heads_must_divide_the_hidden_size():
    with pytest.raises(ValueError, match='head_heads must divide hidden_size 8, got 3'):
        _network(head_heads=3)
