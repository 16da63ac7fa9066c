"""Adapters: which modules they go to."""

import pytest
from torch import nn

pytest.importorskip('peft')
from finpercep_plugin.generators.lora import add_lora, lora_parameters  # noqa: E402


def test_adapters_go_to_the_modules_that_are_named_alone():
    """'conv' is the end of 'inner.conv' too."""
    net = nn.ModuleDict({'conv': nn.Linear(2, 2), 'inner': nn.ModuleDict({'conv': nn.Linear(2, 2)})})
    assert add_lora(net, 2, 2.0, ['conv']) == ['conv']
    assert {name.split('.lora_')[0] for name in lora_parameters(net)} == {'conv'}
