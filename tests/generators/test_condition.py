"""Condition: indexing, repeating, moving, checking."""

import pytest
import torch

from finpercep_plugin.generators.condition import Condition


@pytest.fixture
def cond():
    rows = torch.arange(4.0).reshape(4, 1, 1, 1)
    return Condition(
        rows.expand(4, 3, 2, 2), rows.expand(4, 3, 8, 8), ('a', 'b', 'c', 'd'), {'tags': torch.arange(8).reshape(4, 2)}
    )


@pytest.mark.parametrize(
    ('index', 'rows'),
    [(slice(1, 3), [1, 2]), (slice(None, None, 2), [0, 2]), ([3, 0], [3, 0]), (torch.tensor([2, 2]), [2, 2])],
)
def test_index(cond, index, rows):
    part = cond[index]
    assert part.lq[:, 0, 0, 0].tolist() == rows and part.lq_up[:, 0, 0, 0].tolist() == rows
    assert part.prompts == tuple('abcd'[i] for i in rows)
    assert part.tensors['tags'].tolist() == [[2 * i, 2 * i + 1] for i in rows]


def test_repeat_keeps_groups_together(cond):
    many = cond[:2].repeat(3)
    assert many.lq[:, 0, 0, 0].tolist() == [0, 0, 0, 1, 1, 1]
    assert many.prompts == ('a', 'a', 'a', 'b', 'b', 'b')


def test_gradient_passes_unless_detached():
    lq = torch.rand(2, 3, 2, 2, requires_grad=True)
    cond = Condition(lq, lq.repeat(1, 1, 2, 2), tensors={'latent': lq * 2})
    assert cond[:1].tensors['latent'].requires_grad and cond.repeat(2).lq_up.requires_grad
    detached = cond.detach()
    assert not (detached.lq.requires_grad or detached.lq_up.requires_grad or detached.tensors['latent'].requires_grad)


def test_to_moves_every_tensor(cond):
    moved = cond.to('meta')
    assert {moved.lq.device.type, moved.lq_up.device.type, moved.tensors['tags'].device.type} == {'meta'}
    assert moved.prompts == cond.prompts


def test_bad_input(cond):
    with pytest.raises(ValueError, match="other batch sizes: {'prompts': 1}"):
        Condition(cond.lq, cond.lq_up, ('a',))
    with pytest.raises(ValueError, match="'tags': 3"):
        Condition(cond.lq, cond.lq_up, tensors={'tags': torch.zeros(3, 2)})
    with pytest.raises(TypeError, match=r'cond\[1:2\]'):
        cond[1]
