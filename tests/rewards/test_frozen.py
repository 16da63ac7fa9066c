"""Modules that hide in lists are found and frozen, once each."""

import torch
from torch import nn

from finpercep_plugin.rewards.frozen import freeze, hidden_modules


class Holder(nn.Module):
    def __init__(self):
        super().__init__()
        inner = nn.Sequential(nn.Linear(2, 2), nn.Dropout())
        inner.deeper = ({'net': nn.Linear(3, 3)},)
        self.seen = nn.Linear(1, 1)
        self.clip = [inner, self.seen, inner]
        self.note = ['text', torch.zeros(1)]


def test_finds_them_at_any_depth_and_once():
    holder = Holder()
    found = hidden_modules(holder)
    assert len(found) == 2 and found[0] is holder.clip[0] and found[1] is holder.clip[0].deeper[0]['net']
    assert hidden_modules(nn.Linear(1, 1)) == []


def test_freeze_reaches_what_requires_grad_does_not():
    holder = Holder()
    holder.requires_grad_(False).eval()
    hidden = [m for part in holder.clip for m in part.modules()]
    assert any(p.requires_grad for m in hidden for p in m.parameters()) and any(m.training for m in hidden)
    assert freeze(holder) is holder
    assert not any(p.requires_grad for m in hidden for p in m.parameters()) and not any(m.training for m in hidden)
    assert not holder.clip[0].deeper[0]['net'].weight.requires_grad
