"""Any BasicSR arch with a checkpoint as a producer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from finpercep_plugin.data.producers.torch_tools import single_thread, to_tensor, to_uint8
from finpercep_plugin.integrations.basicsr import require
from finpercep_plugin.registry import PRODUCERS

__all__ = ['BasicSRProducer']


@PRODUCERS.register('basicsr')
class BasicSRProducer:
    """A network that BasicSR's registry can build, run on lq as a whole.

    Args:
        network: its `network_g` section: `type` and constructor options.
        weights: the .pth file.
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
        import torch

        if not Path(weights).is_file():
            raise FileNotFoundError(f'weights: no such file: {weights}')
        require()
        from basicsr.archs import build_network

        try:
            self.network = build_network(dict(network))
        except (KeyError, TypeError) as error:
            raise ValueError(f'network: BasicSR cannot build {network}: {error}') from error
        try:
            state = torch.load(weights, map_location='cpu', weights_only=True)
        except Exception as error:  # torch raises a dozen types for a broken file; each means the same to the user
            raise ValueError(f'weights: {weights} is not a readable weight file: {error}') from error
        try:
            self.network.load_state_dict(_parameters(state, param_key))
        except (RuntimeError, KeyError, TypeError) as error:
            raise ValueError(f'weights: {weights} does not fit {network.get("type")}: {error}') from error
        self.network.eval().requires_grad_(False).to(device)
        self.device, self.record = device, {'network': network.get('type'), 'weights': Path(weights).name}

    def __call__(self, lq: np.ndarray, scale: int, rng: np.random.Generator) -> tuple[np.ndarray, dict]:
        """lq (h, w, 3) uint8 -> sr (h * scale, w * scale, 3) uint8; draws nothing."""
        with single_thread():
            sr = to_uint8(self.network(to_tensor(lq, self.device)))
        return sr, dict(self.record)


def _parameters(state: dict[str, Any], key: str | None) -> dict[str, Any]:
    if key is not None:
        if key not in state:
            raise KeyError(f'no entry {key!r}; it has {", ".join(list(state)[:5])}')
        return state[key]
    return next((state[k] for k in ('params_ema', 'params') if k in state), state)
