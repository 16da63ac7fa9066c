"""Fixtures shared by all tests."""

import os
from pathlib import Path

import pytest

SHARED = Path(os.environ.get('FINPERCEP_SHARED', Path(__file__).resolve().parents[2] / 'shared'))


@pytest.fixture(scope='session')
def shared() -> Path:
    """The folder of real photos and references beside the checkout; the test is skipped where it is absent."""
    if not SHARED.is_dir():
        pytest.skip(f'no shared folder at {SHARED} (set FINPERCEP_SHARED)')
    return SHARED
