"""What is remembered, for how long, and under which key."""

import pytest
import torch

from finpercep_plugin.generators.memory import Memory, content_key


def test_the_longest_unused_is_forgotten():
    memory = Memory(2)
    memory['a'], memory['b'] = 1, 2
    assert memory['a'] == 1
    memory['c'] = 3
    assert ['a' in memory, 'b' in memory, 'c' in memory] == [True, False, True]
    memory['a'] = 4  # known: nothing is pushed out, and it is young again
    memory['d'] = 5
    assert [memory['a'], memory['d']] == [4, 5] and 'c' not in memory
    with pytest.raises(KeyError):
        memory['c']


def test_a_memory_of_nothing():
    memory = Memory(0)
    memory['a'] = 1
    assert 'a' not in memory


def test_key_is_of_values_shape_and_dtype():
    x = torch.rand(3, 4, 6)
    assert content_key(x) == content_key(x.clone())
    assert content_key(x.permute(0, 2, 1).contiguous().permute(0, 2, 1)) == content_key(x)  # whatever the strides
    changed = x.clone()
    changed[2, 3, 5] = torch.nextafter(changed[2, 3, 5], torch.tensor(2.0))
    others = [changed, x.reshape(3, 6, 4), x.double(), x.bfloat16(), x[:2], x.flip(0)]
    assert len({content_key(other) for other in [x, *others]}) == len(others) + 1
    assert content_key(x.requires_grad_()) == content_key(x.detach())
