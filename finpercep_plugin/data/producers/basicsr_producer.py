"""Any BasicSR arch with a checkpoint as a producer."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Sequence

from finpercep_plugin.data.producers.base import Produced, Request
from finpercep_plugin.data.producers.torch_tools import check_weights, run
from finpercep_plugin.generators.released import read_file
from finpercep_plugin.integrations.basicsr import require
from finpercep_plugin.registry import PRODUCERS

__all__ = ['BasicSRProducer']


@PRODUCERS.register('basicsr')
class BasicSRProducer:
    """A network that BasicSR's registry can build, run on lq as a whole.

    Args:
        network: its `network_g` section: `type` and constructor options.
        weights: the .pth or .safetensors file.
        param_key: entry of the file that holds the weights; null takes params_ema, params, or the file itself,
            whichever is there first.
        device: 'cpu' or 'cuda'.

    Raises:
        FileNotFoundError: no such file.
        ImportError: BasicSR is not installed.
        ValueError: BasicSR has no such arch, or the weights cannot be read or do not fit it.
    """

    FILES = ('weights',)

    def __init__(self, network: dict[str, Any], weights: Path, param_key: str | None = None, device: str = 'cpu'):
        check_weights(weights)
        require()
        from basicsr.archs import build_network

        try:
            self.network = build_network(dict(network))
        except (KeyError, TypeError) as error:
            raise ValueError(f'network: BasicSR cannot build {network}: {error}') from error
        state = read_file(weights, 'weights')
        try:
            self.network.load_state_dict(_parameters(state, param_key))
        except (RuntimeError, KeyError, TypeError) as error:
            raise ValueError(f'weights: {weights} does not fit {network.get("type")}: {error}') from error
        self.network.eval().requires_grad_(False).to(device)
        self.device, self.record = device, {'network': network.get('type'), 'weights': Path(weights).name}

    def __call__(self, requests: Sequence[Request], scale: int) -> list[Produced]:
        """All lq in one batch; draws nothing."""
        return [Produced(sr, dict(self.record)) for sr in run(self.network, requests, self.device)]


def _parameters(state: dict[str, Any], key: str | None) -> dict[str, Any]:
    if key is not None:
        if key not in state:
            raise KeyError(f'no entry {key!r}; it has {", ".join(list(state)[:5])}')
        return state[key]
    return next((state[k] for k in ('params_ema', 'params') if k in state), state)
