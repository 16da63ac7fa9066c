"""Which modules of a network are gathered at a time, and what a sharded network gives: one process here."""

import pytest
import torch
import torch.distributed as dist
from torch import nn

from finpercep_plugin.models import sharding


class Block(nn.Module):
    def __init__(self, width=8):
        super().__init__()
        self.norm, self.linear = nn.LayerNorm(width), nn.Linear(width, width)

    def forward(self, x):
        return x + self.linear(self.norm(x))


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(4, 8), nn.Linear(8, 4)
        self.blocks = nn.ModuleList(Block() for _ in range(20))

    def forward(self, x):
        x = self.first(x)
        for block in self.blocks:
            x = block(x)
        return self.last(x).view_as(x[..., :4])


@pytest.fixture
def group(tmp_path):
    dist.init_process_group('gloo', init_method=f'file://{tmp_path / "store"}', rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_a_star_stays_within_a_part_of_a_name():
    network = nn.ModuleDict({'unet': Network(), 'other': Block()})
    assert sharding.sharded_units(network, ['*.blocks.*', 'unet']) == ['unet'], 'none inside another'
    assert sharding.sharded_units(network, ['*.blocks.*']) == [f'unet.blocks.{i}' for i in range(20)]
    assert sharding.sharded_units(network, ['*.norm']) == ['other.norm']


def test_without_patterns_units_are_modules_of_some_size_that_are_called():
    assert sharding.sharded_units(Network(), None) == [f'blocks.{i}' for i in range(20)]
    small = nn.Sequential(nn.Sequential(nn.Linear(2, 2), nn.ReLU()), nn.Sequential(nn.Linear(90, 90), nn.ReLU()))
    assert sharding.sharded_units(small, None) == [], 'one layer is most of it, and the other does not count'


@pytest.mark.slow
@pytest.mark.parametrize('name', ['SeeSR', 'OSEDiff', 'StableSR', 'DiffBIR', 'DiT4SR'])
def test_released_generators_are_cut_into_blocks(name):
    pytest.importorskip('diffusers')
    from finpercep_plugin.cli.tiny.released import released

    with torch.device('meta'):
        generator = released(name)[0]
    network = generator.network
    units = sharding.sharded_units(network, generator.sharded_units)
    sizes = [sum(p.numel() for p in network.get_submodule(unit).parameters()) for unit in units]
    whole = sum(p.numel() for p in network.parameters())
    assert sum(sizes) > 0.9 * whole and max(sizes) < 0.32 * whole


@pytest.mark.parametrize('bf16', [False, True])
def test_a_sharded_network_computes_and_learns_the_same(group, bf16):
    """Two passes and one backward, and a pass without gradient before them, whose casts nothing may use again."""
    torch.manual_seed(0)
    network, plain = Network(), Network()
    plain.load_state_dict(network.state_dict())
    for net in (network, plain):
        net.blocks[0].requires_grad_(False)
    names = dict(plain.named_parameters())
    assert len(sharding.shard(network, ['blocks.*'], torch.device('cpu'))) == 20
    x, outputs = torch.randn(3, 4), []
    for net in (network, plain):
        with torch.autocast('cpu', torch.bfloat16, enabled=bf16, cache_enabled=False):
            with torch.no_grad():
                outputs.append(net(x))
            loss = net(x).float().square().mean() + net(2 * x).float().mean()
        loss.backward()
    assert torch.equal(*outputs)
    for name, parameter in network.named_parameters():
        grad = names[name].grad
        assert (parameter.grad is None) == (grad is None)
        assert grad is None or torch.allclose(parameter.grad.full_tensor(), grad, atol=1e-7)


def test_whole_is_for_saving_and_leaves_the_shards(group):
    network = Network()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    sharding.shard(network, ['blocks.*'], torch.device('cpu'))
    shards = dict(network.named_parameters())
    with sharding.whole(network, {'first.weight', 'blocks.3.linear.bias'}, keep=True):
        state = network.state_dict()
        assert (
            torch.equal(state['first.weight'], before['first.weight']) and type(state['first.weight']) is torch.Tensor
        )
        assert torch.equal(state['blocks.3.linear.bias'], before['blocks.3.linear.bias'])
        assert state['last.weight'].numel() == 0
    with sharding.whole(network, before.keys(), keep=False):
        assert all(p is shards[name] for name, p in network.named_parameters())
    assert all(p is shards[name] for name, p in network.named_parameters())
    value = torch.randn(8, 4)
    shard = sharding.fitting(value, network.first.weight.detach())
    assert torch.equal(shard.full_tensor(), value) and sharding.fitting(shard, shard) is shard
    assert sharding.fitting(value, torch.zeros(8, 4)) is value
