"""The trained part of a network: what 'released' stands for, the starting policy, copies."""

import copy

import pytest
import torch
from torch import nn

pytest.importorskip('peft')
from finpercep_plugin.generators.choice import TrainedPart, match_names  # noqa: E402


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))


def test_released_stands_for_the_authors_choice():
    part = TrainedPart(network(), released=['1.*'])
    assert list(part.choose('released', 2, 2.0)) == part.names == ['1.weight', '1.bias']
    assert [value.requires_grad for value in part.network.parameters()] == [False, False, True, True]
    with pytest.raises(ValueError, match=r"fit no parameter of the network: \['2.\*'\]"):
        match_names('released', ['1.weight'], ['2.*'])


def test_reference_by_hand():
    part = TrainedPart(nn.Linear(1, 1, bias=False))
    part.network.weight.data.fill_(2.0)
    chosen = part.choose('all', 2, 2.0)
    chosen['weight'].data.fill_(5.0)
    x = torch.ones(1, 1)
    assert part(x).item() == 5.0
    with part.reference():
        assert part(x).item() == 2.0
        with part.reference():
            assert part(x).item() == 2.0
        assert part(x).item() == 2.0
    assert part(x).item() == 5.0


def test_a_lora_on_nothing():
    part = TrainedPart(nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2)), released=['1.*'])
    with pytest.raises(ValueError, match='a LoRA needs linear or convolution layers, and there are none'):
        part.choose('lora', 2, 2.0)
    assert part.lora is None and not part.names


def test_a_copy_is_of_its_own_network():
    model = nn.Module()
    model.network = network()
    model.part = TrainedPart(model.network)
    other = copy.deepcopy(model)
    assert other.part.network is other.network is not model.network
    other.part.choose('lora', 2, 2.0)
    assert other.part.lora == {'rank': 2, 'alpha': 2.0} and model.part.lora is None
    with pytest.raises(ValueError, match='cannot become'):
        other.part.choose('lora', 3, 2.0)
    with pytest.raises(RuntimeError, match='call trainable'), model.part.reference():
        model.part(torch.ones(1, 2))
