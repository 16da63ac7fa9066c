"""Two processes, here threads, that call a shared network different numbers of times."""

import contextlib
import threading

import torch
from torch import nn

from finpercep_plugin.models.lockstep import Lockstep


class Shared:
    """The smallest wish of both, as an all-reduce gives it."""

    def __init__(self):
        self.wishes, self.barrier = {}, threading.Barrier(2, timeout=20)

    def smallest(self, rank: int, wish: int) -> int:
        self.wishes[rank] = wish
        self.barrier.wait()
        agreed = min(self.wishes.values())
        self.barrier.wait()
        return agreed


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.calls, self.graded = [], []

    def forward(self, entry, value):
        self.calls.append(entry)
        self.graded.append(torch.is_grad_enabled())
        return value + 1


def work(rank: int, shared: Shared, plan: list, network: Network, results: list) -> None:
    lockstep = Lockstep(network, torch.device('cpu'), contextlib.nullcontext)
    lockstep._agree = lambda wish: shared.smallest(rank, wish)
    with torch.no_grad(), lockstep.uneven():
        results += [int(network(entry, torch.tensor(value))) for entry, value in plan]
    network('after', torch.tensor(0))


def both(one: list, other: list) -> tuple[list[Network], list[list[int]]]:
    shared, networks, results = Shared(), [Network(), Network()], [[], []]
    arguments = [(i, shared, plan, networks[i], results[i]) for i, plan in enumerate((one, other))]
    threads = [threading.Thread(target=work, args=a, daemon=True) for a in arguments]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    return networks, results


def test_both_make_the_same_calls_and_get_their_own_results():
    image = [('encode', 1), ('predict', 2), ('predict', 3)]
    networks, results = both([*image, *image, *image], image)
    assert results == [[2, 3, 4] * 3, [2, 3, 4]]
    assert networks[0].calls == networks[1].calls and len(networks[0].calls) == 10
    assert not any(networks[1].graded[:-1])


def test_pictures_of_different_sizes_go_through_the_first_entry_first():
    small, large = [('encode', 1), ('predict', 1)], [('encode', 5), ('encode', 6), ('predict', 7), ('predict', 8)]
    networks, results = both([*small, *small], [*large])
    assert results == [[2, 2, 2, 2], [6, 7, 8, 9]]
    assert networks[0].calls == networks[1].calls
    assert networks[0].calls[:2] == ['encode', 'encode']
