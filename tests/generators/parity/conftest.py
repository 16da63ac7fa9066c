"""Numbers of the public projects' own code, in the folder that FINPERCEP_PARITY names."""

import gzip
import importlib.util
import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Optional

import pytest
import torch

from finpercep_plugin.diffusion.schedule import DiscreteSchedule, alphas_cumprod, zero_terminal_snr

PARITY = Path(os.environ.get('FINPERCEP_PARITY') or Path(__file__).resolve().parents[4] / 'shared/parity')
SD_BETAS = (1000, 0.00085, 0.012)  # of Stable Diffusion: how many, first, last; generators have these by themselves


def _read(file: Path) -> dict:
    from safetensors.torch import load_file

    return {
        k: v.float() if v.is_floating_point() and v.dtype != torch.float64 else v for k, v in load_file(file).items()
    }


class Fixture(SimpleNamespace):
    """config and meta (dicts, empty where there is none), inputs and outputs (tensors), folder and root (paths)."""

    def weights(self, keys: str = 'keys.json') -> dict:
        """{released name: fp32 tensor}: the stored ones, or those that the folder's det_weights.py makes of `keys`."""
        stored = self.folder / 'state_dict.safetensors'
        if keys == 'keys.json' and stored.is_file():
            return _read(stored)
        return self.det_weights.rebuild(self.folder / keys)

    def grads(self) -> dict:
        """{tensor: d loss / d tensor} of the outputs `grad:<tensor>`."""
        return {name.partition(':')[2]: value for name, value in self.outputs.items() if name.startswith('grad:')}


@pytest.fixture(scope='session')
def parity_root() -> Path:
    if not PARITY.is_dir():
        pytest.skip(f'no parity folder at {PARITY} (set FINPERCEP_PARITY)')
    return PARITY


@pytest.fixture(scope='session')
def parity(parity_root):
    """parity(name) -> the `Fixture` in that folder."""
    spec = importlib.util.spec_from_file_location('det_weights', parity_root / 'det_weights.py')
    det_weights = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(det_weights)

    def load(name: str) -> Fixture:
        folder = parity_root / name
        texts = {key: folder / f'{key}.json' for key in ('config', 'meta')}
        parts = {key: json.loads(file.read_text()) if file.is_file() else {} for key, file in texts.items()}
        tensors = {key: _read(folder / f'{key}.safetensors') for key in ('inputs', 'outputs')}
        return Fixture(**parts, **tensors, folder=folder, root=parity_root, det_weights=det_weights)

    return load


@pytest.fixture(scope='session')
def full_keys(parity_root):
    """full_keys(name) -> {released name: (shape, dtype)} of the full-size network; of a module list, as it is."""

    def load(name: str) -> dict:
        with gzip.open(parity_root / 'full_keys' / f'{name}.json.gz', 'rt') as stream:
            keys = json.load(stream)
        if 'module_lists' in name:
            return keys
        return {key: (tuple(shape), dtype) for key, (shape, dtype) in keys.items()}

    return load


@pytest.fixture(scope='session')
def with_betas():
    """with_betas(generator, steps, number, first, last) -> it, on that schedule if that is not Stable Diffusion's."""

    def change(generator, steps: int, *betas: float, zero_snr: bool = False):
        if betas != SD_BETAS:
            alphas = alphas_cumprod('scaled_linear', *betas)
            generator.schedule = DiscreteSchedule(zero_terminal_snr(alphas) if zero_snr else alphas)
            generator.steps = generator.timesteps(steps)
        return generator

    return change


@pytest.fixture(scope='session')
def close():
    """close(ours, expected, what): the largest difference is below `rtol` of the largest expected value.

    None, a gradient that did not come, is 0.
    """

    def check(ours: Optional[torch.Tensor], expected: torch.Tensor, what: str, rtol: float = 1e-4) -> None:
        ours = torch.zeros_like(expected) if ours is None else ours.detach()
        assert ours.shape == expected.shape, f'{what}: shape {tuple(ours.shape)}, expected {tuple(expected.shape)}'
        error = (ours.double() - expected.double()).abs().max() / expected.double().abs().max().clamp(min=1e-12)
        assert error < rtol, f'{what}: relative error {float(error):.2e}'

    return check
