"""Sound data to spoil."""

from tests.data.conftest import fgr, options, photos, preferences  # noqa: F401
