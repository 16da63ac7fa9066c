"""Gram matrices by hand, VGG features against torchvision's own network, weights from a file."""

import math

import pytest
import torch

torchvision = pytest.importorskip('torchvision')
from finpercep_plugin.algorithms.gram import (  # noqa: E402
    GRAM_WEIGHTS,
    VGGFeatures,
    find_vgg,
    gram_loss,
    gram_matrix,
    shared_scale,
)


def maps(seed, count=2, batch=2):
    rng = torch.Generator().manual_seed(seed)
    return [torch.randn(batch, 3 + i, 4, 5, generator=rng) for i in range(count)]


def test_gram_by_hand():
    # channel 0: 0, 2; channel 1: 4, 6: mean 3, variance 5: N = (-3, -1; 1, 3) / sqrt(5); over C H W = 4
    features = torch.tensor([[[[0.0, 2.0]], [[4.0, 6.0]]]])
    expected = torch.tensor([[[10.0, -6.0], [-6.0, 10.0]]]) / 5 / 4
    torch.testing.assert_close(gram_matrix(features), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(gram_matrix(3 * features + 7), expected, atol=1e-5, rtol=1e-5)


def test_l1_by_hand():
    features, reference = maps(0), maps(1)
    expected = 0
    for ours, theirs, weight in zip(features, reference, (0.5, 2.0)):
        expected = expected + weight * (gram_matrix(ours) - gram_matrix(theirs)).abs().mean((1, 2))
    torch.testing.assert_close(gram_loss(features, reference, (0.5, 2.0)), expected)
    assert gram_loss(features, features, (1, 1)).tolist() == [0, 0]


def test_kl_by_hand():
    features, reference = maps(0, 1), maps(1, 1)
    p, q = (gram_matrix(f[0]).softmax(-1) for f in (reference, features))
    expected = (p * (p / q).log()).sum(-1).mean(-1)
    torch.testing.assert_close(gram_loss(features, reference, (1.0,), 'kl'), expected, atol=1e-7, rtol=1e-4)
    assert (expected > 0).all() and gram_loss(features, features, (1,), 'kl').abs().max() < 1e-6


def test_rows_are_independent_and_float32():
    features, reference = maps(0), maps(1)
    whole = gram_loss(features, reference, (1, 1))
    single = gram_loss([f[1:] for f in features], [f[1:] for f in reference], (1, 1))
    torch.testing.assert_close(whole[1:], single)
    with torch.autocast('cpu', torch.bfloat16):
        again = gram_loss([f.bfloat16() for f in features], [f.bfloat16() for f in reference], (1, 1))
    assert again.dtype == torch.float32
    torch.testing.assert_close(again, whole, atol=0, rtol=0.05)


@pytest.mark.parametrize('kind', ['l1', 'kl'])
def test_gradient_by_finite_differences(kind):
    features, reference, scale = maps(0, 1, 1), maps(1, 1, 1), torch.tensor(0.3, requires_grad=True)

    def loss(scale):  # of features + scale * their square
        return gram_loss([features[0] + scale * features[0] ** 2], reference, (100.0,), kind).sum()

    loss(scale).backward()
    expected = (loss(torch.tensor(0.31)) - loss(torch.tensor(0.29))).item() / 0.02
    assert scale.grad.item() == pytest.approx(expected, rel=1e-2)


def test_no_gradient_reaches_the_reference():
    features, reference = maps(0, 1), [f.requires_grad_() for f in maps(1, 1)]
    features[0].requires_grad_()
    gram_loss(features, reference, (1,)).sum().backward()
    assert reference[0].grad is None and features[0].grad.any()


def test_features_are_those_of_torchvision(vgg_file):
    network = torchvision.models.vgg19(weights=None).features
    network.load_state_dict({k[9:]: v for k, v in torch.load(vgg_file).items()})
    for layer in network:
        if isinstance(layer, torch.nn.ReLU):
            layer.inplace = False
    found = {}
    for index in (2, 7, 16, 25, 34):
        assert isinstance(network[index], torch.nn.Conv2d) and isinstance(network[index + 1], torch.nn.ReLU)
        network[index].register_forward_hook(lambda layer, inputs, output, index=index: found.update({index: output}))
    image = torch.rand(1, 3, 20, 16, generator=torch.Generator().manual_seed(0))
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    network[:36]((image - mean.view(1, 3, 1, 1)) / std.view(1, 3, 1, 1))
    features = VGGFeatures.from_file(vgg_file)
    with torch.autocast('cpu', torch.bfloat16):
        ours = features.train()(image)
    assert [f.shape[1] for f in ours] == [64, 128, 256, 512, 512] and len(GRAM_WEIGHTS) == 5
    for mine, theirs in zip(ours, found.values()):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-4)
    assert not features.training and not any(p.requires_grad for p in features.parameters())


def test_share_of_the_gradient():
    image = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    loss, other = 5 * image.flatten(1).sum(1), (image**2).flatten(1).sum(1) * torch.tensor([1.0, 0.0])
    scale = shared_scale(loss, other, image, 0.1)
    assert scale[0].item() == pytest.approx(0.1 * 5 * math.sqrt(48) / (2 * image[0].norm().item()), rel=1e-5)
    assert scale[1] == 0 and not scale.requires_grad
    (gradient,) = torch.autograd.grad((scale * other).sum(), image, retain_graph=True)
    assert gradient[0].norm().item() == pytest.approx(0.1 * 5 * math.sqrt(48), rel=1e-5)
    assert shared_scale(0 * loss, other, image, 0.1).tolist() == [0, 0]


def test_errors(vgg_file, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match='1 layers, 2 references and 1 weights'):
        gram_loss(maps(0, 1), maps(0, 2), (1,))
    with pytest.raises(ValueError, match="kind must be 'l1' or 'kl', got 'l2'"):
        gram_loss(maps(0, 1), maps(0, 1), (1,), 'l2')
    with pytest.raises(ValueError, match='VGG19 weights not found at .*absent.pth; expected torchvision'):
        find_vgg(tmp_path / 'absent.pth')
    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path))
    with pytest.raises(ValueError, match='not found at .*checkpoints/vgg19-dcbb9e9d.pth'):
        find_vgg(None)
    state = torch.load(vgg_file)
    state['features.5.weight'] = state.pop('features.28.bias')
    with pytest.raises(ValueError, match='missing or misshapen: features.5.weight, features.28.bias$'):
        VGGFeatures(state)
    with pytest.raises(ValueError, match=r'sides of 16 pixels or more, got \(16, 15\)'):
        VGGFeatures.from_file(vgg_file)(torch.zeros(1, 3, 16, 15))
