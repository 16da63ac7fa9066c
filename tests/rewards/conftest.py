"""BasicSR's metrics, to compare with."""

from types import ModuleType

import pytest


@pytest.fixture(scope='session')
def basicsr_metrics() -> ModuleType:
    """basicsr.metrics; the test is skipped without BasicSR."""
    from finpercep_plugin.integrations.basicsr import require

    try:
        require()
    except ImportError as error:
        pytest.skip(str(error))
    import basicsr.metrics

    return basicsr.metrics
