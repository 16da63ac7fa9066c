"""Fixtures shared by all tests."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SHARED = Path(os.environ.get('FINPERCEP_SHARED', Path(__file__).resolve().parents[2] / 'shared'))


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
