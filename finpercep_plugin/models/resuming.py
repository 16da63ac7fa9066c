"""Whether a training state is of this run."""

from __future__ import annotations

from typing import Any, Mapping

from torch import Tensor

__all__ = ['check_kind', 'check_model', 'check_trained']

_WANTED = {'trained': dict, 'optimizers': list, 'buffers': dict, 'ema': dict, 'bad_steps': int, 'rng': Tensor}


def check_model(state: Mapping[str, Any], model: str) -> None:
    """
    Args:
        state: the state to resume.
        model: `model_type` of this run.

    Raises:
        ValueError: it is of another model.
    """
    found = state.get('model', model)  # older states do not tell, nor do BasicSR's
    if found != model:
        raise ValueError(f'the state to resume is of {found}, the YAML has model_type {model}')


def check_kind(state: Mapping[str, Any], model: str, **more: type) -> None:
    """
    Args:
        state: the state to resume.
        model: class of this run's model.
        more: what else must be in it, {name: type}.

    Raises:
        ValueError: it is of another model, or of none of the plugin's.
    """
    check_model(state, model)
    wanted = {**_WANTED, **more}
    lacking = [name for name, kind in wanted.items() if not isinstance(state.get(name), kind)]
    if lacking:
        raise ValueError(
            f'the state to resume is of no model of the plugin: {", ".join(lacking)} missing or of another kind'
        )


def check_trained(saved: Mapping[str, Tensor], trained: Mapping[str, Tensor]) -> None:
    """
    Args:
        saved: trained parameters of the state to resume.
        trained: those of this run.

    Raises:
        ValueError: other names or shapes; both sides of the difference are named.
    """
    if set(saved) != set(trained):
        raise ValueError(
            'the state to resume trains other parameters than the YAML: only in the state '
            f'{sorted(set(saved) - set(trained))[:5]}, only in the YAML {sorted(set(trained) - set(saved))[:5]}'
        )
    lines = [
        f'{name} is {tuple(value.shape)} in the state, {tuple(trained[name].shape)} by the YAML'
        for name, value in saved.items()
        if value.shape != trained[name].shape
    ]
    if lines:
        more = f'; and {len(lines) - 5} more' if len(lines) > 5 else ''
        raise ValueError(f'the state to resume is of a network of other sizes: {"; ".join(lines[:5])}{more}')
