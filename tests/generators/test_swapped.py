"""Values put into parameters for a while."""

import pytest
import torch

from finpercep_plugin.generators.swapped import swapped


def test_what_was_there_comes_back_after_an_error_too():
    net = torch.nn.Linear(2, 2)
    before = net.weight.detach().clone()
    with pytest.raises(KeyError), swapped(dict(net.named_parameters()), {'weight': torch.full((2, 2), 3.0)}):
        assert bool((net.weight == 3).all()) and not net.bias.grad_fn
        raise KeyError
    assert torch.equal(net.weight, before) and net.weight.requires_grad


def test_an_unknown_name_changes_nothing():
    net = torch.nn.Linear(2, 2)
    before = net.weight.detach().clone()
    with (
        pytest.raises(KeyError),
        swapped({'weight': net.weight}, {'weight': torch.zeros(2, 2), 'gone': torch.zeros(1)}),
    ):
        pass
    assert torch.equal(net.weight, before)
