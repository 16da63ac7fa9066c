"""What all faults share: sound data and options, a server that forks processes, and a place for what was counted."""

import os

import pytest

from tests.data.conftest import photos  # noqa: F401
from tests.faults.forks import Forks
from tests.faults.told import Told
from tests.models.conftest import fgr_set, generator_file, options  # noqa: F401


@pytest.fixture(scope='session')
def seed() -> int:
    """Of all that is drawn; FINPERCEP_FAULT_SEED in place of 0."""
    number = int(os.environ.get('FINPERCEP_FAULT_SEED', 0))
    print(f'seed {number}')
    return number


@pytest.fixture(scope='session')
def told(seed) -> Told:
    """What the tests of this run have seen."""
    return Told(seed)


@pytest.fixture(scope='session')
def forks():
    """A server of forks, for the whole run."""
    server = Forks()
    yield server
    server.close()
