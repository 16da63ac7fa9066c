"""Fixtures shared by all tests."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)  # two gain nothing on tiny tensors, and fight for the cores with the processes that tests start
os.environ.setdefault('OMP_NUM_THREADS', '1')

SHARED = Path(os.environ.get('FINPERCEP_SHARED', Path(__file__).resolve().parents[2] / 'shared'))


def pytest_collection_modifyitems(items):
    """What is not slow and yet runs for minutes stands still, and is stopped."""
    for item in items:
        if not item.get_closest_marker('slow') and not item.get_closest_marker('timeout'):
            item.add_marker(pytest.mark.timeout(240))


@pytest.fixture(scope='session')
def shared() -> Path:
    """The folder of real photos and references beside the checkout; the test is skipped where it is absent."""
    if not SHARED.is_dir():
        pytest.skip(f'no shared folder at {SHARED} (set FINPERCEP_SHARED)')
    return SHARED


@pytest.fixture(scope='session')
def tiny_rms(tmp_path_factory) -> dict[int, str]:
    """Files of an RM_0, RM_1 and RM_2 of a few thousand parameters, whose scores and maps depend on the image."""
    from finpercep_plugin.archs.finpercep_rm_arch import FinPercepRM

    folder, files = tmp_path_factory.mktemp('rms'), {}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vit = {'size': 32, 'patch': 8, 'width': 32, 'depth': 3, 'heads': 2, 'stem': 8}
        rm = FinPercepRM(stage=0, backbone='small', vit=vit, decoder_width=16, adapter_width=8)
        for stage in range(3):
            if stage:
                rm.grow()
            with torch.no_grad():  # growth starts from zero layers
                for parameter in rm.parameters():
                    parameter += 0.05 * torch.randn(parameter.shape)
            files[stage] = str(folder / f'rm_{stage}.pth')
            torch.save(rm.file(), files[stage])
    return files


@pytest.fixture
def in_float64(monkeypatch):
    """What computes in float32 by `.float()`, and what is made without a dtype, is float64: for errors below 1e-6."""
    monkeypatch.setattr(torch.Tensor, 'float', torch.Tensor.double)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def randomise(module: torch.nn.Module, seed: int = 0, scale: float = 0.2) -> None:
    """Weights that give every layer a say; those of norms around 1."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        noise = scale * torch.randn(parameter.shape, generator=generator)
        parameter.data = parameter.data + noise if parameter.ndim < 2 and 'weight' in name else noise


@pytest.fixture(scope='session')
def tiny_clip(tmp_path_factory) -> dict[str, Path]:
    """An open_clip model: its configuration as a .json, its weights as a plain state dict, and as HPSv2 releases them."""
    import open_clip

    config = {
        'embed_dim': 16,
        'vision_cfg': {'image_size': 32, 'layers': 2, 'width': 32, 'head_width': 16, 'patch_size': 8},
        'text_cfg': {'context_length': 77, 'vocab_size': 49408, 'width': 24, 'heads': 2, 'layers': 2},
    }
    folder = tmp_path_factory.mktemp('clip')
    (folder / 'config.json').write_text(json.dumps({'model_cfg': config}))
    network = open_clip.CLIP(**config)
    randomise(network)
    network.logit_scale.data.fill_(4.0)
    torch.save(network.state_dict(), folder / 'weights.pt')
    hps = {'epoch': 1, 'state_dict': {k: v.half() for k, v in network.state_dict().items()}}
    torch.save(hps, folder / 'hps.pt')
    return {'model': folder / 'config.json', 'weights': folder / 'weights.pt', 'hps': folder / 'hps.pt'}


@pytest.fixture
def python():
    """Run Python with `arguments`, as a process of an environment that the plugin is installed in; returns the
    finished process.
    """
    if importlib.util.find_spec('_finpercep_autoload') is None:
        pytest.skip('the plugin is not installed in this environment (pip install -e .)')

    def run(*arguments, check=True, timeout=120, **variables):
        environment = {**os.environ, 'OMP_NUM_THREADS': '1', **variables}
        command = [sys.executable, *map(str, arguments)]
        result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout)
        if check:
            assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-4000:]
        return result

    return run
