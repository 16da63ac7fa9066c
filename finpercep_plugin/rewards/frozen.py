"""Networks that nothing may train, those included that hide from `nn.Module.parameters`."""

from __future__ import annotations

from typing import Any, Iterable, TypeVar

from torch import nn

__all__ = ['freeze', 'hidden_modules']

M = TypeVar('M', bound=nn.Module)


def hidden_modules(module: nn.Module) -> list[nn.Module]:
    """Modules in plain lists, tuples, sets and dicts of a module or its children.

    `nn.Module` does not see them: `requires_grad_`, `eval`, `to` and `state_dict` pass them by. Some libraries keep a
    backbone there so that it is not saved.

    >>> net = nn.Linear(1, 1)
    >>> net.backbone = [nn.Linear(2, 2)]
    >>> hidden_modules(net)
    [Linear(in_features=2, out_features=2, bias=True)]
    """
    seen, found = set(map(id, module.modules())), []
    waiting = list(module.modules())
    while waiting:
        own = {k: v for k, v in vars(waiting.pop()).items() if k not in ('_modules', '_parameters', '_buffers')}
        for inner in _modules_in(own.values()):
            fresh = [m for m in inner.modules() if id(m) not in seen]
            seen.update(map(id, fresh))
            found += [inner] if inner in fresh else []
            waiting += fresh
    return found


def freeze(module: M) -> M:
    """No gradients and eval mode, everywhere, in place."""
    for part in (module, *hidden_modules(module)):
        part.requires_grad_(False).eval()
    return module


def _modules_in(values: Iterable[Any]) -> list[nn.Module]:
    found = []
    for value in values:
        if isinstance(value, nn.Module):
            found.append(value)
        elif isinstance(value, (list, tuple, set, frozenset)):
            found += _modules_in(value)
        elif isinstance(value, dict):
            found += _modules_in(value.values())
    return found
